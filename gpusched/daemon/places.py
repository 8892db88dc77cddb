"""Where the daemon keeps things below its state directory, and where a job's files go."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpusched.model.errors import UsageError
from gpusched.model.job import AttemptKey, Job
from gpusched.model.patterns import expand


@dataclass(frozen=True, slots=True)
class Places:
    state: Path

    @property
    def database(self) -> Path:
        return self.state / "gpusched.sqlite"

    @property
    def lock(self) -> Path:
        return self.state / "daemon.lock"

    @property
    def socket(self) -> Path:
        return self.state / "gpusched.sock"

    @property
    def doorbell(self) -> Path:
        return self.state / "doorbell.sock"

    @property
    def log(self) -> Path:
        return self.state / "daemon.log"

    @property
    def control(self) -> Path:
        """One control directory per attempt. Not on a tmpfs: those of user sessions are emptied at logout."""
        return self.state / "attempts"

    def highest_job_id(self) -> int:
        """The highest id that left something here, whatever the database knows; 0: nothing is here."""
        names: list[str] = []
        for root in (self.control, self.state / "jobs", self.state / "checkpoints"):
            with suppress(OSError):
                names += os.listdir(root)
        ids = (name.partition("-")[0] for name in names)
        return max((int(word) for word in ids if word.isascii() and word.isdigit() and len(word) < 16), default=0)

    def job_dir(self, attempt: AttemptKey) -> Path:
        return self.state / "jobs" / str(attempt.job_id) / str(attempt.number)

    def job_root(self, job_id: int) -> Path:
        return self.state / "jobs" / str(job_id)

    def checkpoint_dir(self, job: Job) -> Path:
        """The job's own, stable over its attempts, unless it chose one."""
        chosen = job.spec.checkpoint_dir
        if not chosen:
            return self.state / "checkpoints" / str(job.id)
        if "%" in chosen:
            # %r too stays what it was at the first attempt: a resumed one must find what the last one saved
            with suppress(UsageError):  # from before patterns were read here: then the name is meant as it stands
                chosen = _expanded(job, chosen, restart=0)
        return Path(os.path.join(job.spec.cwd, chosen))


def output_path(job: Job, pattern: str | None) -> str | None:
    """The absolute path of an output file, from its pattern."""
    if pattern is None:
        return None
    return os.path.join(job.spec.cwd, _expanded(job, pattern, restart=job.restarts))


def _expanded(job: Job, pattern: str, *, restart: int) -> str:
    """Raises UsageError for a letter that no pattern knows."""
    array = job.array
    return expand(
        pattern,
        job_id=job.id,
        array_id=array.array_id if array else job.id,
        array_index=array.index if array else 0,
        name=job.spec.name,
        user=job.owner.user,
        restart=restart,
    )
