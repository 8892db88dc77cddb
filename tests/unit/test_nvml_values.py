import json

from hypothesis import given
from hypothesis import strategies as st

from gpusched.devices.nvml import credible_processes
from gpusched.devices.reading_json import decode, encode
from gpusched.model.device import DeviceProcess, DeviceReading, Health

MIB = 1 << 20


def test_pids_that_this_kernel_cannot_give_out_are_rejected():
    entries = [(1000, MIB), (2147483648, MIB), (4294967295, MIB), (0, MIB), (32769, MIB), (32768, MIB)]
    assert [each.pid for each in credible_processes(entries, 32768)] == [1000, 32768]


def test_bytes_are_rounded_up_and_absurd_ones_are_unknown():
    entries = [(1, 1), (2, 3 * MIB), (3, None), (4, 1 << 62), (5, 0)]
    assert [each.used_mib for each in credible_processes(entries, 99)] == [1, 3, None, None, 0]


def test_a_process_in_two_lists_counts_once_with_the_larger_amount_that_is_known():
    assert credible_processes([(7, 5 * MIB), (7, 9 * MIB), (7, None)], 99) == (DeviceProcess(7, 9),)
    assert credible_processes([(7, None), (7, 2 * MIB)], 99) == (DeviceProcess(7, 2),)
    assert credible_processes([(7, None), (7, None)], 99) == (DeviceProcess(7, None),)
    assert credible_processes([(7, 0), (7, None)], 99) == (DeviceProcess(7, 0),)


@given(st.lists(st.tuples(st.integers(0, 1 << 33), st.none() | st.integers(0, 1 << 64)), max_size=20))
def test_no_garbage_gets_through(entries):
    found = credible_processes(entries, 4194304)
    assert [each.pid for each in found] == sorted({pid for pid, _ in entries if 1 <= pid <= 4194304})
    assert all(each.used_mib is None or 0 <= each.used_mib <= 1 << 30 for each in found)


def test_a_reading_survives_the_pipe():
    reading = DeviceReading(
        uuid="GPU-1",
        index=3,
        name="NVIDIA «H100»",
        total_mib=81920,
        used_mib=5,
        processes=(DeviceProcess(7, 4), DeviceProcess(9)),
        processes_known=False,
        utilization=None,
        temperature_c=40,
        power_w=12.5,
        pci_bus_id="00000000:01:00.0",
        group="nvlink:0",
        health=Health.FAILED,
        fault="lost",
    )
    assert decode(json.loads(json.dumps(encode(reading)))) == reading
