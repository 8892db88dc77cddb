"""Reads queries.sql: a name, a line of description, the statement. It knows nothing of what the statements do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

QUERIES_FILE = Path(__file__).with_name("queries.sql")
_MARK = "-- name:"


@dataclass(frozen=True, slots=True)
class Query:
    """One named statement."""

    name: str
    about: str
    sql: str


def parse_queries(text: str) -> dict[str, Query]:
    """The named statements of a file. Raises ValueError for one without description or SQL, or named twice."""
    queries: dict[str, Query] = {}
    for block in text.split(_MARK)[1:]:
        name_line, _, rest = block.partition("\n")
        about_line, _, sql = rest.partition("\n")
        name, sql = name_line.strip(), sql.strip()
        if not about_line.startswith("-- ") or not sql.endswith(";"):
            raise ValueError(f"query {name!r} needs a line '-- what it is for' and a statement that ends with ';'")
        if name in queries:
            raise ValueError(f"query {name!r} is there twice")
        queries[name] = Query(name, about_line[3:].strip(), sql)
    return queries


def load_queries() -> dict[str, str]:
    """The SQL of every query by its name."""
    return {q.name: q.sql for q in parse_queries(QUERIES_FILE.read_text(encoding="utf-8")).values()}
