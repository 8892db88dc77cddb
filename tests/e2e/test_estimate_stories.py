"""When waiting jobs will start, as a real daemon tells it: queue, why, show, submit --dry-run."""

from __future__ import annotations

import json
import re
import time


def test_queue_why_show_and_dry_run_tell_the_same_start(place):
    before = time.time()
    first = place.sh("sleep 600", gpus=2, time_limit=1500.0)
    place.running(first)
    waiting = place.sh("true", time_limit=60.0)
    told = place.client.why(waiting)
    start = told["estimated_start"]
    assert start["text"] == ""
    assert before + 1500 <= start["earliest"] <= start["expected"] <= start["latest"] <= time.time() + 1500
    assert told["reason"] == "Resources"
    assert re.fullmatch(rf"job {first} \(its time limit\) ends, in about 2[45]:00", told["next"])
    queued = {job["job"]: job for job in place.client.jobs()}
    assert queued[first]["estimated_start"] is None
    assert abs(queued[waiting]["estimated_start"]["expected"] - start["expected"]) < 2
    shown = place.client.job(waiting)["estimated_start"]
    assert abs(shown["expected"] - start["expected"]) < 2
    tried = place.client.submit({"command": ["true"], "cwd": "/", "expected": 10.0}, dry_run=True)
    # one device is left beside the job that waits already, and that one is short
    assert abs(tried["estimated_start"]["expected"] - start["expected"]) < 2

    assert re.search(r"estimated start: about (\w+ )?\d\d:\d\d \(in 2[45]:\d\d\)", place.cli("why", waiting).out)
    lines = place.cli("queue").out.splitlines()
    assert "START" in lines[0].split() and re.search(r" ~(\w+ )?\d\d:\d\d ", lines[2])
    assert "estimated start: about" in place.cli("submit", "--dry-run", "true").out
    rows = json.loads(place.cli("queue", "--json").out)["jobs"]
    assert [row["job"] for row in rows if row["estimated_start"]] == [waiting]
    assert re.search(r"^\d{10}", place.cli("queue", "--noheader", "--csv", "--format", "start", "-s", "PD").out)
    place.client.cancel([first, waiting])
    place.ended(first)


def test_nobody_can_say_when_a_job_without_any_limit_ends(own):
    first = own.sh("sleep 600", gpus=2)
    own.running(first)
    waiting = own.sh("true")
    start = own.client.why(waiting)["estimated_start"]
    sentence = f"job {first} has no time limit and nothing like it has run before, so nobody can say"
    assert start == {"earliest": None, "expected": None, "latest": None, "text": sentence}
    assert f"estimated start: {sentence}" in own.cli("why", waiting).out
    assert "START" not in own.cli("queue").out.splitlines()[0].split()
    own.client.update([first], {"expected": 900.0})
    assert own.client.why(waiting)["estimated_start"]["expected"] is not None


def test_a_job_that_is_on_its_way_or_has_ended_has_no_estimate(place):
    done = place.sh("true")
    place.ended(done)
    assert place.client.why(done)["estimated_start"] is None
    held = place.sh("true", hold=True)
    assert place.client.why(held)["estimated_start"]["text"] == "it waits for somebody to release or change it"
    tried = place.client.submit({"command": ["true"], "cwd": "/"}, dry_run=True)
    assert abs(tried["estimated_start"]["expected"] - time.time()) < 2
    assert "estimated start" not in place.cli("submit", "--dry-run", "true").out
    place.client.cancel([held])
