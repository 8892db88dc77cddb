"""Unfinished jobs by owner and name, for those of one name that run one after the other (`singleton`).

Most machines have no such jobs. So nothing is kept until the first one asks; from then on it is kept up to date.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from gpusched.model.job import Job

Name = tuple[int, str]  # whose job, and what it is called


def unfinished_name(job: Job) -> Name | None:
    """The name under which later `singleton` jobs wait for this one. A --cron template runs nothing itself."""
    return None if job.state.final or job.spec.cron is not None else (job.owner.uid, job.spec.name)


class Names:
    """The engine's turn tells it of every job that comes or changes."""

    def __init__(self) -> None:
        self.known: dict[Name, list[int]] | None = None  # job ids, ascending; None: nobody has asked so far

    def of(self, jobs: Mapping[int, Job], name: Name | None) -> list[int]:
        """The unfinished jobs of this name. jobs: all that there are, for the first time that somebody asks."""
        if self.known is None:
            self.known = {}
            for job in jobs.values():
                self._add(unfinished_name(job), job.id)
        return self.known.get(name, []) if name is not None else []

    def put(self, old: Job | None, new: Job) -> Name | None:
        """A job has changed from `old`, or is new. Returns the name that has one unfinished job fewer now."""
        if self.known is None:
            return None
        before, after = unfinished_name(old) if old is not None else None, unfinished_name(new)
        if before == after:
            return None
        if before is not None:
            ids = self.known[before]
            del ids[bisect_left(ids, new.id)]
            if not ids:
                del self.known[before]
        self._add(after, new.id)
        return before

    def _add(self, name: Name | None, job_id: int) -> None:
        if name is None or self.known is None:
            return
        ids = self.known.setdefault(name, [])
        at = bisect_left(ids, job_id)
        if at == len(ids) or ids[at] != job_id:
            ids.insert(at, job_id)
