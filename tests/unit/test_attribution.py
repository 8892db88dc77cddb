"""Whose memory is on a device: real processes, made-up readings."""

import os
import signal
import sys

import psutil
import pytest

from gpusched import rundir
from gpusched.devices import attribution, proc
from gpusched.devices.attribution import Attributor
from gpusched.model.device import DeviceProcess, DeviceReading, Health, ProbeSample
from gpusched.model.job import AttemptKey

pytest_plugins = ["device_fixtures"]
ME, OTHER = AttemptKey(7, 1), AttemptKey(9, 2)
NOBODY = proc.NO_REAL_PID


def reading(used, *held, uuid="GPU-0", **more):
    processes = tuple(DeviceProcess(pid, mib) for pid, mib in held)
    return DeviceReading(uuid=uuid, index=0, name="GPU", total_mib=81920, used_mib=used, processes=processes, **more)


def one(device, supervisors=(), marks=(), attributor=None):
    (occupancy,) = (attributor or Attributor()).attribute(ProbeSample((device,)), dict(supervisors), dict(marks))
    assert occupancy.reading is device
    return occupancy


@pytest.fixture
def grandchild(processes):
    """A process whose grandparent is a shell that may stand for a supervisor: (shell's pid, its pid)."""
    inner = f"{sys.executable} -S -c 'import os,time; print(\"ready\", os.getpid(), flush=True); time.sleep(600)'"
    shell = processes.start(["sh", "-c", f"(echo ready; {inner}; true); true"])
    pid = int(shell.stdout.readline().split()[1])
    yield shell.pid, pid
    os.kill(pid, signal.SIGKILL)


def test_a_descendant_of_a_supervisor_is_the_attempts(grandchild):
    supervisor, pid = grandchild
    found = one(reading(500, (pid, 500)), {supervisor: ME})
    assert (found.own, found.foreign_mib, found.foreign_pids, found.residual_mib) == ((ME,), 0, (), 0)


def test_the_supervisor_itself_is_the_attempts():
    assert one(reading(5, (os.getpid(), 5)), {os.getpid(): ME}).own == (ME,)


def test_a_process_of_nobody_we_know_is_foreign(grandchild):
    _, pid = grandchild
    found = one(reading(500, (pid, 500)))
    assert (found.own, found.foreign_mib, found.foreign_pids) == ((), 500, (pid,))


def test_a_process_that_lost_its_ancestors_is_known_by_its_mark(processes):
    marked = processes.hold(**{rundir.ENV_MARK: "mark-of-7-1"})
    found = one(reading(500, (marked.pid, 500)), marks={"mark-of-7-1": ME, "another": OTHER})
    assert (found.own, found.foreign_mib) == ((ME,), 0)
    assert one(reading(500, (marked.pid, 500)), marks={"another": OTHER}).foreign_mib == 500


def test_attempts_and_strangers_on_one_device_are_told_apart(processes):
    mine, yours, strange = (processes.hold(**{rundir.ENV_MARK: mark}) for mark in ("a", "b", "c"))
    found = one(
        reading(1000, (mine.pid, 100), (yours.pid, 200), (strange.pid, 300), uuid="SIM-0"), marks={"b": OTHER, "a": ME}
    )
    assert (found.own, found.foreign_mib, found.foreign_pids) == ((ME, OTHER), 300, (strange.pid,))
    assert found.residual_mib == 400


def test_memory_that_nobody_explains_is_residual_above_a_floor_on_real_devices_only():
    assert one(reading(600)).residual_mib == 0
    assert one(reading(650)).residual_mib == 50
    assert one(reading(650), attributor=Attributor(floor_mib=100)).residual_mib == 550
    assert one(reading(1, uuid="SIM-0-x")).residual_mib == 1


def test_a_process_that_is_gone_explains_nothing(processes):
    gone = processes.hold()
    processes.end(gone)
    found = one(reading(5000, (gone.pid, 5000)), {gone.pid + 1: ME})
    assert (found.own, found.foreign_mib, found.foreign_pids, found.residual_mib) == ((), 0, (), 4400)


def test_an_attempts_process_that_has_just_gone_is_still_the_attempts_while_it_leaves(processes):
    attributor, job = Attributor(), processes.hold(**{rundir.ENV_MARK: "m"})
    device = reading(5000, (job.pid, 5000))
    assert one(device, marks={"m": ME}, attributor=attributor).own == (ME,)
    processes.end(job)
    assert one(device, marks={"m": ME}, attributor=attributor).own == (ME,)
    ended = one(device, attributor=attributor)
    assert (ended.own, ended.foreign_mib, ended.residual_mib) == ((), 0, 4400)


def test_a_process_stays_the_attempts_when_its_parents_end_before_it(processes):
    code = (
        "import os, time\nchild = os.fork()\n"
        "if child: print('ready', flush=True); input()\nelse: time.sleep(600)"
    )
    parent = processes.start([sys.executable, "-S", "-c", code])
    (pid,) = (child.pid for child in psutil.Process(parent.pid).children())
    try:
        attributor, device, supervisors = Attributor(), reading(500, (pid, 500)), {os.getpid(): ME}
        assert one(device, supervisors, attributor=attributor).own == (ME,)
        processes.end(parent)  # the process is init's child now, and no ancestor tells whose it is
        assert one(device, supervisors, attributor=attributor).own == (ME,)
        assert one(device, supervisors).foreign_pids == (pid,)
        assert one(device, {os.getpid(): OTHER}, attributor=attributor).foreign_pids == (pid,)  # its attempt has ended
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_stranger_is_recognised_when_its_attempt_becomes_known(processes, monkeypatch):
    monkeypatch.setattr(attribution, "_YOUNG", 0.0)  # so that what was found out is kept
    attributor, job = Attributor(), processes.hold(**{rundir.ENV_MARK: "m"})
    device = reading(500, (job.pid, 500))
    assert one(device, attributor=attributor).foreign_mib == 500
    assert one(device, marks={"m": ME}, attributor=attributor).own == (ME,)
    assert one(device, attributor=attributor).foreign_mib == 500


def test_what_is_known_of_a_process_is_not_asked_again_each_second(processes, monkeypatch):
    monkeypatch.setattr(attribution, "_YOUNG", 0.0)
    attributor, strange, mine = Attributor(), processes.hold(), processes.hold(**{rundir.ENV_MARK: "m"})
    device = reading(500, (strange.pid, 100), (mine.pid, 100))
    first = one(device, marks={"m": ME}, attributor=attributor)
    monkeypatch.setattr(proc, "environment", lambda pid: pytest.fail("it was asked again"))
    assert one(device, marks={"m": ME}, attributor=attributor) == first


def test_a_reused_pid_is_another_process(processes, monkeypatch):
    monkeypatch.setattr(attribution, "_YOUNG", 0.0)
    attributor, job = Attributor(), processes.hold(**{rundir.ENV_MARK: "m"})
    device = reading(500, (job.pid, 500))
    assert one(device, marks={"m": ME}, attributor=attributor).own == (ME,)
    known = attributor._owners[job.pid]
    attributor._owners[job.pid] = attribution._Owner(known.start - 1, OTHER)  # an earlier process of that number
    assert one(device, {999_999: OTHER}, {"m": ME}, attributor=attributor).own == (ME,)


def test_a_card_that_does_not_list_processes_has_residual_memory_only():
    found = one(reading(5000, processes_known=False), {os.getpid(): ME})
    assert (found.own, found.foreign_mib, found.residual_mib) == ((), 0, 4400)


@pytest.mark.parametrize("health", [Health.FAILED, Health.MISSING])
def test_nothing_is_said_of_a_device_that_cannot_be_read(health):
    found = one(reading(5000, health=health, processes_known=False, fault="lost"), {os.getpid(): ME})
    assert (found.own, found.foreign_mib, found.residual_mib) == ((), 0, 0)


def test_memory_that_the_driver_does_not_break_down_is_put_down_to_the_stranger(processes):
    strange, mine = processes.hold(), processes.hold(**{rundir.ENV_MARK: "m"})
    foreign = one(reading(5000, (strange.pid, None)))
    assert (foreign.foreign_mib, foreign.residual_mib) == (4400, 0)
    tiny = one(reading(100, (strange.pid, None)))
    assert (tiny.foreign_mib, tiny.foreign_pids) == (1, (strange.pid,))  # never unseen
    own = one(reading(5000, (mine.pid, None)), marks={"m": ME})
    assert (own.own, own.foreign_mib, own.residual_mib) == ((ME,), 0, 0)
    both = one(reading(5000, (mine.pid, None), (strange.pid, 300)), marks={"m": ME})
    assert (both.foreign_mib, both.residual_mib) == (300, 0)


def test_the_fictitious_process_of_a_simulated_device_is_foreign():
    found = one(reading(4096, (NOBODY + 3, 4096), uuid="SIM-3-x"), {os.getpid(): ME}, {"m": OTHER})
    assert (found.own, found.foreign_mib, found.foreign_pids) == ((), 4096, (NOBODY + 3,))


def test_a_gang_process_counts_on_each_of_its_devices(processes):
    job = processes.hold(**{rundir.ENV_MARK: "m"})
    devices = tuple(reading(100, (job.pid, 100), uuid=f"SIM-{index}") for index in range(3))
    found = Attributor().attribute(ProbeSample(devices), {}, {"m": ME})
    assert [each.own for each in found] == [(ME,)] * 3


def test_init_is_a_supervisor_only_if_it_says_so(processes):
    strange = processes.hold()
    assert one(reading(100, (strange.pid, 100)), {999_999: ME}).own == ()
    assert one(reading(100, (1, 100)), {999_999: ME}).foreign_pids == (1,)
