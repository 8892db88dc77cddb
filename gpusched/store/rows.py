"""Rows to dataclasses and back: which column holds what of a job, an attempt and an environment.

The complete job is in two JSON columns: `spec`, which the elements of an array share and which hardly changes, and
`job`, the rest. Reading many rows with one memo makes equal specs, owners and strings one object, so that ten
thousand waiting jobs stay small. It must not know SQL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gpusched.model.changes import AccountUsage, StoryLine
from gpusched.model.job import Attempt, Environment, Job, JobSpec, Owner, Request, Source
from gpusched.model.reservation import Reservation
from gpusched.ports import HistoryQuery, StoreError
from gpusched.store.codec import Memo, codec

_SHARED = frozenset({Owner, Request, Source})
_encode_spec, _decode_spec = codec(JobSpec, shared=_SHARED)
_encode_job, _decode_job = codec(Job, skip=("spec",), shared=_SHARED)
_encode_attempt, _decode_attempt = codec(Attempt, shared=_SHARED)
_encode_reservation, _decode_reservation = codec(Reservation)
# One encoder, made once. ASCII only: file names and arguments that are not UTF-8 survive as escapes.
_to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_BROKEN = (KeyError, TypeError, ValueError, AttributeError, RecursionError)

Specs = dict[int, str]  # id() of a spec → its JSON, for the specs of one commit
JobRow = tuple[int, str, str, int, str, str, int | None, int | None, float, float | None, str, str, str]
AttemptRow = tuple[int, int, int, float, float | None, str]


def plain(text: str) -> str:
    """Text that a database can compare: bytes that are not UTF-8 (lone surrogates) become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def job_row(job: Job, specs: Specs) -> JobRow:
    """The columns of a job, in the order of the query put_job."""
    spec, array = job.spec, job.array
    spec_json = specs.get(id(spec))
    if spec_json is None:
        spec_json = specs[id(spec)] = _to_json(_encode_spec(spec))
    return (
        job.id,
        job.state,
        plain(job.owner.user),
        job.owner.uid,
        plain(spec.name),
        plain(spec.qos),
        array.array_id if array else None,
        array.index if array else None,
        job.submitted_at,
        end_of(job),
        spec.env_digest,
        spec_json,
        _to_json(_encode_job(job)),
    )


def end_of(job: Job) -> float | None:
    """When a job ended, as history and retention see it (wall clock): None if and only if it is not final."""
    if not job.state.final:
        return None
    return job.ended_at if job.ended_at is not None else job.submitted_at


def attempt_row(attempt: Attempt) -> AttemptRow:
    """The columns of an attempt, in the order of the query put_attempt."""
    return (
        attempt.job_id,
        attempt.number,
        int(attempt.released),
        attempt.created_at,
        attempt.ended_at,
        _to_json(_encode_attempt(attempt)),
    )


def usage_row(used: AccountUsage) -> tuple[str, float, float]:
    """The columns of an account's usage, in the order of the query put_usage."""
    return plain(used.account), used.device_seconds, used.at


def reservation_row(reservation: Reservation) -> tuple[str, float | None, str]:
    """The columns of a reservation, in the order of the query put_reservation."""
    return reservation.name, reservation.ended_at, _to_json(_encode_reservation(reservation))


def story_row(line: StoryLine) -> tuple[int, int, float, str, str, str]:
    """The columns of a line, in the order of the query put_story."""
    return (line.job_id, line.attempt, line.at, line.kind, plain(line.text), plain(line.by))


def history_parameters(query: HistoryQuery) -> dict[str, Any]:
    """The parameters of the query history; what asks for any is NULL."""

    def listed(values: Sequence[str | int]) -> str | None:
        return json.dumps([plain(v) if isinstance(v, str) else v for v in values]) if values else None

    return {
        "users": listed(query.users),
        "states": listed(query.states),
        "names": listed(query.names),
        "ids": listed(query.ids),
        "since": query.since,
        "until": query.until,
        "limit": max(0, query.limit),
    }


def job_of_row(row: Sequence[Any], memo: Memo) -> Job:
    """The job of (id, spec, job). Raises StoreError naming the job if the row cannot be read."""
    number, spec_text, job_text = row
    try:
        spec = memo.get((JobSpec, spec_text))
        if spec is None:
            spec = memo[(JobSpec, spec_text)] = _decode_spec(json.loads(spec_text), memo)
        value = json.loads(job_text)
        value["spec"] = spec
        job: Job = _decode_job(value, memo)
    except _BROKEN as error:
        raise _unreadable(f"job {number}", error) from error
    return job


def attempt_of_row(row: Sequence[Any], memo: Memo) -> Attempt:
    """The attempt of (job_id, number, attempt). Raises StoreError naming it if the row cannot be read."""
    try:
        attempt: Attempt = _decode_attempt(json.loads(row[2]), memo)
    except _BROKEN as error:
        raise _unreadable(f"attempt {row[1]} of job {row[0]}", error) from error
    return attempt


def reservation_of_row(row: Sequence[Any]) -> Reservation:
    """The reservation of (name, reservation). Raises StoreError naming it if the row cannot be read."""
    try:
        reservation: Reservation = _decode_reservation(json.loads(row[1]), {})
    except _BROKEN as error:
        raise _unreadable(f"reservation {row[0]!r}", error) from error
    return reservation


def environment_of_text(text: str) -> Environment:
    """The environment of its canonical JSON."""
    try:
        return {str(name): str(value) for name, value in json.loads(text).items()}
    except _BROKEN as error:
        raise _unreadable("an environment", error) from error


def _unreadable(what: str, error: Exception) -> StoreError:
    return StoreError(
        f"{what} in the database cannot be read ({type(error).__name__}: {error})",
        "the row is damaged or was written by a newer gpusched: keep a copy of the database and see: gpusched doctor",
    )
