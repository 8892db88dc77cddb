"""Slurm's dependency grammar: `afterok:1:2,afterany:3` (all of them) or `afterok:1?afterany:2` (any of them)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpusched.model.errors import UsageError, known


class Relation(StrEnum):
    AFTER = "after"  # the other has started (or was cancelled)
    AFTEROK = "afterok"  # the other has completed with exit code 0
    AFTERANY = "afterany"  # the other has ended, however
    AFTERNOTOK = "afternotok"  # the other has ended and failed
    AFTERCORR = "aftercorr"  # each element of an array: the same element of the other array has completed
    SINGLETON = "singleton"  # no earlier job of the same user with the same name is unfinished


@dataclass(frozen=True, slots=True)
class Clause:
    """One relation to some jobs. `jobs` are keys as typed (`7`, `7_3`); empty for singleton."""

    relation: Relation
    jobs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ":".join((str(self.relation), *self.jobs))


@dataclass(frozen=True, slots=True)
class Dependency:
    clauses: tuple[Clause, ...]
    any: bool = False  # False: all clauses must hold

    def __str__(self) -> str:
        return ("?" if self.any else ",").join(str(clause) for clause in self.clauses)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for clause in self.clauses for key in clause.jobs)


def _is_job_key(text: str) -> bool:
    head, underscore, tail = text.partition("_")
    digits = head.isascii() and head.isdigit() and not head.startswith("0") and len(head) <= 18
    return digits and (not underscore or (tail.isascii() and tail.isdigit() and len(tail) <= 9))


def parse_dependency(text: str) -> Dependency:
    """Read a dependency expression. Raises UsageError naming the part that cannot be read."""
    if "," in text and "?" in text:
        raise UsageError(
            f"dependency {text!r} mixes ',' and '?'", "',' means all of them, '?' means any of them: use one kind"
        )
    separator = "?" if "?" in text else ","
    clauses = []
    for part in text.split(separator):
        word, *jobs = part.strip().split(":")
        try:
            relation = Relation(word)
        except ValueError:
            if _is_job_key(word):
                raise UsageError(
                    f"dependency {part.strip()!r} does not say what must have happened",
                    f"write: afterok:{word} (succeeded), afterany:{word} (ended) or --after {word}",
                ) from None
            raise known("dependency type", word, [str(r) for r in Relation]) from None
        if relation is Relation.SINGLETON:
            if jobs:
                raise UsageError("singleton takes no job ids", "write just: --dependency singleton")
        elif not jobs:
            raise UsageError(f"dependency {part!r} names no job", f"write: {word}:JOBID[:JOBID…]")
        for job in jobs:
            if not _is_job_key(job):
                raise UsageError(f"{job!r} in dependency {part!r} is not a job id", f"write: {word}:42 or {word}:42_3")
            if relation is Relation.AFTERCORR and "_" in job:
                raise UsageError(
                    f"aftercorr is about whole arrays, and {job!r} in dependency {part!r} is one element",
                    f"write: aftercorr:{job.partition('_')[0]}, or for this element alone afterok:{job}",
                )
        clauses.append(Clause(relation, tuple(jobs)))
    return Dependency(tuple(clauses), any=separator == "?")
