"""queue, history and gpus: tables, CSV and JSON from what the daemon answers."""

import csv
import json

import pytest
from fake_daemon import NOW, FakeDaemon, a_device, a_job, a_running_job, an_ended_job, gpusched


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    with FakeDaemon(str(tmp_path / "s")) as server:
        yield server


def fill(daemon, *jobs):
    daemon.jobs = {job["job"]: job for job in jobs}


def test_the_queue_shows_squeues_columns_and_a_summary_on_standard_error(daemon):
    progress = {"epoch": 2, "step": 340, "total": 1000, "metrics": {}}
    fill(daemon, a_running_job("41", time_limit=7200.0, progress=progress, eta=190.0), a_job("42", gpus=4))
    for words in (("queue",), ("q",), ("ps",)):
        result = gpusched(*words)
        assert [line.split() for line in result.out.splitlines()] == [
            ["JOBID", "NAME", "USER", "ST", "TIME/LIMIT", "GPUS", "QOS", "PROGRESS", "GPU_IDS(REASON)"],
            ["41", "train", "alice", "R", "1:02/2:00:00", "1", "normal",
             "epoch", "2", "step", "340/1000", "ETA", "3:10", "0"],
            ["42", "train", "alice", "PD", "0:00", "4", "normal", "-", "(Resources:", "needs", "4,", "1", "free)"],
        ]  # fmt: skip
        assert result.err == "3 running, 5 waiting, 2 GPUs free\n"


def test_a_job_that_leaves_says_for_whom_and_how_long(daemon):
    stopping = {"cause": "preempted for job 51", "for_job": 51, "deadline_in": 12.0}
    fill(daemon, a_running_job("41", state="STOPPING", code="CG", stopping=stopping))
    assert "0 (leaving for 51: preempted for job 51, 0:12 left)" in gpusched("queue").out


def test_bare_gpusched_is_the_short_queue(daemon):
    fill(daemon, *(a_job(str(number)) for number in range(1, 31)))
    result = gpusched()
    assert result.code == 0
    assert len(result.out.splitlines()) == 16
    assert "and 15 more" in result.err


def test_waiting_elements_of_an_array_are_one_row_unless_asked_for(daemon):
    other = a_job("42_9", reason="JobArrayTaskLimit", reason_text="")
    fill(daemon, a_running_job("42_0"), *(a_job(f"42_{n}") for n in (1, 2, 3, 7)), other)
    rows = [line.split()[0] for line in gpusched("queue", "--noheader").out.splitlines()]
    assert rows == ["42_0", "42_[1-3,7]", "42_9"]
    assert len(gpusched("queue", "-r", "--noheader").out.splitlines()) == 6


def a_row(key: str, indices: str, count: int, **facts):
    first = indices.partition("-")[0].partition(",")[0]
    row = {**a_job(f"{key}_{first}"), "job": f"{key}_[{indices}%4]", "array_limit": 4, **facts}
    return {**row, "array_indices": indices, "array_count": count}


def test_elements_that_wait_as_one_row_are_shown_as_slurm_does_and_counted(daemon):
    fill(daemon, a_running_job("42_0"), a_job("42_3", array_limit=4), a_row("42", "4-99999", 99996))
    shown = gpusched("queue", "--noheader").out.splitlines()
    assert [line.split()[0] for line in shown] == ["42_0", "42_[3-99999%4]"]
    fill(daemon, a_row("42", "1-9:2", 5, position=3))
    rows = json.loads(gpusched("queue", "-r", "--json").out)["jobs"]
    assert [(row["job"], row["array_index"], row["position"]) for row in rows] == [
        ("42_1", 1, 3), ("42_3", 3, 4), ("42_5", 5, 5), ("42_7", 7, 6), ("42_9", 9, 7),
    ]  # fmt: skip


def test_the_start_that_a_row_tells_is_that_of_its_first_element_only(daemon):
    start = {"earliest": NOW, "expected": NOW, "latest": NOW, "text": ""}
    fill(daemon, a_row("42", "3-5", 3, estimated_start=start))
    (row,) = json.loads(gpusched("queue", "--json").out)["jobs"]
    assert row["estimated_start"] == start
    each = json.loads(gpusched("queue", "-r", "--json").out)["jobs"]
    assert [(row["job"], row["estimated_start"]) for row in each] == [("42_3", start), ("42_4", None), ("42_5", None)]
    assert [row["id"] is None for row in each] == [False, True, True]


def test_a_long_list_of_elements_is_shortened_in_the_table(daemon):
    many = ",".join(str(number * number) for number in range(2, 60))
    fill(daemon, a_row("42", many, 58))
    assert gpusched("queue", "--noheader").out.split()[0] == "42_[4,9,16,25,36,49,64,81,100,121,144,169,…%4]"


def test_the_short_queue_counts_the_jobs_that_it_does_not_show(daemon):
    fill(daemon, *(a_job(str(number)) for number in range(1, 16)), a_row("42", "0-99", 100))
    assert "and 100 more" in gpusched().err


def test_filters_are_the_daemons_to_apply(daemon, monkeypatch):
    daemon.last = ["7"]
    gpusched("queue", "-u", "alice,bob", "-s", "pending,r", "-j", "3-4,@", "--name", "tr*", "-a")
    query = daemon.asked[-2].query
    assert query.pop("fields").startswith("job,")
    assert query == {
        "user": "alice,bob", "state": "PENDING,R", "jobs": "3,4,7", "name": "tr*", "all": "1",
    }  # fmt: skip


def test_json_is_what_the_api_says(daemon):
    fill(daemon, a_job("42"))
    assert json.loads(gpusched("queue", "--json").out) == {"jobs": [a_job("42")]}
    assert json.loads(gpusched("--json", "queue", "--format", "job,qos").out) == {
        "jobs": [{"job": "42", "qos": "normal"}]
    }


def test_format_picks_fields_and_help_format_lists_them(daemon):
    fill(daemon, a_job("42"), a_running_job("43", name="n"))
    assert gpusched("queue", "--format", "job,state,name", "--noheader").out.split() == [
        "42", "PENDING", "train", "43", "RUNNING", "n",
    ]  # fmt: skip
    names = gpusched("queue", "--help-format").out.split()
    assert {"job", "state", "progress", "gpu_hours", "eta"} <= set(names)
    everything = gpusched("queue", "--format", ",".join(names))
    assert everything.code == 0, everything.err


def test_an_unknown_field_lists_the_known_ones(daemon):
    for option in ("--format", "--sort"):
        result = gpusched("queue", option, "job,colour")
        assert result.code == 2
        assert "unknown field 'colour'" in result.err and "gpu_hours" in result.err


def test_sort_goes_both_ways_and_puts_what_is_missing_last(daemon):
    fill(daemon, a_job("1", eta=None), a_job("2", eta=5.0), a_job("3", eta=9.0))

    def order(key):
        return gpusched("queue", "--sort", key, "--format", "job", "--noheader").out.split()

    assert order("eta") == ["2", "3", "1"]
    assert order("-eta") == ["3", "2", "1"]


def test_a_spreadsheet_does_not_take_a_name_for_a_formula(daemon):
    names = ["=1+1", "+1", "-1", "@x", "a,b", "plain"]
    fill(daemon, *(a_job(str(place), name=name) for place, name in enumerate(names)))
    rows = list(csv.reader(gpusched("queue", "--csv", "--format", "name,gpus,waited").out.splitlines()))
    assert rows[0] == ["name", "gpus", "waited"]
    assert [row[0] for row in rows[1:]] == ["'=1+1", "'+1", "'-1", "'@x", "a,b", "plain"]
    assert rows[1][1:] == ["1", "12.0"]


def test_the_short_answer_holds_everything_that_the_columns_need(daemon):
    from gpusched.cli.job_fields import QUEUE_KEYS

    stopping = {"cause": "x", "for_job": 51, "deadline_in": 12.0}
    jobs = [
        a_running_job("41_1", time_limit=60.0, progress={"step": 1, "total": 2}, eta=3.0),
        a_running_job("41_2", state="STOPPING", code="CG", stopping=stopping, shared=True, gpu_mem_mib=1024),
        a_job("41_3"), a_job("41_4"),
    ]  # fmt: skip
    fill(daemon, *jobs)
    whole = gpusched("queue").out
    fill(daemon, *({key: job[key] for key in QUEUE_KEYS} for job in jobs))
    assert gpusched("queue").out == whole


def test_control_characters_in_names_are_shown_not_obeyed(daemon):
    fill(daemon, a_job("42", name="\x1b[2Jboo\u202e\n"))
    for words in (("queue",), ("queue", "--csv"), ("show", "42")):
        out = gpusched(*words).out
        assert "\x1b" not in out and "\u202e" not in out
        assert "\\x1b[2Jboo\\u202e\\n" in out


def test_nothing_is_cut_or_coloured_in_a_pipe(daemon, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    fill(daemon, a_running_job("42", name="n" * 120))
    out = gpusched("queue").out
    assert "n" * 120 in out and "\x1b" not in out


def test_an_empty_queue_invites(daemon):
    result = gpusched()
    assert result.code == 0 and "gpusched submit" in result.err


def test_history_asks_for_my_own_jobs_of_the_last_day(daemon, monkeypatch):
    monkeypatch.setattr("gpusched.cli.history.current_user", lambda: "alice")
    fill(daemon, an_ended_job("42", "FAILED", 3, restarts=2))
    out = gpusched("history").out
    assert out.splitlines()[0].split() == [
        "JOBID", "NAME", "USER", "STATE", "EXIT", "ELAPSED", "GPU_HOURS", "PREEMPTED", "END",
    ]  # fmt: skip
    assert out.splitlines()[1].split()[:8] == ["42", "train", "alice", "FAILED", "3:0", "1:02", "2.0", "2"]
    query = daemon.asked[-1].query
    assert query["user"] == "alice" and float(query["since"]) > NOW - 86400 * 10**4 and "until" not in query
    gpusched("history", "-a", "-S", "2026-11-01", "-E", "2026-11-02T12:00", "--limit", "5")
    assert daemon.asked[-1].query == {"since": "1793491200.0", "until": "1793620800.0", "limit": "5"}


@pytest.mark.parametrize("text", ["soon", "5", "2026-99-01", "25:00"])
def test_a_malformed_past_is_refused(daemon, text):
    result = gpusched("history", "-S", text)
    assert result.code == 2 and "7d" in result.err


# ---- gpus -----------------------------------------------------------------------------------------------------

HOLDER = {
    "job": "42", "user": "alice", "name": "train-x", "mem_mib": None, "used_mib": None, "started_at": None,
    "leaving_for": None,
}  # fmt: skip


def test_gpus_shows_a_line_as_gpustat_does_with_job_and_owner(daemon):
    shares = [{**HOLDER, "mem_mib": 10240, "used_mib": 900}, {**HOLDER, "job": "43", "leaving_for": "51"}]
    daemon.devices = [
        a_device(0, state="busy", jobs=[HOLDER]),
        a_device(1, state="shared", jobs=shares),
        a_device(2, state="foreign", foreign=[{"pid": 1, "user": "bob", "used_mib": 5}], foreign_mib=5),
        a_device(3, utilization=None, temperature=None, state="failed", fault="fallen off the bus"),
    ]
    assert gpusched("gpus").out.splitlines() == [
        "[0] NVIDIA H200  52°C  97%  32362/143771 MiB busy      alice #42 train-x",
        "[1] NVIDIA H200  52°C  97%  32362/143771 MiB shared    alice #42 train-x 900/10240 MiB",
        "                                                       alice #43 train-x (leaving for 51)",
        "[2] NVIDIA H200  52°C  97%  32362/143771 MiB foreign   5 MiB in use by bob (foreign)",
        "[3] NVIDIA H200   ?°C   ?%  32362/143771 MiB failed    fallen off the bus",
    ]


def test_no_gpu_is_said_with_a_way_to_try_without(daemon):
    daemon.devices = []
    result = gpusched("gpus")
    assert result.code == 0 and result.out == "" and "gpusched demo" in result.err


def test_query_speaks_nvidia_smi(daemon):
    daemon.devices = [a_device(0, jobs=[HOLDER], state="busy"), a_device(1, utilization=None, power=None)]
    fields = "index,uuid,memory.used,memory.free,utilization.gpu,temperature.gpu,power.draw,job.id,job.user"
    assert gpusched("gpus", "--query", fields, "--format=csv").out.splitlines() == [
        "index, uuid, memory.used [MiB], memory.free [MiB], utilization.gpu [%], temperature.gpu, power.draw [W], "
        "job.id, job.user",
        "0, GPU-0, 32362 MiB, 111409 MiB, 97 %, 52, 350.12 W, 42, alice",
        "1, GPU-1, 32362 MiB, 111409 MiB, [N/A], 52, [N/A], [N/A], [N/A]",
    ]
    bare = gpusched("gpus", "--query-gpu=index,memory.used,count,driver_version", "--format=csv,noheader,nounits").out
    assert bare == "0, 32362, 2, 590.48\n1, 32362, 2, 590.48\n"


def test_query_answers_in_json_with_null_for_what_is_missing(daemon):
    daemon.devices = [a_device(0, power=None)]
    answer = json.loads(gpusched("gpus", "--query", "index,power.draw,sched.state", "--format", "json").out)
    assert answer == [{"index": 0, "power.draw": None, "sched.state": "free"}]


def test_a_job_name_cannot_add_a_column_to_a_query(daemon):
    daemon.devices = [a_device(0, jobs=[{**HOLDER, "name": '=x", 1'}])]
    assert gpusched("gpus", "--query", "job.name,index", "--format", "csv,noheader").out == '"\'=x"", 1", 0\n'


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--query", "index,clocks.sm"], "unknown field 'clocks.sm'"),
        (["--query", "index", "--format", "xml"], "csv[,noheader]"),
        (["--format", "csv,noheader"], "goes with --query"),
        (["--format", "colour"], "unknown field 'colour'"),
    ],
)
def test_a_bad_query_is_refused_with_the_known_words(daemon, words, sentence):
    result = gpusched("gpus", *words)
    assert result.code == 2 and sentence in result.err


def test_the_generic_list_options_work_on_gpus_too(daemon):
    assert gpusched("gpus", "--format", "index,state", "--noheader").out.split() == ["0", "free", "1", "free"]
    assert gpusched("gpus", "--csv", "--format", "index,uuid").out == "index,uuid\n0,GPU-0\n1,GPU-1\n"
    assert len(json.loads(gpusched("gpus", "--json").out)["devices"]) == 2


def test_watch_repeats_until_interrupted_and_outlasts_a_daemon_that_is_away(daemon, monkeypatch):
    rounds = []

    def sleep(seconds):
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    def answer(asked):
        if len(rounds) == 1:
            return 503, {"error": {"code": "unavailable", "message": "starting", "hint": ""}}
        return {"devices": [a_device(0)], "error": None, "driver": ""}

    daemon.answers["GET", "/v1/devices"] = answer
    monkeypatch.setattr("time.sleep", sleep)
    result = gpusched("gpus", "-l", "5", "--query", "index", "--format", "csv,noheader")
    assert (result.code, result.out, rounds) == (0, "0\n0\n", [5.0, 5.0, 5.0])
    assert "trying again" in result.err
