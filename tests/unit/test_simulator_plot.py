"""Pictures: what is in them, and that a run is not made for one that could not be written."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from fates import a_fate, an_outcome, in_order

from gpusched.simulator import timeline
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.plot import FORMATS, check_can_draw, draw
from gpusched.simulator.workload import Fleet, Span, TraceJob, Workload

JOBS = tuple(TraceJob(f"j{n}", n * 50.0, 1 + n % 3, 60.0 + 40 * n, user=f"user{n % 2}") for n in range(12))
WORKLOAD = Workload("made.csv", JOBS)
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="pictures are an extra: pip install 'gpusched[plot]'"
)


@needs_matplotlib
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_picture_is_written_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    check_can_draw(path)
    draw(path, "made.csv", [in_order(WORKLOAD, Fleet(2, 4)), in_order(WORKLOAD, Fleet(1, 8), "sjf")])
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(head)


def words(path: Path, monkeypatch: pytest.MonkeyPatch, *outcomes: object) -> str:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text stays text
    draw(path, "made.csv", outcomes)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


@needs_matplotlib
def test_a_picture_names_workload_policies_users_nodes_and_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = words(tmp_path / "x.svg", monkeypatch, in_order(WORKLOAD, Fleet(2, 4), "las"))
    for word in ("made.csv: 12 jobs on 2 × 4 devices", "las  (mean ", "node 1", "user0", "minutes since", "1 min"):
        assert word in told


@needs_matplotlib
def test_many_devices_are_a_band_and_runs_without_spans_only_a_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = words(tmp_path / "x.svg", monkeypatch, in_order(WORKLOAD, Fleet(9, 8)), an_outcome(a_fate(0, 0, 5)))
    assert "devices in use" in told and "node 1" not in told
    assert told.count("since the first submission") == 1


def test_devices_in_use_and_waiting_jobs_are_counted_over_time() -> None:
    gang, later = TraceJob("gang", 0.0, 2, 10.0), TraceJob("later", 4.0, 1, 5.0)
    outcome = in_order(Workload("w", (gang, later)), Fleet(1, 2))
    use, waiting = timeline.busy(outcome), timeline.queue(outcome)
    assert (use.mean(0, 10), use.mean(10, 15), use.mean(15, 99)) == (2.0, 1.0, 0.0)
    assert (waiting.mean(0, 4), waiting.mean(4, 10), waiting.mean(10, 15)) == (0.0, 1.0, 0.0)


def test_a_device_that_is_shared_is_in_use_once() -> None:
    spans = (Span(0, "a", 0.0, 10.0), Span(0, "b", 5.0, 20.0), Span(0, "c", 30.0, 40.0))
    outcome = in_order(Workload("w", ()), Fleet(1, 1))
    shared = type(outcome)("x", outcome.fleet, (), (), spans, 0, 0.0)
    assert timeline.busy(shared).mean(0, 40) == 30 / 40


@pytest.mark.parametrize(
    ("name", "told"),
    [("out.jpeg", "no kind of picture"), ("out", "no kind of picture"), ("none/out.png", "there is no directory")],
)
def test_a_picture_that_could_not_be_written_is_refused_before_the_run(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(SimulationError, match=told):
        check_can_draw(tmp_path / name)


def test_a_directory_is_no_place_for_a_picture(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    with pytest.raises(SimulationError, match="cannot be written"):
        check_can_draw(tmp_path / "out.png")


def test_a_name_that_the_file_system_refuses_is_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="cannot be written: File name too long"):
        check_can_draw(tmp_path / ("x" * 300 + ".png"))


@needs_matplotlib
def test_looking_whether_a_picture_could_be_written_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (old := tmp_path / "old.png").write_bytes(b"older")
    check_can_draw(old)
    check_can_draw(tmp_path / "new.png")
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"] and old.read_bytes() == b"older"


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SimulationError) as caught:
        check_can_draw(tmp_path / "out.png")
    assert "matplotlib, which is not installed" in caught.value.message
    assert "pip install 'gpusched[plot]'" in caught.value.hint
