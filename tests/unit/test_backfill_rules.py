"""Backfill, rule by rule: who may go past the first one that waits, in what order, and who may not."""

from __future__ import annotations

from builders import Gpu, World
from elastic_worlds import a_world, wide
from reserving import HOUR, reserve

from gpusched.model.policy import PolicyRules
from gpusched.model.rules import Rules


def test_of_whom_nothing_is_known_does_not_go_past_one_whose_start_is_known():
    world = World(2)
    world.started(world.submit(time_limit=1000.0))
    big, unknown = world.submit(gpus=2), world.submit()
    assert (world.where(big), world.where(unknown)) == ((), ())
    assert world.where(world.submit(time_limit=600.0)) == (1,), "who is known to be over by then goes past"


def test_past_the_bypass_limit_devices_are_kept_where_it_is_not_expected_to_run_too():
    world = World(Gpu(0, group="a"), Gpu(1, group="a"), Gpu(2, group="b"), rules=Rules(bypass_limit=0))
    pair = world.submit(gpus=2)
    world.started(pair)
    waits, small = world.submit(gpus=2), world.submit()
    assert (world.where(pair), world.where(waits), world.where(small)) == ((0, 1), (), ())


def a_gang_behind(world: World, first: int, second: int, gang: int) -> int:
    """Jobs of so many devices run, one for long and one that ends soon; a gang waits for both. Returns the second."""
    world.started(world.submit(gpus=first, time_limit=1000.0))
    ends = world.submit(gpus=second, time_limit=100.0)
    world.started(ends)
    world.submit(gpus=gang)
    return ends


def test_of_those_who_may_go_past_the_shortest_goes_first_whatever_their_priority():
    world = World(2)
    ends = a_gang_behind(world, 1, 1, 2)
    longer = world.submit(gpu_type="4090", time_limit=500.0)
    world.passes(1)
    shorter = world.submit(time_limit=300.0)
    world.exits(ends)
    assert (world.where(longer), world.where(shorter)) == ((), (1,))


def test_of_several_alike_who_may_go_past_all_start_at_once():
    world = World(3)
    ends = a_gang_behind(world, 1, 2, 3)
    small = [world.submit(time_limit=300.0) for _ in range(2)]
    world.exits(ends)
    assert [world.where(job) for job in small] == [(1,), (2,)]


def test_one_that_is_too_long_to_go_past_does_not_stand_in_the_way_of_a_shorter_one():
    world = World(2, rules=Rules(policy=PolicyRules(patience=1000.0)))
    world.started(world.submit(time_limit=9000.0))
    ends = world.submit(time_limit=2000.0)
    world.started(ends)
    world.submit(gpus=2)
    long = world.submit(time_limit=20_000.0)
    world.passes(1500)  # both have waited so long that they go before the others
    short = world.submit(time_limit=300.0)
    world.exits(ends)
    assert (world.where(long), world.where(short)) == ((), (1,))


def test_who_may_have_devices_that_are_reserved_for_later_does_not_delay_the_first_one_by_it():
    world = World(3)
    reserve(world, devices="2", start_in=2 * HOUR, users="bob")
    world.started(world.submit(time_limit=600.0))
    first = world.submit(gpus=2, time_limit=3 * HOUR)  # on 0 and 1, in ten minutes
    delays, short = world.submit(gpus=2, time_limit=HOUR), world.submit(gpus=2, time_limit=300.0)
    assert (world.where(first), world.where(delays), world.where(short)) == ((), (), (1, 2))


def test_where_nobody_knows_it_is_looked_again_in_time_whatever_happens_meanwhile():
    world = World(2)
    world.started(world.submit())
    world.submit(gpus=2)
    small = world.submit()
    world.passes(400)
    world.submit(gpus=2)
    world.passes(199)
    assert world.where(small) == ()
    world.passes(1)
    assert world.where(small) == (1,)


def test_past_one_that_not_even_all_ends_would_help_others_go_and_are_counted():
    world = World(2)
    low, normal = world.submit(qos="low"), world.submit()
    world.started(low, normal)
    world.submit(qos="high")  # has been promised what the low one leaves
    gang = world.submit(gpus=2)
    world.exits(normal)
    small = world.submit()
    assert (world.where(small), world.job(gang).bypassed) == ((1,), 1)


def test_who_starts_where_the_first_one_is_not_expected_to_run_is_not_counted():
    world = World(Gpu(0, group="a"), Gpu(1, group="a"), Gpu(2, group="b"))
    world.started(world.submit(gpus=2))
    waits, small = world.submit(gpus=2), world.submit()
    assert (world.where(small), world.job(waits).bypassed) == ((2,), 0)


def test_where_ends_are_known_no_bypass_limit_is_needed():
    world = World(2, rules=Rules(bypass_limit=0))
    world.started(world.submit(time_limit=1000.0))
    world.submit(gpus=2)
    assert world.where(world.submit(time_limit=600.0)) == (1,)


def test_the_first_one_starts_at_the_nearest_end_and_others_must_be_over_by_then():
    world = World(3)
    world.started(world.submit(time_limit=500.0), world.submit(time_limit=2000.0))
    gang, long, short = world.submit(gpus=2), world.submit(time_limit=1000.0), world.submit(time_limit=500.0)
    assert (world.where(gang), world.where(long), world.where(short)) == ((), (), (2,))


def test_who_is_leaving_already_is_counted_as_gone_when_the_first_one_starts():
    world = World(3)
    leaves = world.submit()
    world.started(leaves, world.submit(time_limit=1000.0))
    world.cancel(leaves)
    world.submit(gpus=3)
    long, short = world.submit(time_limit=2000.0), world.submit(time_limit=900.0)
    assert (world.where(long), world.where(short)) == ((), (2,))


def test_what_an_elastic_job_can_give_back_in_five_minutes_is_counted_on():
    world = a_world(3)
    wide(world, most=2)
    world.submit(gpus=2)
    long, short = world.submit(time_limit=400.0), world.submit(time_limit=250.0)
    assert (world.where(long), world.where(short)) == ((), (2,))
