"""Plays a small world forward as it really goes: jobs run as long as the test says, nobody submits anything more.

Written without a look at gpusched/simulator/roll.py, so that forecasts can be held against it.
"""

from __future__ import annotations

from builders import World

from gpusched.engine.picture import take
from gpusched.model.state import JobState, Outcome, OutcomeKind
from gpusched.simulator.forecast import Estimate, Forecast, forecast


def the_forecast(world: World, **asked: object) -> Forecast:
    return forecast(take(world.engine, world.now), **asked)  # type: ignore[arg-type]


def estimate(world: World, job: int) -> Estimate:
    return the_forecast(world, asked=[job]).estimates[job]


def in_seconds(world: World, found: Estimate) -> tuple[float | None, ...]:
    """The three times of an estimate, from now, to the second."""
    times = (found.earliest, found.expected, found.latest)
    return tuple(None if time is None else round(time - world.now.wall) for time in times)


def set_going(world: World) -> None:
    """Everything that was launched is running; it can be asked to save."""
    for job_id, attempt in sorted(world.engine.view.live.items()):
        if attempt.started is None:
            world.started(job_id)
            world.watches(job_id)


class Future:
    """The world from now on. lasts: seconds that each job runs in all, without what its moves cost it."""

    def __init__(self, world: World, lasts: dict[int, float], cost: float = 0.0) -> None:
        self.world, self.cost = world, cost
        self.left = dict(lasts)
        self.starts: dict[int, float] = {}  # wall clock
        self.since: dict[int, float] = {}
        self.ran = set(world.running())
        for job in world.engine.state.jobs.values():
            if job.ran and job.id in self.left:
                self.left[job.id] += job.lost - job.ran
        for job_id, attempt in world.engine.view.live.items():
            if attempt.started is not None:
                self.left[job_id] -= world.now.boot - attempt.started
                self.since[job_id] = world.now.boot

    def play(self) -> dict[int, float]:
        """Until nothing runs any more; when each job that was not running has started for the first time."""
        world = self.world
        for _ in range(10_000):
            self.at_once()
            live = set(world.running())
            if not live:
                waiting = [j for j in world.engine.state.jobs.values() if j.state is JobState.PENDING]
                if not waiting or (world.wake_wall is None and world.wake_boot is None):
                    return self.starts
            ends = sorted((self.since[i] + self.left[i], i) for i in live)
            wake = world._next_wake()
            if ends and (wake is None or ends[0][0] <= world.now.boot + wake):
                world.now = world.now.later(max(0.0, ends[0][0] - world.now.boot))  # it ends before its time limit does
                over = [i for end, i in ends if end <= world.now.boot + 1e-6 and i in world.running()]
                world.handle(*[world.end(world.key(i), Outcome(OutcomeKind.EXITED, code=0)) for i in over])
                for job_id in over:
                    del self.since[job_id]
            elif wake is not None:
                world.passes(max(0.0, wake))
        raise AssertionError("it goes on and on")

    def at_once(self) -> None:
        """Launches become processes, and whoever is asked to leave saves and leaves, until nothing more follows."""
        world = self.world
        while True:
            asked, fresh = world.asked_to_stop(), [
                i for i, attempt in sorted(world.engine.view.live.items()) if attempt.started is None
            ]
            world.take(object)  # the rest of the actions is of no interest here
            for job_id in fresh:
                if job_id not in self.ran:
                    self.starts.setdefault(job_id, world.now.wall)
                self.since[job_id] = world.now.boot
                world.started(job_id)
                world.watches(job_id)
            for job_id in asked:
                if job_id in world.running():
                    self.left[job_id] += self.cost - (world.now.boot - self.since.pop(job_id))
                    world.exits(job_id, code=85, saved_step=1)
            if not asked and not fresh:
                return
