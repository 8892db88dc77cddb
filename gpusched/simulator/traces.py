"""Traces as files: csv or gzipped csv in one form, checked cell by cell, to a Workload.

The first seven columns are job_id, user, vc, submit_s, gpus, duration_s and status; COLUMNS has those that may follow.
Whatever cannot be read is refused with its line: nothing is guessed, and no job is dropped silently.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TextIO

from gpusched.model.units import format_size
from gpusched.simulator.cells import COLUMNS, REQUIRED, WHOLE_MILLI, Cells
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.workload import Fleet, TraceJob, Workload

_GZIP = b"\x1f\x8b"
_FORM = "the first line names the columns: " + ",".join(REQUIRED)


class UsersFrom(StrEnum):
    """Which column says who submitted a job."""

    USER = "user"
    VC = "vc"


def read_trace(
    path: str | Path,
    users_from: UsersFrom | str | None = None,
    *,
    max_jobs: int | None = None,
    all_at_zero: bool = False,
    shared: bool = False,
    memory_mib: int = Fleet(1, 1).memory_mib,
) -> Workload:
    """The jobs of a trace in the order of submission; of equal times in the order of the file.

    users_from: the column that becomes the jobs' user; None: all belong to one.
    max_jobs: only the first so many lines. all_at_zero: all are submitted at the start.
    shared: jobs whose `gpu_milli` is below 1000 get that share of the memory of their devices, which have `memory_mib`.
    Raises SimulationError that names the file, the line and what is wrong.
    """
    path, users_from = Path(path), UsersFrom(users_from) if users_from else None
    jobs: list[TraceJob] = []
    seen: dict[str, int] = {}
    with _opened(path) as text:
        for cells in islice(_lines(path, text), max_jobs):
            job = _job(cells, users_from, shared, memory_mib, all_at_zero)
            if job.id in seen:
                raise cells.error(f"job_id {job.id!r} stands on line {seen[job.id]} already", "ids are unique")
            seen[job.id] = cells.line
            jobs.append(job)
    if not jobs:
        raise SimulationError(f"{path}: there are column names, but no jobs below them", "add at least one line")
    if users_from and not any(job.user for job in jobs):
        raise SimulationError(
            f"{path}: no job has anything in the column {users_from}, so there are no users",
            "leave --users-from away, or name the other column: user, vc",
        )
    jobs.sort(key=lambda job: job.submit)
    return Workload(path.name, tuple(jobs))


def check_fits(workload: Workload, fleet: Fleet) -> Workload:
    """The workload, if every job of it could run on the empty fleet. Raises SimulationError that names the jobs."""
    where = f"{fleet.nodes} × {fleet.per_node} devices" if fleet.nodes > 1 else f"{fleet.devices} devices"
    large = [job for job in workload.jobs if job.gpus > fleet.devices]
    if large:
        most = max(job.gpus for job in large)
        raise SimulationError(
            f"{workload.source}: {_named(large, lambda job: f'{job.id} needs {job.gpus}')}; the fleet has {where}",
            f"give at least {most} devices, for example --devices {math.ceil(most / fleet.per_node)}x{fleet.per_node}",
        )
    thirsty = [job for job in workload.jobs if (job.gpu_mem_mib or 0) > fleet.memory_mib]
    if thirsty:
        named = _named(thirsty, lambda job: f"{job.id} needs {format_size(job.gpu_mem_mib or 0)} of each device")
        raise SimulationError(f"{workload.source}: {named}; the devices have {format_size(fleet.memory_mib)}", "")
    return workload


def _named(jobs: Sequence[TraceJob], text: Callable[[TraceJob], str]) -> str:
    """`job 7 needs 64`, or the first three of many and how many more."""
    first = ", ".join(text(job) for job in jobs[:3])
    return f"job{'s' if len(jobs) > 1 else ''} {first}" + (f" and {len(jobs) - 3} more" if len(jobs) > 3 else "")


def _job(cells: Cells, users_from: UsersFrom | None, shared: bool, memory_mib: int, all_at_zero: bool) -> TraceJob:
    cells.check()
    submit = cells.seconds("submit_s")
    milli = cells.milli()
    model, batch = cells.text("model"), cells.text("batch_size")
    return TraceJob(
        id=cells.needed("job_id"),
        submit=0.0 if all_at_zero else submit,
        gpus=cells.gpus(),
        duration=cells.seconds("duration_s"),
        user=cells.text(users_from) if users_from else "",
        name=f"{model}-{batch}" if model and batch else model,
        gpu_mem_mib=max(1, math.ceil(memory_mib * milli / WHOLE_MILLI)) if shared and milli < WHOLE_MILLI else None,
    )


# ---- the file -------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a trace, unpacked. Raises SimulationError for everything that a file can be instead."""
    try:
        with path.open("rb") as raw:
            head = raw.peek(2)[:2]  # without moving, which a pipe could not undo
            if not head:
                raise SimulationError(f"{path} is empty", _FORM)
            if path.suffix == ".gz" and head != _GZIP:
                raise SimulationError(
                    f"{path} is called .gz and is no gzip file", "if it is plain csv, rename it; else fetch it again"
                )
            data = gzip.GzipFile(fileobj=raw) if head == _GZIP else raw
            with io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
                yield text
    except FileNotFoundError:
        raise SimulationError(f"{path}: there is no such trace", "look at its name; traces are csv or csv.gz") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SimulationError(
            f"{path} is torn: its gzip data {'ends in the middle' if isinstance(error, EOFError) else 'is damaged'}",
            "fetch or write it again; `gzip -t` checks a file",
        ) from None
    except UnicodeDecodeError:
        raise SimulationError(f"{path} is no text in UTF-8", "a trace is csv, or csv packed with gzip") from None
    except OSError as error:
        raise SimulationError(
            f"{path} cannot be read: {error.strerror or error}", "a trace is a file, csv or csv.gz"
        ) from None


def _lines(path: Path, text: TextIO) -> Iterator[Cells]:
    """The lines of a trace as cells by column."""
    reader = csv.reader(text, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if not names:
            raise SimulationError(f"{path}: nothing stands on its first line", _FORM)
        _check_header(path, names)
        for row in reader:
            if row:
                yield Cells(path, reader.line_num, _zipped(path, reader.line_num, names, row))
    except csv.Error as error:
        raise SimulationError(
            f"{path}, line {reader.line_num}: it cannot be read as csv: {error}", "a quote that is never closed?"
        ) from None


def _zipped(path: Path, line: int, names: Sequence[str], row: Sequence[str]) -> Mapping[str, str]:
    if len(row) != len(names):
        raise SimulationError(
            f"{path}, line {line}: {len(row)} cells, but the first line names {len(names)} columns",
            "a line that was cut off? commas in a text need quotes around it",
        )
    return {name: cell.strip() for name, cell in zip(names, row, strict=True)}


def _check_header(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if len(names) == 1 and (other := next((mark for mark in (";", "\t", "|") if mark in names[0]), "")):
        raise SimulationError(f"{path}, line 1: the cells are separated by {other!r}", "put commas between them")
    if missing:
        raise SimulationError(
            f"{path}, line 1: missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}", _FORM
        )
    for name in names:
        if name not in COLUMNS:
            raise SimulationError(f"{path}, line 1: unknown column {name!r}", f"known: {', '.join(COLUMNS)}")
        if names.count(name) > 1:
            raise SimulationError(f"{path}, line 1: the column {name!r} is named twice", "name each column once")
