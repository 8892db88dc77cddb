"""`gpusched simulate`: the real engine on a real trace, its table, CSV, JSON and pictures, and every bad input."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import FakeDaemon, Result, a_device, an_ended_job, gpusched

from gpusched.cli import output, simulate_table
from gpusched.cli.simulate_table import ProgressLine
from gpusched.model.policy import PolicyName

PHILLY = str(Path(__file__).parents[1] / "data" / "philly.csv")
HEAD = "job_id,user,vc,submit_s,gpus,duration_s,status"


def philly(*words: str) -> Result:
    return gpusched("simulate", PHILLY, "--devices", "2x8", *words)


def figures(result: Result) -> dict[str, dict[str, Any]]:
    """Of each policy what --json tells."""
    assert result.code == 0, result.err + result.out
    return {row["policy"]: row for row in json.loads(result.out)["policies"]}


def a_trace(folder: Path, *lines: str) -> str:
    path = folder / "made.csv"
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return str(path)


# ---- what it shows --------------------------------------------------------------------------------------------------


def test_a_table_tells_of_every_policy_that_was_named(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "long,ann,red,0,2,86400,", "short,bob,blue,60,1,60,")
    result = gpusched("simulate", path, "--devices", "2", "--policy", "fifo,srtf", "--preempt-cost", "30s")
    assert result.code == 0
    assert result.err == "made.csv: 2 jobs on 2 devices\n"
    assert [line.split() for line in result.out.splitlines()] == [
        ["POLICY", "MEAN", "MEDIAN", "P99", "WAIT", "FIRST", "MAKESPAN", "USED", "PREEMPTED", "LOST", "WORST",
         "UNFAIR"],
        ["fifo", "1-00:00:00", "1-00:00:00", "1-00:00:00", "11:59:30", "11:59:30", "1-00:01:00", "100.0%", "0", "0:00",
         "960", "50.0%"],
        # The short one comes at 60, the long one has run for the least time, 600 s, and gets 30 s more work.
        ["srtf", "12:05:45", "1-00:01:30", "1-00:01:30", "5:15", "4:30", "1-00:01:30", "99.9%", "1", "1:00", "6.67",
         "50.0%"],
    ]  # fmt: skip


def test_the_figures_of_the_real_trace_are_those_of_the_reference() -> None:
    # refsim.py, as published simulators decide: FIFO and SJF on 2 nodes of 8.
    rows = figures(philly("--policy", "fifo,sjf", "--semantics", "published", "--json"))
    assert rows["fifo"]["mean_completion_s"] == pytest.approx(230_890, abs=1)
    assert rows["sjf"]["mean_completion_s"] == pytest.approx(74_108, abs=1)
    assert {row["jobs"] for row in rows.values()} == {400}
    assert rows["fifo"]["utilization"] == pytest.approx(0.824, abs=0.001)


def test_every_policy_finishes_every_job_of_the_real_trace() -> None:
    rows = figures(philly("--policy", "all", "--max-jobs", "150", "--json", "--processes", "2"))
    assert list(rows) == list(PolicyName)
    for row in rows.values():
        assert (row["jobs"], row["unfinished"]) == (150, 0)
        assert row["mean_completion_s"] >= 25_000 and 0 < row["utilization"] <= 1
    assert rows["srtf"]["mean_completion_s"] < rows["fifo"]["mean_completion_s"]


def test_processes_change_nothing_but_the_time() -> None:
    words = ("--policy", "srtf,fifo,las", "--max-jobs", "100", "--json")
    alone, together = (figures(philly(*words, "--processes", number)) for number in ("1", "3"))
    for row in (*alone.values(), *together.values()):
        del row["cpu_s"]
    assert list(alone.items()) == list(together.items())


def test_csv_has_every_figure_as_a_number() -> None:
    result = philly("--policy", "fifo,las", "--max-jobs", "60", "--csv")
    fifo, las = csv.DictReader(io.StringIO(result.out))
    assert (fifo["policy"], las["policy"]) == ("fifo", "las")
    assert float(fifo["mean_completion_s"]) > 0 and int(las["preemptions"]) >= 0
    assert result.err == ""


def test_users_are_compared_where_a_column_says_who_they_are(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "a,ann,red,0,2,100,", "b,bob,red,1,2,100,")
    result = gpusched("simulate", path, "--devices", "2", "--policy", "fifo", "--users-from", "user")
    assert [line.split() for line in result.out.splitlines()[2:]] == [
        ["USER", "FIFO"],
        ["bob", "1.33"],
        ["ann", "0.50"],
    ]
    assert "finish-time fairness of users" in result.err
    assert "USER" not in gpusched("simulate", path, "--devices", "2", "--policy", "fifo", "--users-from", "vc").out


def test_settings_reach_the_engine(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "long,,,0,1,10000,", "short,,,10,1,10,", "late,,,9000,1,10,")
    base = ("simulate", path, "--devices", "1", "--policy", "srtf", "--semantics", "published", "--json")
    assert figures(gpusched(*base))["srtf"]["lost_gpu_s"] == 0
    assert figures(gpusched(*base, "--preempt-cost", "lucid"))["srtf"]["lost_gpu_s"] == 2 * 40
    assert figures(gpusched(*base, "--preempt-cost", "helios"))["srtf"]["lost_gpu_s"] == 2 * 7
    at_zero = figures(gpusched(*base, "--all-at-zero"))["srtf"]
    assert (at_zero["preemptions"], at_zero["makespan_s"]) == (0, 10_020)
    ticked = json.loads(gpusched(*base, "--tick", "1h", "--placement", "count").out)
    assert ticked["settings"]["tick"] == 3600 and ticked["settings"]["placement"] == "count"
    # At 3600 it leaves for the short one, goes on at 7200, leaves at 10800 for the late one, and has 2800 s left then.
    assert (ticked["policies"][0]["preemptions"], ticked["policies"][0]["makespan_s"]) == (2, 14_400 + 2800)


def test_a_configuration_of_the_daemon_is_honoured(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "a,,,0,1,7200,", "b,,,60,1,60,")
    config = tmp_path / "c.toml"
    config.write_text('[policy]\nmin_run = "30m"\npreempt_cost = "5s"\n')
    row = figures(
        gpusched("simulate", path, "--devices", "1", "--policy", "srtf", "--config", str(config), "--json")
    )["srtf"]
    assert (row["preemptions"], row["lost_gpu_s"]) == (1, 5.0)
    assert row["makespan_s"] == 7200 + 60 + 5 and row["mean_first_wait_s"] == (1800 - 60) / 2


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="an extra: pip install 'gpusched[plot]'")
def test_a_picture_is_made_of_the_run(tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    result = philly("--policy", "fifo,las", "--max-jobs", "60", "--plot", str(picture))
    assert result.code == 0 and f"the picture is in {picture}" in result.err
    assert picture.read_bytes().startswith(b"\x89PNG")


# ---- progress -------------------------------------------------------------------------------------------------------


def test_a_long_run_tells_of_itself_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with ProgressLine(3, lambda: now) as line:
        for done in range(0, 4000, 100):
            line.tell("las", done, 4000)
            now += 1.0
        line.done("las")
        line.tell("srtf", 7, 4000)
        now += 10
        line.tell("srsf", 1, 4000)  # in a process of its own
    assert capsys.readouterr().err.splitlines() == [
        "las 1,000 of 4,000 jobs finished (0 of 3 policies done), 0:10",
        "las 2,000 of 4,000 jobs finished (0 of 3 policies done), 0:20",
        "las 3,000 of 4,000 jobs finished (0 of 3 policies done), 0:30",
        "srtf 7 of 4,000 jobs finished (1 of 3 policies done), 0:40",
        "srtf 7, srsf 1 of 4,000 jobs finished (1 of 3 policies done), 0:50",
    ]


def test_on_a_terminal_one_line_changes_and_is_gone_in_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate_table.sys.stderr, "isatty", lambda: True)
    ticks = iter(float(second) for second in range(100))
    with ProgressLine(1, lambda: next(ticks)) as line:
        line.tell("las", 1, 10)
        line.tell("las", 10, 10)
    told = capsys.readouterr().err
    assert told.startswith("\rlas 1 of 10 jobs finished, 0:01\rlas 10 of 10 jobs finished, 0:02")
    assert told.endswith(" \r") and "\n" not in told


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--policy", "best"), 1, "unknown policy 'best'\n  known: fifo, backfill, fit-first, sjf, srtf"),
        (("--policy", ","), 1, "no policy is named"),
        (("--devices", "lots"), 2, "'lots' is no number of devices"),
        (("--devices", "0x8"), 2, "'0x8' is no number of devices"),
        (("--devices", "1x2"), 1, "jobs p80335 needs 4, p80327 needs 4, p80326 needs 4 and 67 more; the fleet has 2"),
        (("--preempt-cost", "dear"), 2, "preemption cost 'dear' cannot be read"),
        (("--las-limits", "9,3"), 2, "the limits of las must be ascending"),
        (("--users-from", "user"), 1, "no job has anything in the column user"),
        (("--plot", "out.gif"), 1, "the name says no kind of picture"),
        (("--since", "3d"), 2, "--since is for --from-history"),
        (("--from-history",), 2, "--from-history and a trace do not go together"),
        (("--config", "none.toml"), 2, "there is no configuration file none.toml"),
        (("--config", "x.toml", "--semantics", "published"), 2, "--config has settings of the daemon's own semantics"),
        (("--durations", "guessed"), 2, "'guessed' is not one of 'given', 'unknown'"),
    ],
)  # fmt: skip
def test_a_bad_option_is_a_sentence(words: tuple[str, ...], code: int, told: str) -> None:
    result = philly(*words)
    assert (result.code, result.out) == (code, "")
    assert told in result.err and "Traceback" not in result.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (HEAD.encode() + b"\n", "column names, but no jobs below them"),
        (HEAD.encode() + b"\na,,,0,1,-3,\n", "line 2: duration_s is '-3' (job a)"),
        (HEAD.encode() + b",color\na,,,0,1,3,,red\n", "unknown column 'color'\n  known: job_id, user, vc"),
        (gzip.compress(HEAD.encode() * 99, mtime=0)[:-30], "is torn"),
    ],
)
def test_a_bad_trace_is_a_sentence_and_exit_1(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    result = gpusched("simulate", str(path), "--devices", "8")
    assert (result.code, result.out) == (1, "")
    assert f"gpusched: {path}" in result.err and told in result.err
    as_json = gpusched("simulate", str(path), "--devices", "8", "--json")
    assert as_json.code == 1 and json.loads(as_json.out)["error"]["code"] == "simulation"


def test_a_job_that_the_rules_refuse_is_named(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "a,,,0,1,60,", "b,,,1,1,600,", "c,,,2,2,60,", "d,,,2,1,60,")
    config = tmp_path / "c.toml"
    config.write_text('[limits.user."*"]\nmax_devices = 1\n')
    result = gpusched("simulate", path, "--devices", "2", "--config", str(config))
    assert (result.code, result.out) == (1, "")
    assert "refuses a job, c: it asks for 2 devices, and user somebody may use at most 1" in result.err


def test_jobs_that_a_time_limit_of_the_configuration_ends_are_no_fault_of_gpusched(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[partition.default]\nmax_time = "30s"\n')
    result = gpusched("simulate", a_trace(tmp_path, "a,,,0,1,60,"), "--devices", "2", "--config", str(config))
    assert result.code == 1 and "1 of 1 jobs did not finish (a)" in result.err
    assert "look for a max_time that ends them" in result.err


def test_csv_and_json_at_once_are_refused() -> None:
    result = philly("--csv", "--json")
    assert result.code == 2 and json.loads(result.out)["error"]["message"] == "--csv and --json do not go together"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--las-limits", "1h"), "--las-limits changes nothing under fifo, srtf: it is for las\n"),
        (("--no-running-first",), "--no-running-first changes nothing under fifo, srtf: it is for las\n"),
        (("--tick", "30s", "--policy", "fifo"),
         "--tick changes nothing under fifo: it is for srtf, srsf, las, predicted\n"),
        (("--preempt-cost", "1s", "--policy", "sjf"),
         "--preempt-cost changes nothing under sjf: it is for srtf, srsf, las, predicted\n"),
        (("--migrate", "--placement", "count"), "--migrate changes nothing with --placement count: it is for pack\n"),
        (("--tick", "30s", "--preempt-cost", "1s", "--migrate"), ""),
        (("--policy", "las", "--las-limits", "1h", "--running-first"), ""),
        (("--shared",), "--shared changes nothing: no job of made.csv has a gpu_milli below 1000\n"),
    ],
)  # fmt: skip
def test_an_option_that_no_named_policy_reads_is_told(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    path = a_trace(tmp_path, "a,,,0,1,60,")
    result = gpusched("simulate", path, "--devices", "1", "--policy", "fifo,srtf", *words)
    assert (result.code, result.err) == (0, told + "made.csv: 1 job on 1 device\n")


def test_a_table_that_is_piped_is_not_cut_however_narrow_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = a_trace(tmp_path, "a,,,0,1,86399999,", "b,,,60,1,60,")
    header, row = gpusched("simulate", path, "--devices", "1", "--policy", "las").out.splitlines()
    assert header.split()[-1] == "UNFAIR" and len(header) == len(row) == header.index("UNFAIR") + 6
    assert "…" not in row and "  1000-00:01:59  " in row


def test_a_narrow_terminal_has_fewer_columns_that_stand_beside_each_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dict.fromkeys(simulate_table.FIELDS, 86_400.0) | {"policy": "backfill", "preemptions": 1}
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output.sys.stdout, "isatty", lambda: True)
    output.print_list([row], simulate_table.COLUMNS, simulate_table.FIELDS, output.Style(), "policies")
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["POLICY", "MEAN"] and header.split()[-1] == "UNFAIR" and "LOST" not in header
    assert line.endswith("  8640000.0%") and len(line) <= 80


def test_a_trace_that_may_not_be_read_is_a_sentence_and_exit_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = a_trace(tmp_path, "a,,,0,1,60,")
    monkeypatch.setattr("os.access", lambda *args, **kwargs: False)
    monkeypatch.setattr("gpusched.simulator.traces.Path.open", forbidden)
    result = gpusched("simulate", path, "--devices", "1")
    assert (result.code, result.out) == (1, "") and f"{path} cannot be read: Permission denied" in result.err


def test_what_is_missing_is_asked_for() -> None:
    assert (no_trace := gpusched("simulate")).code == 2 and "no trace to simulate" in no_trace.err
    assert (no_devices := gpusched("simulate", PHILLY)).code == 2 and "how many devices?" in no_devices.err


# ---- the machine's own history --------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    with FakeDaemon(str(tmp_path / "s")) as server:
        server.devices = [a_device(index) for index in range(4)]
        yield server


def remember(daemon: FakeDaemon, number: int, **facts: Any) -> None:
    """Ended jobs of an hour on two devices each, submitted a minute apart; really each waited for a day."""
    for place in range(number):
        arrival = time.time() - 5 * 86400 + 60 * place
        made = {
            "gpus": 2, "submitted_at": arrival, "eligible_at": arrival, "first_started_at": arrival + 86400,
            "started_at": arrival + 86400, "ended_at": arrival + 90000, "ran": 3600.0, "gpu_seconds": 7200.0,
            "preemptions": 0, "lost": 0.0, "user": f"user{place % 2}",
        } | facts  # fmt: skip
        key = str(len(daemon.jobs) + 1)
        daemon.jobs[key] = an_ended_job(key, **made)


def test_the_machines_past_is_compared_with_what_a_policy_would_have_done(daemon: FakeDaemon) -> None:
    remember(daemon, 4)
    remember(daemon, 2, gpus=0)
    remember(daemon, 1, ran=0.0, gpu_seconds=0.0)
    result = gpusched("simulate", "--from-history", "--policy", "fifo,backfill", "--json")
    rows = figures(result)
    assert list(rows) == ["as it was", "fifo", "backfill"]
    assert rows["as it was"]["mean_completion_s"] == pytest.approx(90_000)
    assert rows["fifo"]["mean_completion_s"] == pytest.approx((3600 + 3600 + 7080 + 7080) / 4)
    assert rows["fifo"]["user_rho"].keys() == {"user0", "user1"}
    assert result.err == "2 jobs without a GPU left out\n1 job that never ran left out\n"
    (asked,) = [asked for asked in daemon.asked if asked.path == "/v1/history"]
    assert time.time() - float(asked.query["since"]) == pytest.approx(30 * 86400, abs=60)
    assert json.loads(result.out)["devices"] == {"nodes": 1, "per_node": 4, "memory_mib": 143771}


def test_other_devices_than_the_machines_can_be_tried(daemon: FakeDaemon) -> None:
    remember(daemon, 4)
    result = gpusched("simulate", "--from-history", "--since", "7d", "--devices", "8", "--policy", "fifo", "--json")
    assert figures(result)["fifo"]["mean_completion_s"] == pytest.approx(3600)
    small = gpusched("simulate", "--from-history", "--devices", "1", "--policy", "fifo")
    assert small.code == 1 and "jobs 1 needs 2, 2 needs 2, 3 needs 2 and 1 more" in small.err


def test_a_history_that_is_too_short_for_predictions_is_told(daemon: FakeDaemon) -> None:
    remember(daemon, 19)
    result = gpusched("simulate", "--from-history", "--policy", "fifo,predicted")
    assert (result.code, result.out) == (1, "")
    assert "has 19 ended jobs: too few to learn durations from" in result.err
    remember(daemon, 1)
    assert gpusched("simulate", "--from-history", "--policy", "predicted").code == 0


def test_an_empty_history_and_no_daemon_are_told(daemon: FakeDaemon, tmp_path: Path) -> None:
    result = gpusched("simulate", "--from-history")
    assert result.code == 1 and "no job that used a device has ended in this time" in result.err
    nobody = gpusched("--socket", str(tmp_path / "none"), "simulate", "--from-history")
    assert nobody.code == 69 and "no daemon at" in nobody.err


def test_options_about_traces_are_refused_with_a_history(daemon: FakeDaemon) -> None:
    result = gpusched("simulate", "--from-history", "--max-jobs", "3")
    assert result.code == 2 and "--from-history and --max-jobs do not go together" in result.err
