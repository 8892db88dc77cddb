"""Starting a personal daemon on demand, doctor, completion, and what is said where no daemon answers."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon, a_job, gpusched

from gpusched import paths
from gpusched.cli import autostart
from gpusched.model.errors import NotAllowed, Unavailable

SERVING = """
import os, sys, time
sys.path.insert(0, {tests!r})
from fake_daemon import FakeDaemon, a_job
state = sys.argv[sys.argv.index("--state-dir") + 1]
lock = os.open(state + "/lock", os.O_CREAT | os.O_RDWR)
import fcntl
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit("another daemon works here already")
open(state + "/pid", "w").write(str(os.getpid()))
open(state + "/argv", "w").write(" ".join(sys.argv))
open(state + "/environ", "w").write("\\n".join(os.environ))
with FakeDaemon(state + "/gpusched.sock") as daemon:
    daemon.jobs = {{"42": a_job("42")}}
    while os.path.exists(state):
        time.sleep(0.05)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("GPUSCHED_SOCKET", raising=False)
    monkeypatch.setattr(paths, "SYSTEM_SOCKET", str(tmp_path / "system.sock"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    pid = tmp_path / "state" / "pid"
    if pid.exists():
        (tmp_path / "state").rename(tmp_path / "over")  # the fake daemon ends by itself
        number = int((tmp_path / "over" / "pid").read_text())
        while Path(f"/proc/{number}/stat").exists() and ") Z" not in Path(f"/proc/{number}/stat").read_text():
            pass


@pytest.fixture
def serving(home, monkeypatch):
    """The daemon that autostart starts is a fake one."""
    script = home / "serve.py"
    script.write_text(SERVING.format(tests=os.path.dirname(__file__)))
    monkeypatch.setattr(autostart, "daemon_command", lambda words=(): [sys.executable, str(script), *words])
    monkeypatch.setattr(autostart, "DEADLINE", 60.0)
    return home


def test_the_first_command_that_needs_a_daemon_starts_one(serving, monkeypatch):
    monkeypatch.setenv("GPUSCHED_JOB_ID", "7")
    result = gpusched("queue")
    assert result.code == 0 and "42" in result.out
    socket = serving / "state" / "gpusched.sock"
    assert f"no daemon here; starting a personal one (socket {socket})" in result.err
    assert "starting" not in gpusched("queue").err
    assert os.stat(serving / "state").st_mode & 0o777 == 0o700
    assert f"--state-dir {serving / 'state'}" in (serving / "state" / "argv").read_text()
    variables = (serving / "state" / "environ").read_text().split()
    assert "GPUSCHED_STATE_DIR" in variables and "GPUSCHED_JOB_ID" not in variables


def test_two_commands_at_once_end_up_with_one_daemon(serving):
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(start())) for _ in range(3)]

    def start():
        try:
            autostart.start(quiet=True)
        except Unavailable as error:
            return error
        return 0

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [0, 0, 0]
    assert gpusched("queue").code == 0


def test_a_daemon_that_fails_shows_its_last_words(home, monkeypatch):
    words = "import sys; print('line one'); sys.exit('the database is from a newer version')"
    monkeypatch.setattr(autostart, "daemon_command", lambda more=(): [sys.executable, "-c", words])
    (home / "state").mkdir()
    (home / "state" / "daemon.log").write_text("from an earlier start\n")
    result = gpusched("submit", "true")
    assert result.code == 69
    assert "| line one" in result.err and "| the database is from a newer version" in result.err
    assert "earlier start" not in result.err and "gpusched daemon run" in result.err


def test_a_daemon_that_ends_without_a_word_sends_people_to_the_doctor(home, monkeypatch):
    monkeypatch.setattr(autostart, "daemon_command", lambda more=(): [sys.executable, "-c", "raise SystemExit(1)"])
    result = gpusched("submit", "true")
    assert result.code == 69
    assert "left no word, as happens on a full disk" in result.err and "gpusched doctor" in result.err


@pytest.mark.parametrize("how", ["variable", "config"])
def test_starting_on_demand_can_be_switched_off(home, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("GPUSCHED_AUTOSTART", "0")
    else:
        (home / "config" / "gpusched").mkdir(parents=True)
        (home / "config" / "gpusched" / "config.toml").write_text("[client]\nautostart = false\n")
    result = gpusched("queue")
    assert result.code == 69
    assert f"no daemon at {home}/state/gpusched.sock (not found)" in result.err
    assert "gpusched daemon start" in result.err
    assert not (home / "state").exists()


def test_a_command_about_jobs_starts_nothing_where_there_never_was_a_daemon(home):
    result = gpusched("cancel", "42")
    assert result.code == 69 and "there are no jobs" in result.err
    assert not (home / "state").exists()


def test_the_machines_own_service_is_never_started_from_here(home):
    Path(paths.SYSTEM_SOCKET).touch()
    for words in (("queue",), ("daemon", "start")):
        if words == ("queue",):
            os.environ.pop("GPUSCHED_STATE_DIR")
        result = gpusched(*words)
        assert result.code in (1, 69)
        assert "systemctl start gpusched" in result.err or "a service of its own" in result.err


def test_a_named_socket_is_never_started(home, monkeypatch):
    result = gpusched("--socket", str(home / "other"), "queue")
    assert result.code == 69 and str(home / "other") in result.err
    monkeypatch.setenv("GPUSCHED_SOCKET", str(home / "third"))
    result = gpusched("submit", "true")
    assert result.code == 69 and str(home / "third") in result.err
    assert "unset GPUSCHED_SOCKET" in gpusched("daemon", "start").err
    assert not (home / "state").exists()


def test_daemon_status_and_stop_start_nothing(home):
    assert gpusched("daemon", "status").code == 69
    assert gpusched("daemon", "stop").code == 69
    assert not (home / "state").exists()


def test_daemon_start_reports_and_refuses_a_second(serving):
    result = gpusched("daemon", "start", "--devices", "sim:2x24G")
    assert result.code == 0 and "answers at" in result.out and "3 running, 5 waiting" in result.out
    assert "--devices sim:2x24G" in (serving / "state" / "argv").read_text()
    assert gpusched("daemon", "start").code == 1
    assert json.loads(gpusched("daemon", "status", "--json").out)["version"] == "9.9.9"


def test_daemon_run_says_where_the_state_cannot_be(home, monkeypatch):
    (home / "file").write_text("")
    result = gpusched("daemon", "run", "--state-dir", str(home / "file" / "x"))
    assert result.code == 69 and "cannot be created" in result.err


def test_a_state_directory_of_somebody_else_is_refused(home, monkeypatch):
    (home / "theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(NotAllowed, match="belongs to uid"):
        paths.make_state_dir(str(home / "theirs"))


def test_doctor_names_what_is_wrong_and_exits_1(home, monkeypatch):
    monkeypatch.setenv("GPUSCHED_SOCKET", str(home / "s"))
    with FakeDaemon(str(home / "s")) as daemon:
        assert gpusched("doctor").code == 0
        bad = {"name": "devices", "ok": False, "text": "GPU 3 has fallen off the bus", "hint": "reboot"}
        daemon.answers["GET", "/v1/status"] = lambda asked: {**daemon._status(), "checks": [bad]}
        result = gpusched("doctor")
        assert result.code == 1
        assert "✗ devices: GPU 3 has fallen off the bus\n    reboot\n" in result.out
        told = json.loads(gpusched("doctor", "--json").out)
        assert told["ok"] is False and bad in told["checks"]


def test_doctor_without_a_daemon_starts_none(home):
    result = gpusched("doctor")
    assert result.code == 0 and "! daemon: no daemon at" in result.out
    assert not (home / "state").exists()


def test_doctor_sees_a_daemon_that_died(home, monkeypatch):
    monkeypatch.setenv("GPUSCHED_SOCKET", str(home / "s"))
    (home / "s").write_text("")
    result = gpusched("doctor")
    assert result.code == 1 and "✗ daemon" in result.out


def test_version_tells_both_sides(home, monkeypatch):
    assert "no daemon answers" in gpusched("version").out
    monkeypatch.setenv("GPUSCHED_SOCKET", str(home / "s"))
    with FakeDaemon(str(home / "s")):
        assert "daemon 9.9.9" in gpusched("version").out


def test_commands_jobs_and_options_complete(home):
    environment = {**os.environ, "GPUSCHED_SOCKET": str(home / "s"), "_GPUSCHED_COMPLETE": "bash_complete"}

    def complete(*words):
        variables = {**environment, "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        command = [sys.executable, "-c", "from gpusched.cli.main import main; main()"]
        answer = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
        return answer.stdout.split()

    with FakeDaemon(str(home / "s")) as daemon:
        daemon.jobs = {key: a_job(key) for key in ("41", "42_1", "7")}
        assert complete("gpusched", "can") == ["plain,cancel"]
        assert complete("gpusched", "cancel", "4") == ["plain,41", "plain,42_1"]
        assert "plain,--gpu-mem" in complete("gpusched", "submit", "--gpu")
    assert complete("gpusched", "cancel", "4") == []
    assert not (home / "state").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(home, shell):
    result = gpusched("completion", shell)
    assert result.code == 0 and "_GPUSCHED_COMPLETE" in result.out


# ---- the entry point ------------------------------------------------------------------------------------------


def test_an_unknown_command_lists_the_known_ones(home):
    result = gpusched("sumbit")
    assert result.code == 2 and "did you mean 'submit'" in result.err and "cancel" in result.err


def test_every_command_has_help_with_a_sentence(home):
    from gpusched.cli.main import COMMANDS

    for name in COMMANDS:
        result = gpusched(name, "--help")
        assert result.code == 0 and "Usage: gpusched" in result.out, name
        assert len(result.out.split("\n\n")[1].strip()) >= 10, name
        assert gpusched(name, "-h").out == result.out


def test_an_unexpected_error_is_a_sentence_without_a_traceback(home, monkeypatch):
    def broken(*words, **options):
        raise RuntimeError("boom")

    monkeypatch.setattr("gpusched.cli.version.connect", broken)
    result = gpusched("version")
    assert result.code == 1 and "RuntimeError: boom" in result.err and "Traceback" not in result.err
    with pytest.raises(RuntimeError):
        gpusched("version", "--debug")


def test_a_reader_that_has_seen_enough_is_no_error(home):
    environment = {**os.environ, "GPUSCHED_SOCKET": str(home / "s")}
    with FakeDaemon(str(home / "s")) as daemon:
        daemon.jobs = {str(key): a_job(str(key)) for key in range(1, 3000)}
        command = f"{sys.executable} -m gpusched.cli.main queue --noheader | head -1"
        answer = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=60
        )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.split()[0] == "1"
