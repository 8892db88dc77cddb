"""`gpusched rehearse` itself, with programs that have no Run in them: the command, its exit codes, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0

# Sums up to 20; {mistake} is what it forgets to save.
SUM = """
state=$GPUSCHED_CHECKPOINT_DIR/state; number=0; sum=0
[ -f "$state" ] && read -r number sum < "$state"
trap 'stop=yes' TERM
while [ $number -lt 20 ]; do
    if [ -n "$stop" ]; then echo "$number {sum}" > "$state.new"; mv "$state.new" "$state"; exit 85; fi
    number=$((number + 1)); sum=$((sum + number)); sleep 0.05
done
rm -f "$state"; echo $sum > "$1"
"""


def start(tmp_path, *words):
    env = dict(os.environ, PYTHONPATH=str(REPOSITORY), TMPDIR=str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "gpusched", "rehearse", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)


def rehearse(tmp_path, *words):
    process = start(tmp_path, *words)
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    assert list((tmp_path / "tmp").iterdir()) == []  # nothing is left behind
    return process.returncode, out, err


def test_a_program_that_saves_on_a_signal_is_judged_by_the_file_it_writes(tmp_path):
    (tmp_path / "good.sh").write_text(SUM.replace("{sum}", "$sum"))
    (tmp_path / "bad.sh").write_text(SUM.replace("{sum}", "0"))
    words = ["--preemptions", "1", "--compare", "{run}/sum", "--", "bash"]
    code, out, err = rehearse(tmp_path, *words, "good.sh", "{run}/sum")
    assert code == 0 and "resumes exactly: preempted once" in out, (out, err)
    assert "saved and left" in err
    code, out, err = rehearse(tmp_path, "--json", *words, "bad.sh", "{run}/sum")
    answer = json.loads(out)
    assert code == 1 and answer["verdict"] == "differs" and answer["exit_code"] == 1, err
    assert answer["differences"][0].startswith("at the end, {run}/sum: differs from byte")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--", "bash", "-c", "echo reason; exit 3"], 10, "the undisturbed run failed: exit code 3"),
        (["--", "bash", "-c", "sleep 1"], 12, "never saved: every start began from zero"),
        (["--grace", "0.3", "--", "bash", "-c", "trap '' TERM; sleep 1 & wait; wait; sleep 1"], 12, "did not leave"),
        (["--", "bash", "-c", "trap 'exit 85' TERM; sleep 0.7 & wait"], 14, "there is nothing to compare"),
        (["--compare", "result", "--", "true"], 2, "the command has not written"),
        (["--", "no-such-command"], 127, "command 'no-such-command' was not found"),
        (["--workdir", "nowhere", "--", "true"], 127, "nowhere was not found"),
        ([], 2, "no command to rehearse"),
    ],
    ids=["fails", "never saves", "stays", "nothing to compare", "no file", "no command", "no directory", "nothing"],
)
def test_what_cannot_be_rehearsed_has_a_sentence_and_a_code_of_its_own(tmp_path, words, code, text):
    found, out, err = rehearse(tmp_path, "--preemptions", "1", *words)
    assert (found, text in out + err) == (code, True), (out, err)
    if code == 10:
        assert "| reason" in out


def test_a_file_of_an_earlier_run_is_not_taken_for_a_result(tmp_path):
    (tmp_path / "result").write_text("old")
    code, out, _ = rehearse(tmp_path, "--compare", "result", "--", "true")
    assert code == 2 and "has not written" in out and (tmp_path / "result").read_text() == "old"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_programs_and_leaves_nothing_behind(tmp_path, number):
    script = (
        f"echo $$ > {tmp_path}/pid; trap '' TERM; setsid bash -c 'echo $$ > {tmp_path}/away; sleep 300' & sleep 300"
    )
    process = start(tmp_path, "--keep", "--", "bash", "-c", script)
    end = time.monotonic() + PATIENCE
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("pid", "away")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    for name in ("pid", "away"):
        assert gone(int((tmp_path / name).read_text())), name


def gone(pid):
    """Nothing is left of it but what nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
