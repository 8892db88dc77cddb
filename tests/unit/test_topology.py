"""Groups of devices: NVLink first, then NUMA nodes, then nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpusched.devices.topology import groups, numa_node


def never(one: str, other: str) -> bool:
    return False


def of_node(**nodes: int | None):
    def near(one: str, other: str) -> bool | None:
        return None if None in (nodes[one], nodes[other]) else nodes[one] == nodes[other]

    return near


def linked(*pairs: str):
    return lambda one, other: one + other in pairs or other + one in pairs


def test_devices_joined_by_nvlink_also_over_others_are_one_group():
    found = groups("abcdef", linked("ab", "cd", "bc"), of_node(a=0, b=0, c=0, d=0, e=0, f=0))
    assert found == dict.fromkeys("abcd", "nvlink:0") | {"e": "nvlink:1", "f": "nvlink:2"}


def test_the_groups_are_numbered_by_their_first_devices():
    found = groups("abcd", linked("ac", "bd"), never)
    assert found == {"a": "nvlink:0", "b": "nvlink:1", "c": "nvlink:0", "d": "nvlink:1"}


def test_without_nvlink_the_devices_of_one_numa_node_are_a_group():
    assert groups("abc", never, of_node(a=1, b=0, c=1)) == {"a": "numa:0", "b": "numa:1", "c": "numa:0"}


def test_what_is_not_known_is_empty():
    assert groups("abc", never, of_node(a=None, b=None, c=None)) == {"a": "", "b": "", "c": ""}
    assert groups("a", never, never) == {"a": ""}
    assert groups("", never, never) == {}


@pytest.mark.parametrize(("said", "node"), [("1\n", 1), ("0\n", 0), ("-1\n", None), ("?", None)])
def test_the_kernel_tells_the_numa_node_of_a_pci_device(tmp_path: Path, said: str, node: int | None):
    (tmp_path / "0000:c1:00.0").mkdir()
    (tmp_path / "0000:c1:00.0" / "numa_node").write_text(said)
    assert numa_node("00000000:C1:00.0", tmp_path) == node


@pytest.mark.parametrize("bus", [None, "", "nonsense", "../../x", "00000000:C1:00.0"])
def test_a_device_that_the_kernel_does_not_know_has_no_node(tmp_path: Path, bus: str | None):
    assert numa_node(bus, tmp_path) is None
