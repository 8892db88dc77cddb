"""Simulated devices under real processes: memory, CPU, fork, exec, zombies, strangers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from device_processes import PATIENCE, until

from gpusched.devices import holders as holders_module
from gpusched.devices.simulated import SimulatedProbe, parse_simulated
from gpusched.model.device import Health

pytest_plugins = ["device_fixtures"]


@pytest.fixture
async def probe(tmp_path):
    made = SimulatedProbe(parse_simulated("sim:4x24G"), str(tmp_path), tmp_path / "faults.json")
    yield made
    await made.close()


def old(monkeypatch):
    """Have every process count as grown up, and look at those that hold nothing again only much later."""
    monkeypatch.setattr(holders_module, "_YOUNG", 0.0)
    monkeypatch.setattr(holders_module, "_LATER", 3600.0)


def pids(reading):
    return [each.pid for each in reading.processes]


async def test_the_uuids_stay_for_ever_and_differ_between_two_daemons():
    spec = parse_simulated("sim:2x24G")
    first, again, other = (SimulatedProbe(spec, name) for name in ("one", "one", "two"))
    assert first.uuids == again.uuids == ("SIM-0-e810ffa9-2e826f55", "SIM-1-e810ffa9-2e826f55")
    assert not set(first.uuids) & set(other.uuids)
    for probe in (first, again, other):
        await probe.close()


async def test_a_larger_machine_keeps_the_uuids_of_a_smaller_one():
    small, large = SimulatedProbe(parse_simulated("sim:1x24G"), "n"), SimulatedProbe(parse_simulated("sim:2x80G"), "n")
    assert large.uuids[:1] == small.uuids
    await small.close()
    await large.close()


async def test_two_daemons_do_not_see_each_others_processes(probe, processes):
    other = SimulatedProbe(parse_simulated("sim:4x24G"), "another namespace")
    processes.hold(probe.uuids[0], mib=50)
    assert (await probe.sample()).devices[0].used_mib >= 50
    assert (await other.sample()).devices[0].used_mib == 0
    await other.close()


async def test_a_gang_process_divides_its_memory_among_its_devices(probe, processes):
    process = processes.hold(*probe.uuids[:2], mib=400)
    first, second, third, _ = (await probe.sample()).devices
    assert pids(first) == pids(second) == [process.pid] and pids(third) == []
    assert first.used_mib == second.used_mib and 200 <= first.used_mib < 300


async def test_two_processes_on_one_device_add_up(probe, processes):
    both = [processes.hold(probe.uuids[2], mib=mib).pid for mib in (100, 150)]
    device = (await probe.sample()).devices[2]
    assert sorted(pids(device)) == sorted(both) and device.used_mib >= 250
    assert device.used_mib == sum(each.used_mib for each in device.processes)


async def test_pages_that_a_job_shares_with_its_workers_count_once(probe, processes):
    code = (
        "import os, time; held = b'x' * (300 << 20)\n"
        "if not os.fork() or not os.fork(): time.sleep(600)\nprint('ready', flush=True); time.sleep(600)"
    )
    parent = processes.start([sys.executable, "-S", "-c", code], CUDA_VISIBLE_DEVICES=probe.uuids[0])
    device = await until(probe.sample, lambda sample: len(sample.devices[0].processes) == 3)
    assert 300 <= device.devices[0].used_mib < 500
    for child in pids(device.devices[0]):
        if child != parent.pid:
            os.kill(child, signal.SIGKILL)


async def test_memory_in_use_never_exceeds_what_the_device_has(tmp_path, processes):
    probe = SimulatedProbe(parse_simulated("sim:1x64M"), str(tmp_path))
    processes.hold(probe.uuids[0], mib=200)
    device = (await probe.sample()).devices[0]
    assert device.used_mib == device.total_mib == 64 and device.processes[0].used_mib >= 200
    await probe.close()


async def test_utilisation_is_the_cpu_use_of_the_holders_and_warms_the_device(probe, processes):
    processes.hold(probe.uuids[0], burn=True)
    processes.hold(probe.uuids[1])
    await probe.sample()
    busy = await until(probe.sample, lambda sample: sample.devices[0].utilization >= 20)
    idle = busy.devices[1]
    assert busy.devices[0].utilization <= 100 and idle.utilization < busy.devices[0].utilization
    assert busy.devices[0].power_w > idle.power_w
    await until(probe.sample, lambda sample: sample.devices[0].temperature_c > sample.devices[1].temperature_c)
    assert (await probe.read([probe.uuids[0]])).devices[0].utilization > 0  # a reading does not start a new span


async def test_several_busy_processes_never_show_more_than_all_of_it(probe, processes):
    for _ in range(3):
        processes.hold(probe.uuids[0], burn=True)
    readings = [(await probe.sample()).devices[0].utilization for _ in range(2)]
    await asyncio.sleep(0.3)
    readings.append((await probe.sample()).devices[0].utilization)
    assert max(readings) <= 100 and readings[-1] > 0


async def test_a_program_that_a_shell_execs_right_after_the_scan_is_found_by_the_next(probe, processes):
    shell = processes.start(
        ["sh", "-c", "echo ready; read go; export CUDA_VISIBLE_DEVICES=$0; exec sleep 600", probe.uuids[1]]
    )
    assert (await probe.sample()).devices[1].processes == ()  # its environment, before the exec, names no device
    shell.stdin.write("go\n")
    shell.stdin.flush()
    found = await until(lambda: probe.read([probe.uuids[1]]), lambda answer: answer.devices[0].processes)
    assert pids(found.devices[0]) == [shell.pid]


async def test_an_old_process_that_execs_late_is_found_in_its_turn(probe, processes, monkeypatch):
    monkeypatch.setattr(holders_module, "_YOUNG", 0.0)
    monkeypatch.setattr(holders_module, "_LATER", -10.0)  # its turn comes within a second
    shell = processes.start(
        ["sh", "-c", "echo ready; read go; export CUDA_VISIBLE_DEVICES=$0; exec sleep 600", probe.uuids[1]]
    )
    await probe.sample()
    shell.stdin.write("go\n")
    shell.stdin.flush()
    await until(probe.sample, lambda sample: sample.devices[1].processes)


async def test_a_holder_that_execs_without_the_device_lets_go_of_it(probe, processes, monkeypatch):
    old(monkeypatch)
    shell = processes.start(
        ["sh", "-c", "echo ready; read go; CUDA_VISIBLE_DEVICES= exec sleep 600"], CUDA_VISIBLE_DEVICES=probe.uuids[3]
    )
    assert pids((await probe.sample()).devices[3]) == [shell.pid]
    shell.stdin.write("go\n")
    shell.stdin.flush()
    await until(probe.sample, lambda sample: sample.devices[3].processes == ())


async def test_a_zombie_holds_nothing(probe, processes):
    process = processes.hold(probe.uuids[0], mib=20)
    assert (await probe.sample()).devices[0].used_mib >= 20
    process.kill()  # and nobody reaps it yet
    await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    device = (await probe.read([probe.uuids[0]])).devices[0]
    assert (device.used_mib, device.processes) == (0, ())


async def test_a_process_without_the_variable_or_on_indices_or_on_another_machines_uuid_holds_nothing(probe, processes):
    processes.hold(mib=10)
    for value in ("", "0,1", "SIM-0", probe.uuids[0] + "0", "GPU-x," + probe.uuids[0][:-1]):
        processes.hold(mib=10, CUDA_VISIBLE_DEVICES=value)
    assert all(each.processes == () for each in (await probe.sample()).devices)


async def test_the_daemon_itself_holds_nothing_even_if_it_was_started_inside_a_job(tmp_path):
    code = (
        "import asyncio, os, sys\nfrom gpusched.devices.simulated import SimulatedProbe, parse_simulated\n"
        "sample = asyncio.run(SimulatedProbe(parse_simulated('sim:1x1G'), 'n').sample())\n"
        "assert os.environ['CUDA_VISIBLE_DEVICES'] == sample.devices[0].uuid\n"
        "print(len(sample.devices[0].processes))"
    )
    uuid = parse_simulated("sim:1x1G").uuid(0, "n")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a process as somebody else")
async def test_root_sees_the_processes_of_everybody(probe, processes):
    other = processes.start(
        ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo ready; exec sleep 600"],
        CUDA_VISIBLE_DEVICES=probe.uuids[0],
    )
    await until(probe.sample, lambda sample: pids(sample.devices[0]) == [other.pid])


async def test_an_ordinary_user_asks_nothing_of_other_peoples_processes(probe, processes, monkeypatch):
    process = processes.hold(probe.uuids[0])
    monkeypatch.setattr(probe._holders, "_uid", os.geteuid() + 1)
    assert (await probe.sample()).devices[0].processes == ()
    monkeypatch.undo()
    assert pids((await probe.sample()).devices[0]) == [process.pid]


async def test_memory_that_the_kernel_does_not_tell_in_time_is_an_error_and_not_a_hang(
    tmp_path, processes, monkeypatch
):
    probe = SimulatedProbe(parse_simulated("sim:2x24G"), str(tmp_path), deadline=PATIENCE)
    processes.hold(probe.uuids[0], mib=30)
    known = await probe.sample()
    asked, release = [], threading.Event()
    monkeypatch.setattr(
        holders_module.proc, "resident", lambda pid: asked.append(pid) or release.wait(2 * PATIENCE) or 1 << 20
    )
    probe._deadline = 0.2
    stuck = await probe.sample()
    assert "not told within 0.2 s" in stuck.error and stuck.devices == known.devices
    probe._deadline = PATIENCE  # and yet the next answer comes at once, without a second question behind the first
    again = asyncio.create_task(probe.sample())
    await asyncio.wait([again], timeout=PATIENCE / 2)
    assert again.done() and "not told" in again.result().error and len(asked) == 1
    free = await probe.read([probe.uuids[1]])
    assert free.error is None and free.devices[0].used_mib == 0  # a device without holders needs no memory read
    monkeypatch.undo()
    release.set()
    await until(probe.sample, lambda sample: sample.error is None)
    await probe.close()


async def test_injected_faults_come_and_go_with_the_file(probe, tmp_path):
    assert (await probe.sample()).error is None
    file = tmp_path / "faults.json"
    file.write_text(json.dumps({"devices": {"1": {"lost": True}, "2": {"residual_mib": 700}}, "error": "gone"}))
    broken = await probe.sample()
    assert broken.error == "gone" and [each.health for each in broken.devices] == [Health.OK] * 4
    file.write_text(json.dumps({"devices": {"1": {"lost": True}, "2": {"residual_mib": 700}}}))
    sample = await probe.sample()
    assert sample.devices[1].health is Health.FAILED
    assert (sample.devices[2].used_mib, sample.devices[2].processes) == (700, ())
    file.write_text("")
    assert [each.health for each in (await probe.sample()).devices] == [Health.OK] * 4


async def test_a_bad_faults_file_is_reported_with_its_name_and_the_devices_are_read_all_the_same(probe, tmp_path):
    (tmp_path / "faults.json").write_text('{"devices": {"0": {"lots": true}}}')
    for answer in (await probe.sample(), await probe.sample(), await probe.read(probe.uuids)):
        assert "faults.json" in answer.error and "'lots' is unknown; known: lost" in answer.error
        assert [each.health for each in answer.devices] == [Health.OK] * 4
