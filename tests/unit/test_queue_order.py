"""In which order `gpusched queue` lists jobs: as they will be served, and whoever cannot be served yet behind them."""

from __future__ import annotations

from collections.abc import Sequence

from builders import World

from gpusched.daemon.verbs.jobs import display_order
from gpusched.model.state import JobState


def listed(world: World) -> list[str]:
    jobs = sorted(world.engine.state.jobs.values(), key=display_order(world.engine.view, world.now))
    return [job.key for job in jobs]


def keys(ids: Sequence[int]) -> list[str]:
    return [str(job_id) for job_id in ids]


def test_held_jobs_are_listed_behind_all_that_wait() -> None:
    world = World(1)
    held_high = world.submit(qos="high", hold=True)
    runs = world.submit()
    held, first, second = world.submit(hold=True), world.submit(), world.submit()
    urgent = world.submit(qos="normal", nice=0, begin=world.now.wall + 60)
    assert listed(world) == keys([runs, first, second, urgent, held_high, held])
    world.release(held)
    assert listed(world) == keys([runs, held, first, second, urgent, held_high]), "it is back in its old place"
    world.hold(first)
    assert listed(world) == keys([runs, held, second, urgent, held_high, first])


def test_who_waits_for_its_time_or_for_others_is_listed_behind_who_waits_for_devices() -> None:
    world = World(1)
    runs = world.submit()
    later = world.submit(qos="high", begin=world.now.wall + 60)
    after = world.submit(after=f"afterok:{runs}")
    waits, low = world.submit(), world.submit(qos="low")
    assert listed(world) == keys([runs, waits, low, later, after])
    world.passes(61)
    assert listed(world)[:2] == keys([runs, later]), "now it goes before the others"


def test_who_is_promised_devices_is_listed_in_its_turn() -> None:
    world = World(1)
    low = world.submit(qos="low")
    world.started(low)
    other = world.submit(qos="low")
    high = world.submit(qos="high")
    assert world.job(high).earmark and world.job(high).state is JobState.PENDING
    assert listed(world) == keys([low, high, other])


def test_elements_that_are_held_come_behind_the_row_of_the_others() -> None:
    world = World(1)
    world.submit()
    array = world.submit(array="0-99999")
    behind = world.submit()
    world.hold(f"{array}_[3-5,70000]")
    rows = listed(world)
    assert rows.index(str(behind)) < len(rows) - 1
    held = [key for key in rows if world.engine.state.jobs[array].key != key and key.startswith(f"{array}_")]
    assert rows[rows.index(str(behind)) + 1 :] == held and held
    assert len(rows) < 10, "a hundred thousand elements are some rows"
