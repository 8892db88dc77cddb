"""Preempt, save, give the device away, resume: with real jobs on simulated devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from daemons import COMMAND, JOBS, alive, children, read_until, until


def indexes(job: dict) -> list[int]:
    """Devices of the latest attempt, also after its end."""
    return [device["index"] for device in job["attempts"][-1]["devices"]]


def test_a_bash_job_saves_gives_its_exact_device_away_and_resumes_from_its_file(place):
    low = place.submit("bash", str(JOBS / "count.sh"), "25", "0.1", qos="low", gpus=1)
    stays = place.sh("sleep 600", qos="normal", gpus=1)
    place.running(stays)
    until(lambda: "3\n" in place.output(low), lambda: place.story(low))
    device = place.running(low)["devices"]
    high = place.sh("sleep 0.3", qos="high", gpus=1)
    waiting = place.await_state(high, "PENDING", "RUNNING", "STARTING")
    assert waiting["reason"] in ("Preempting", None)
    assert place.ended(high)["attempts"][0]["devices"] == device
    job = place.ended(low)
    assert (job["state"], job["attempt"], job["restarts"]) == ("COMPLETED", 2, 1)
    first = job["attempts"][0]
    assert first["outcome"]["code"] == 85 and first["saved"]["step"] >= 3
    assert f"for job {high}" in first["cause"]
    lines = [line for line in place.output(low).splitlines() if line.isdigit()]
    assert lines == [str(n) for n in range(1, 26)]  # nothing twice, nothing left out
    assert f"resuming after {first['saved']['step']}" in place.output(low)
    untouched = place.job(stays)
    assert (untouched["state"], untouched["attempt"]) == ("RUNNING", 1)
    assert not [line for line in place.story(stays) if "stopping" in line]
    place.client.cancel([stays])
    place.ended(stays)


def test_a_stubborn_job_is_killed_as_a_whole_tree_at_the_end_of_its_grace_and_waits_again(place):
    command = [sys.executable, "-S", str(JOBS / "stubborn.py"), "--seconds", "600"]
    told = place.cli("submit", "--parsable", "-q", "low", "-g", "2", "--grace", "2s", "--", *command)
    low = told.out.strip()
    until(lambda: place.output(low).count("working") == 2, lambda: place.story(low))
    pid = place.job(low)["pid"]
    tree = [pid, *children(pid)]
    assert len(tree) == 2
    high = place.sh("sleep 1", qos="high", gpus=2)
    assert place.ended(high)["state"] == "COMPLETED"
    assert not [p for p in tree if alive(p)]
    job = place.await_state(low, "STARTING", "RUNNING")
    job = place.job(low)
    assert job["attempt"] == 2 and job["attempts"][0]["outcome"]["signal"] == 9
    assert job["attempts"][0]["outcome"]["killed"]
    started, killed = place.job(high)["started_at"], job["attempts"][0]["ended_at"]
    assert started >= killed
    assert "SIGTERM" in place.output(low) or "signal 15 ignored" in place.output(low)
    place.client.cancel([low])
    assert place.ended(low)["state"] == "CANCELLED"


def test_only_as_many_victims_leave_as_the_preemptor_needs(place):
    lows = [place.sh("sleep 600", qos="low", gpus=1) for _ in range(2)]
    for low in lows:
        place.running(low)
    high = place.sh("true", qos="high", gpus=1)
    assert place.ended(high)["state"] == "COMPLETED"
    for low in lows:
        place.running(low)
    assert sorted(place.job(low)["attempt"] for low in lows) == [1, 2]
    place.client.cancel(lows)


def test_a_gang_gets_all_its_devices_or_none(place):
    low = place.sh("sleep 600", qos="low", gpus=1, time_limit=600.0)
    place.running(low)
    gang = place.sh("true", qos="low", gpus=2)
    assert place.client.why(gang)["reason"] == "Resources" and place.job(gang)["devices"] == []
    small = place.sh("true", qos="low", gpus=1, time_limit=60.0)  # uses what the gang cannot
    assert place.ended(small)["state"] == "COMPLETED"
    place.client.cancel([low])
    job = place.ended(gang)
    assert job["state"] == "COMPLETED" and indexes(job) == [0, 1]


def test_preempt_gives_the_devices_back_once_and_the_job_resumes(place):
    low = place.submit("bash", str(JOBS / "count.sh"), "15", "0.1", gpus=2)
    until(lambda: "2\n" in place.output(low), lambda: place.story(low))
    waits = place.sh("true", gpus=2)
    assert place.cli("preempt", low).code == 0
    assert place.ended(waits)["state"] == "COMPLETED"
    job = place.ended(low)
    assert (job["state"], job["attempt"]) == ("COMPLETED", 2)
    assert place.ended(waits)["started_at"] < job["started_at"]
    assert [line for line in place.output(low).splitlines() if line.isdigit()] == [str(n) for n in range(1, 16)]


def test_at_names_the_last_job_for_preempt(place):
    key = place.sh("trap 'exit 85' TERM; sleep 600 & wait", gpus=1)
    place.running(key)
    assert place.cli("preempt", "@").code == 0
    until(lambda: place.job(key)["attempt"] == 2, lambda: place.story(key))
    place.running(key)
    place.client.cancel([key])
    assert place.ended(key)["state"] == "CANCELLED"


WATCHES = """
import json, os, time
here = os.environ["GPUSCHED_JOB_DIR"]
def put(name, value):
    with open(os.path.join(here, name + ".tmp"), "w") as file:
        json.dump(value, file)
    os.rename(os.path.join(here, name + ".tmp"), os.path.join(here, name))
put("watching", {"pid": os.getpid()})
seen, number = 0, int(os.environ["GPUSCHED_ATTEMPT"])
while True:
    try:
        request = json.load(open(os.path.join(here, "request")))
    except FileNotFoundError:
        request = {"seq": 0}
    if request["seq"] > seen:
        seen = request["seq"]
        put("saved", {"attempt": number, "checkpoint": "step-%d" % seen, "step": 100 + seen, "at": time.time()})
        print("saved", request["ask"], flush=True)
        if request["ask"] == "stop":
            raise SystemExit(1)  # as a launcher does with a worker's 85: the file decides
    with open(os.path.join(here, "progress.jsonl"), "a") as file:
        file.write(json.dumps({"epoch": 1, "step": seen, "total": 10, "metrics": {"loss": 0.5}}) + "\\n")
    time.sleep(0.05)
"""


def test_checkpoint_is_for_jobs_that_watch_and_they_save_and_go_on(place):
    deaf = place.sh("sleep 600", gpus=0)
    place.running(deaf)
    refused = place.cli("checkpoint", deaf)
    assert refused.code == 1 and "does not watch" in refused.err
    place.client.cancel([deaf])

    key = place.submit(sys.executable, "-S", "-c", WATCHES, gpus=1, qos="low")
    until(lambda: place.job(key)["watching"], lambda: place.story(key))
    assert place.cli("checkpoint", key).code == 0
    until(lambda: place.job(key)["saved"], lambda: place.story(key))
    job = place.job(key)
    assert (job["state"], job["attempt"], job["saved"]["step"]) == ("RUNNING", 1, 101)
    until(lambda: (place.job(key)["progress"] or {}).get("metrics") == {"loss": 0.5}, "its progress")
    # asked to leave, it saves again, and its exit code 1 counts as "saved", because it said so in its file
    place.client.preempt([key])
    until(lambda: place.job(key)["attempt"] == 2, lambda: place.story(key))
    assert place.job(key)["attempts"][0]["saved"]["step"] == 102
    place.client.cancel([key])
    job = place.ended(key)
    assert job["state"] == "CANCELLED" and "saved stop" in place.output(key)


def test_a_training_that_was_preempted_ends_with_the_weights_of_an_undisturbed_one(place):
    """The one test here that pays for importing torch."""
    train = [sys.executable, str(JOBS / "train_mlp.py"), "--epochs", "2", "--samples", "512", "--slow-ms", "150"]
    env = {"PYTHONPATH": str(JOBS.parent), "OMP_NUM_THREADS": "1"}
    calm = place.submit(*train[:-2], "--out", "calm.json", gpus=0, env=env)
    moved = place.submit(*train, "--out", "moved.json", gpus=2, qos="low", env=env)
    progress = Path(place.running(moved)["job_dir"], "progress.jsonl")
    until(progress.exists, lambda: (place.story(moved), place.output(moved)))
    high = place.sh("sleep 0.2", qos="high", gpus=1)
    assert place.ended(high)["state"] == "COMPLETED" and place.ended(calm)["state"] == "COMPLETED"
    job = place.ended(moved)
    assert (job["state"], job["attempt"]) == ("COMPLETED", 2), (place.story(moved), place.output(moved))
    assert job["attempts"][0]["saved"], (place.story(moved), place.output(moved))
    results = [Path(place.work, name).read_text() for name in ("calm.json", "moved.json")]
    assert results[0] == results[1]  # weights, losses, steps: bit for bit


def test_run_follows_its_job_through_a_preemption_to_the_right_code(place):
    with subprocess.Popen(
        [*COMMAND, "run", "-q", "low", "-g", "2", "bash", str(JOBS / "count.sh"), "12", "0.1"], cwd=place.work,
        env=place.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        said = read_until(run.stdout, "3\n")
        high = place.sh("true", qos="high", gpus=2)
        rest, told = run.communicate(timeout=60)
    assert run.returncode == 0 and place.ended(high)["state"] == "COMPLETED"
    numbers = [line for line in (said + rest.decode()).splitlines() if line.isdigit()]
    assert numbers == [str(n) for n in range(1, 13)]
    assert "(attempt 2)" in told.decode()
