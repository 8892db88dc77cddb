"""How a supervisor starts a job: what the job inherits (nothing but what it should), and every way it can fail."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from attempts import FIRST, PATH, Place, a_place, until

from gpusched import rundir
from gpusched.model.job import AttemptKey
from gpusched.model.state import Outcome, OutcomeKind


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as place:
        yield place


def proc(pid: int | None, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def held(pid: int | None) -> set[str]:
    """What the descriptors of a process lead to."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


async def failing(place: Place, *argv: str, **more: object) -> Outcome:
    await place.start(*argv, **more)
    outcome = await place.outcome()
    assert outcome.kind is OutcomeKind.LAUNCH_FAILED
    assert (outcome.code, outcome.signal) == (None, None)
    assert place.launcher.observe(FIRST).pid is None
    return outcome


# ---- what a job inherits --------------------------------------------------------------------------------------


async def test_the_descriptors_of_a_job_are_exactly_0_1_2(place: Place) -> None:
    with (place.root / "secret").open("w") as leak:
        os.set_inheritable(leak.fileno(), True)  # a careless descriptor of the daemon, before the spawner starts
        script = "import os; print(sorted(os.listdir('/proc/self/fd'), key=int)[:-1], os.readlink('/proc/self/fd/0'))"
        await place.start("python3", "-c", script)
        await place.outcome()
    # The last one is that of the listing itself.
    assert place.output() == "['0', '1', '2'] /dev/null\n"


async def test_a_supervisor_holds_only_its_lock(place: Place) -> None:
    await place.shell("sleep 60")
    await place.pid()
    supervisor = place.launcher.observe(FIRST).supervisor_pid
    expected = {"/dev/null", str(place.control() / rundir.LOCK)}
    await until(lambda: held(supervisor) == expected, "holding nothing else, once it has rung")
    assert os.readlink(f"/proc/{supervisor}/cwd") == "/"
    assert proc(supervisor, "comm") == "gpusched 1-1\n"


async def test_the_spawner_is_isolated_from_users_and_from_site_packages(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = place.root / "evil"
    evil.mkdir()
    for name in ("json", "signal", "sitecustomize", "gpusched"):
        (evil / f"{name}.py").write_text(f"open({str(place.file('evil-ran'))!r}, 'w')\n")
    monkeypatch.setenv("PYTHONPATH", str(evil))
    monkeypatch.setenv("PYTHONSTARTUP", str(evil / "json.py"))
    monkeypatch.chdir(evil)
    await place.shell("exit 5")
    assert (await place.outcome()).code == 5
    spawner = place.launcher.spawner_pid
    assert {"-I", "-S"} <= set(proc(spawner, "cmdline").split("\0"))
    assert os.readlink(f"/proc/{spawner}/cwd") == "/"
    assert "PYTHONPATH" not in proc(spawner, "environ")
    assert "site-packages" not in proc(spawner, "maps")
    assert not place.file("evil-ran").exists()


async def test_a_job_has_a_session_of_its_own_default_signals_and_an_empty_mask(place: Place) -> None:
    old = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # inherited by the spawner, as under nohup
    try:
        await place.start("python3", "-I", "-c", "import os; print(os.getpid() == os.getsid(0) == os.getpgid(0))")
        await place.outcome()
        key = AttemptKey(2, 1)
        await place.start("grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status", key=key)
        await place.outcome(key)
    finally:
        signal.signal(signal.SIGUSR2, old)
    assert place.output() == "True\n"
    reserved = 0b11 << 31  # signals 32 and 33 are the C library's own; make ignores them, and nobody can reset them
    assert [int(mask, 16) & ~reserved for mask in re.findall(r"[0-9a-f]{16}", place.output(key))] == [0, 0]


async def test_the_environment_is_the_ordered_one_and_the_mark(place: Place) -> None:
    await place.start("/usr/bin/env", env={"A": "1", "B": "ü\nx", "EMPTY": ""})
    await place.outcome()
    mark = place.launcher.observe(FIRST).mark
    assert place.output() == f"A=1\nB=ü\nx\nEMPTY=\n{rundir.ENV_MARK}={mark}\n"
    order = place.control() / rundir.ORDER
    assert stat.S_IMODE(order.stat().st_mode) == 0o600, "it holds the user's secrets"
    assert stat.S_IMODE(place.control().stat().st_mode) == 0o700


async def test_marks_differ_between_attempts(place: Place) -> None:
    keys = [AttemptKey(1, 1), AttemptKey(1, 2), AttemptKey(2, 1)]
    for key in keys:
        await place.shell("true", key=key)
        await place.outcome(key)
    assert len({place.launcher.observe(key).mark for key in keys}) == 3


async def test_arguments_arrive_untouched(place: Place) -> None:
    words = ["", " a  b ", "$HOME `id` %s %%", "-x", "--", "ünï", "line\nbreak", os.fsdecode(b"\xff\xfe")]
    await place.start("python3", "-c", "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]])", *words)
    await place.outcome()
    assert place.output() == f"{[os.fsencode(word) for word in words]}\n"


async def test_umask_and_working_directory_are_the_jobs(place: Place) -> None:
    inner = place.root / "inner"
    inner.mkdir()
    await place.shell("umask; pwd; touch file", cwd=str(inner), umask=0o077)
    assert (await place.outcome()).code == 0
    assert place.output() == f"0077\n{inner}\n"
    assert stat.S_IMODE((inner / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE(place.file("1-1.out").stat().st_mode) == 0o600


async def test_the_job_directory_is_made_for_the_job(place: Place) -> None:
    await place.shell("touch $JOB/here")
    assert (await place.outcome()).code == 0
    assert stat.S_IMODE(place.job_dir().stat().st_mode) == 0o700


# ---- output ---------------------------------------------------------------------------------------------------


async def test_output_is_appended_after_a_banner(place: Place) -> None:
    place.file("log").write_text("before\n")
    await place.shell("echo out; echo err >&2", output=str(place.file("log")), banner="---- attempt 1 ----")
    await place.outcome()
    assert place.file("log").read_text() == "before\n---- attempt 1 ----\nout\nerr\n"


async def test_error_output_can_have_its_own_file(place: Place) -> None:
    await place.shell("echo out; echo err >&2", error=str(place.file("err")), banner="x")
    await place.outcome()
    assert place.output() == "x\nout\n"
    assert place.file("err").read_text() == "err\n"


async def test_output_can_be_a_device(place: Place) -> None:
    await place.shell("echo out", output="/dev/null", error="/dev/null")
    assert (await place.outcome()).code == 0


@pytest.mark.parametrize("which", ["output", "error"])
async def test_a_missing_output_directory_is_named(place: Place, which: str) -> None:
    path = str(place.root / "nowhere" / "log")
    outcome = await failing(place, "true", **{which: path})
    assert outcome.errno == errno.ENOENT
    assert path in outcome.text and which in outcome.text and "directory does not exist" in outcome.text
    assert not place.file("nowhere").exists()


async def test_an_output_that_is_a_link_is_not_followed(place: Place) -> None:
    place.file("precious").write_text("data")
    place.file("log").symlink_to(place.file("precious"))
    outcome = await failing(place, "echo", "x", output=str(place.file("log")), banner="banner")
    assert outcome.errno == errno.ELOOP and "symbolic link" in outcome.text
    assert place.file("precious").read_text() == "data"


async def test_an_output_that_is_a_fifo_without_a_reader_does_not_hang(place: Place) -> None:
    os.mkfifo(place.file("log"))
    outcome = await failing(place, "true", output=str(place.file("log")))
    assert outcome.errno == errno.ENXIO


async def test_an_output_that_is_a_directory_is_an_error(place: Place) -> None:
    outcome = await failing(place, "true", output=str(place.root))
    assert outcome.errno == errno.EISDIR and str(place.root) in outcome.text


# ---- the command ----------------------------------------------------------------------------------------------


async def test_the_command_is_searched_in_the_jobs_own_path(place: Place) -> None:
    tools = place.root / "tools"
    tools.mkdir()
    (tools / "mytool").write_text("#!/bin/sh\nexit 17\n")
    (tools / "mytool").chmod(0o755)
    await place.start("mytool", env={"PATH": f"/nonexistent:{tools}"})
    assert (await place.outcome()).code == 17


async def test_a_script_without_an_interpreter_line_runs_in_sh(place: Place) -> None:
    place.file("plain").write_text("echo $0 $1; exit 3\n")
    place.file("plain").chmod(0o755)
    await place.start("./plain", "word")
    assert (await place.outcome()).code == 3
    assert place.output() == "./plain word\n"


async def test_a_command_that_is_not_there_is_an_error_with_its_path(place: Place) -> None:
    outcome = await failing(place, "no-such-tool", "--fast")
    assert outcome.errno == errno.ENOENT
    assert "no-such-tool" in outcome.text and PATH in outcome.text
    assert place.output() == f"gpusched: {outcome.text}\n", "who reads the log must see it too"


async def test_a_missing_relative_command_tells_where_it_was_looked_for(place: Place) -> None:
    outcome = await failing(place, "./train.sh")
    assert outcome.errno == errno.ENOENT
    assert "./train.sh" in outcome.text and str(place.root) in outcome.text


async def test_a_file_without_the_execute_bit_is_told_apart(place: Place) -> None:
    place.file("train.py").write_text("#!/bin/sh\n")
    outcome = await failing(place, "./train.py")
    assert outcome.errno == errno.EACCES and "chmod +x" in outcome.text


async def test_a_missing_interpreter_is_told_apart(place: Place) -> None:
    place.file("old.sh").write_text("#!/opt/no/such/shell\n")
    place.file("old.sh").chmod(0o755)
    outcome = await failing(place, "./old.sh")
    assert outcome.errno == errno.ENOENT and "interpreter" in outcome.text


async def test_too_long_arguments_are_an_error(place: Place) -> None:
    outcome = await failing(place, "true", "x" * (200 << 10))
    assert outcome.errno == errno.E2BIG and "too long" in outcome.text


async def test_a_word_that_no_program_can_get_is_an_error_and_no_crash(place: Place) -> None:
    outcome = await failing(place, "true", "a\0b")
    assert "null" in outcome.text


async def test_a_working_directory_that_is_gone_is_named(place: Place) -> None:
    gone = str(place.root / "gone")
    outcome = await failing(place, "true", cwd=gone)
    assert outcome.errno == errno.ENOENT and gone in outcome.text and "--chdir" in outcome.text


async def test_a_job_directory_that_cannot_be_made_is_named(place: Place) -> None:
    place.file("file").write_text("")
    outcome = await failing(place, "true", job_dir=str(place.file("file") / "1-1"))
    assert outcome.errno == errno.ENOTDIR and "job directory" in outcome.text


# ---- long paths and bells ---------------------------------------------------------------------------------------


async def test_paths_longer_than_a_socket_address_work(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with a_place(deep) as place:
        await place.shell("exit 4")
        assert (await place.outcome()).code == 4
        await until(lambda: place.rings.count(FIRST) >= 2)


async def test_the_daemon_is_told_of_the_exec_and_of_the_end(place: Place) -> None:
    await place.shell("sleep 60")
    await until(lambda: place.rings)
    pid = place.launcher.observe(FIRST).pid
    assert pid is not None, "what rang must be there to be read"
    heard = len(place.rings)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: len(place.rings) > heard and place.launcher.observe(FIRST).outcome)


async def test_a_job_runs_without_anybody_at_the_doorbell(place: Place) -> None:
    place.file("bell").unlink()
    await place.shell("exit 6")
    assert (await place.outcome()).code == 6
