"""What a job writes is believed only after checking: hostile files change nothing, good ones arrive."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from attempts import FIRST, Place, a_place, until

from gpusched import rundir
from gpusched.model.state import Saved
from gpusched.supervisor import jobdir

GOOD: dict[str, Any] = {"attempt": 1, "checkpoint": "/data/ckpt/000042", "step": 42, "at": 1700000000.5}


def a_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text(json.dumps({**GOOD, "pid": os.getpid()}) + "\n")
    path.symlink_to(target)


def a_directory(path: Path) -> None:
    path.mkdir()


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content) and None


HOSTILE = {
    "link": a_link,
    "fifo": os.mkfifo,
    "directory": a_directory,
    "huge": text(json.dumps(GOOD)[:-1] + " " * (200 << 10) + "}"),
    "deep": text("[" * 30_000 + "]" * 30_000 + "\n"),
    "deep-object": text('{"a":' * 10_000 + "1" + "}" * 10_000 + "\n"),
    "empty": text(""),
    "binary": text(bytes(range(256)) + b"\n"),
    "array": text("[1, 2]\n"),
    "digits": text('{"attempt": 1, "pid": ' + "9" * 5000 + "}\n"),
    "torn": text('{"attempt": 1, "checkp'),
}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as place:
        yield place


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_files_are_as_good_as_absent(tmp_path: Path, how: str) -> None:
    for name in (rundir.WATCHING, rundir.SAVED, rundir.PROGRESS):
        directory = tmp_path / name
        directory.mkdir()
        HOSTILE[how](directory / name)
    assert jobdir.watcher(str(tmp_path / rundir.WATCHING)) is None
    assert jobdir.saved(str(tmp_path / rundir.SAVED), 1) is None
    if how != "huge":  # a long progress file is normal: only its end is read
        assert jobdir.progress(str(tmp_path / rundir.PROGRESS)) == {}


@pytest.mark.parametrize("how", HOSTILE)
async def test_a_hostile_job_directory_does_not_disturb_its_supervisor(place: Place, how: str) -> None:
    place.job_dir().mkdir(parents=True)
    for name in (rundir.WATCHING, rundir.SAVED, rundir.PROGRESS):
        HOSTILE[how](place.job_dir() / name)
        (place.job_dir() / "target").unlink(missing_ok=True)
    await place.shell("sleep 0.3; exit 4")  # time for a look while it runs
    outcome = await place.outcome()
    assert (outcome.code, outcome.saved) == (4, None)
    assert not place.launcher.observe(FIRST).watching


def test_a_job_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / rundir.SAVED).write_text(json.dumps(GOOD))
    link.symlink_to(real)
    assert jobdir.saved(str(real), 1) is not None
    assert jobdir.saved(str(link), 1) is None
    assert jobdir.traces(str(link)) == {}
    assert not jobdir.write_request(str(link), {"ask": "stop"})
    assert not (real / rundir.REQUEST).exists()


def test_a_planted_link_does_not_lead_a_request_elsewhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    (tmp_path / rundir.REQUEST).symlink_to(precious)
    (tmp_path / f"{rundir.REQUEST}.tmp-{os.getpid()}").symlink_to(precious)
    assert jobdir.write_request(str(tmp_path), {"ask": "stop"})
    assert precious.read_text() == "data"
    assert json.loads((tmp_path / rundir.REQUEST).read_text()) == {"ask": "stop"}
    assert not (tmp_path / rundir.REQUEST).is_symlink()


# ---- saved ----------------------------------------------------------------------------------------------------


def saved_with(directory: Path, **change: Any) -> dict[str, Any] | None:
    (directory / rundir.SAVED).write_text(json.dumps({**GOOD, **change}))
    return jobdir.saved(str(directory), 1)


def test_a_good_acknowledgement_is_read(tmp_path: Path) -> None:
    assert saved_with(tmp_path) == {"checkpoint": "/data/ckpt/000042", "step": 42, "at": 1700000000.5}
    assert saved_with(tmp_path, attempt="1", extra=[1]) is not None, "a shell script writes strings"


@pytest.mark.parametrize("attempt", [2, 0, -1, "2", True, 1.5, None, [1], "01", "x"])
def test_an_acknowledgement_of_another_attempt_is_none(tmp_path: Path, attempt: object) -> None:
    assert saved_with(tmp_path, attempt=attempt) is None


@pytest.mark.parametrize("checkpoint", ["", None, 3, ["x"], "a\nb", "a\0b", "\ud800", "\x1b[2J", "x" * 5000])
def test_a_checkpoint_name_that_cannot_be_stored_or_shown_is_refused(tmp_path: Path, checkpoint: object) -> None:
    assert saved_with(tmp_path, checkpoint=checkpoint) is None


@pytest.mark.parametrize("step", [-1, 1.5, True, "7", 2**63, float("nan"), float("inf")])
def test_a_step_that_is_no_step_is_left_out(tmp_path: Path, step: object) -> None:
    found = saved_with(tmp_path, step=step, at=float("nan"))
    assert found is not None and found["step"] is None
    assert found["at"] > 0, "the time of reading stands in"


# ---- progress -------------------------------------------------------------------------------------------------


def progress_of(directory: Path, content: str) -> dict[str, Any]:
    (directory / rundir.PROGRESS).write_text(content)
    return jobdir.progress(str(directory))


def test_the_last_complete_line_counts(tmp_path: Path) -> None:
    assert progress_of(tmp_path, '{"step": 1}\n{"step": 2, "total": 9}\n{"step": 3') == {"step": 2, "total": 9}
    assert progress_of(tmp_path, '{"step": 1}\nnonsense\n\n[]\n{"other": 1}\n') == {"step": 1}


def test_only_finite_numbers_of_known_fields_are_kept(tmp_path: Path) -> None:
    line = (
        '{"epoch": 1.5, "step": NaN, "total": 1e999, "time": true, "secret": 1, '
        '"metrics": {"loss": 0.25, "lr": -Infinity, "name": "x", "a\\nb": 1, "": 2, "n": [1]}}\n'
    )
    assert progress_of(tmp_path, line) == {"epoch": 1.5, "metrics": {"loss": 0.25}}


def test_metrics_are_bounded(tmp_path: Path) -> None:
    metrics = {f"metric-{n}": n for n in range(1000)} | {"x" * 1000: 1}
    assert len(progress_of(tmp_path, json.dumps({"metrics": metrics}) + "\n")["metrics"]) == jobdir.METRICS_LIMIT


def test_a_long_progress_file_is_read_from_its_end(tmp_path: Path) -> None:
    lines = "".join(f'{{"step": {n}}}\n' for n in range(100_000))
    assert progress_of(tmp_path, lines) == {"step": 99_999}


# ---- a living job ---------------------------------------------------------------------------------------------


async def test_the_daemon_hears_of_watching_progress_and_saves(place: Place) -> None:
    await place.shell(
        "echo '{\"pid\": '$$'}' > $JOB/watching;"
        "echo '{\"step\": 3, \"metrics\": {\"loss\": 0.5}}' > $JOB/progress.jsonl;"
        "while [ ! -e $HERE/save ]; do sleep 0.02; done;"
        f"echo '{json.dumps(GOOD)}' > $JOB/saved; while [ ! -e $HERE/go ]; do sleep 0.02; done; exit 1"
    )
    await until(lambda: place.launcher.observe(FIRST).watching)
    await until(lambda: place.launcher.observe(FIRST).progress)
    assert place.launcher.observe(FIRST).progress == {"step": 3, "metrics": {"loss": 0.5}}
    heard = len(place.rings)
    place.file("save").touch()
    expected = Saved("/data/ckpt/000042", 42, 1700000000.5)
    await until(lambda: place.launcher.observe(FIRST).saved)
    assert place.launcher.observe(FIRST).saved == expected
    await until(lambda: len(place.rings) > heard)
    place.file("go").touch()
    outcome = await place.outcome()
    assert (outcome.code, outcome.saved) == (1, expected)
    assert not place.launcher.observe(FIRST).watching


async def test_a_save_right_before_the_exit_is_not_missed(place: Place) -> None:
    await place.shell(f"echo '{json.dumps(GOOD)}' > $JOB/saved; exit 85")
    outcome = await place.outcome()
    assert (outcome.code, outcome.saved) == (85, Saved("/data/ckpt/000042", 42, 1700000000.5))
    assert place.launcher.observe(FIRST).saved == outcome.saved


async def test_a_save_of_an_earlier_attempt_is_not_this_ones(place: Place) -> None:
    place.job_dir().mkdir(parents=True)
    (place.job_dir() / rundir.SAVED).write_text(json.dumps({**GOOD, "attempt": 3}))
    await place.shell("sleep 0.3; exit 85")
    assert (await place.outcome()).saved is None
