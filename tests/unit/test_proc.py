"""The facts of /proc, against psutil's opinion and against processes that are odd or gone."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from gpusched.devices import proc

GONE = proc.NO_REAL_PID + 5


@pytest.fixture
def oddly_named(tmp_path):
    program = tmp_path / ") R 1 (\n x"
    os.symlink("/bin/sleep", program)
    process = subprocess.Popen([program, "600"], env={"A": "1", "KEY": "first", "XKEY": "no", "EMPTY": ""})
    yield process
    process.kill()
    process.wait()


def test_a_line_of_stat_is_read_right_whatever_the_program_is_called(oddly_named):
    found, said = proc.stat(oddly_named.pid), psutil.Process(oddly_named.pid)
    assert found.parent == os.getpid() and not found.kernel and not found.zombie
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert abs((time.time() - said.create_time()) - proc.age(found, now)) < 5


def test_cpu_time_and_memory_agree_with_psutil():
    found, said = proc.stat(os.getpid()), psutil.Process().cpu_times()
    assert abs(found.cpu / proc.TICKS_PER_SECOND - said.user - said.system) < 2
    assert proc.resident(os.getpid()) > 1 << 20
    assert 0 < proc.proportional(os.getpid()) <= proc.resident(os.getpid()) + (64 << 20)
    assert proc.owner(os.getpid()) == os.geteuid() and os.getpid() in proc.pids()


def test_an_exec_moves_the_image_and_a_fork_does_not():
    process = subprocess.Popen(["sh", "-c", "read go; exec sleep 600"], stdin=subprocess.PIPE)
    try:
        before = proc.stat(process.pid)
        while before.image == proc.stat(os.getpid()).image:  # it has not exec'd the shell yet
            before = proc.stat(process.pid)
        process.communicate(b"go\n", timeout=0.01)
    except subprocess.TimeoutExpired:
        end = time.monotonic() + 30
        while proc.stat(process.pid).image == before.image and time.monotonic() < end:
            time.sleep(0.01)
        assert proc.stat(process.pid).start == before.start
        assert proc.stat(process.pid).image != before.image
    finally:
        process.kill()
        process.wait()


def test_a_variable_is_found_by_its_whole_name_and_the_first_counts():
    environ = b"XKEY=no\0KEY=first\0KEY=second\0EMPTY=\0LAST=end"
    names = ("KEY", "EMPTY", "LAST", "XKEY", "EY", "MISSING", "")
    assert [proc.variable(environ, name) for name in names] == ["first", "", "end", "no", None, None, None]
    assert proc.variable(b"", "KEY") is None


def test_the_environment_is_the_one_of_the_exec(oddly_named):
    end = time.monotonic() + 30
    while proc.variable(proc.environment(oddly_named.pid) or b"", "KEY") is None and time.monotonic() < end:
        time.sleep(0.01)
    assert proc.environment(oddly_named.pid) == b"A=1\0KEY=first\0XKEY=no\0EMPTY=\0"


def test_a_large_environment_is_read_whole():
    big = {f"V{number}": "x" * 1000 for number in range(200)} | {"KEY": "here"}
    process = subprocess.Popen([sys.executable, "-S", "-c", "print(flush=True); input()"], env=big, stdin=-1, stdout=-1)
    process.stdout.readline()
    assert proc.variable(proc.environment(process.pid), "KEY") == "here"
    process.communicate(b"\n")


def test_a_process_that_is_gone_has_nothing():
    assert proc.stat(GONE) is None and proc.environment(GONE) is None and proc.owner(GONE) is None
    assert proc.resident(GONE) == 0 and proc.proportional(GONE) is None and not proc.exists(GONE)


def test_a_zombie_is_one_and_exists():
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert proc.stat(process.pid).zombie and proc.exists(process.pid)
    process.wait()
    assert not proc.exists(process.pid)
