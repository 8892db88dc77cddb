"""One suite for both stores: what the daemon may rely on, whatever keeps it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpusched.model.changes import AccountUsage, Changes, Snapshot, StoryLine
from gpusched.model.dependency import parse_dependency
from gpusched.model.digest import digest_of
from gpusched.model.job import ArrayElement, Attempt, Hold, HoldKind, Job, JobSpec, Owner, Request, Share, Source
from gpusched.model.past import Past
from gpusched.model.reservation import Repeat, Reservation
from gpusched.model.state import JobState, Outcome, OutcomeKind, Saved, Stop, StopKind
from gpusched.ports import HistoryQuery, Store, StoreError
from gpusched.store.memory import MemoryStore
from gpusched.store.sqlite import SqliteStore

ALICE = Owner(1000, 1000, "alice")


def a_job(number: int, state: JobState = JobState.PENDING, *, depends: str = "", **more: Any) -> Job:
    dependency = parse_dependency(depends) if depends else None
    spec = more.pop("spec", JobSpec(("true",), "/home/alice", dependency=dependency))
    if state.final:
        more.setdefault("ended_at", 1000.0 + number)
    return Job(number, more.pop("owner", ALICE), spec, state, more.pop("submitted_at", 10.0), **more)


def an_attempt(job_id: int, number: int = 1, **more: Any) -> Attempt:
    return Attempt(job_id, number, (Share("GPU-1"),), "boot", 5.0, 11.0, **more)


def element(number: int, array_id: int, index: int, state: JobState) -> Job:
    return a_job(number, state, array=ArrayElement(array_id, index, 3, 0, 2, 1, 0))


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = (
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.sqlite", ballast_bytes=4096)
    )
    yield made
    made.close()


def ids(snapshot: Snapshot) -> list[int]:
    return [job.id for job in snapshot.jobs]


def test_an_empty_store_starts_with_job_one(store: Store) -> None:
    assert store.load() == Snapshot(next_job_id=1)


def test_a_job_with_everything_set_comes_back_the_same(store: Store) -> None:
    spec = JobSpec(
        command=("python", "träin.py", "--name", "a b"),
        cwd="/home/alice",
        name="träin",
        request=Request(2, 10240, True, "*H100*", "big"),
        qos="high",
        account="lab",
        env_digest="d" * 64,
        time_limit=3600.5,
        warn=60.0,
        begin=5.5,
        cron="0 3 * * *",
        dependency=parse_dependency("afterok:1:2_3?afterany:4"),
        cancel_on_bad_dependency=False,
        output="out-%j",
        error="err-%j",
        requeue=False,
        max_requeues=0,
        grace=0.0,
        signal=int(signal.SIGUSR1),
        checkpoint_dir="/ckpt",
        umask=0,
        comment="a\ncomment",
        source=Source("train.sh", "e" * 64, "f" * 40, True),
    )
    job = Job(
        id=7,
        owner=ALICE,
        spec=spec,
        state=JobState.STOPPING,
        submitted_at=1.25,
        array=ArrayElement(5, 2, 3, 0, 4, 2, 1),
        cron_parent=3,
        hold=Hold(HoldKind.ADMIN, "maintenance"),
        stop=Stop(StopKind.PREEMPT, 99.5, for_job=8, by="prof", to_cancel=True),
        attempt=4,
        restarts=3,
        unasked_requeues=1,
        saved=Saved("ckpt-10", 10, 77.0),
        earmark=("GPU-1", "GPU-2"),
        bypassed=9,
        yielding=True,
        dependency_met=False,
        dependency_failed=True,
        eligible_at=2.5,
        started_at=3.5,
        ended_at=4.5,
        outcome=Outcome(OutcomeKind.EXITED, 85, None, None, "text", Saved("ckpt-9"), True, 100, 1.5),
        ended_because="because",
    )
    store.commit([Changes(jobs=(job,))])
    assert store.job(7) == job
    assert store.load().jobs == (job,)


def test_an_attempt_with_everything_set_comes_back_the_same(store: Store) -> None:
    attempt = Attempt(
        job_id=1,
        number=2,
        devices=(Share("GPU-1"), Share("GPU-2", 1024)),
        boot_id="boot-id",
        created=1.5,
        created_at=2.5,
        started=3.5,
        started_at=4.5,
        ended=5.5,
        ended_at=6.5,
        pid=4711,
        watching=True,
        saved=Saved("c", 3, 4.0),
        outcome=Outcome(OutcomeKind.SIGNALLED, signal=9),
        stop=Stop(StopKind.CANCEL, 8.0, by="alice"),
        released=True,
    )
    store.commit([Changes(jobs=(a_job(1),), attempts=(attempt,))])
    assert store.attempts(1) == (attempt,)


def test_later_rows_of_the_same_id_replace_earlier_ones_in_one_commit_and_in_the_next(store: Store) -> None:
    first, second, third = (a_job(1, bypassed=n) for n in (1, 2, 3))
    store.commit([Changes(jobs=(first,)), Changes(jobs=(second,))])
    assert store.job(1) == second
    store.commit([Changes(jobs=(third,))])
    assert store.load().jobs == (third,)


def test_what_is_not_there_is_none_empty_or_a_key_error(store: Store) -> None:
    assert store.job(4) is None
    assert store.array(4) == () == store.attempts(4) == store.story(4)
    with pytest.raises(KeyError):
        store.environment("nothing")


def test_an_environment_is_kept_once_and_comes_back_equal(store: Store) -> None:
    environment = {"PATH": "/bin", "ODD": "caf\udce9 \n é", "EMPTY": ""}
    digest = digest_of(environment)
    for _ in range(2):
        store.commit([Changes(environments=((digest, environment),))])
    assert store.environment(digest) == environment


def test_the_story_is_told_in_the_order_in_which_it_was_committed(store: Store) -> None:
    lines = [StoryLine(1, n, 100.0 - n, "kind", f"line {n}", "alice") for n in range(5)]
    store.commit([Changes(jobs=(a_job(1), a_job(2)), story=tuple(lines[:3]))])
    store.commit([Changes(story=(StoryLine(2, 0, 1.0, "other", "of job 2"),)), Changes(story=tuple(lines[3:]))])
    assert store.story(1) == tuple(lines)


def test_the_usage_of_an_account_is_replaced_and_outlives_its_jobs(store: Store) -> None:
    first = Changes(jobs=(a_job(1, JobState.COMPLETED),), usage=(AccountUsage("vision", 3600.5, 10.25),))
    store.commit([first, Changes(usage=(AccountUsage("änn", 1.0, 11.0), AccountUsage("vision", 7200.0, 12.0)))])
    store.commit([Changes(usage=(AccountUsage("änn", 2.0, 13.5),))])
    assert store.trim(1e9) == 1
    assert store.load().usage == (AccountUsage("vision", 7200.0, 12.0), AccountUsage("änn", 2.0, 13.5))


def a_reservation(name: str, **fields: Any) -> Reservation:
    return Reservation(name, ("GPU-1", "GPU-2"), 100.0, 160.5, 60.5, users=("ann",), **fields)


def test_a_reservation_is_replaced_and_given_back_until_it_is_over(store: Store) -> None:
    daily = a_reservation("täglich", accounts=("vision",), repeat=Repeat.DAILY, zone="Europe/Berlin", comment="x")
    store.commit([Changes(reservations=(daily, a_reservation("paper"))), Changes(reservations=(daily,))])
    assert store.load().reservations == (a_reservation("paper"), daily)
    over = a_reservation("paper", begun=True, by="root", ended_at=160.5)
    store.commit([Changes(reservations=(over,))])
    assert store.load().reservations == (daily,)
    assert store.reservations() == (over, daily)


def test_reservations_that_are_over_are_forgotten_with_the_jobs_of_their_time(store: Store) -> None:
    early, late = a_reservation("early", ended_at=100.0), a_reservation("late", ended_at=200.0)
    store.commit([Changes(reservations=(early, late, a_reservation("open")))])
    assert store.trim(100.0) == 0
    assert len(store.reservations()) == 3
    store.trim(150.0)
    assert [r.name for r in store.reservations()] == ["late", "open"]
    store.commit([Changes(reservations=(a_reservation("late"),))])  # its name is free again
    assert store.load().reservations == (a_reservation("late"), a_reservation("open"))


def test_an_attempt_of_an_unknown_job_is_refused_with_nothing_recorded(store: Store) -> None:
    with pytest.raises(StoreError):
        store.commit([Changes(jobs=(a_job(1),), next_job_id=5), Changes(attempts=(an_attempt(9),))])
    assert store.load() == Snapshot(next_job_id=1)
    store.commit([Changes(jobs=(a_job(1),))])
    assert ids(store.load()) == [1]


def test_load_gives_unfinished_jobs_and_leaves_ended_ones(store: Store) -> None:
    store.commit([Changes(jobs=tuple(a_job(n, state) for n, state in enumerate(JobState, 1)))])
    assert [str(job.state) for job in store.load().jobs] == ["PENDING", "STARTING", "RUNNING", "STOPPING"]


def test_load_gives_attempts_that_hold_devices_and_the_latest_of_unfinished_jobs(store: Store) -> None:
    jobs = (a_job(1, JobState.PENDING, attempt=2), a_job(2, JobState.COMPLETED), a_job(3, JobState.COMPLETED))
    released = [an_attempt(1, 1, released=True), an_attempt(1, 2, released=True), an_attempt(2, 1, released=True)]
    held = an_attempt(3, 1, outcome=Outcome(OutcomeKind.EXITED, 0))
    store.commit([Changes(jobs=jobs, attempts=(*released, held))])
    snapshot = store.load()
    assert [attempt.key for attempt in snapshot.attempts] == [(1, 2), (3, 1)]
    assert ids(snapshot) == [1, 3]  # with the ended job that still holds a device


def test_load_gives_ended_jobs_that_unfinished_ones_wait_for(store: Store) -> None:
    array = tuple(element(n, 5, n - 5, JobState.COMPLETED) for n in (5, 6, 7))
    jobs = (
        a_job(1, JobState.FAILED),
        a_job(2, JobState.COMPLETED),
        a_job(3, JobState.COMPLETED, depends="afterok:2"),
        *array,
        a_job(8, JobState.COMPLETED),
        a_job(9, depends="afterok:1,afterany:5_1"),
        a_job(10, depends="singleton"),
    )
    store.commit([Changes(jobs=jobs)])
    assert ids(store.load()) == [1, 5, 6, 7, 9, 10]


def test_load_gives_whole_arrays_while_an_element_is_unfinished(store: Store) -> None:
    states = (JobState.COMPLETED, JobState.PENDING, JobState.FAILED)
    store.commit([Changes(jobs=tuple(element(5 + n, 5, n, state) for n, state in enumerate(states)))])
    store.commit([Changes(jobs=tuple(element(15 + n, 15, n, JobState.COMPLETED) for n in range(3)))])
    assert ids(store.load()) == [5, 6, 7]
    assert [job.key for job in store.array(15)] == ["15_0", "15_1", "15_2"]


def test_load_tells_what_ended_jobs_teach_about_durations_the_oldest_first(store: Store) -> None:
    train = JobSpec(("train",), "/home/alice", name="train-é\udc80", request=Request(4), account="lab")
    late = a_job(1, JobState.COMPLETED, spec=train, ran=700.0, lost=100.0, ended_at=3000.0)
    early = a_job(2, JobState.TIMEOUT, ran=50.0, ended_at=2000.0)
    failed = a_job(3, JobState.FAILED, ran=9000.0, ended_at=1000.0)
    false_start = a_job(4, JobState.FAILED, ran=5.0)
    never_ran = a_job(5, JobState.CANCELLED)
    waits_again = a_job(6, ran=800.0)
    victim = a_job(7, JobState.PREEMPTED, ran=800.0)
    store.commit([Changes(jobs=(late, early, failed, false_start, never_ran, waits_again, victim))])
    assert store.load().past == (
        Past("alice", "alice", "job", 1, 9000.0),
        Past("alice", "alice", "job", 1, 50.0),
        Past("alice", "lab", "train-é\udc80", 4, 600.0),
    )


def test_an_array_is_given_in_index_order(store: Store) -> None:
    store.commit([Changes(jobs=tuple(element(5 + n, 5, 2 - n, JobState.PENDING) for n in range(3)))])
    assert [job.key for job in store.array(5)] == ["5_0", "5_1", "5_2"]


def test_ids_are_never_reused_not_even_after_a_trim(store: Store) -> None:
    store.commit([Changes(jobs=(a_job(41, JobState.COMPLETED),))])
    assert store.load().next_job_id == 42
    store.commit([Changes(next_job_id=50)])
    store.commit([Changes(next_job_id=10)])
    assert store.trim(1e9) == 1
    assert store.load() == Snapshot(next_job_id=50)


def test_trim_forgets_old_jobs_with_their_attempts_story_and_environments(store: Store) -> None:
    old_env, new_env = {"A": "old"}, {"A": "new"}
    old, new = digest_of(old_env), digest_of(new_env)
    spec = JobSpec(("true",), "/")
    jobs = (
        a_job(1, JobState.COMPLETED, spec=replace(spec, env_digest=old), ended_at=100.0),
        a_job(2, JobState.COMPLETED, spec=replace(spec, env_digest=new), ended_at=200.0),
    )
    attempts = tuple(an_attempt(n, released=True) for n in (1, 2))
    story = tuple(StoryLine(n, 0, 1.0, "submitted", "s") for n in (1, 2))
    store.commit([Changes(jobs, attempts, ((old, old_env), (new, new_env)), story)])
    assert store.trim(200.0) == 1
    assert store.job(1) is None
    assert store.attempts(1) == () == store.story(1)
    with pytest.raises(KeyError):
        store.environment(old)
    assert store.job(2) == jobs[1]
    assert (store.attempts(2), store.story(2), store.environment(new)) == (attempts[1:], story[1:], new_env)


def test_trim_works_in_batches_and_forgets_all_of_them(store: Store) -> None:
    envs = [{"N": str(n)} for n in range(1201)]
    specs = [JobSpec(("true",), "/", env_digest=digest_of(env)) for env in envs]
    jobs = tuple(a_job(n, JobState.COMPLETED, spec=spec) for n, spec in enumerate(specs, 1))
    store.commit([Changes(jobs=jobs, environments=tuple((digest_of(env), env) for env in envs))])
    assert store.trim(1e9) == 1201
    assert store.history(HistoryQuery()) == ()
    with pytest.raises(KeyError):
        store.environment(specs[600].env_digest)


def test_trim_never_takes_what_load_gives(store: Store) -> None:
    jobs = (
        a_job(1, JobState.COMPLETED),
        element(5, 5, 0, JobState.COMPLETED),
        element(6, 5, 1, JobState.PENDING),
        a_job(8, JobState.COMPLETED),
        a_job(9, JobState.PENDING, depends="afterok:1"),
        a_job(10, JobState.COMPLETED),
    )
    store.commit([Changes(jobs=jobs, attempts=(an_attempt(8),))])
    before = store.load()
    assert store.trim(1e9) == 1
    assert store.load() == before
    assert store.job(10) is None


def test_a_requeued_job_is_not_history_although_it_ended_before(store: Store) -> None:
    store.commit([Changes(jobs=(a_job(1, JobState.PENDING, ended_at=5.0),))])
    assert store.history(HistoryQuery()) == ()
    assert store.trim(1e9) == 0


BOB = Owner(1001, 1001, "bob")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (HistoryQuery(), [5, 4, 2, 3, 1]),
        (HistoryQuery(limit=2), [5, 4]),
        (HistoryQuery(limit=0), []),
        (HistoryQuery(users=("bob",)), [2]),
        (HistoryQuery(users=("bob", "alice"), states=("FAILED", "TIMEOUT")), [4, 3]),
        (HistoryQuery(names=("tr[!a]in*",)), [4]),
        (HistoryQuery(names=("train*", "TR*")), [3, 1]),
        (HistoryQuery(ids=(1, 5, 6, 99)), [5, 1]),
        (HistoryQuery(since=1003.0, until=1004.0), [4, 2, 3]),
        (HistoryQuery(users=("nobody",)), []),
    ],
)
def test_history_filters_and_gives_the_latest_end_first(
    store: Store, query: HistoryQuery, expected: list[int]
) -> None:
    named: Callable[[str], JobSpec] = lambda name: JobSpec(("true",), "/", name=name)  # noqa: E731
    jobs = (
        a_job(1, JobState.COMPLETED, spec=named("train")),
        a_job(2, JobState.COMPLETED, owner=BOB, ended_at=1003.5),
        a_job(3, JobState.FAILED, spec=named("train-2")),
        a_job(4, JobState.TIMEOUT, spec=named("trxin")),
        a_job(5, JobState.CANCELLED, submitted_at=2000.0, ended_at=None),  # as cancelled before it was ever started
        a_job(6, JobState.RUNNING),
    )
    attempts = (an_attempt(4, 1, released=True), an_attempt(4, 2, released=True))
    store.commit([Changes(jobs=jobs, attempts=attempts)])
    found = store.history(query)
    assert [job.id for job, _ in found] == expected
    assert all(of_job == (attempts if job.id == 4 else ()) for job, of_job in found)


def test_bytes_that_are_not_utf_8_survive_in_commands_and_names(store: Store) -> None:
    job = a_job(1, JobState.COMPLETED, spec=JobSpec(("ls", "caf\udce9"), "/tmp/\udcff", name="\udcfe \0 é"))
    store.commit([Changes(jobs=(job,))])
    assert store.job(1) == job
    assert [found.id for found, _ in store.history(HistoryQuery(names=("*é",)))] == [1]


def test_check_passes_where_a_write_can_be_made(store: Store) -> None:
    store.check()
    assert store.load() == Snapshot(next_job_id=1)


def test_committing_nothing_is_harmless(store: Store) -> None:
    store.commit([])
    store.commit([Changes(), Changes()])
    assert store.load() == Snapshot(next_job_id=1)
