"""The durable store on real files: who may open it, what a crash leaves, what a bad disk does."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpusched.model.changes import AccountUsage, Changes, StoryLine
from gpusched.model.job import Job, JobSpec, Owner
from gpusched.model.state import JobState
from gpusched.ports import HistoryQuery, StoreError
from gpusched.store import rows
from gpusched.store.ballast import Ballast
from gpusched.store.migrate import Migration, load_migrations
from gpusched.store.queries import load_queries, parse_queries
from gpusched.store.sqlite import SqliteStore

ALICE = Owner(1000, 1000, "alice")
DATA = Path(__file__).parents[1] / "data"
STORE_DIR = Path(sys.modules["gpusched.store.sqlite"].__file__ or "").parent
KNOWN = load_migrations()
LATEST = len(KNOWN)
NEXT = Migration(LATEST + 1, "next", "ALTER TABLE job ADD COLUMN extra TEXT;\nCREATE INDEX job_extra ON job (extra);")


def a_job(number: int, comment: str = "") -> Job:
    return Job(number, ALICE, JobSpec(("true",), "/", comment=comment), JobState.PENDING, 10.0)


def an_open(path: Path, **more: object) -> SqliteStore:
    return SqliteStore(path, **{"ballast_bytes": 0, **more})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


def schema_of(path: Path) -> list[tuple[str, str, str]]:
    db = sqlite3.connect(path)
    try:
        return sorted(db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    finally:
        db.close()


# ---- the file ---------------------------------------------------------------------------------------------------


def test_all_migrations_together_give_exactly_the_schema_that_people_read(path: Path, tmp_path: Path) -> None:
    an_open(path).close()
    plain = sqlite3.connect(tmp_path / "plain.sqlite")
    plain.executescript((STORE_DIR / "schema.sql").read_text(encoding="utf-8"))
    plain.close()
    assert schema_of(path) == schema_of(tmp_path / "plain.sqlite")


def test_every_query_is_described_and_used_and_every_used_one_exists() -> None:
    text = (STORE_DIR / "sqlite.py").read_text(encoding="utf-8")
    used = set(re.findall(r'self\._q\["(\w+)"\]|self\._all\("(\w+)"', text))
    assert {name for pair in used for name in pair if name} == set(load_queries())


@pytest.mark.parametrize("text", ["-- name: a\nSELECT 1;", "-- name: a\n-- b\nSELECT 1", "-- name: a\n-- b\nX;" * 2])
def test_a_query_without_description_or_end_or_named_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="query 'a'"):
        parse_queries(text.replace("X;--", "X;\n--"))


def test_the_file_and_its_log_are_private_even_if_they_were_not(path: Path) -> None:
    path.touch(mode=0o644)
    path.chmod(0o644)
    store = an_open(path, ballast_bytes=4096)
    store.commit([Changes(jobs=(a_job(1),))])
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    store.close()
    assert modes == {"jobs.sqlite": 0o600, "jobs.sqlite-wal": 0o600, "jobs.sqlite.ballast": 0o600}


def test_what_was_committed_is_there_after_reopening(path: Path) -> None:
    store = an_open(path)
    store.commit([Changes(jobs=(a_job(1), a_job(2)), next_job_id=7)])
    store.close()
    store = an_open(path)
    assert [job.id for job in store.load().jobs] == [1, 2]
    assert store.load().next_job_id == 7
    store.close()
    store.close()


def test_a_commit_waits_for_the_disk(path: Path) -> None:
    store = an_open(path)
    found = [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
    store.close()
    assert found == [2, "wal"]  # 2: FULL


def test_a_store_that_one_thread_opened_is_used_by_another(path: Path) -> None:
    store, found = an_open(path), []
    thread = threading.Thread(target=lambda: (store.commit([Changes(jobs=(a_job(1),))]), found.append(store.load())))
    thread.start()
    thread.join()
    store.close()
    assert [job.id for job in found[0].jobs] == [1]


def test_a_second_process_is_told_that_the_store_is_in_use(path: Path) -> None:
    store = an_open(path)
    code = f"from pathlib import Path; from gpusched.store.sqlite import SqliteStore; SqliteStore(Path({str(path)!r}))"
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    store.commit([Changes(jobs=(a_job(1),))])
    store.close()
    assert second.returncode == 1
    assert "in use by another process" in second.stderr


def test_equal_specs_owners_and_texts_are_one_object_after_a_load(path: Path) -> None:
    store = an_open(path)
    store.commit([Changes(jobs=(a_job(1), a_job(2), a_job(3), a_job(4, "other")))])
    jobs = store.load().jobs
    store.close()
    assert len({id(job.spec) for job in jobs}) == 2
    assert len({id(job.owner) for job in jobs}) == 1
    assert len({id(job.spec.request) for job in jobs}) == 1
    assert len({id(job.spec.cwd) for job in jobs}) == 1


# ---- versions ---------------------------------------------------------------------------------------------------


def test_a_database_of_version_one_still_loads(path: Path) -> None:
    shutil.copy(DATA / "store-v1.sqlite", path)
    sys.path.insert(0, str(DATA))
    try:
        from make_store_v1 import DIGEST, ENVIRONMENT, contents
    finally:
        sys.path.remove(str(DATA))
    written = contents()
    store = an_open(path)
    snapshot = store.load()
    assert snapshot.jobs == written.jobs[:4]
    assert snapshot.attempts == written.attempts[1:]
    assert snapshot.next_job_id == 9
    assert store.environment(DIGEST) == ENVIRONMENT
    assert store.story(1) == written.story
    assert [job for job, _ in store.history(HistoryQuery())] == [written.jobs[4], written.jobs[2]]
    store.check()
    store.close()


def test_unknown_keys_are_ignored_and_missing_ones_take_their_defaults(path: Path) -> None:
    store = an_open(path)
    store.commit([Changes(jobs=(a_job(1),))])
    store._db.execute(
        "UPDATE job SET spec = json_remove(json_set(spec, '$.from_the_future', 1), '$.qos', '$.request', '$.signal'), "
        "job = json_remove(json_set(job, '$.from_the_future', json('{}')), '$.dependency_met')"
    )
    assert store.job(1) == a_job(1)
    store.close()


def test_a_row_that_cannot_be_read_is_named_and_the_others_stay_readable(path: Path) -> None:
    store = an_open(path)
    store.commit([Changes(jobs=(a_job(1), a_job(2)))])
    store._db.execute("UPDATE job SET job = json_set(job, '$.state', 'DREAMING') WHERE id = 1")
    with pytest.raises(StoreError, match="job 1 in the database cannot be read"):
        store.load()
    assert store.job(2) == a_job(2)
    store.close()


def test_a_database_from_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    an_open(path, migrations=(*KNOWN, NEXT)).close()
    before = path.read_bytes()
    formats = rf"its format is {LATEST + 1}, this version knows up to {LATEST}"
    with pytest.raises(StoreError, match=rf"newer gpusched \({formats}\)"):
        an_open(path)
    assert path.read_bytes() == before


def test_a_migration_keeps_the_rows_and_a_copy_of_the_older_file(path: Path) -> None:
    store = an_open(path)
    store.commit([Changes(jobs=(a_job(1),))])
    store.close()
    store = an_open(path, migrations=(*KNOWN, NEXT))
    assert store.job(1) == a_job(1)
    assert store._db.execute("SELECT extra FROM job").fetchall() == [(None,)]
    store.close()
    copy = path.with_name(f"jobs.sqlite.before-{LATEST + 1}")
    assert copy.stat().st_mode & 0o777 == 0o600
    older = an_open(copy)  # the way back
    assert older.job(1) == a_job(1)
    older.close()


def test_a_database_of_the_first_version_is_brought_to_the_present_one(path: Path) -> None:
    first = an_open(path, migrations=KNOWN[:1])
    first._db.execute(load_queries()["put_job"], rows.job_row(a_job(1), {}))  # as that version did
    first.close()
    store = an_open(path)
    assert (store.job(1), store.load().usage) == (a_job(1), ())
    used = AccountUsage("vision", 3600.0, 10.0)
    store.commit([Changes(usage=(used,))])
    assert store.load().usage == (used,)
    store.close()


def test_a_migration_that_fails_halfway_leaves_the_database_as_it_was(path: Path) -> None:
    an_open(path).close()
    before = schema_of(path)
    bad = Migration(LATEST + 1, "bad", "CREATE TABLE half (x TEXT);\nINSERT INTO nowhere VALUES (1);")
    with pytest.raises(StoreError):
        an_open(path, migrations=(*KNOWN, bad))
    assert schema_of(path) == before
    an_open(path).close()


def test_migrations_must_be_numbered_without_a_gap(tmp_path: Path) -> None:
    (tmp_path / "0002_second.sql").write_text("SELECT 1;")
    with pytest.raises(ValueError, match="numbered"):
        load_migrations(tmp_path)
    (tmp_path / "1_first.sql").write_text("SELECT 1;")
    with pytest.raises(ValueError, match="is named like"):
        load_migrations(tmp_path)


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE job (x TEXT)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="another program"):
        an_open(path)
    assert [name for _, name, _ in schema_of(path)] == ["job"]


# ---- bad disks --------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_left_alone_and_the_error_says_what_to_do(path: Path) -> None:
    path.write_bytes(b"This is not a database. " * 100)
    with pytest.raises(StoreError, match="damaged or is not a job database") as told:
        an_open(path)
    assert "gpusched doctor" in told.value.hint
    assert f"mv {path} {path}.damaged" in told.value.hint
    assert path.read_bytes() == b"This is not a database. " * 100


def test_a_damaged_page_is_an_error_that_says_what_to_do(path: Path) -> None:
    store = an_open(path)
    store.commit([Changes(jobs=tuple(a_job(n, "x" * 500) for n in range(1, 200)))])
    store.close()
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for page in range(4096, size, 4096):
            file.seek(page)
            file.write(b"\xff" * 64)
    with pytest.raises(StoreError, match="damaged"):
        an_open(path).load()


@pytest.mark.parametrize("make", ["folder", "absent"])
def test_a_path_that_cannot_be_a_file_is_a_store_error(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x" / "jobs.sqlite"
    if make == "folder":
        path.mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be opened"):
        an_open(path)


def test_a_link_in_place_of_the_database_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        an_open(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_database_refuses_the_commit_as_a_whole_and_stays_usable(path: Path) -> None:
    store = an_open(path, ballast_bytes=8192)
    store.commit([Changes(jobs=(a_job(1),))])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="the disk is full") as told:
        store.commit([Changes(jobs=tuple(a_job(n, "x" * 9000) for n in range(2, 30)), next_job_id=90)])
    assert "make room" in told.value.hint
    assert [job.id for job in store.load().jobs] == [1]
    assert store.load().next_job_id == 2
    assert not path.with_name("jobs.sqlite.ballast").exists()
    store.commit([Changes(jobs=(a_job(1, "still writable"),))])
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.check()
    assert path.with_name("jobs.sqlite.ballast").exists()
    store.close()


def test_the_reserve_is_made_again_only_where_there_is_room_for_it(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "b", 8192)
    assert ballast.ensure()
    assert ballast.there
    assert ballast.release()
    assert not ballast.release()
    assert not ballast.there
    huge = Ballast(tmp_path / "b", 1 << 60)
    assert not huge.ensure()
    assert not (tmp_path / "b").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not let us mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all room that is left."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filler


def test_on_a_full_disk_ends_are_still_recorded_and_work_goes_on_when_there_is_room(small_disk: Path) -> None:
    path = small_disk / "jobs.sqlite"
    store = SqliteStore(path)
    store.commit([Changes(jobs=tuple(a_job(n) for n in range(1, 51)), next_job_id=51)])
    filler = fill(small_disk)
    number, refused = 51, None
    while refused is None:  # what room the log has is used up first
        try:
            store.commit([Changes(jobs=(a_job(number, "x" * 5000),))])
            number += 1
        except StoreError as error:
            refused = error
    assert "the disk is full" in refused.message
    assert store.job(number) is None
    for n in range(1, 51):  # the reserve has room for the ends
        ended = Job(n, ALICE, JobSpec(("true",), "/"), JobState.CANCELLED, 10.0, ended_at=20.0)
        store.commit([Changes(jobs=(ended,), story=(StoryLine(n, 0, 20.0, "cancelled", "cancelled by alice"),))])
    with pytest.raises(StoreError, match="nearly full") as told:
        store.check()
    assert "5 MiB" in told.value.hint
    store.close()
    store = SqliteStore(path)  # no crash loop: it opens on the full disk
    assert [job.state for job, _ in store.history(HistoryQuery())] == [JobState.CANCELLED] * 50
    filler.unlink()
    store.check()
    assert path.with_name("jobs.sqlite.ballast").stat().st_size == 4 << 20
    store.commit([Changes(jobs=(a_job(number, "x" * 5000),))])
    store.close()


def test_a_database_on_a_read_only_disk_is_refused_with_the_reason(small_disk: Path) -> None:
    path = small_disk / "jobs.sqlite"
    an_open(path).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="read-only") as told:
        an_open(path)
    assert "ls -ld" in told.value.hint


def test_a_store_that_turns_read_only_refuses_commits_and_still_answers(path: Path) -> None:
    store = an_open(path)
    store.commit([Changes(jobs=(a_job(1),))])
    store._db.execute("PRAGMA query_only = ON")
    for write in (lambda: store.commit([Changes(jobs=(a_job(2),))]), store.check, lambda: store.trim(1e9)):
        with pytest.raises(StoreError, match="read-only"):
            write()
    assert [job.id for job in store.load().jobs] == [1]
    store._db.execute("PRAGMA query_only = OFF")
    store.commit([Changes(jobs=(a_job(2),))])
    assert [job.id for job in store.load().jobs] == [1, 2]
    store.close()


# ---- kill -9 ----------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from gpusched.model.changes import AccountUsage, Changes, StoryLine
from gpusched.model.job import Attempt, Job, JobSpec, Owner, Share
from gpusched.model.state import JobState
from gpusched.store.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]), ballast_bytes=0)
number = store.load().next_job_id
while True:
    job = Job(number, Owner(1, 1, "a"), JobSpec(("x" * 300,), "/"), JobState.RUNNING, 1.0, attempt=1)
    attempt = Attempt(number, 1, (Share("GPU-1"),), "boot", 1.0, 1.0)
    store.commit([Changes((job,), (attempt,), (), (StoryLine(number, 1, 1.0, "started", "started"),), number + 1)])
    print(number, flush=True)
    number += 1
"""


def acknowledged_before_the_kill(path: Path, acks: int, delay: float) -> list[int]:
    """Run the writer, kill it at a random moment after some acknowledgements; all that it acknowledged."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout as lines:
        first = [int(lines.readline()) for _ in range(acks)]
        timer = threading.Timer(delay, writer.send_signal, (signal.SIGKILL,))
        timer.start()
        rest = [int(line) for line in lines if line.endswith("\n")]
    writer.wait()
    timer.join()
    assert writer.returncode == -signal.SIGKILL
    return first + rest


def test_every_acknowledged_row_survives_kill_dash_nine(path: Path) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)  # shown when it fails
    chance, acknowledged = random.Random(seed), set()
    for _ in range(20):
        acknowledged |= set(acknowledged_before_the_kill(path, chance.randint(1, 30), chance.uniform(0.0, 0.02)))
        store = an_open(path)
        snapshot = store.load()
        jobs, attempts = {job.id for job in snapshot.jobs}, {attempt.job_id for attempt in snapshot.attempts}
        told = {number for number in jobs if store.story(number)}
        store.close()
        assert acknowledged <= jobs
        assert jobs == attempts == told  # what one commit brought is there together
        assert len(jobs - acknowledged) <= 20  # at most the one in flight at each kill
        assert snapshot.next_job_id == max(jobs) + 1
