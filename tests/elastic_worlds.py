"""Small worlds with elastic jobs, for tests of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders import World

from gpusched.model.job import Speed
from gpusched.model.policy import PolicyRules
from gpusched.model.rules import Rules
from gpusched.model.state import JobState

MINUTE, HOUR = 60.0, 3600.0


def a_world(gpus: int = 4, **policy: Any) -> World:
    """A world whose elastic jobs are left in peace for five minutes."""
    return World(gpus, rules=replace(Rules.default(), policy=PolicyRules(resize_interval=5 * MINUTE, **policy)))


def wide(world: World, least: int = 1, most: int = 4, **more: Any) -> int:
    """An elastic job that runs and can save."""
    job = world.submit(gpus=least, gpus_max=most, **more)
    goes_on(world, job)
    return job


def goes_on(world: World, *jobs: int) -> None:
    """These elastic jobs run (again), and can save."""
    for job in jobs:
        world.started(job)
        world.watches(job)


def resized(world: World, job: int) -> None:
    """It saves and leaves, as it was asked to."""
    assert world.job(job).state is JobState.STOPPING
    world.exits(job, code=85, saved_step=int(world.now.boot))


def put_speeds(world: World, job: int, *speeds: Speed) -> None:
    """As if it had been measured in earlier attempts."""
    world.engine.view.jobs[job] = replace(world.job(job), speeds=speeds)
