"""What every DeviceProbe promises, told once and held against both: NVML (on the C double) and simulated devices."""

import asyncio
import json
import os

import pytest
from device_processes import until

from gpusched.devices.simulated import SimulatedProbe, parse_simulated
from gpusched.devices.worker import NvmlProbe
from gpusched.model.device import Health

pytest_plugins = ["device_fixtures"]
GIB = 1 << 30


class NvmlRig:
    """Two GPUs of the double; a process is on a GPU when the double's file says so."""

    total_mib = 80 * 1024
    optional = ("utilization", "temperature_c", "power_w", "power_limit_w", "pci_bus_id")

    def __init__(self, machine, processes):
        self.machine, self._processes = machine, processes
        self.uuids = (machine.uuid(0), machine.uuid(1))
        self.probe = self.another()

    def another(self, **options):
        return NvmlProbe(self.machine.library, **options)

    def hold(self, index, mib):
        process = self._processes.hold(mib=mib)
        self.foreign(index, mib, process.pid)
        return process

    def release(self, index, process):
        self._processes.end(process)
        self.machine.processes.pop(index)
        self.machine.set(**{f"mem__used__{index}": None})

    def foreign(self, index, mib, pid=1):
        self.machine.processes[index] = [(pid, mib << 20)]
        self.machine.set(**{f"mem__used__{index}": mib << 20})

    def lose(self, index):
        self.machine.set(**{f"ret__*__{index}": 15})

    def unlist_the_last(self):
        self.machine.set(count__all=1)

    def fail_optional(self, index):
        for call in ("UtilizationRates", "TemperatureV", "Temperature", "PowerUsage", "EnforcedPowerLimit"):
            self.machine.set(**{f"ret__nvmlDeviceGet{call}__{index}": 3})
        self.machine.set(**{f"ret__nvmlDeviceGetPciInfo_v3__{index}": 999})

    def fail_processes(self, index):
        self.machine.set(**{f"ret__nvmlDeviceGetComputeRunningProcesses_v3__{index}": 3})

    def fail_memory(self, index):
        self.machine.set(**{f"ret__nvmlDeviceGetMemoryInfo_v2__{index}": 999})

    def hang(self, ms):
        self.machine.set(hang__nvmlDeviceGetMemoryInfo_v2__all=ms)

    def heal(self):
        self.machine.facts = {k: v for k, v in self.machine.facts.items() if not k.startswith(("ret.", "hang."))}
        self.machine.set(count__all=2)


class SimulatedRig:
    """Two simulated devices; a process is on one when its environment names it."""

    total_mib = 24 * 1024
    optional = NvmlRig.optional

    def __init__(self, tmp_path, processes):
        self._file, self._processes = tmp_path / "faults.json", processes
        self._namespace = str(tmp_path)
        self.probe = self.another()
        self.uuids = self.probe.uuids

    def another(self, **options):
        return SimulatedProbe(parse_simulated("sim:2x24G:H100"), self._namespace, self._file, **options)

    def hold(self, index, mib):
        return self._processes.hold(self.uuids[index], mib=mib)

    def release(self, index, process):
        self._processes.end(process)

    def _inject(self, index, **faults):
        self._write({"devices": {str(index): faults}})

    def _write(self, body):
        fresh = self._file.with_suffix(".tmp")
        fresh.write_text(json.dumps(body))
        os.replace(fresh, self._file)

    def foreign(self, index, mib):
        self._inject(index, foreign_mib=mib)

    def lose(self, index):
        self._inject(index, lost=True)

    def unlist_the_last(self):
        self._inject(1, missing=True)

    def fail_optional(self, index):
        self._inject(index, fail=list(self.optional))

    def fail_processes(self, index):
        self._inject(index, fail=["processes"])

    def fail_memory(self, index):
        self._inject(index, fail=["used_mib"])

    def hang(self, ms):
        self._write({"hang_ms": ms})

    def heal(self):
        self._file.unlink()


@pytest.fixture(params=["nvml", "simulated"])
async def rig(request, tmp_path, processes):
    if request.param == "nvml":
        made = NvmlRig(request.getfixturevalue("nvml_machine"), processes)
    else:
        made = SimulatedRig(tmp_path, processes)
    yield made
    await made.probe.close()


async def test_a_sample_names_every_device_in_the_order_of_its_index(rig):
    sample = await rig.probe.sample()
    assert sample.error is None and sample.driver
    assert [(each.uuid, each.index) for each in sample.devices] == [(rig.uuids[0], 0), (rig.uuids[1], 1)]
    assert all(each.health is Health.OK and "H100" in each.name for each in sample.devices)
    assert all((each.total_mib, each.used_mib, each.processes) == (rig.total_mib, 0, ()) for each in sample.devices)


async def test_every_optional_reading_is_there_and_in_its_unit(rig):
    device = (await rig.probe.sample()).devices[1]
    assert 0 <= device.utilization <= 100 and 20 <= device.temperature_c <= 100
    assert 10 <= device.power_w <= device.power_limit_w <= 1000
    assert device.pci_bus_id == "00000000:02:00.0"


async def test_a_direct_reading_answers_for_the_asked_devices_only(rig):
    first = await rig.probe.read([rig.uuids[1]])  # also when nothing was sampled before
    assert [each.uuid for each in first.devices] == [rig.uuids[1]]
    await rig.probe.sample()
    both = await rig.probe.read([rig.uuids[1], rig.uuids[0]])
    assert [each.index for each in both.devices] == [0, 1]
    assert (await rig.probe.read([])).devices == ()


async def test_a_device_that_never_was_is_not_made_up(rig):
    answer = await rig.probe.read(["GPU-of-another-machine"])
    assert answer.devices == () and answer.error is None


async def test_the_memory_of_a_process_shows_on_its_device_and_is_gone_with_it(rig):
    process = rig.hold(1, 300)
    idle, held = (await rig.probe.sample()).devices
    assert idle.used_mib == 0 and idle.processes == ()
    assert [each.pid for each in held.processes] == [process.pid]
    assert 300 <= held.processes[0].used_mib <= held.used_mib <= 400
    rig.release(1, process)
    (free,) = (await rig.probe.read([rig.uuids[1]])).devices  # the very next reading: the device is given out by it
    assert (free.used_mib, free.processes) == (0, ())


async def test_foreign_memory_is_listed_with_a_process(rig):
    rig.foreign(0, 4096)
    device = (await rig.probe.sample()).devices[0]
    assert device.used_mib == 4096 and [each.used_mib for each in device.processes] == [4096]


async def test_a_lost_device_says_so_and_the_others_go_on(rig):
    await rig.probe.sample()
    rig.lose(0)
    lost, good = (await rig.probe.sample()).devices
    assert (lost.uuid, lost.health, lost.total_mib) == (rig.uuids[0], Health.FAILED, rig.total_mib)
    assert "lost" in lost.fault and good.health is Health.OK
    assert (await rig.probe.read([rig.uuids[0]])).devices[0].health is Health.FAILED
    rig.heal()
    assert all(each.health is Health.OK for each in (await rig.probe.sample()).devices)


async def test_a_device_that_is_no_longer_listed_is_missing_and_not_forgotten(rig):
    await rig.probe.sample()
    rig.unlist_the_last()
    for answer in (await rig.probe.sample(), await rig.probe.read(rig.uuids), await rig.probe.sample()):
        assert answer.error is None
        assert [(each.uuid, each.health) for each in answer.devices] == [
            (rig.uuids[0], Health.OK),
            (rig.uuids[1], Health.MISSING),
        ]
        assert "no longer lists" in answer.devices[1].fault
    rig.heal()
    assert (await rig.probe.sample()).devices[1].health is Health.OK


async def test_each_optional_reading_may_be_missing(rig):
    rig.fail_optional(0)
    poor, rich = (await rig.probe.sample()).devices
    assert poor.health is Health.OK and [getattr(poor, name) for name in rig.optional] == [None] * 5
    assert None not in [getattr(rich, name) for name in rig.optional]


async def test_a_device_whose_memory_cannot_be_read_is_failed(rig):
    rig.fail_memory(1)
    good, bad = (await rig.probe.sample()).devices
    assert (good.health, bad.health) == (Health.OK, Health.FAILED) and bad.fault


async def test_a_card_that_cannot_list_its_processes_says_so(rig):
    process = rig.hold(0, 50)
    rig.fail_processes(0)
    device = (await rig.probe.sample()).devices[0]
    assert not device.processes_known and device.processes == () and device.used_mib >= 50
    rig.release(0, process)


async def test_a_hang_past_the_deadline_is_an_error_beside_the_last_known_devices(rig):
    probe = rig.another(deadline=3.0)
    known = await until(probe.sample, lambda answer: answer.error is None)
    rig.hang(60_000)
    for ask, devices in ((probe.sample, known.devices), (lambda: probe.read([rig.uuids[1]]), known.devices[1:])):
        answer = await ask()
        assert "did not answer within 3 s" in answer.error
        assert answer.devices == devices
    rig.heal()
    healed = await until(probe.sample, lambda answer: answer.error is None)
    assert [each.uuid for each in healed.devices] == list(rig.uuids)
    await probe.close()


async def test_samples_and_readings_may_be_asked_for_at_the_same_time(rig):
    answers = await asyncio.gather(
        *(rig.probe.sample() if turn % 3 else rig.probe.read([rig.uuids[turn % 2]]) for turn in range(12))
    )
    assert [answer.error for answer in answers] == [None] * 12
    for turn, answer in enumerate(answers):
        assert [each.uuid for each in answer.devices] == (list(rig.uuids) if turn % 3 else [rig.uuids[turn % 2]])


async def test_a_caller_that_gives_up_spoils_nothing_for_the_next(rig):
    await rig.probe.sample()
    rig.hang(500)
    asking = asyncio.create_task(rig.probe.sample())
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    rig.heal()
    answer = await rig.probe.read([rig.uuids[1]])
    assert (answer.error, [each.uuid for each in answer.devices]) == (None, [rig.uuids[1]])


async def test_the_loop_runs_on_while_the_probe_hangs(rig):
    await rig.probe.sample()
    rig.hang(700)
    asking = asyncio.create_task(rig.probe.sample())
    turns = 0
    while not asking.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns >= 5 and (await asking).devices


async def test_a_closed_probe_answers_and_does_not_raise(rig):
    process = rig.hold(0, 10)
    probe = rig.another()
    await probe.sample()
    await probe.close()
    await probe.close()
    assert (await probe.sample()).error and (await probe.read(rig.uuids)).error
    rig.release(0, process)
