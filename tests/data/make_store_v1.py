"""Made tests/data/store-v1.sqlite, a database as version 1 wrote it. It is kept so that later versions prove that
they still read it; run again only to look at how it came about: python tests/data/make_store_v1.py NEW_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from gpusched.model.changes import Changes, StoryLine
from gpusched.model.dependency import parse_dependency
from gpusched.model.digest import digest_of
from gpusched.model.job import ArrayElement, Attempt, Hold, HoldKind, Job, JobSpec, Owner, Request, Share
from gpusched.model.state import JobState, Outcome, OutcomeKind, Saved
from gpusched.store.sqlite import SqliteStore

ALICE, BOB = Owner(1000, 1000, "alice"), Owner(1001, 100, "bob")
ENVIRONMENT = {"PATH": "/usr/bin", "HOME": "/home/alice"}
DIGEST = digest_of(ENVIRONMENT)


def contents() -> Changes:
    train = JobSpec(("python", "train.py"), "/home/alice", "train", Request(2, 10240), "low", env_digest=DIGEST)
    after = JobSpec(("./evaluate",), "/home/bob", "evaluate", dependency=parse_dependency("afterok:1"))
    sweep = JobSpec(("./sweep",), "/home/bob", "sweep", time_limit=3600.0)
    first = Attempt(
        1, 1, (Share("GPU-a"), Share("GPU-b")), "boot-1", 10.0, 1000.0, 11.0, 1001.0, 20.0, 1010.0, 4711,
        saved=Saved("step-9", 9, 1009.0), outcome=Outcome(OutcomeKind.EXITED, 85), released=True,
    )  # fmt: skip
    second = Attempt(1, 2, (Share("GPU-c"), Share("GPU-d")), "boot-1", 30.0, 1020.0, 31.0, 1021.0, pid=4712)
    return Changes(
        jobs=(
            Job(1, ALICE, train, JobState.RUNNING, 999.0, attempt=2, restarts=1, saved=first.saved, started_at=1021.0),
            Job(2, BOB, after, JobState.PENDING, 1002.0, dependency_met=False),
            Job(3, BOB, sweep, JobState.COMPLETED, 1003.0, array=ArrayElement(3, 0, 2, 0, 1, 1, 0), ended_at=1004.0),
            Job(4, BOB, sweep, JobState.PENDING, 1003.0, ArrayElement(3, 1, 2, 0, 1, 1, 0), hold=Hold(HoldKind.USER)),
            Job(5, BOB, sweep, JobState.FAILED, 1003.0, ended_at=1005.0, outcome=Outcome(OutcomeKind.EXITED, 3)),
        ),
        attempts=(first, second),
        environments=((DIGEST, ENVIRONMENT),),
        story=(StoryLine(1, 0, 999.0, "submitted", "submitted by alice", "alice"),),
        next_job_id=9,
    )


if __name__ == "__main__":
    store = SqliteStore(Path(sys.argv[1]), ballast_bytes=0)
    store.commit([contents()])
    store.close()
