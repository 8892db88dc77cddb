"""The durable store: one SQLite file, one process, one connection, one thread that uses it.

What is committed survives a crash of the daemon and of the machine: write-ahead log with synchronous=FULL, so a
commit returns after its fsync. The file is locked for as long as the store is open (locking_mode=EXCLUSIVE): a
second daemon cannot write to it, and no shared memory is needed, so it also works on network and other file systems
without it. The price: to look inside with the sqlite3 shell, stop the daemon or copy the file.

This is the only module that imports sqlite3. It decides nothing about jobs; the statements are in queries.sql, what
columns mean in rows.py, what errors mean in trouble.py.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

from gpusched.model import spans
from gpusched.model.changes import AccountUsage, Changes, Snapshot, StoryCopy, StoryLine
from gpusched.model.digest import canonical_json
from gpusched.model.job import Attempt, Environment, Job
from gpusched.model.past import LEARNED, REMEMBERED, Past, taught
from gpusched.model.reservation import Reservation
from gpusched.ports import HistoryQuery, StoreError
from gpusched.store import rows
from gpusched.store.ballast import BALLAST_BYTES, Ballast
from gpusched.store.codec import Memo
from gpusched.store.migrate import Migration, load_migrations, migrate
from gpusched.store.queries import load_queries
from gpusched.store.trouble import Trouble, explained, kind_of

_TRIM_BATCH = 500  # rows of one transaction, so that a commit that waits behind a trim waits milliseconds
_MIB = 1 << 20


class SqliteStore:
    """ports.Store on an SQLite file. Every method raises StoreError; the store stays usable afterwards."""

    def __init__(
        self, path: Path, *, ballast_bytes: int = BALLAST_BYTES, migrations: tuple[Migration, ...] | None = None
    ) -> None:
        """Open the file, creating it (mode 0600) or bringing it to the present schema.

        Raises StoreError if it is from a newer version, damaged, in use by another process, or not writable.
        """
        self.path = path
        self._q = load_queries()
        self._ballast = Ballast(path.with_name(path.name + ".ballast"), ballast_bytes)
        try:
            _create_private(path)
            self._db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise explained(error, path) from error
        try:
            self._prepare(load_migrations() if migrations is None else migrations)
        except sqlite3.Error as error:
            self._db.close()
            raise explained(error, path) from error
        except BaseException:
            self._db.close()
            raise
        self._ballast.ensure()  # no room for it: check() tells

    def _prepare(self, migrations: tuple[Migration, ...]) -> None:
        db = self._db
        # Exclusive mode comes first: only then is the index of the log kept in our memory and not in a shared file.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA temp_store = MEMORY")
        # A write, so that a second process fails here and not at its first commit.
        db.execute("BEGIN IMMEDIATE")
        db.execute("ROLLBACK")
        migrate(db, self.path, migrations)
        db.create_function("name_matches", 2, fnmatchcase, deterministic=True)
        db.execute(self._q["create_needed"])
        self._next_job_id = int(db.execute(self._q["next_job_id"]).fetchone()[0])

    # ---- writing ----------------------------------------------------------------------------------------------

    def commit(self, changes: Sequence[Changes]) -> None:
        """All rows of all changes in one transaction; of rows with the same id only the last one is written."""
        jobs = {job.id: job for change in changes for job in change.jobs}
        attempts = {attempt.key: attempt for change in changes for attempt in change.attempts}
        environments = {digest: env for change in changes for digest, env in change.environments}
        story = [line for change in changes for line in change.story]
        usage = {used.account: used for change in changes for used in change.usage}
        reserved = {kept.name: kept for change in changes for kept in change.reservations}
        next_id = max(
            self._next_job_id, max(jobs, default=0) + 1, *(change.next_job_id or 1 for change in changes), 1
        )
        if not (jobs or attempts or environments or story or usage or reserved or next_id != self._next_job_id):
            return
        specs: rows.Specs = {}
        with self._transaction() as db:
            db.executemany(
                self._q["put_environment"], [(digest, canonical_json(env)) for digest, env in environments.items()]
            )
            db.executemany(self._q["put_job"], [rows.job_row(job, specs) for job in jobs.values()])
            db.executemany(self._q["put_attempt"], [rows.attempt_row(attempt) for attempt in attempts.values()])
            self._put_story(db, story)
            db.executemany(self._q["put_usage"], [rows.usage_row(used) for used in usage.values()])
            db.executemany(self._q["put_reservation"], [rows.reservation_row(kept) for kept in reserved.values()])
            if next_id != self._next_job_id:
                db.execute(self._q["put_meta"], ("next_job_id", next_id))
        self._next_job_id = next_id

    def _put_story(self, db: sqlite3.Connection, story: list[StoryLine | StoryCopy]) -> None:
        """In order: a copy takes what was told of its source before it."""
        for copies, lines in groupby(story, lambda line: isinstance(line, StoryCopy)):
            if copies:
                db.executemany(self._q["copy_story"], [(c.job_id, c.source) for c in lines if isinstance(c, StoryCopy)])
            else:
                told = [rows.story_row(line) for line in lines if isinstance(line, StoryLine)]
                db.executemany(self._q["put_story"], told)

    def check(self) -> None:
        """Prove that a write can become durable, and have the reserve for a full disk in place."""
        with self._transaction() as db:
            db.execute(self._q["prove"])
        if not self._ballast.ensure():
            raise StoreError(
                f"the disk that holds {self.path} is nearly full: the reserve for recording ends of jobs is used up",
                f"make room for {self._ballast.needed_bytes // _MIB} MiB in {self.path.parent}; "
                "until then jobs run, end and can be cancelled, but no new ones are taken",
            )

    def trim(self, ended_before: float) -> int:
        """Forget jobs and reservations that ended before this wall time, and environments without a job.

        Ended jobs that load() gives back stay: others depend on them, or their array or their devices are not done.
        """
        needed = json.dumps([row[0] for row in self._all("needed_ids")])
        forgotten = 0
        while True:
            with self._transaction() as db:
                found = db.execute(self._q["trimmable"], (ended_before, needed, _TRIM_BATCH)).fetchall()
                db.executemany(self._q["forget_job"], found)
            forgotten += len(found)
            if len(found) < _TRIM_BATCH:
                break
        with self._transaction() as db:
            db.execute(self._q["forget_reservations"], (ended_before,))
        while True:
            with self._transaction() as db:
                count = db.execute(self._q["forget_environments"], (_TRIM_BATCH,)).rowcount
            if count < _TRIM_BATCH:
                return forgotten

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside becomes durable together or not at all."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if kind_of(error) is Trouble.FULL:
                self._use_ballast()
            raise explained(error, self.path) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # SQLite has already rolled back by itself after some errors
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # the error that led here is the one to tell

    def _use_ballast(self) -> None:
        """Turn the reserve into room for the next commits, and empty the log, which may hold megabytes."""
        if self._ballast.release():
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error:
                pass  # the room of the ballast is there all the same

    # ---- reading ----------------------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """All jobs that are not final, ended ones that they refer to, attempts that hold devices or are the latest."""
        memo: Memo = {}
        found = [rows.job_of_row(row, memo) for row in (*self._all("open_jobs"), *self._all("needed_jobs"))]
        attempts: dict[tuple[int, int], Attempt] = {}
        for row in (*self._all("held_attempts"), *self._all("latest_attempts")):
            attempts[row[0], row[1]] = rows.attempt_of_row(row, memo)
        return Snapshot(
            jobs=tuple(sorted(found, key=lambda job: job.id)),
            attempts=tuple(attempts[key] for key in sorted(attempts)),
            next_job_id=self._next_job_id,
            usage=tuple(AccountUsage(*row) for row in self._all("usage")),
            reservations=tuple(map(rows.reservation_of_row, self._all("open_reservations"))),
            past=self._past(memo),
        )

    def _past(self, memo: Memo) -> tuple[Past, ...]:
        found = [rows.job_of_row(row, memo) for row in self._all("past", json.dumps(sorted(LEARNED)), REMEMBERED)]
        return tuple(past for job in reversed(found) if (past := taught(job)) is not None)

    def environment(self, digest: str) -> Environment:
        found = self._all("environment", digest)
        if not found:
            raise KeyError(digest)
        return rows.environment_of_text(found[0][0])

    def job(self, job_id: int) -> Job | None:
        memo: Memo = {}
        for row in self._all("job", job_id):
            return rows.job_of_row(row, memo)
        for (array_id,) in self._all("array_before", job_id):
            folded = (rows.job_of_row(row, memo) for row in self._all("folded", array_id))
            return next((job for job in folded if spans.with_offset(job.folded, job_id - array_id)), None)
        return None

    def element(self, array_id: int, index: int) -> Job | None:
        memo: Memo = {}
        for row in self._all("element", array_id, index):
            return rows.job_of_row(row, memo)
        folded = (rows.job_of_row(row, memo) for row in self._all("folded", array_id))
        return next((job for job in folded if spans.with_index(job.folded, index)), None)

    def array(self, array_id: int, most: int | None = None) -> tuple[Job, ...]:
        memo: Memo = {}
        if most is not None and self._all("array_size", array_id)[0][0] > most:
            found = self._all("array_not_completed", array_id, max(0, most))
        else:
            found = self._all("array", array_id)
        return tuple(rows.job_of_row(row, memo) for row in found)

    def attempts(self, job_id: int) -> tuple[Attempt, ...]:
        memo: Memo = {}
        return tuple(rows.attempt_of_row(row, memo) for row in self._all("attempts", job_id))

    def story(self, job_id: int) -> tuple[StoryLine, ...]:
        return tuple(StoryLine(*row) for row in self._all("story", job_id))

    def history(self, query: HistoryQuery) -> tuple[tuple[Job, tuple[Attempt, ...]], ...]:
        memo: Memo = {}
        asked = rows.history_parameters(query)
        jobs = [rows.job_of_row(row, memo) for row in self._fetch(self._q["history"], asked)]
        of_job: dict[int, list[Attempt]] = {job.id: [] for job in jobs}
        for row in self._all("attempts_of", json.dumps(list(of_job))):
            of_job[row[0]].append(rows.attempt_of_row(row, memo))
        return tuple((job, tuple(of_job[job.id])) for job in jobs)

    def reservations(self) -> tuple[Reservation, ...]:
        return tuple(map(rows.reservation_of_row, self._all("reservations")))

    def recent_keys(self, uid: int, limit: int) -> tuple[str, ...]:
        return tuple(str(row[0]) for row in self._all("recent_keys", uid, limit))

    def _all(self, query: str, *parameters: Any) -> list[Any]:
        return self._fetch(self._q[query], parameters)

    def _fetch(self, sql: str, parameters: Any) -> list[Any]:
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise explained(error, self.path) from error

    def close(self) -> None:
        """Close the file. Closing again is harmless."""
        try:
            self._db.close()
        except sqlite3.Error as error:
            raise explained(error, self.path) from error


def _create_private(path: Path) -> None:
    """Have a file that only its owner can read: environments, with people's tokens, are in there."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_mode & 0o077:
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)  # before SQLite opens it: closing drops this process's locks on the file
