"""Cancel, hold, requeue, resubmit, update, dependencies and arrays, with the real daemon and real processes."""

from __future__ import annotations

import sys

import pytest
from daemons import alive, until

from gpusched.model.errors import UsageError

# Three processes that ignore every polite signal; each has left its session and its parent.
ESCAPES = r"""
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setsid()
        break
os.write(1, b"%d\n" % os.getpid())  # one write: four processes share the file
time.sleep(600)
"""


def test_cancel_leaves_no_process_of_a_tree_that_hides_and_ignores_signals(place):
    key = place.submit(sys.executable, "-S", "-c", ESCAPES, gpus=1, grace=0.5)
    until(lambda: len(place.output(key).split()) == 4, lambda: (place.story(key), place.output(key)))
    tree = [int(pid) for pid in place.output(key).split()]
    assert all(alive(pid) for pid in tree)
    told = place.cli("cancel", key)
    assert told.code == 0
    job = place.ended(key)
    assert (job["state"], job["exit_status"]) == ("CANCELLED", 130)
    assert not [pid for pid in tree if alive(pid)]


def test_cancel_ends_waiting_jobs_at_once_and_refuses_ended_ones(place):
    key = place.sh("true", hold=True)
    assert place.client.cancel([key])[0]["ok"]
    job = place.job(key)
    assert job["state"] == "CANCELLED" and not job["attempts"]
    again = place.client.cancel([key])[0]
    assert not again["ok"] and "CANCELLED" in again["text"]


def test_dependencies_let_a_chain_run_in_order_and_cancel_what_can_never_run(place):
    good = place.sh("exit 0", gpus=0, hold=True)
    bad = place.sh("exit 1", gpus=0, hold=True)
    after_good = place.sh("true", gpus=0, dependency=f"afterok:{good}")
    after_bad = place.sh("true", gpus=0, dependency=f"afterok:{bad}")
    after_failure = place.sh("true", gpus=0, dependency=f"afternotok:{bad}")
    after_any = place.sh("true", gpus=0, dependency=f"afterany:{good}:{bad}")
    assert place.job(after_good)["reason"] == "Dependency"
    place.client.release([good, bad])
    for key in (after_good, after_failure, after_any):
        job = place.ended(key)
        assert job["state"] == "COMPLETED"
        assert job["started_at"] >= min(place.job(good)["ended_at"], place.job(bad)["ended_at"])
    assert place.ended(after_bad)["state"] == "CANCELLED"
    told = place.cli("submit", "--parsable", "-g", "0", "--after", good, "true")  # one that has long ended
    assert place.ended(told.out.strip())["state"] == "COMPLETED"


def test_a_dependency_on_itself_or_in_a_circle_is_refused(place):
    first = place.sh("true", gpus=0, hold=True)
    second = place.sh("true", gpus=0, dependency=f"afterok:{first}")
    result = place.client.update([first], {"dependency": f"afterok:{second}"})[0]
    assert not result["ok"] and "would wait for itself" in result["text"]
    with pytest.raises(UsageError):
        place.sh("true", dependency=f"afterok:{int(second) + 1}")
    place.client.cancel([first])
    assert place.ended(second)["state"] == "CANCELLED"


def test_an_array_runs_so_many_at_once_and_each_element_knows_itself(place):
    script = "I=$GPUSCHED_ARRAY_TASK_ID; echo start >> array.log; sleep 0.2; echo $I >> array.log; exit $I"
    key = place.sh(script, gpus=0, array="0-5%1")
    waited = place.cli("wait", key)
    assert waited.code == 5
    elements = place.client.job(key)["elements"]
    assert [e["exit_code"] for e in elements] == [0, 1, 2, 3, 4, 5]
    lines = (place.work / "array.log").read_text().split()
    assert lines[::2] == ["start"] * 6, "two elements ran at once"
    assert place.cli("show", f"{key}_3").code == 0
    assert place.job(f"{key}_3")["array_index"] == 3
    assert len({e["output"] for e in elements}) == 6


def test_one_element_of_an_array_can_be_cancelled_alone(place):
    key = place.sh("sleep 600", gpus=0, array="1-3")
    for index in (1, 2, 3):
        place.running(f"{key}_{index}")
    assert place.cli("cancel", f"{key}_2").code == 0
    assert place.ended(f"{key}_2")["state"] == "CANCELLED"
    assert [place.state_of(f"{key}_{i}") for i in (1, 3)] == ["RUNNING", "RUNNING"]
    place.client.cancel([key])
    for index in (1, 3):
        assert place.ended(f"{key}_{index}")["state"] == "CANCELLED"


def test_requeue_of_a_running_job_starts_it_again_and_of_an_ended_one_too(place):
    key = place.sh("echo attempt $GPUSCHED_ATTEMPT; [ -e done-requeue ] || sleep 600", gpus=0, grace=0.5)
    place.running(key)
    assert place.cli("requeue", key).code == 0
    until(lambda: place.job(key)["attempt"] == 2 and place.state_of(key) == "RUNNING", lambda: place.story(key))
    (place.work / "done-requeue").touch()
    place.client.requeue([key])
    assert place.ended(key)["attempt"] == 3
    place.client.requeue([key])
    until(lambda: place.job(key)["attempt"] == 4, lambda: place.story(key))
    assert place.ended(key)["state"] == "COMPLETED"
    assert [line for line in place.output(key).splitlines() if "----" not in line] == [
        f"attempt {n}" for n in (1, 2, 3, 4)
    ]


def test_resubmit_runs_the_same_job_again_under_a_new_id(place):
    key = place.sh('echo "$TOKEN"; exit 4', gpus=0, env={"TOKEN": "s3cret"}, name="again")
    place.ended(key)
    told = place.cli("resubmit", key)
    assert told.code == 0, told.err
    new = place.client.last()[0]
    assert int(new) > int(key)
    job = place.ended(new)
    assert (job["name"], job["exit_code"]) == ("again", 4) and place.output(new) == "s3cret\n"


def test_update_changes_a_waiting_job_and_refuses_what_a_running_one_cannot_change(place):
    key = place.sh("sleep 600", gpus=2, hold=True)
    assert place.cli("update", key, "--name", "renamed", "--gpus", "1", "--qos", "low").code == 0
    job = place.job(key)
    assert (job["name"], job["gpus"], job["qos"]) == ("renamed", 1, "low")
    place.client.release([key])
    assert len(place.running(key)["devices"]) == 1
    refused = place.client.update([key], {"gpus": 2})[0]
    assert not refused["ok"] and "only while it waits" in refused["text"]
    assert place.client.update([key], {"time_limit": 0.5})[0]["ok"]
    assert place.ended(key)["state"] == "TIMEOUT"


def test_hold_keeps_a_waiting_job_back_and_release_lets_it_go(place):
    blocker = place.sh("sleep 600", gpus=2)
    place.running(blocker)
    key = place.sh("true", gpus=1)
    assert place.cli("hold", key).code == 0
    place.client.cancel([blocker])
    place.ended(blocker)
    assert place.job(key)["reason"] == "JobHeldUser"
    later = place.sh("true", gpus=1)
    assert place.ended(later)["state"] == "COMPLETED" and place.state_of(key) == "PENDING"
    assert place.cli("release", key).code == 0
    assert place.ended(key)["state"] == "COMPLETED"


def test_a_job_that_saves_again_and_again_without_progress_is_held_with_a_sentence(place):
    key = place.sh("exit 85", gpus=0)
    until(lambda: place.job(key)["reason"] == "JobHeldSystem", lambda: place.story(key))
    job = place.job(key)
    assert "85" in job["reason_text"] and job["state"] == "PENDING" and job["attempt"] >= 2
    place.client.cancel([key])
