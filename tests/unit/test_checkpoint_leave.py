"""How a process ends after a stop: with 85 whatever happens, after the script's own clean-up, with no worker left."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path, body):
    script = tmp_path / "script.py"
    script.write_text("import atexit, os, sys, threading, time\nfrom gpusched.checkpoint import leave\n" + body)
    env = {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=60)


def test_the_scripts_own_clean_up_runs_before_the_end(tmp_path):
    done = run(tmp_path, "atexit.register(print, 'hook')\ntry:\n    leave.leave(85)\nfinally:\n    print('finally')\n")
    assert (done.returncode, done.stdout, done.stderr) == (85, "finally\nhook\n", "")


@pytest.mark.parametrize(
    "body",
    [
        "try:\n    leave.leave(85)\nexcept SystemExit:\n    sys.exit(0)\n",
        "try:\n    leave.leave(85)\nexcept BaseException:\n    pass\n",
        "try:\n    leave.leave(85)\nfinally:\n    raise ValueError('in the clean-up')\n",
        "threading.Thread(target=lambda: leave.leave(85)).start()\ntime.sleep(50)\n",
        "leave._PATIENCE = 0.1\ntry:\n    leave.leave(85)\nfinally:\n    time.sleep(50)\n",
        "leave._PATIENCE = 0.1\nthreading.Thread(target=time.sleep, args=(50,)).start()\nleave.leave(85)\n",
    ],
    ids=["caught", "swallowed", "failing", "in a thread", "hanging clean-up", "a thread that does not end"],
)
def test_the_process_ends_with_85_whatever_the_script_does_with_the_exception(tmp_path, body):
    assert run(tmp_path, body).returncode == 85


def test_data_loader_workers_are_killed_and_not_waited_for(tmp_path):
    body = (
        "import multiprocessing, signal\n"
        "def work():\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    os.write(there, b'ready')\n"
        "    time.sleep(50)\n"
        "here, there = os.pipe()\n"
        "worker = multiprocessing.get_context('fork').Process(target=work, daemon=True)\n"
        "worker.start()\n"
        "os.read(here, 5)\n"
        "atexit.register(lambda: print(worker.exitcode))\n"
        "leave.leave(85)\n"
    )
    done = run(tmp_path, body)
    assert (done.returncode, done.stdout) == (85, "-9\n"), done.stderr


def test_a_forked_child_that_gets_sigterm_ends_as_if_nothing_were_installed(tmp_path):
    body = (
        "import signal\n"
        "leave.Termination().install()\n"
        "here, there = os.pipe()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.write(there, b'ready')\n"  # a signal before this moment is dropped by fork itself
        "    time.sleep(50)\n"
        "    os._exit(0)\n"
        "os.read(here, 5)\n"
        "os.kill(pid, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert run(tmp_path, body).stdout == "-15\n"


def test_a_second_sigterm_ends_the_process_at_once(tmp_path):
    body = (
        "import signal\n"
        "wish = leave.Termination()\n"
        "wish.install()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(wish.asked, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(50)\n"
    )
    done = run(tmp_path, body)
    assert (done.returncode, done.stdout) == (-15, "True\n")
