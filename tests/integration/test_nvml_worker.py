"""The NVML worker and the real pynvml against a driver that is absent, upgraded, slow, stuck, crashing or lying."""

import asyncio
import ctypes
import itertools
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from device_processes import PATIENCE, until

from gpusched.devices.nvml import pid_max
from gpusched.devices.worker import NvmlProbe
from gpusched.devices.worker_process import WorkerProcess
from gpusched.model.device import Health

pytest_plugins = ["device_fixtures"]
MIB = 1 << 20


@pytest.fixture
def spawned(monkeypatch):
    """Every worker that was started."""
    workers = []
    original = WorkerProcess.spawn

    async def spawn(library):
        workers.append(await original(library))
        return workers[-1]

    monkeypatch.setattr(WorkerProcess, "spawn", spawn)
    return workers


@pytest.fixture
async def probe(nvml_machine):
    made = NvmlProbe(nvml_machine.library)
    yield made
    await made.close()


@pytest.fixture
async def hasty(nvml_machine):
    """A probe with a short deadline that has already answered once, so that starting does not count."""
    made = NvmlProbe(nvml_machine.library, deadline=30)
    assert (await made.sample()).error is None
    made._deadline = 2.0
    yield made
    await made.close()


def running(workers):
    return [worker.pid for worker in workers if psutil.pid_exists(worker.pid)]


def has_driver():
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")


@without_driver
async def test_without_a_driver_there_are_no_devices_and_a_sentence_that_says_how_to_simulate_some(spawned):
    probe = NvmlProbe()
    for answer in [await probe.sample() for _ in range(5)] + [await probe.read(["GPU-1"])]:
        assert answer.devices == ()
        assert "Found no NVIDIA driver" in answer.error
        assert "gpusched daemon run --devices sim:4x24G" in answer.error and "gpusched demo" in answer.error
    assert len(spawned) == 1
    await probe.close()


@without_driver
async def test_a_driver_that_is_installed_later_is_found_by_the_same_idle_worker(
    nvml_machine, nvml_double, monkeypatch, spawned
):
    os.unlink(nvml_machine.library)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_machine.directory))
    probe = NvmlProbe()
    assert "Found no NVIDIA driver" in (await probe.sample()).error
    nvml_machine.install(nvml_double)
    found = await until(probe.sample, lambda answer: answer.error is None)
    assert len(found.devices) == 2 and len(spawned) == 1
    await probe.close()


async def test_a_library_path_that_does_not_exist_is_named(tmp_path):
    probe = NvmlProbe(str(tmp_path / "libnvidia-ml.so.1"))
    error = (await probe.sample()).error
    assert str(tmp_path) in error and "nvml_library" in error
    await probe.close()


async def test_a_kernel_module_that_is_loaded_later_is_found(nvml_machine, probe):
    nvml_machine.set(ret__nvmlInitWithFlags__all=9)
    answer = await probe.sample()
    assert "modprobe nvidia" in answer.error and "sim:4x24G" in answer.error
    nvml_machine.set(ret__nvmlInitWithFlags__all=None)
    assert len((await until(probe.sample, lambda answer: answer.error is None)).devices) == 2


async def test_an_absent_driver_is_asked_for_ever_more_rarely(nvml_machine, probe, spawned):
    nvml_machine.set(ret__nvmlInitWithFlags__all=9)
    loop = asyncio.get_running_loop()
    now = [loop.time()]
    probe._now = lambda: now[0]
    looks = []
    for second in range(120):
        await probe.sample()
        if len(spawned) > len(looks):
            looks.append(second)
        now[0] += 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert looks[0] == 0 and pauses == sorted(pauses) and max(pauses) == 30


async def test_an_upgraded_driver_keeps_the_known_devices_and_asks_for_a_reboot(
    nvml_machine, nvml_double, probe, spawned
):
    known = await probe.sample()
    nvml_machine.set(ret__nvmlInitWithFlags__all=18)
    assert (await probe.sample()).error is None  # the library that is mapped still answers
    nvml_machine.install(nvml_double)  # the package manager puts a new one in its place
    answer = await probe.sample()
    assert "Reboot" in answer.error and answer.devices == known.devices
    assert len(spawned) == 2 and len(running(spawned)) <= 1


async def test_a_machine_whose_driver_lists_no_gpu_says_so(nvml_machine, probe):
    nvml_machine.set(count__all=0)
    answer = await probe.sample()
    assert answer.devices == () and "finds no GPU" in answer.error


async def test_all_devices_are_missing_when_the_driver_lists_none_any_more(nvml_machine, probe):
    await probe.sample()
    nvml_machine.set(count__all=0)
    answer = await probe.sample()
    assert [each.health for each in answer.devices] == [Health.MISSING, Health.MISSING]


async def test_a_count_that_fails_is_asked_of_a_fresh_process(nvml_machine, probe, spawned):
    known = await probe.sample()
    nvml_machine.set(ret__nvmlDeviceGetCount_v2__all=999)
    answer = await probe.sample()
    assert "999" in answer.error and answer.devices == known.devices
    nvml_machine.set(ret__nvmlDeviceGetCount_v2__all=None)
    await until(probe.sample, lambda answer: answer.error is None)
    assert len(spawned) >= 2 and len(running(spawned)) == 1


async def test_an_old_driver_without_the_newer_calls_is_read_all_the_same(old_nvml_machine):
    old_nvml_machine.processes[0] = [(1, 100 * MIB)]
    old_nvml_machine.set(mem__used__0=100 * MIB)
    probe = NvmlProbe(old_nvml_machine.library)
    device = (await probe.sample()).devices[0]
    assert device.used_mib == 612  # memory version 1 counts the driver's 512 MiB too
    assert [(each.pid, each.used_mib) for each in device.processes] == [(1, 100)]
    assert (device.temperature_c, device.utilization) == (41, 37)
    await probe.close()


async def test_what_the_driver_reserves_is_not_memory_in_use(nvml_machine, probe):
    nvml_machine.set(mem__used__0=100 * MIB)
    assert (await probe.sample()).devices[0].used_mib == 100


async def test_garbage_pids_of_a_mismatched_process_structure_are_rejected(nvml_machine, probe):
    ours = os.getpid()
    nvml_machine.processes[0] = [(ours, 100 * MIB), (ours, 200 * MIB), (ours, 300 * MIB), (ours, 50 * MIB)]
    nvml_machine.set(garbage__0=1, mem__used__0=650 * MIB)
    device = (await probe.sample()).devices[0]
    assert all(1 <= each.pid <= pid_max() for each in device.processes)
    assert ours in [each.pid for each in device.processes]
    assert all(each.used_mib is None or each.used_mib < 1 << 30 for each in device.processes)


async def test_a_process_list_that_outgrows_its_buffer_is_asked_for_again(nvml_machine, probe):
    nvml_machine.processes[0] = [(1, MIB)]
    nvml_machine.set(grow__nvmlDeviceGetComputeRunningProcesses_v3__0=2)
    device = (await probe.sample()).devices[0]
    assert device.processes_known and [each.pid for each in device.processes] == [1]


async def test_a_process_on_compute_and_graphics_counts_once_and_graphics_alone_counts(nvml_machine, probe):
    nvml_machine.processes[0] = [(1, 100 * MIB)]
    nvml_machine.graphics[0] = [(1, 100 * MIB), (2, 30 * MIB)]
    nvml_machine.write()
    device = (await probe.sample()).devices[0]
    assert [(each.pid, each.used_mib) for each in device.processes] == [(1, 100), (2, 30)]


async def test_memory_that_the_driver_does_not_break_down_is_unknown_and_not_zero(nvml_machine, probe):
    nvml_machine.processes[0] = [(1, 0xFFFFFFFFFFFFFFFF)]
    nvml_machine.write()
    assert [each.used_mib for each in (await probe.sample()).devices[0].processes] == [None]


async def test_a_known_device_that_no_longer_tells_its_identity_keeps_it_also_for_a_fresh_worker(
    nvml_machine, probe, spawned
):
    await probe.sample()
    nvml_machine.set(ret__nvmlDeviceGetHandleByIndex_v2__1=15)
    first = (await probe.sample()).devices[1]
    spawned[0].kill()
    fresh = await until(probe.sample, lambda answer: answer.error is None)
    assert len(spawned) == 2
    for device in (first, fresh.devices[1]):
        assert (device.uuid, device.health) == (nvml_machine.uuid(1), Health.FAILED) and "lost" in device.fault
    assert len(fresh.devices) == 2 and fresh.devices[0].health is Health.OK


async def test_a_device_that_never_told_its_identity_is_shown_as_failed_and_forgotten_when_it_does(nvml_machine, probe):
    nvml_machine.set(ret__nvmlDeviceGetUUID__0=999)
    bad, good = (await probe.sample()).devices
    assert (bad.index, bad.health, good.health) == (0, Health.FAILED, Health.OK)
    nvml_machine.set(ret__nvmlDeviceGetUUID__0=None)
    assert [each.uuid for each in (await probe.sample()).devices] == [nvml_machine.uuid(0), nvml_machine.uuid(1)]


async def test_a_gpu_in_mig_mode_is_not_given_out(nvml_machine, probe):
    nvml_machine.set(mig__0=1, mig__1=0)
    parent, whole = (await probe.sample()).devices
    assert parent.health is Health.FAILED and "MIG" in parent.fault
    assert whole.health is Health.OK


async def test_a_crash_takes_the_worker_only_and_a_fresh_one_answers(nvml_machine, probe, spawned):
    known = await probe.sample()
    nvml_machine.set(crash__nvmlDeviceGetMemoryInfo_v2__1=1)
    answer = await probe.sample()
    assert "SIGABRT" in answer.error and "nvmlDeviceGetMemoryInfo_v2 aborts" in answer.error
    assert answer.devices == known.devices
    again = await probe.sample()
    assert again.error == answer.error and len(spawned) == 1  # not at once: it backs off
    nvml_machine.set(crash__nvmlDeviceGetMemoryInfo_v2__1=None)
    await until(probe.sample, lambda answer: answer.error is None)
    assert len(spawned) == 2


async def test_a_worker_killed_between_two_samples_is_replaced(probe, spawned):
    await probe.sample()
    os.kill(spawned[0].pid, 9)
    assert (await until(probe.sample, lambda answer: answer.error is None)).devices
    await until(probe.sample, lambda answer: len(spawned) == 2 and answer.error is None)


async def test_a_hang_names_the_gpu_and_keeps_what_the_others_said(nvml_machine, hasty):
    nvml_machine.set(mem__used__0=777 * MIB, hang__nvmlDeviceGetUtilizationRates__1=60_000)
    answer = await hasty.sample()
    assert f"GPU 1 ({nvml_machine.uuid(1)}) did not answer within 2 s" in answer.error
    assert [each.used_mib for each in answer.devices] == [777, 0]


async def test_there_is_never_a_second_worker_on_top_of_one_that_cannot_be_killed(
    nvml_machine, hasty, spawned, monkeypatch
):
    monkeypatch.setattr(WorkerProcess, "kill", lambda worker: None)  # as in an uninterruptible driver call
    nvml_machine.set(hang__nvmlDeviceGetMemoryInfo_v2__all=600_000)
    assert "did not answer" in (await hasty.sample()).error
    before = time.monotonic()
    clock = [asyncio.get_running_loop().time()]
    hasty._now = lambda: clock[0]
    for _ in range(10):
        clock[0] += 60  # however long it lasts
        answer = await hasty.sample()
        assert "cannot be ended yet" in answer.error and len(answer.devices) == 2
    assert time.monotonic() - before < PATIENCE
    assert spawned == []  # the fixture saw no start after the first worker's, which came before it
    stuck = hasty._worker
    monkeypatch.undo()
    nvml_machine.set(hang__nvmlDeviceGetMemoryInfo_v2__all=None)
    stuck.kill()
    del hasty._now
    await until(hasty.sample, lambda answer: answer.error is None)
    assert hasty._worker is not stuck


async def test_a_hung_worker_is_replaced_as_soon_as_it_is_gone(nvml_machine, hasty):
    first = hasty._worker.pid
    nvml_machine.set(hang__nvmlDeviceGetMemoryInfo_v2__all=600_000)
    assert "did not answer" in (await hasty.sample()).error
    nvml_machine.set(hang__nvmlDeviceGetMemoryInfo_v2__all=None)
    hasty._deadline = PATIENCE
    await until(hasty.sample, lambda answer: answer.error is None)
    assert hasty._worker.pid != first and not psutil.pid_exists(first)


async def test_a_slow_first_start_is_waited_for_and_not_killed(nvml_machine, spawned):
    nvml_machine.set(hang__nvmlInitWithFlags__all=1500)
    probe = NvmlProbe(nvml_machine.library, deadline=0.3)
    answer = await probe.sample()
    assert answer.devices == () and "starting" in answer.error
    probe._deadline = PATIENCE
    assert len((await probe.sample()).devices) == 2
    assert len(spawned) == 1
    await probe.close()


async def test_a_start_that_never_ends_is_given_up(nvml_machine, spawned):
    nvml_machine.set(hang__nvmlInitWithFlags__all=600_000)
    probe = NvmlProbe(nvml_machine.library, deadline=0.3, start_deadline=0.1)
    assert "did not start" in (await probe.sample()).error
    await until(probe.sample, lambda answer: spawned[0].gone)
    await probe.close()


async def test_the_worker_gets_nothing_of_the_daemons_environment(nvml_machine, probe, spawned, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD_OF_A_USER", "evil")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    await probe.sample()
    process = psutil.Process(spawned[0].pid)
    assert set(process.environ()) == {"PATH", "LC_ALL"} and process.cwd() == "/"
    assert os.getsid(process.pid) == process.pid


async def test_close_ends_the_worker_even_a_hanging_one(nvml_machine, spawned):
    probe = NvmlProbe(nvml_machine.library)
    await probe.sample()
    nvml_machine.set(hang__nvmlDeviceGetMemoryInfo_v2__all=600_000)
    asking = asyncio.create_task(probe.sample())
    await asyncio.sleep(0.1)
    await probe.close()
    assert (await asking).error
    assert len(spawned) == 1 and running(spawned) == []


def talk(machine, lines, setup="pass"):
    """Run the worker by hand: its answers and its exit code. Its stdin ends after these lines."""
    code = f"import sys; import gpusched.devices.nvml_worker as w; {setup}; sys.exit(w.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "--library", machine.library],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


def test_the_worker_ends_when_the_daemon_is_gone(nvml_machine):
    answers, code = talk(nvml_machine, [])
    assert code == 0 and answers == [{"ready": {"driver": "580.65.06", "error": None}}]


def test_the_worker_answers_device_by_device_and_then_that_it_is_done(nvml_machine):
    reading = {"id": 2, "op": "read", "uuids": [nvml_machine.uuid(1)]}
    answers, code = talk(nvml_machine, [{"id": 1, "op": "sample"}, reading])
    told = [(answer["id"], answer["device"]["index"] if "device" in answer else "done") for answer in answers[1:]]
    assert code == 0 and told == [(1, 0), (1, 1), (1, "done"), (2, 1), (2, "done")]


@pytest.mark.parametrize("setup", ["w._BIGGEST = 0", "w._OLDEST = 0"])
def test_a_worker_that_has_grown_big_or_old_makes_room_for_a_fresh_one(nvml_machine, setup):
    answers, code = talk(nvml_machine, [{"id": 1, "op": "sample"}, {"id": 2, "op": "sample"}], setup)
    assert code == 0 and {answer["id"] for answer in answers[1:]} == {1}
