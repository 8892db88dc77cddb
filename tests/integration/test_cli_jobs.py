"""Commands about jobs that exist: cancel and its like, why, show, wait, logs and run."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from fake_daemon import FakeDaemon, a_job, a_running_job, an_ended_job, gpusched


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    with FakeDaemon(str(tmp_path / "s")) as server:
        yield server


# ---- verbs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["cancel", "hold", "release", "requeue", "preempt", "checkpoint"])
def test_a_verb_reaches_every_job_that_was_named(daemon, verb):
    daemon.last = ["99", "98"]
    result = gpusched(verb, "10-12,20", "42_[1-2]", "@", "@~1")
    assert daemon.bodies(f"/v1/jobs/{verb}") == [{"jobs": ["10", "11", "12", "20", "42_[1-2]", "99", "98"]}]
    assert result.code == 0 and f"job 10: {verb} done" in result.out


def refused(key, code, message):
    error = {"code": code, "message": message, "hint": "look"}
    return {"job": key, "ok": False, "text": message, "error": error}


def test_what_failed_is_told_and_decides_the_exit_code(daemon):
    daemon.answers["POST", "/v1/jobs/cancel"] = lambda asked: {
        "results": [
            {"job": "1", "ok": True, "text": "cancelled"},
            refused("2", "not-found", "there is no job 2"),
            refused("3", "refused", "it has ended"),
        ]
    }
    result = gpusched("cancel", "1", "2", "3")
    assert (result.code, result.out) == (3, "job 1: cancelled\n")
    assert result.err == "gpusched: there is no job 2\n  look\ngpusched: job 3: it has ended\n  look\n"
    assert json.loads(gpusched("cancel", "1", "--json").out)["results"][1]["ok"] is False


def test_filters_choose_jobs_but_not_without_a_yes(daemon):
    daemon.jobs = {"1": a_job("1"), "2": a_job("2")}
    result = gpusched("cancel", "-s", "PENDING", "-u", "alice")
    assert result.code == 2 and "would cancel 2 jobs" in result.err
    assert daemon.bodies("/v1/jobs/cancel") == []
    assert gpusched("cancel", "-s", "PENDING", "-u", "alice", "--yes").code == 0
    assert daemon.bodies("/v1/jobs/cancel") == [{"jobs": ["1", "2"]}]


def test_all_means_my_own_jobs_for_all_but_root(daemon, monkeypatch):
    monkeypatch.setattr("gpusched.cli.control.current_user", lambda: "alice")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    gpusched("cancel", "--all", "--yes")
    assert daemon.asked[-1].query == {"user": "alice"}


def test_cancel_without_a_job_says_what_to_write(daemon):
    result = gpusched("cancel")
    assert result.code == 2 and "gpusched cancel 42" in result.err


def test_an_unknown_job_is_exit_code_3(daemon):
    for words in (("show", "7"), ("why", "7"), ("logs", "7"), ("wait", "7")):
        result = gpusched(*words)
        assert result.code == 3 and "there is no job 7" in result.err


def test_update_sends_only_what_was_given(daemon):
    daemon.last = ["5"]
    gpusched("update", "42", "--time", "0", "-q", "high", "--gpu-mem", "0", "--begin", "now", "-g", "a100:2")
    gpusched("update", "7", "-g", "2-8")
    gpusched("update", "@", "--no-requeue", "--comment", "", "-d", "", "--gpu-type", "")
    assert daemon.bodies("/v1/jobs/update") == [
        {"jobs": ["42"], "set": {"time_limit": 0.0, "qos": "high", "gpu_mem_mib": 0, "begin": 0.0, "gpus": 2,
                                 "gpus_max": 0, "gpu_counts": [], "gpu_type": "*a100*"}},
        {"jobs": ["7"], "set": {"gpus": 2, "gpus_max": 8, "gpu_counts": []}},
        {"jobs": ["5"], "set": {"requeue": False, "comment": "", "dependency": "", "gpu_type": ""}},
    ]  # fmt: skip
    assert gpusched("update", "42").code == 2


def test_resubmit_names_the_new_job(daemon):
    daemon.answers["POST", "/v1/jobs/resubmit"] = lambda asked: {
        "results": [{"job": "42", "ok": True, "text": "submitted again as job 43", "new": "43"}]
    }
    assert gpusched("resubmit", "42").out == "job 42: submitted again as job 43\n"
    assert gpusched("resubmit", "42", "-H", "--parsable").out == "43\n"
    assert daemon.bodies("/v1/jobs/resubmit")[1] == {"jobs": ["42"], "hold": True}


# ---- why and show ---------------------------------------------------------------------------------------------


def test_why_tells_it_in_words(daemon):
    answer = {
        "job": "42", "state": "PENDING", "reason": "Resources", "text": "needs 2 devices, 1 of 2 free",
        "next": "job 41 ends", "ahead": [{"job": "40", "user": "bob", "qos": "high", "text": "waits for 2"}],
        "devices": [{"index": 0, "uuid": "GPU-0", "usable": False, "text": "busy with job 41"},
                    {"index": 1, "uuid": "GPU-1", "usable": True, "text": "free"}],
        "victims": [{"job": "41", "user": "eve", "qos": "normal", "preemptible": False, "text": "same QoS"}],
    }  # fmt: skip
    daemon.answers["GET", "/v1/jobs/42/why"] = lambda asked: answer
    out = gpusched("why", "42").out
    for words in ("needs 2 devices", "next: job 41 ends", "40  bob  high", "[0]  no: busy with job 41",
                  "[1]  could be used: free", "41  eve  normal  may not be preempted: same QoS"):  # fmt: skip
        assert words in out
    assert json.loads(gpusched("why", "42", "--json").out) == answer


def test_show_tells_the_whole_story(daemon):
    outcome = {"kind": "exited", "code": 85, "signal": None, "errno": None, "text": "", "killed": False}
    lost = {"kind": "signalled", "code": None, "signal": 9, "errno": None, "text": "", "killed": True}
    when = {"created_at": 1.0, "started_at": 2.0, "ended_at": 3.0, "devices": [{"index": 0}]}
    daemon.jobs["42"] = {
        **a_running_job("42", attempt=3, restarts=2, comment="note", saved={"checkpoint": "c7", "step": 7, "at": 3.0},
                        progress={"epoch": 1, "step": 7, "total": 9, "metrics": {"loss": 0.91333}}),
        "attempts": [
            {"number": 1, "outcome": outcome, "saved": {"step": 7}, "cause": "preempted for job 51", **when},
            {"number": 2, "outcome": lost, "saved": None, "cause": None, **when},
            {"number": 3, "outcome": None, "saved": None, "cause": None, **when, "ended_at": None},
        ],
        "story": [{"at": 2.0, "attempt": 1, "kind": "preempt", "text": "preempted for job 51", "by": "prof"}],
        "source": {"script": "/x/train.py", "script_sha256": "0", "git_commit": "abcdef0123456789", "git_dirty": True},
    }  # fmt: skip
    out = gpusched("show", "42").out
    for words in ("python train.py", "abcdef012345, with uncommitted changes", "epoch 1 step 7/9", "loss 0.9133",
                  "c7 at step 7", "exit code 85, preempted for job 51, saved", "by prof",
                  "signal 9, killed at the end of its grace period", "now  GPUs 0  running"):  # fmt: skip
        assert words in out, words


def test_show_of_an_array_lists_its_elements(daemon):
    daemon.jobs["42"] = {"array": "42", "elements": [a_job("42_1"), a_running_job("42_2")]}
    out = gpusched("show", "42").out
    assert "2 elements" in out and "42_1" in out and "42_2" in out


# ---- wait -----------------------------------------------------------------------------------------------------


def test_wait_ends_with_the_highest_code_of_all(daemon):
    elements = [an_ended_job("5_0"), an_ended_job("5_1", "FAILED", 9)]
    daemon.jobs = {"4": an_ended_job("4", "CANCELLED", 130), "5": {"elements": elements}}
    assert gpusched("wait", "5").code == 9
    assert gpusched("wait", "4", "5").code == 130
    assert len(json.loads(gpusched("wait", "4", "5", "--json").out)["jobs"]) == 3


def test_wait_gives_up_after_its_timeout_with_124(daemon):
    daemon.jobs["42"] = a_running_job("42")
    result = gpusched("wait", "42", "--timeout", "0.2")
    assert result.code == 124 and "42" in result.err


def test_wait_asks_again_until_the_job_has_ended(daemon):
    def answer(asked):
        rounds = sum(request.path == asked.path for request in daemon.asked)
        return an_ended_job("42", "FAILED", 3) if rounds > 2 else a_running_job("42")

    daemon.answers["GET", "/v1/jobs/42/wait"] = answer
    assert gpusched("wait", "42").code == 3
    assert daemon.asked[-1].query == {"timeout": "30"}


def test_wait_outlasts_a_restart_of_the_daemon(daemon, monkeypatch):
    daemon.jobs["42"] = a_running_job("42")

    def answer(asked):
        if not daemon.api:
            return an_ended_job("42")
        daemon.api = ""  # as if somebody else had taken the socket for a moment
        return a_running_job("42")

    def sleep(seconds):
        daemon.answers["GET", "/v1/jobs/42/wait"] = lambda asked: an_ended_job("42")
        daemon.api = "1"

    daemon.answers["GET", "/v1/jobs/42/wait"] = answer
    monkeypatch.setattr("time.sleep", sleep)
    result = gpusched("wait", "42")
    assert result.code == 0 and "trying again" in result.err and "answers again" in result.err


def test_a_daemon_that_stays_away_ends_the_wait_with_how_to_find_the_job(daemon, monkeypatch):
    monkeypatch.setattr("gpusched.cli.wait.PATIENCE", 0.0)
    daemon.api = ""
    daemon.jobs["42"] = a_running_job("42")
    result = gpusched("wait", "42")
    assert result.code == 69 and "gpusched show 42" in result.err


# ---- logs -----------------------------------------------------------------------------------------------------

TWO_ATTEMPTS = "one\ntwo\n---- gpusched: job 42, attempt 2 ----\nthree\nfour\n"


def test_logs_prints_the_file_or_its_last_lines(daemon, tmp_path):
    path = tmp_path / "out"
    path.write_text(TWO_ATTEMPTS)
    daemon.jobs["42"] = an_ended_job("42", output=str(path), attempt=2)
    daemon.last = ["42"]
    assert gpusched("logs", "@").out == TWO_ATTEMPTS
    assert gpusched("logs", "-n", "2", "42").out == "three\nfour\n"
    assert gpusched("logs", "-n", "0", "42").out == ""
    assert gpusched("logs", "-n", "99", "42").out == TWO_ATTEMPTS
    path.write_text("no newline")
    assert gpusched("logs", "-n", "1", "42").out == "no newline"


def test_logs_of_one_attempt(daemon, tmp_path):
    path = tmp_path / "out"
    path.write_text(TWO_ATTEMPTS)
    daemon.jobs["42"] = an_ended_job("42", output=str(path), attempt=2)
    assert gpusched("logs", "--attempt", "1", "42").out == "one\ntwo\n"
    assert gpusched("logs", "--attempt", "2", "-n", "1", "42").out == "four\n"
    assert gpusched("logs", "--attempt", "3", "42").code == 3


def test_logs_says_why_there_is_nothing(daemon, tmp_path):
    daemon.jobs["42"] = a_job("42")
    assert "has not started yet" in gpusched("logs", "42").err
    daemon.jobs["42"] = an_ended_job("42", output=str(tmp_path / "gone"))
    result = gpusched("logs", "42")
    assert result.code == 3 and "moved or deleted" in result.err
    os.mkfifo(tmp_path / "pipe")
    daemon.jobs["42"] = an_ended_job("42", output=str(tmp_path / "pipe"))
    assert "not a plain file" in gpusched("logs", "42").err
    assert "no error file of its own" in gpusched("logs", "--stderr", "42").err


def test_logs_of_an_array_have_a_heading_each(daemon, tmp_path):
    (tmp_path / "a").write_text("A\n")
    (tmp_path / "b").write_text("B\n")
    elements = [an_ended_job("42_0", output=str(tmp_path / "a")), an_ended_job("42_1", output=str(tmp_path / "b"))]
    daemon.jobs["42"] = {"array": "42", "elements": [*elements, a_job("42_2")]}
    assert gpusched("logs", "42").out == f"==> 42_0 {tmp_path}/a <==\nA\n==> 42_1 {tmp_path}/b <==\nB\n"
    assert gpusched("logs", "-f", "42").code == 2


class Story:
    """Answers of /wait: one after the other, each with what the job has written by then."""

    def __init__(self, daemon, path, *chapters):
        self.path, self.chapters = path, list(chapters)
        daemon.answers["GET", "/v1/jobs/42/wait"] = self.answer
        daemon.jobs["42"] = {**a_job("42"), "output": str(path)}

    def answer(self, asked):
        job, text = self.chapters[0]
        if len(self.chapters) > 1:
            self.chapters.pop(0)
            with open(self.path, "a") as file:
                file.write(text)
        return {**job, "output": str(self.path)}


def test_logs_follow_the_job_over_its_attempts_to_the_end(daemon, tmp_path):
    Story(
        daemon, tmp_path / "out",
        (a_job("42"), ""), (a_running_job("42"), "one\n"), (a_job("42", attempt=1), "saving\n"),
        (a_running_job("42", attempt=2), "two\n"), (an_ended_job("42", attempt=2), "end\n"), (an_ended_job("42"), ""),
    )  # fmt: skip
    result = gpusched("logs", "-f", "42")
    assert (result.code, result.out) == (0, "one\nsaving\ntwo\nend\n")


# ---- run ------------------------------------------------------------------------------------------------------


def test_run_streams_the_output_over_a_preemption_and_ends_with_the_jobs_code(daemon, tmp_path):
    Story(
        daemon, tmp_path / "out",
        (a_job("42"), ""), (a_running_job("42"), "one\n"),
        (a_running_job("42", state="STOPPING", stopping={"cause": "preempted", "for_job": 51, "deadline_in": 9}), ""),
        (a_job("42", attempt=1), ""), (a_running_job("42", attempt=2), "two"),
        (an_ended_job("42", "FAILED", 3, attempt=2), "\nend"), (an_ended_job("42", "FAILED", 3, attempt=2), ""),
    )  # fmt: skip
    result = gpusched("run", "-g", "1", "--", "python", "t.py", "-g", "8")
    assert (result.code, result.out) == (3, "one\ntwo\nend")
    for words in ("job 42 submitted", "waits (Resources: needs 4, 1 free)", "started on GPU 0", "leaving for 51",
                  "waits again", "goes on on GPU 0 (attempt 2)", "FAILED: exit code 3"):  # fmt: skip
        assert words in result.err, words
    assert daemon.submitted["command"] == ["python", "t.py", "-g", "8"]


def test_run_shows_only_what_is_new_in_a_file_that_was_there_before(daemon, tmp_path):
    (tmp_path / "log").write_text("from last week\n")
    Story(daemon, tmp_path / "log", (a_running_job("42"), "new\n"), (an_ended_job("42"), ""))
    assert gpusched("run", "-Q", "-o", "log", "true") == (0, "new\n", "")


def test_run_keeps_the_two_streams_apart(daemon, tmp_path):
    (tmp_path / "e").write_text("to stderr\n")
    Story(daemon, tmp_path / "o", (a_running_job("42"), "to stdout\n"), (an_ended_job("42"), ""))
    answer = daemon.answers["GET", "/v1/jobs/42/wait"]
    daemon.answers["GET", "/v1/jobs/42/wait"] = lambda asked: {**answer(asked), "error_output": str(tmp_path / "e")}
    assert gpusched("run", "-Q", "-e", "e", "true") == (0, "to stdout\n", "to stderr\n")


def test_run_leaves_the_job_alone_when_the_daemon_is_gone_for_good(daemon, monkeypatch):
    monkeypatch.setattr("gpusched.cli.wait.PATIENCE", 0.0)

    def answer(asked):
        daemon.api = ""
        return {"job": "42", "ids": [42], "note": "", "dry_run": False}

    def submit_then_vanish(asked):
        daemon.answers["GET", "/v1/jobs/42/wait"] = answer
        return answer(asked) if asked.method == "GET" else {"job": "42", "ids": [42], "note": ""}

    daemon.answers["POST", "/v1/jobs"] = submit_then_vanish
    result = gpusched("run", "true")
    assert result.code == 69 and "the job goes on; find it with: gpusched logs -f 42" in result.err


def await_line(read, words, deadline=30.0):
    """Read until the words have been seen."""
    seen, end = "", time.monotonic() + deadline
    while words not in seen:
        assert time.monotonic() < end, seen
        seen += read()
    return seen


def start_run(daemon, tmp_path, **streams):
    """A `gpusched run` in a process of its own whose job runs until it is cancelled."""
    daemon.answers["GET", "/v1/jobs/42/wait"] = lambda asked: (
        an_ended_job("42", "CANCELLED", 130)
        if daemon.bodies("/v1/jobs/cancel")
        else a_running_job("42", output=str(tmp_path / "none"))
    )
    command = [sys.executable, "-m", "gpusched.cli.main", "run", "sleep", "99"]
    return subprocess.Popen(command, **streams)


def test_ctrl_c_without_a_terminal_cancels_the_job(daemon, tmp_path):
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with start_run(daemon, tmp_path, **streams) as run:
        await_line(lambda: run.stderr.readline().decode(), "started on GPU 0")
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    assert daemon.bodies("/v1/jobs/cancel") == [{"jobs": ["42"]}]


@pytest.mark.parametrize(("answers", "code", "cancelled"), [(b"x\nd\n", 130, 0), (b"y\n", 130, 1), (b"\x03", 130, 1)])
def test_ctrl_c_on_a_terminal_asks_first(daemon, tmp_path, answers, code, cancelled):
    master, slave = pty.openpty()

    def read():
        ready, _, _ = select.select([master], [], [], 30)
        return os.read(master, 4096).decode(errors="replace") if ready else ""

    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    with start_run(daemon, tmp_path, start_new_session=True, **streams) as run:
        try:
            await_line(read, "started on GPU 0")
            run.send_signal(signal.SIGINT)
            await_line(read, "cancel job 42?")
            assert daemon.bodies("/v1/jobs/cancel") == []
            if answers == b"\x03":  # a second Ctrl-C
                run.send_signal(signal.SIGINT)
            else:
                os.write(master, answers)
            assert run.wait(30) == code
        finally:
            os.close(slave)
            os.close(master)
    assert len(daemon.bodies("/v1/jobs/cancel")) == cancelled
