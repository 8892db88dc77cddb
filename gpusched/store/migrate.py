"""Brings a database to the present schema: numbered files, each applied once in one transaction.

The number of the last one is kept in PRAGMA user_version. A file that was released is never changed again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpusched.ports import StoreError
from gpusched.store.trouble import too_new

MIGRATIONS_DIR = Path(__file__).with_name("migrations")
APPLICATION_ID = 0x67707571  # "gpuq": how our databases are told from other people's


class Connection(Protocol):
    """What is needed of a database connection."""

    @property
    def in_transaction(self) -> bool: ...

    def execute(self, sql: str, parameters: Any = ..., /) -> Any: ...

    def executescript(self, sql: str, /) -> Any: ...


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    version: int
    name: str
    sql: str


def load_migrations(directory: Path = MIGRATIONS_DIR) -> tuple[Migration, ...]:
    """All migrations in order. Raises ValueError unless they are numbered 1, 2, 3, … without a gap."""
    found = []
    for path in sorted(directory.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", path.name)
        if match is None:
            raise ValueError(f"{path.name}: a migration is named like 0002_what_it_does.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations must be numbered 1, 2, 3, …, not {[m.version for m in found]}")
    return tuple(found)


def version_of(db: Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def migrate(db: Connection, path: Path, migrations: tuple[Migration, ...]) -> int:
    """Apply what is missing; returns how many. Raises StoreError for a newer or a foreign database.

    Errors of the database itself pass through; what was applied before stays, the failed one leaves nothing.
    """
    present, latest = version_of(db), len(migrations)
    used = bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    ours = int(db.execute("PRAGMA application_id").fetchone()[0]) == APPLICATION_ID
    if used and not ours:
        raise StoreError(
            f"{path} is a database of another program; it was left as it is",
            "give the daemon another state directory, or move that file away",
        )
    if present > latest:
        raise too_new(path, present, latest)
    if 0 < present < latest:
        _keep_copy(db, path, present)
    for migration in migrations[present:]:
        _apply(db, migration)
    return latest - present


def _keep_copy(db: Connection, path: Path, version: int) -> None:
    """A whole copy of the database as the older version left it, for the way back."""
    copy = path.with_name(f"{path.name}.before-{version + 1}")
    copy.unlink(missing_ok=True)  # from an upgrade that was interrupted
    copy.touch(mode=0o600)  # environments are in there: private from the first byte
    db.execute("VACUUM INTO ?", (str(copy),))


def _apply(db: Connection, migration: Migration) -> None:
    # A script, not single statements, so that the file can hold anything; it brings its own transaction.
    try:
        db.executescript(
            f"BEGIN IMMEDIATE;\n{migration.sql}\nPRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {migration.version};\nCOMMIT;"
        )
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")  # not by a script: those commit first what is open
        raise
