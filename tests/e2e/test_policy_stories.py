"""What policies do to jobs, with a real daemon and real processes: a gang among short jobs, who is short goes first,
estimates that were learned."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from daemons import Place, a_daemon, until
from pytest import approx

SRTF = '[policy]\nname = "srtf"\ntick = "1s"\nmin_run = "1s"\npreempt_cost = "1s"\n'
STEPS = 20
CHAIN = """
import hashlib, json, os, sys, time
folder, checkpoint = os.environ["GPUSCHED_JOB_DIR"], os.environ["GPUSCHED_CHECKPOINT_DIR"] + "/chain"
def asked():
    return os.path.exists(folder + "/request")
def write(path, value):
    with open(path + ".new", "w") as file:
        json.dump(value, file)
    os.rename(path + ".new", path)
first = not os.path.exists(checkpoint)
step, value = (0, "") if first else json.load(open(checkpoint))
write(folder + "/watching", {"pid": os.getpid()})
while step < 20:
    value, step = hashlib.sha256(value.encode()).hexdigest(), step + 1
    while first and step == 7 and not asked():
        time.sleep(0.01)
    if asked():
        write(checkpoint, [step, value])
        sys.exit(85)
print(step, value)
"""
PREDICTED = '[policy]\nname = "predicted"\n'


def chained(steps: int) -> str:
    """What CHAIN works out."""
    value = ""
    for _ in range(steps):
        value = hashlib.sha256(value.encode()).hexdigest()
    return value


def test_a_gang_starts_when_the_running_job_ends_and_not_after_six_short_ones(own: Place) -> None:
    """The default configuration, and nobody gives a duration."""
    running = own.sh("until [ -e go ]; do sleep 0.05; done")
    own.running(running)
    gang = own.sh("true", gpus=2)
    short = [own.sh("sleep 0.3") for _ in range(6)]
    assert [own.state_of(key) for key in (gang, *short)] == ["PENDING"] * 7, "one device is kept free for the gang"
    (own.work / "go").touch()
    jobs = {key: own.ended(key) for key in (running, gang, *short)}
    assert {job["state"] for job in jobs.values()} == {"COMPLETED"}
    assert jobs[gang]["started_at"] >= jobs[running]["ended_at"]
    assert all(jobs[key]["started_at"] >= jobs[gang]["ended_at"] for key in short), {
        key: (job["started_at"], job["ended_at"]) for key, job in jobs.items()
    }


def test_a_shorter_newcomer_moves_a_long_job_which_resumes_and_ends_as_if_nothing_had_been(tmp_path, zygote) -> None:
    with a_daemon(tmp_path / "p", zygote, devices="sim:1x8G", config=SRTF) as place:
        long = place.submit(sys.executable, "-c", CHAIN, expected=600.0)
        watching = Path(place.running(long)["job_dir"], "watching")
        until(watching.exists, lambda: place.output(long))
        newcomer = place.sh("true", expected=5.0)
        jobs = {key: place.ended(key) for key in (newcomer, long)}
        assert [job["state"] for job in jobs.values()] == ["COMPLETED", "COMPLETED"], place.story(long)
        assert (jobs[long]["attempt"], jobs[long]["preemptions"]) == (2, 1)
        assert any(f"preempted for job {newcomer}" in line for line in place.story(long))
        assert place.output(long).splitlines()[-1] == f"{STEPS} {chained(STEPS)}"
        assert jobs[newcomer]["ended_at"] <= jobs[long]["started_at"] <= jobs[long]["ended_at"]


def test_jobs_of_a_name_are_told_an_estimate_once_some_of_that_name_have_ended(tmp_path, zygote) -> None:
    with a_daemon(tmp_path / "p", zygote, devices="sim:3x8G", config=PREDICTED) as place:
        assert apart(place) > 600, "nothing is known: the first would be moved for the second some day"
        for key in [place.sh("sleep 0.3", name="train") for _ in range(3)]:
            assert place.ended(key)["state"] == "COMPLETED"
        assert 0.1 <= apart(place) < 30, "about as long as those that have ended took"


def apart(place: Place) -> float:
    """Seconds between the estimated starts of two jobs named train, the second of which waits for the first."""
    filler = place.sh("sleep 600", gpus=3, time_limit=1500.0, name="filler")
    place.running(filler)
    first, second = (place.sh("true", gpus=3, name="train") for _ in range(2))
    told = [place.client.why(key)["estimated_start"] for key in (first, second)]
    starts = [start["expected"] for start in told]

    def queued() -> list[float]:
        """The queue's own estimates, which may be some seconds old: then new jobs have none yet."""
        rows = {job["job"]: job["estimated_start"] for job in place.client.jobs()}
        return [start["expected"] for key in (first, second) if (start := rows[key]) is not None]

    assert until(lambda: queued() == approx(starts, abs=10), queued)
    assert "estimated start: about" in place.cli("why", second).out
    place.client.cancel([filler, first, second])
    assert place.ended(filler)["state"] == "CANCELLED"
    return starts[1] - starts[0]
