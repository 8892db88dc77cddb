import pytest

from gpusched.devices.simulated_spec import parse_simulated
from gpusched.model.errors import UsageError


def test_count_and_memory_make_so_many_equal_devices():
    devices = parse_simulated("sim:4x24G").devices
    assert [(each.total_mib, each.name) for each in devices] == [(24576, "Simulated GPU")] * 4


def test_a_model_names_the_devices_and_a_mixed_machine_keeps_its_order():
    devices = parse_simulated("sim:2x24G, 1x80GiB:H100 SXM").devices
    assert [(each.total_mib, each.name) for each in devices] == [
        (24576, "Simulated GPU"),
        (24576, "Simulated GPU"),
        (81920, "Simulated H100 SXM"),
    ]


def test_groups_of_equal_devices_are_written_in_front():
    devices = parse_simulated("sim:2x2x24G,1x80G:A100,1x2x80G:H100").devices
    assert [(each.group, each.total_mib // 1024, each.model) for each in devices] == [
        ("group:0", 24, ""), ("group:0", 24, ""), ("group:1", 24, ""), ("group:1", 24, ""), ("", 80, "A100"),
        ("group:2", 80, "H100"), ("group:2", 80, "H100"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sim",
        "sim:",
        "nvml",
        "sim:4",
        "sim:24G",
        "sim:0x24G",
        "sim:-1x24G",
        "sim:4x24",
        "sim:4x0G",
        "sim:4x24G:",
        "sim:4x24G:\x1b[2J",
        "sim:4x24G,",
        "sim:4x24G;2x8G",
        "sim:٤x24G",
        "sim:9999x24G",
        "sim:0x4x24G",
        "sim:2x0x24G",
        "sim:2x2x2x24G",
        "sim:x4x24G",
        "sim:9999x9999x24G",
        "sim:60x24G,5x80G",
        "real:4x24G",
    ],
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_simulated(text)
    assert "sim:4x24G" in caught.value.hint and repr(text)[1:-1].split(",")[0] in caught.value.message


def test_a_uuid_tells_index_and_namespace_and_nothing_of_the_size():
    small, large = parse_simulated("sim:2x24G"), parse_simulated("sim:2x80G:H100")
    assert small.uuid(1, "a") == large.uuid(1, "a")
    assert len({small.uuid(index, name) for index in (0, 1) for name in ("a", "b", "")}) == 6
