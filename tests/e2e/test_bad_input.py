"""What people get wrong, and what machines do to them: a sentence, a next step, the right exit code, nothing lost."""

from __future__ import annotations

import os
import socket
import subprocess
import termios
import threading
from contextlib import suppress
from pathlib import Path
from unicodedata import east_asian_width

import pytest
from daemons import COMMAND, PATIENCE, Place

WRONG = [
    (["-g", "9", "true"], "9 devices", "2 × Simulated GPU with 8G"),
    (["--gpu-mem", "100G", "true"], "with 100G", "2 × Simulated GPU with 8G"),
    (["--gpu-type", "H100*", "true"], "'H100*'", "2 × Simulated GPU with 8G"),
    (["-g", "-1", "true"], "'-1' is no number of GPUs", "2-8 (any number from 2 to 8)"),
    (["--gpu-mem", "5X", "true"], "memory size '5X' cannot be read", "512M, 20G"),
    (["-t", "5parsecs", "true"], "time '5parsecs' cannot be read", "2:00:00"),
    (["-b", "yesterdayish", "true"], "begin time 'yesterdayish' cannot be read", "tomorrow"),
    (["-a", "0-99999999", "true"], "more than 1000000 elements", "split it"),
    (["-d", "afterok:999999", "true"], "job 999999: no such job", "gpusched queue --all"),
    (["-d", "afterfoo:1", "true"], "unknown dependency type 'afterfoo'", "afterany"),
    (["-d", "42", "true"], "does not say what must have happened", "afterok:42"),
    (["-q", "superb", "true"], "unknown QoS 'superb'", "known: high, low, normal"),
    (["-p", "nope", "true"], "unknown partition 'nope'", "known: default"),
    (["--signal", "FOO", "true"], "unknown signal 'FOO'", "TERM"),
    (["-J", "x" * 300, "true"], "longer than 128 characters", "shorter"),
    (["-J", "a\x1b[31mred", "true"], "cannot be printed", "gpusched submit --help"),
    (["-J", "safe\u202egnp.exe", "true"], "cannot be printed", "gpusched submit --help"),
]


@pytest.mark.parametrize(("words", "what", "instead"), WRONG, ids=[words[0] + words[1][:12] for words, _, _ in WRONG])
def test_a_wrong_submit_is_refused_with_what_would_be_right_and_leaves_no_job(
    place: Place, words: list[str], what: str, instead: str
) -> None:
    before = place.client.last()
    result = place.cli("submit", *words)
    first, _, hint = result.err.partition("\n")
    assert result.code == 2 and not result.out, result
    assert first.startswith("gpusched: ") and what in first
    assert hint.startswith("  ") and instead in hint
    assert place.client.last() == before


def test_a_circle_of_dependencies_made_by_an_update_is_refused_and_changes_nothing(place: Place) -> None:
    first = place.sh("true", hold=True, gpus=0)
    second = place.sh("true", hold=True, gpus=0, dependency=f"afterok:{first}")
    circle = place.cli("update", first, "-d", f"afterok:{second}")
    assert circle.code == 2 and f"job {first} would wait for itself" in circle.err
    itself = place.cli("update", second, "-d", f"afterok:{second}")
    assert itself.code == 2 and f"job {second} cannot depend on itself" in itself.err
    assert not place.job(first)["dependency"] and place.job(second)["dependency"] == f"afterok:{first}"
    place.client.cancel([first, second])


def test_no_control_character_of_a_job_reaches_the_terminal(place: Place) -> None:
    evil = "\x1b]0;owned\x07\u202e\x9b31m"
    key = place.submit("printf", evil, hold=True, gpus=0, comment=evil.replace("\x9b", ""), cwd=str(place.work))
    for words in (["show", key], ["queue", "--format", "job,command,comment"], ["why", key], ["queue", "--csv"]):
        result = place.cli(*words)
        assert result.code == 0 and not set("\x1b\x07\u202e\x9b") & set(result.out + result.err), words
    place.client.cancel([key])


def test_columns_line_up_beside_a_name_of_wide_letters(place: Place) -> None:
    keys = [place.sh("true", hold=True, gpus=0, name=name) for name in ("日本語🚀", "plain")]
    listed = place.cli("queue", "--format", "name,qos", "-j", ",".join(keys)).out.splitlines()
    places = {_cells(line[: line.index("normal")]) for line in listed if "normal" in line}
    assert len(places) == 1, listed
    place.client.cancel(keys)


def _cells(text: str) -> int:
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_an_old_terminal_sees_question_marks_and_no_error(place: Place, locale: dict[str, str]) -> None:
    key = place.sh("true", hold=True, gpus=0, name="日本語")
    for words in (["queue"], ["show", key], ["doctor"]):
        done = subprocess.run(
            [*COMMAND, *words], env={**place.env, **locale}, capture_output=True, timeout=PATIENCE, cwd=place.work
        )
        assert b"should not have happened" not in done.stderr and b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 and done.stdout, (words, done)
    place.client.cancel([key])


def _shell(place: Place, line: str) -> subprocess.CompletedProcess[str]:
    """`gpusched` is $0 and what follows of a shell's line, which may redirect."""
    script = f"gpusched() {{ \"$@\"; }}; {line.replace('gpusched', 'gpusched ' + ' '.join(map(_quoted, COMMAND)))}"
    return subprocess.run(
        ["sh", "-c", script], env=place.env, cwd=place.work, capture_output=True, text=True, timeout=PATIENCE
    )


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def test_closed_standard_streams_harm_no_command(place: Place) -> None:
    assert _shell(place, "gpusched queue <&- >&- 2>&-").returncode == 0
    before = place.client.last()
    submitted = _shell(place, "gpusched submit -g 0 -- true <&- >&- 2>&-")
    assert submitted.returncode == 0 and place.client.last() != before
    assert place.ended(place.client.last()[0])["state"] == "COMPLETED"
    ran = _shell(place, "gpusched run -g 0 -- echo here <&-")
    assert ran.returncode == 0 and ran.stdout.endswith("here\n")


def test_an_output_on_a_full_disk_is_told_in_a_sentence_and_the_job_is_there(place: Place) -> None:
    for words in ("queue", "queue --json", "doctor"):
        full = _shell(place, f"gpusched {words} >/dev/full")
        assert full.returncode == 1 and full.stderr.count("\n") == 2, full
        assert "gpusched: the output could not be written: No space left on device" in full.stderr
    before = place.client.last()
    assert _shell(place, "gpusched submit -g 0 -- true >/dev/full").returncode == 1
    assert place.client.last() != before
    assert place.ended(place.client.last()[0])["state"] == "COMPLETED"


def test_a_command_that_is_not_there_is_told_once_by_run(place: Place) -> None:
    result = place.cli("run", "-g", "0", "--", "no-such-command-at-all")
    assert result.code == 127
    assert (result.out + result.err).count("no-such-command-at-all was not found in the job's PATH") == 1
    assert "FAILED" in result.err


def test_submit_wait_says_how_the_job_failed(place: Place) -> None:
    result = place.cli("submit", "-W", "-g", "0", "--", "sh", "-c", "exit 3")
    assert result.code == 3 and "FAILED: exit code 3" in result.err
    quiet = place.cli("submit", "-W", "--parsable", "-g", "0", "--", "sh", "-c", "exit 3")
    assert quiet.code == 3 and not quiet.err


def test_why_has_an_answer_for_jobs_that_do_not_wait(place: Place) -> None:
    key = place.sh("exec sleep 600")
    place.running(key)
    assert "it waits for nothing: it has been started on device" in place.cli("why", key).out
    place.client.cancel([key])
    place.ended(key)
    assert f"gpusched requeue {key}" in place.cli("why", key).out


def test_without_a_home_directory_everything_works(place: Place) -> None:
    env = {name: value for name, value in place.env.items() if name not in ("HOME", "XDG_RUNTIME_DIR")}
    done = subprocess.run(
        [*COMMAND, "run", "-g", "0", "echo", "homeless"], env=env, cwd=place.work, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "homeless"), done.stderr


def _elsewhere(place: Place, state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command with another state directory, which may start its daemon."""
    env = {**place.env, "GPUSCHED_STATE_DIR": str(state), "GPUSCHED_AUTOSTART": "1"}
    return subprocess.run(
        [*COMMAND, *words], env=env, cwd=place.work, capture_output=True, text=True, timeout=PATIENCE
    )


def test_a_file_in_the_place_of_the_state_directory_is_named_and_left_as_it_is(place: Place, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("mine")
    mode = state.stat().st_mode
    refused = _elsewhere(place, state, "submit", "true")
    assert refused.returncode == 69 and f"{state} is no directory" in refused.stderr
    found = _elsewhere(place, state, "doctor")
    assert found.returncode == 1 and f"state directory: {state} is no directory" in found.stdout
    assert state.read_text() == "mine" and state.stat().st_mode == mode


def test_a_damaged_database_stops_the_start_is_told_by_doctor_and_left_as_it_is(place: Place, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    database = state / "gpusched.sqlite"
    noise = os.urandom(50_000)
    database.write_bytes(noise)
    refused = _elsewhere(place, state, "submit", "true")
    assert refused.returncode == 69 and f"{database} is damaged" in refused.stderr
    found = _elsewhere(place, state, "doctor")
    assert found.returncode == 1 and f"{database} is damaged" in found.stdout
    assert database.read_bytes() == noise


@pytest.mark.parametrize("verb", ["run", "start"])
@pytest.mark.parametrize("devices", ["foo", "sim:foo", "4x24G"])
def test_devices_that_cannot_be_read_are_refused(place: Place, tmp_path: Path, verb: str, devices: str) -> None:
    if verb == "start" and devices == "sim:foo":
        pytest.skip("found by the daemon itself, as in test_a_daemon_that_fails_shows_its_last_words")
    refused = _elsewhere(place, tmp_path / "state", "daemon", verb, "--devices", devices)
    assert refused.returncode == 2 and "sim:4x24G" in refused.stderr, refused


def test_a_foreign_program_on_the_socket_is_not_taken_for_a_daemon(place: Place, tmp_path: Path) -> None:
    state = tmp_path / "s"
    state.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state / "gpusched.sock"))
        listener.listen()
        threading.Thread(target=_greet, args=[listener], daemon=True).start()
        result = _elsewhere(place, state, "queue")
        assert result.returncode == 69 and "it is not gpusched" in result.stderr
        refused = _elsewhere(place, state, "daemon", "start")
        assert refused.returncode == 69 and "another program listens" in refused.stderr
        assert (state / "gpusched.sock").is_socket()
        listener.shutdown(socket.SHUT_RDWR)


def _greet(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(b"220 this is a mail server\r\n")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_of_a_list_is_longer_than_the_terminal(place: Place, width: int) -> None:
    key = place.sh("true", hold=True, gpus=0, name="a-rather-long-name-of-a-job", comment="seen")
    ended = place.sh("true", gpus=0, name="日本語の長い名前の仕事")
    place.ended(ended)
    for words in (["queue", "-j", key], ["history", "--limit", "3"]):
        lines = _on_a_terminal(place, width, *words)
        assert len(lines) >= 2 and max(map(_cells, lines)) <= width, lines
        assert lines[0].split()[0] == "JOBID"
    place.client.cancel([key])


def _on_a_terminal(place: Place, width: int, *words: str) -> list[str]:
    """What a command prints on a terminal of so many columns."""
    ours, theirs = os.openpty()
    env = {name: value for name, value in place.env.items() if name not in ("COLUMNS", "LINES")}
    termios.tcsetwinsize(theirs, (24, width))
    command = [*COMMAND, *words]
    with subprocess.Popen(command, env=env, cwd=place.work, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL):
        os.close(theirs)
        said = b""
        while data := _read(ours):
            said += data
    os.close(ours)
    return said.decode().replace("\r", "").splitlines()


def _read(fd: int) -> bytes:
    """What is there, and nothing once the other end is closed (which is an error on a terminal)."""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
