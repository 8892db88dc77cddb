"""checkpoint-exec makes programs resumable that know nothing of gpusched: real programs, stopped by real requests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpusched.checkpoint import list_checkpoints

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0

# Counts to 6, one number for each time that it is let: `go` is how far. Writes its state on a signal only.
COUNTER = """
number=$(cat state 2> /dev/null || echo 0)
echo "from $number"
trap 'echo $number > state; exit 85' TERM
trap 'echo $number > state; echo $number > "written"' USR1
while [ $number -lt 6 ]; do
    if [ $number -lt "$(cat go)" ]; then number=$((number + 1)); echo $number; fi
    sleep 0.02
done
echo done
"""


class Wrapped:
    """A program under checkpoint-exec, in a directory of its own; start() is an attempt."""

    def __init__(self, folder, script=COUNTER):
        self.folder, self.attempt, self.process = folder, 0, None
        self.checkpoints = folder / "checkpoints"
        (folder / "program.sh").write_text(script)
        self.let(2)

    @property
    def job_dir(self):
        return self.folder / f"job-{self.attempt}"

    @property
    def output(self):
        return (self.folder / "output").read_text()

    def let(self, count):
        (self.folder / "go.new").write_text(str(count))
        (self.folder / "go.new").rename(self.folder / "go")

    def start(self, *options, command=("bash", "program.sh"), inside=True, module="gpusched.checkpoint.wrap"):
        self.attempt += 1
        self.job_dir.mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith("GPUSCHED_")}
        env["PYTHONPATH"] = str(REPOSITORY)
        if inside:
            env.update(GPUSCHED_JOB_DIR=str(self.job_dir), GPUSCHED_ATTEMPT=str(self.attempt))
            env["GPUSCHED_CHECKPOINT_DIR"] = str(self.checkpoints)
        words = [sys.executable, "-m", *module.split(), *options, "--", *command]
        with open(self.folder / "output", "ab") as output:
            self.process = subprocess.Popen(words, cwd=self.folder, env=env, stdout=output, stderr=output)
        return self

    def ask(self, what, seq=1, seconds=60.0):
        new = self.job_dir / "request.new"
        new.write_text(json.dumps({"ask": what, "seq": seq, "cause": "a test", "seconds_left": seconds}))
        new.rename(self.job_dir / "request")

    def until(self, condition, what):
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                self.process.kill()
                raise AssertionError(f"never {what}; output:\n{self.output}")
            time.sleep(0.01)

    def shown(self, text, times=1):
        self.until(lambda: self.output.count(text) >= times, f"showed {text!r}")

    def end(self):
        return self.process.wait(timeout=PATIENCE)

    def saved(self):
        path = self.job_dir / "saved"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def wrapped(tmp_path):
    one = Wrapped(tmp_path)
    yield one
    if one.process is not None and one.process.poll() is None:
        one.process.kill()
        one.process.wait()


def test_a_program_that_saves_on_a_signal_continues_from_its_files(wrapped):
    wrapped.start("--files", "state")
    wrapped.shown("\n2\n")
    wrapped.until((wrapped.job_dir / "watching").exists, "watched")
    wrapped.ask("stop")
    assert wrapped.end() == 85
    saved = wrapped.saved()
    assert saved["attempt"] == 1
    assert saved["checkpoint"] == list_checkpoints(str(wrapped.checkpoints), checksums=True)[-1].path
    (wrapped.folder / "state").unlink()  # as on a fresh scratch disk
    wrapped.let(6)
    wrapped.start("--files", "state")
    assert wrapped.end() == 0, wrapped.output
    assert "from 0\n1\n2\n" in wrapped.output
    assert "from 2\n3\n4\n5\n6\ndone\n" in wrapped.output
    assert not (wrapped.job_dir / "watching").exists()


def test_a_state_that_was_changed_after_the_save_is_put_back(wrapped):
    wrapped.start("--files", "state")
    wrapped.shown("\n2\n")
    wrapped.ask("stop")
    assert wrapped.end() == 85
    (wrapped.folder / "state").write_text("torn")
    wrapped.let(6)
    wrapped.start("--files", "state")
    assert wrapped.end() == 0 and "from 2\n" in wrapped.output


def test_a_save_command_saves_while_the_program_goes_on_and_a_restore_command_brings_it_back(wrapped):
    wait = "while [ ! -s written ]; do sleep 0.02; done"
    save = f'kill -USR1 $GPUSCHED_PROGRAM_PID; {wait}; mv written "$GPUSCHED_SAVE_DIR/n"'
    options = ("--save", save, "--restore", 'cp "$GPUSCHED_SAVE_DIR/n" state')
    wrapped.start(*options)
    wrapped.shown("\n2\n")
    wrapped.ask("save")
    wrapped.until(lambda: wrapped.saved() is not None, "saved")
    assert wrapped.process.poll() is None and wrapped.saved()["step"] == 1
    wrapped.let(4)
    wrapped.shown("\n4\n")
    wrapped.ask("stop", seq=2)
    assert wrapped.end() == 85 and wrapped.saved()["step"] == 2
    (wrapped.folder / "state").unlink()
    wrapped.let(6)
    wrapped.start(*options)
    assert wrapped.end() == 0 and "from 4\n5\n6\ndone" in wrapped.output
    assert sorted(path.name for path in wrapped.checkpoints.iterdir()) == [".lock", "step-1", "step-2"]


def test_it_saves_every_so_often_when_the_files_stand_still(wrapped):
    (wrapped.folder / "state").write_text("1")
    wrapped.start("--files", "state", "--every", "0.1s")
    wrapped.until(lambda: (wrapped.saved() or {}).get("step", 0) >= 2, "saved twice")
    assert wrapped.process.poll() is None
    wrapped.let(6)
    assert wrapped.end() == 0


def test_a_restart_command_takes_the_programs_place(wrapped):
    wrapped.start("--files", "state")
    wrapped.shown("\n2\n")
    wrapped.ask("stop")
    assert wrapped.end() == 85
    wrapped.start("--files", "state", "--restart", "echo continued with $(cat state)")
    assert wrapped.end() == 0 and "continued with 2\n" in wrapped.output


def test_a_program_that_does_not_leave_is_killed_and_the_last_state_stays(wrapped):
    (wrapped.folder / "program.sh").write_text("trap '' TERM; sleep 300 & echo $! > helper; echo up; wait; sleep 300")
    (wrapped.folder / "state").write_text("good")
    wrapped.start("--files", "state", "--every", "0.1s", "--grace", "0.3s")
    wrapped.until(lambda: wrapped.saved() is not None, "saved")
    before = wrapped.saved()
    wrapped.shown("up")
    wrapped.ask("stop")
    assert wrapped.end() == 1 and "did not leave within" in wrapped.output
    assert wrapped.saved()["step"] >= before["step"] and list_checkpoints(str(wrapped.checkpoints))[-1].good
    helper = int((wrapped.folder / "helper").read_text())
    with pytest.raises(ProcessLookupError):  # nobody is left behind
        os.kill(helper, 0)


def test_a_failed_save_command_is_no_save(wrapped):
    wrapped.start("--save", "exit 3")
    wrapped.shown("\n2\n")
    wrapped.ask("stop")
    assert wrapped.end() == 1 and wrapped.saved() is None
    assert "the save command failed with exit code 3" in wrapped.output


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -SEGV $$", -signal.SIGSEGV), ("exit 0", 0)])
def test_the_end_of_the_program_is_passed_on(wrapped, script, code):
    (wrapped.folder / "program.sh").write_text(script)
    wrapped.start("--files", "state")
    assert wrapped.end() == code and wrapped.saved() is None


def test_a_program_that_is_done_when_it_is_asked_is_done(wrapped):
    (wrapped.folder / "program.sh").write_text("trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done")
    wrapped.start()
    wrapped.shown("up")
    wrapped.ask("stop")
    assert wrapped.end() == 0


def test_a_code_that_means_saved_is_translated(wrapped):
    (wrapped.folder / "program.sh").write_text("trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done")
    wrapped.start("--saved-code", "0")
    wrapped.shown("up")
    wrapped.ask("stop")
    assert wrapped.end() == 85


def test_a_sigterm_is_a_stop_and_other_signals_reach_the_program(wrapped):
    wrapped.start("--files", "state")
    wrapped.shown("\n2\n")
    wrapped.process.send_signal(signal.SIGUSR1)
    wrapped.until((wrapped.folder / "written").exists, "passed on the signal")
    wrapped.process.send_signal(signal.SIGTERM)
    assert wrapped.end() == 85 and wrapped.saved()["step"] == 1


def test_the_newest_good_state_is_used_and_a_torn_one_is_told(wrapped):
    for count in (2, 4):
        wrapped.let(count)
        wrapped.start("--files", "state")
        wrapped.shown(f"\n{count}\n")
        wrapped.ask("stop")
        assert wrapped.end() == 85
    archive = wrapped.checkpoints / "step-2" / "files.tar"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    wrapped.let(6)
    wrapped.start("--files", "state")
    assert wrapped.end() == 0 and "skipping step-2" in wrapped.output
    assert "from 2\n3\n4\n5\n6\n" in wrapped.output


def test_files_that_change_all_the_time_are_not_taken_while_the_program_runs(wrapped):
    (wrapped.folder / "program.sh").write_text("trap 'exit 85' TERM; while :; do date +%N > state; sleep 0.01; done")
    wrapped.start("--files", "state", "--grace", "1s")
    wrapped.until((wrapped.folder / "state").exists, "wrote")
    wrapped.until((wrapped.job_dir / "watching").exists, "watched")
    wrapped.ask("save")
    wrapped.shown("never stand still")
    wrapped.ask("stop", seq=2)
    assert wrapped.end() == 85 and wrapped.saved()["step"] == 1


def test_outside_gpusched_the_program_is_simply_run(wrapped):
    wrapped.let(6)
    wrapped.start("--files", "state", inside=False)
    assert wrapped.end() == 0 and wrapped.output.startswith("from 0\n1\n") and not wrapped.checkpoints.exists()


def test_the_command_of_gpusched_does_the_same(wrapped):
    wrapped.start("checkpoint-exec", "--files", "state", module="gpusched")
    wrapped.shown("\n2\n")
    wrapped.ask("stop")
    assert wrapped.end() == 85 and wrapped.saved()["step"] == 1
    wrapped.start("checkpoint-exec", module="gpusched", command=("no-such-program",))
    assert wrapped.end() == 127 and "cannot run no-such-program" in wrapped.output
    wrapped.start("checkpoint-exec", "--every", "soon", "--files", "state", module="gpusched")
    assert wrapped.end() == 2 and "'soon' is no time" in wrapped.output
