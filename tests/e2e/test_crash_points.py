"""The daemon dies as by `kill -9` between any two steps of launch and end: nothing runs twice, nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from daemons import FINAL, Place, alive, until

from gpusched.model.errors import Unavailable

# A job that would tell if it ran twice at once (the lock), again (a second start of the same attempt), or on a device
# that another one still has.
TELLTALE = """
exec 9>> "$LOCK"
flock -n 9 || { echo "$GPUSCHED_JOB_ID two at once" >> "$LEDGER"; exit 99; }
if [ -n "$CUDA_VISIBLE_DEVICES" ]; then
    exec 8>> "$LEDGER.device-$CUDA_VISIBLE_DEVICES"
    flock -n 8 || { echo "$GPUSCHED_JOB_ID two owners of a device" >> "$LEDGER"; exit 98; }
fi
trap 'echo "$GPUSCHED_JOB_ID $GPUSCHED_ATTEMPT saved" >> "$LEDGER"; exit 85' TERM
echo "$GPUSCHED_JOB_ID $GPUSCHED_ATTEMPT start" >> "$LEDGER"
for _ in $(seq "$PAUSE"); do sleep 0.05; done
echo "$GPUSCHED_JOB_ID $GPUSCHED_ATTEMPT end" >> "$LEDGER"
exit "$CODE"
"""


class Ledger:
    """What the telltale jobs of one test have written, outside of everything that gpusched keeps."""

    def __init__(self, place: Place, name: str) -> None:
        self.place, self.path = place, place.root / name

    def submit(self, pause: int = 2, code: int = 0, **fields) -> str:
        number = len(list(self.path.parent.glob(f"{self.path.name}.lock-*")))
        lock = self.path.with_name(f"{self.path.name}.lock-{number}")
        lock.touch()
        env = {"LOCK": str(lock), "LEDGER": str(self.path), "PAUSE": str(pause), "CODE": str(code)}
        return self.place.submit("bash", "-c", TELLTALE, env=env, **fields)

    def lines(self, key: str) -> list[str]:
        text = self.path.read_text() if self.path.exists() else ""
        return [line.partition(" ")[2] for line in text.splitlines() if line.split()[0] == key]

    def ran_once(self, key: str, job: dict) -> None:
        """The job ran exactly one attempt to its end, and the last attempt is the one that did."""
        assert self.lines(key) == [f"{job['attempt']} start", f"{job['attempt']} end"], (
            self.lines(key), self.place.story(key), self.place.read_log(),
        )  # fmt: skip


POINTS = [
    "before-commit:1",  # the submit
    "after-commit:1",
    "before-commit:2",  # its start, or whatever comes next: the commits of a life are few
    "after-commit:2",
    "before-commit:3",
    "after-commit:3",
    "after-commit:4",
    "order-written",
    "order-sent",
    "forked",
    "start-seen",
    "end-seen",
    "before-forget",
    "forgetting",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_this_point_runs_every_acknowledged_job_once(place, point):
    ledger = Ledger(place, point.replace(":", "-"))
    place.restart(failpoints=point)
    acknowledged, lost = [], 0
    for code in (0, 7):
        try:
            acknowledged.append((ledger.submit(code=code, gpus=1), code))
        except (Unavailable, OSError):
            lost += 1
    place.wait_gone()  # if the point is never reached, the test fails here
    place.start()
    for key, code in acknowledged:
        job = place.ended(key)
        assert job["exit_code"] == code, (place.story(key), place.read_log())
        ledger.ran_once(key, job)
    assert acknowledged or lost == 2
    until(lambda: not place.client.jobs(), lambda: place.client.jobs())
    for line in ledger.path.read_text().splitlines() if ledger.path.exists() else []:
        assert "two at once" not in line
    until(lambda: not list(place.state.glob("attempts/[0-9]*")), "all control directories to be removed")


def come_to_the_failpoint(place, keys):
    """Until the daemon has died. On a busy machine more shares a commit, so there may be too few of them until all has
    ended: then some more are made."""

    def dead():
        with suppress(Unavailable, OSError):
            if all(place.state_of(key) in FINAL for key in keys):
                place.sh("true", gpus=0)
        return not alive(place.pid)

    until(dead, lambda: [place.story(key) for key in keys])
    place.wait_gone()


@pytest.mark.parametrize("number", range(2, 9))
@pytest.mark.parametrize("when", ["before-commit", "after-commit"])
def test_a_crash_in_the_middle_of_a_preemption_ends_it_rightly_after_the_restart(place, when, number):
    """The gang of two devices has to leave for a job of one; whoever has a device when is up to the crash."""
    ledger = Ledger(place, f"preempt-{when}-{number}")
    low = ledger.submit(pause=6, qos="low", gpus=1)
    other = ledger.submit(pause=6, qos="low", gpus=1)
    place.running(low)
    place.running(other)
    place.restart(failpoints=f"{when}:{number}")
    acknowledged = []
    for _ in range(2):
        try:
            acknowledged.append(ledger.submit(pause=1, qos="high", gpus=1))
        except (Unavailable, OSError):
            break
    come_to_the_failpoint(place, [low, other, *acknowledged])
    place.start()
    for key in [low, other, *acknowledged]:
        job = place.ended(key)
        assert job["state"] == "COMPLETED", (place.story(key), place.read_log())
        said = ledger.lines(key)
        for attempt in job["attempts"]:
            lines = [line.split()[1] for line in said if line.split()[0] == str(attempt["number"])]
            match attempt["outcome"]["kind"], attempt["outcome"]["code"]:
                case ("never-started", _) | ("signalled", _):  # asked to leave before it could set its trap
                    assert lines == []
                case (_, code):
                    assert lines == ["start", "saved" if code == 85 else "end"], (said, place.story(key))
        assert said[-1] == f"{job['attempt']} end" and sum(line.endswith("end") for line in said) == 1


def test_a_crash_in_the_middle_of_the_recovery_from_a_crash_loses_nothing(own):
    ledger = Ledger(own, "twice")
    gate = own.work / "gate"
    ended = [own.sh(f"while [ ! -e {gate} ]; do sleep 0.02; done; exit {n}", gpus=0) for n in range(3)]
    lives = own.sh(f"while [ ! -e {gate}-2 ]; do sleep 0.02; done; exit 7", gpus=1)
    for key in [*ended, lives]:
        own.running(key)
    pids = [own.job(key)["pid"] for key in [*ended, lives]]
    queued = ledger.submit(gpus=2)
    own.kill9()
    gate.touch()
    until(lambda: not any(alive(pid) for pid in pids[:3]), "the ends while nobody looks")
    for point in ("before-commit:1", "before-commit:1", "after-commit:1", "forgetting", "forgetting"):
        own.start(failpoints=point)
        own.wait_gone()
        assert alive(pids[3])
    own.start()
    assert [own.ended(key)["exit_code"] for key in ended] == [0, 1, 2]
    assert own.running(lives)["pid"] == pids[3]
    gate.with_name("gate-2").touch()
    assert own.ended(lives)["exit_code"] == 7
    ledger.ran_once(queued, own.ended(queued))
    assert [own.job(key)["attempt"] for key in [*ended, lives]] == [1, 1, 1, 1]


def test_cancels_that_race_with_the_start_leave_no_process(own):
    keys = []
    for n in range(24):
        keys.append(own.sh("sleep 600", gpus=n % 2, grace=0.5))
        if n % 3:
            own.client.cancel([keys[-1]])
        if n % 8 == 7:
            own.restart()
    own.client.cancel(keys)
    for key in keys:
        assert own.ended(key)["state"] == "CANCELLED", own.story(key)
    until(lambda: not [w for w in own.processes().values() if "sleep" in w or "supervisor" in w], own.processes)


def test_jobs_that_run_or_end_while_the_daemon_is_dead_are_taken_over_with_their_true_ends(own):
    ledger = Ledger(own, "dead")
    gates = [own.work / f"gate-{n}" for n in range(3)]
    waits = [own.sh(f"while [ ! -e {gate} ]; do sleep 0.02; done; exit {n}", gpus=0) for n, gate in enumerate(gates)]
    killed = own.sh("sleep 600", gpus=1)
    queued = ledger.submit(gpus=2)
    for key in [*waits, killed]:
        own.running(key)
    pids = {key: own.job(key)["pid"] for key in [*waits, killed]}
    own.kill9()
    gates[0].touch()
    gates[1].touch()
    os.kill(pids[killed], signal.SIGKILL)
    until(lambda: not any(alive(pids[key]) for key in (*waits[:2], killed)), "the ends while nobody looks")
    assert alive(pids[waits[2]])
    own.start()
    assert own.ended(waits[0])["exit_code"] == 0 and own.ended(waits[1])["exit_code"] == 1
    job = own.ended(killed)
    assert (job["state"], job["exit_signal"], job["attempt"]) == ("FAILED", 9, 1)
    job = own.running(waits[2])
    assert (job["pid"], job["attempt"]) == (pids[waits[2]], 1)
    gates[2].touch()
    assert own.ended(waits[2])["exit_code"] == 2
    ledger.ran_once(queued, own.ended(queued))


def test_a_stop_that_was_asked_before_the_crash_is_carried_out_after_it(own):
    low = own.sh("trap '' TERM; echo up; sleep 600 & wait; sleep 600", qos="low", gpus=2, grace=1.5)
    until(lambda: "up" in own.output(low), lambda: own.story(low))
    high = own.sh("true", qos="high", gpus=2)
    own.await_state(low, "STOPPING")
    own.kill9()
    own.start()
    assert own.ended(high)["state"] == "COMPLETED"
    job = own.job(low)
    assert job["attempts"][0]["outcome"]["killed"] and job["attempt"] == 2
    own.client.cancel([low])
    assert own.ended(low)["state"] == "CANCELLED"


def test_many_kills_in_a_row_under_load_lose_no_job_and_run_none_twice(own):
    chance = random.Random(20261121)
    ledger = Ledger(own, "load")
    keys: list[tuple[str, int]] = []
    for round_ in range(15):
        for _ in range(3 if round_ < 8 else 0):
            code, pause = chance.choice((0, 0, 3)), chance.randrange(8)
            keys.append((ledger.submit(pause, code, gpus=chance.choice((0, 1))), code))
        own.client.wait(keys[-1][0], chance.uniform(0.0, 0.25))  # some of it passes while the daemon works
        own.restart()
    for key, code in keys:
        job = own.ended(key)
        assert job["exit_code"] == code, own.story(key)
        ledger.ran_once(key, job)
    assert len(own.client.history(limit=100)) == len(keys)


def test_a_killed_supervisor_means_lost_its_remains_are_killed_and_the_job_waits_again(own):
    key = own.sh("setsid sleep 601 & sleep 602", gpus=1)
    job = own.running(key)
    tree = until(lambda: len(found := own.processes()) >= 4 and found, lambda: own.processes())
    supervisor = own.supervisor(key)
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: own.job(key)["attempt"] == 2, lambda: own.story(key))
    first = own.job(key)["attempts"][0]
    assert first["outcome"]["kind"] == "lost"
    assert not alive(job["pid"])
    remains = [pid for pid, what in tree.items() if "sleep" in what and alive(pid)]
    assert not remains
    own.running(key)
    once = own.sh("sleep 600", gpus=1, requeue=False)
    own.running(once)
    os.kill(own.supervisor(once), signal.SIGKILL)
    done = own.ended(once)
    assert (done["state"], done["exit_status"]) == ("LOST", 125)


def test_a_supervisor_that_dies_while_the_daemon_is_dead_is_found_at_the_start(own):
    key = own.sh("sleep 600", gpus=1)
    pid = own.running(key)["pid"]
    supervisor = own.supervisor(key)
    own.kill9()
    os.kill(supervisor, signal.SIGKILL)
    own.start()
    until(lambda: own.job(key)["attempt"] == 2, lambda: own.story(key))
    assert own.job(key)["attempts"][0]["outcome"]["kind"] == "lost" and not alive(pid)


def test_a_killed_spawner_is_replaced_and_a_stopped_one_loses_nothing(own):
    ledger = Ledger(own, "spawner")
    first = own.spawner()
    os.kill(first, signal.SIGKILL)
    keys = [ledger.submit(gpus=0) for _ in range(3)]
    for key in keys:
        ledger.ran_once(key, own.ended(key))
    second = own.spawner()
    assert second and second != first
    os.kill(second, signal.SIGSTOP)
    key = ledger.submit(gpus=0)
    own.await_state(key, "STARTING")
    own.kill9()  # the order may be on its way: only the claim decides
    own.start()
    os.kill(second, signal.SIGCONT)
    ledger.ran_once(key, own.ended(key))
    until(lambda: not alive(second), "the end of the old spawner")


def test_a_daemon_that_was_stopped_for_a_while_catches_up(own):
    ledger = Ledger(own, "stopped")
    keys = [ledger.submit(pause=6, code=n, gpus=1) for n in range(3)]
    own.running(keys[0])
    os.kill(own.pid, signal.SIGSTOP)
    try:
        until(lambda: "1 end" in ledger.lines(keys[0]), "the end of a job while the daemon sleeps")
    finally:
        os.kill(own.pid, signal.SIGCONT)
    for n, key in enumerate(keys):
        job = own.ended(key)
        assert job["exit_code"] == n
        ledger.ran_once(key, job)


def test_after_a_reboot_what_ran_waits_again_and_no_process_of_that_time_is_touched(own):
    """The reboot is simulated by writing another boot id into the attempts while the daemon is dead."""
    key = own.sh("echo attempt $GPUSCHED_ATTEMPT; [ $GPUSCHED_ATTEMPT = 2 ] || exec sleep 600", gpus=1)
    once = own.sh("exec sleep 600", gpus=1, requeue=False)
    pids = [own.running(k)["pid"] for k in (key, once)]
    supervisors = [own.supervisor(k) for k in (key, once)]
    own.kill9()
    with closing(sqlite3.connect(own.state / "gpusched.sqlite")) as db, db:
        assert "boot_id" in json.loads(db.execute("SELECT attempt FROM attempt").fetchone()[0])
        db.execute("UPDATE attempt SET attempt = json_set(attempt, '$.boot_id', 'an-earlier-boot')")
    try:
        own.start()
        job = own.ended(key)
        assert (job["state"], job["attempt"]) == ("COMPLETED", 2), own.story(key)
        assert job["attempts"][0]["outcome"]["kind"] == "lost"
        assert "restarted" in job["attempts"][0]["outcome"]["text"]
        assert own.ended(once)["state"] == "LOST"
        assert all(alive(pid) for pid in pids), "a pid of another boot was touched"
    finally:
        for pid in (*supervisors, *pids):
            os.kill(pid, signal.SIGKILL)


def test_what_was_acknowledged_is_there_after_a_crash_in_the_same_moment(own):
    keys = []
    for _ in range(5):
        keys.append(own.sh("true", hold=True))
        own.kill9()
        own.start()
    assert [own.state_of(key) for key in keys] == ["PENDING"] * 5
    assert len(set(keys)) == 5 and keys == sorted(keys, key=int)
    own.client.cancel(keys)
    assert all(own.state_of(key) in FINAL for key in keys)
    assert Path(own.state / "gpusched.sqlite").stat().st_mode & 0o077 == 0
