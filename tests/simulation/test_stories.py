"""Stories in virtual time: a gang behind which short jobs queue, and a day of an elastic job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playing import Arrival, Play

from gpusched.model.job import Job
from gpusched.model.policy import PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules

HOUR = 3600.0
RUNNING, GANG = 1, 2


def queue(name: PolicyName, known: bool, bypass_limit: int = 100) -> Play:
    """Two devices: one job runs, another needs both, and six short ones come behind it."""
    def job(at: float, lasts: float, gpus: int = 1) -> Arrival:
        return Arrival(at, lasts, wanted={"gpus": gpus, **({"time_limit": lasts + 1.0} if known else {})})

    rules = replace(Rules.default(), bypass_limit=bypass_limit, policy=PolicyRules(name=name))
    play = Play(2, rules, [job(0, 20.0), job(1, 60.0, 2), *(job(2 + n, 24.0) for n in range(6))])
    play.run()
    assert len(play.ended) == 8
    return play


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", [PolicyName.BACKFILL, PolicyName.FIFO])
def test_a_gang_starts_when_the_running_job_ends(name: PolicyName, known: bool) -> None:
    """Known: none of the short ones would be over by then. Unknown: as a young job may end soon, nobody goes past."""
    play = queue(name, known)
    assert play.first[GANG] == play.ended[RUNNING] == 20.0, "not after all six"
    assert all(play.first[job] >= play.ended[GANG] for job in range(3, 9))


@pytest.mark.parametrize("known", [True, False])
def test_under_fit_first_a_gang_starts_after_as_many_short_jobs_as_may_go_past_it(known: bool) -> None:
    play = queue(PolicyName.FIT_FIRST, known, bypass_limit=1)
    past = [job for job in range(3, 9) if play.first[job] < play.first[GANG]]
    assert len(past) == 1
    assert play.first[GANG] == max(20.0, play.ended[past[0]]) == 26.0, "not after all six"


def test_a_gang_is_not_passed_by_jobs_like_the_one_that_it_waits_for() -> None:
    """What has run for some seconds already is expected to end before one like it that starts now."""
    rules = replace(Rules.default(), policy=PolicyRules(name=PolicyName.BACKFILL))
    before = [Arrival(0, seconds) for seconds in (20.0, 21.0, 24.0, 25.0, 27.0)]
    gang = len(before) + 2
    alike = [Arrival(500, 24.0), Arrival(501, 60.0, wanted={"gpus": 2}), *(Arrival(502 + n, 24.0) for n in range(6))]
    play = Play(2, rules, [*before, *alike])
    play.run()
    assert play.first[gang] == 524.0


def test_where_nobody_knows_others_use_the_free_device_behind_a_job_that_runs_for_long() -> None:
    """After ten minutes it is supposed to need at least as long again, and the others less: each is counted."""
    rules = replace(Rules.default(), policy=PolicyRules(name=PolicyName.BACKFILL))
    play = Play(2, rules, [Arrival(0, 9000.0), Arrival(1, 60.0, wanted={"gpus": 2}), Arrival(2, 300.0)])
    play.run(until=700.0)
    assert play.first[3] == 600.0, "nothing happens then but that time has passed"
    assert play.world.job(GANG).bypassed == 1


def test_a_short_job_that_is_over_in_time_goes_past() -> None:
    rules = replace(Rules.default(), policy=PolicyRules(name=PolicyName.BACKFILL))
    jobs = [(0, 20.0, 1), (1, 60.0, 2), (2, 30.0, 1), (3, 16.5, 1)]
    play = Play(2, rules, [Arrival(at, s, wanted={"gpus": n, "expected": s}) for at, s, n in jobs])
    play.run()
    assert (play.first[4], play.first[GANG]) == (3.0, 20.0)
    assert play.first[3] == 80.0


# ---- elastic -----------------------------------------------------------------------------------------------------


def speed(job: Job, devices: int) -> float:
    """Nearly as many times quicker as there are devices."""
    return float(devices**0.9) if job.spec.request.elastic else 1.0


def test_an_elastic_job_grows_at_night_and_shrinks_by_day() -> None:
    """`--gpus 2-8` on a server of 8: it has what nobody wants, gives it back to each who comes, and loses no work."""
    rules = replace(Rules.default(), policy=PolicyRules(resize_interval=300.0, cost=PreemptCost(30.0, 30.0, 30.0)))
    day = [Arrival(9 * HOUR + n * 60, 4 * HOUR, by="bob", wanted={"gpus": 1, "expected": 4 * HOUR}) for n in range(6)]
    wide = Arrival(0, 100 * HOUR, wanted={"gpus": 2, "gpus_max": 8})
    play = Play(8, rules, [wide, *day], cost=30.0, leaving=5.0, rate=speed)
    held: dict[int, int] = {}
    done = 0.0
    for minutes in range(0, 24 * 60, 10):
        play.run(until=minutes * 60.0)
        if 1 in play.view.live:
            held[minutes // 60] = len(play.view.live[1].devices)
            done += 600.0 * speed(play.world.job(1), held[minutes // 60])
            play.progress(1, done, 100 * HOUR)
    night, noon, evening = held[8], held[12], held[15]
    assert (night, noon, evening) == (8, 2, 8), held
    waits = [play.waited(job) for job in range(2, 8)]
    assert waits[0] == 5.0, "who comes has its device when it has been given back"
    assert max(waits) <= 300.0 + 5.0, "between two moves it is left in peace"
    play.run()
    job = play.world.job(1)
    assert job.resizes >= 6
    assert job.preemptions == 0
    work = 100 * HOUR + job.resizes * 30.0
    assert play.ended[1] < work / speed(job, 6), "it had most of the machine most of the time"
