"""Two teams share a full server under `las`: each has half of it over a day, though nobody gives a duration."""

from __future__ import annotations

import pytest

from gpusched.model.policy import PolicyName, PreemptCost
from gpusched.simulator.settings import daemon_rules
from gpusched.simulator.workload import Fleet, Outcome, TraceJob, Workload
from gpusched.simulator.world import simulate

HOUR, DAY = 3600.0, 86400.0
SERVER = Fleet(1, 8)


def team(account: str, jobs: int, gpus: int, lasts: float, first: float = 0.0, every: float = 0.0) -> list[TraceJob]:
    return [
        TraceJob(f"{account}-{n}", first + n * every, gpus, lasts, user=f"user of {account}", account=account)
        for n in range(jobs)
    ]


def run(*teams: list[TraceJob]) -> Outcome:
    jobs = sorted((job for each in teams for job in each), key=lambda job: job.submit)
    rules = daemon_rules(PolicyName.LAS)
    outcome = simulate(
        Workload("teams", tuple(jobs)), SERVER, rules, durations="unknown", cost=PreemptCost(), timeline=True
    )
    assert not outcome.unfinished
    return outcome


def devices_of(outcome: Outcome, account: str, start: float, end: float) -> float:
    """On average between two moments."""
    seconds = sum(
        max(0.0, min(span.end, end) - max(span.start, start))
        for span in outcome.spans if span.job.startswith(f"{account}-")
    )  # fmt: skip
    return seconds / (end - start)


SCENES = {
    "small against small": (team("a", 8, 1, DAY), team("b", 8, 1, DAY, HOUR)),
    "whole server against whole server": (team("a", 2, 8, DAY), team("b", 2, 8, DAY, HOUR)),
    "whole server against small": (team("a", 2, 8, DAY), team("b", 8, 1, DAY, HOUR)),
    "a hundred against eight": (team("a", 100, 1, DAY / 4, every=60.0), team("b", 8, 1, DAY, HOUR)),
}


@pytest.mark.parametrize("scene", SCENES)
def test_each_team_has_half_of_the_server(scene: str) -> None:
    outcome = run(*SCENES[scene])
    for account in ("a", "b"):
        assert devices_of(outcome, account, HOUR, HOUR + DAY) == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("gang", [4, 8])
def test_short_jobs_of_one_team_do_not_keep_a_gang_of_the_other_waiting(gang: int) -> None:
    """They are over before they can be asked to leave, and there are always more of them."""
    outcome = run(team("a", 3000, 1, 400.0, every=40.0), team("b", 2, gang, DAY, HOUR))
    begins = min(fate.started for fate in outcome.fates if fate.job.account == "b")
    assert begins < 3 * HOUR
    assert devices_of(outcome, "b", HOUR, HOUR + DAY) == pytest.approx(4.0, rel=0.15)


def test_who_came_first_has_it_all_until_the_other_comes() -> None:
    outcome = run(team("a", 8, 1, DAY), team("b", 8, 1, DAY, 6 * HOUR))
    assert devices_of(outcome, "a", 0.0, 6 * HOUR) == pytest.approx(8.0)
    assert devices_of(outcome, "b", 6 * HOUR, 7 * HOUR) > 3.0


def test_shares_are_halves_only_if_nothing_else_is_said() -> None:
    """Without parts, las goes by what each job has had: many small jobs then have more than one large one."""
    jobs = sorted((*team("a", 40, 1, DAY / 4), *team("b", 2, 4, DAY, HOUR)), key=lambda job: job.submit)
    rules = daemon_rules(PolicyName.LAS, between_accounts=False)
    outcome = simulate(
        Workload("teams", tuple(jobs)), SERVER, rules, durations="unknown", cost=PreemptCost(), timeline=True
    )
    assert devices_of(outcome, "b", HOUR, HOUR + DAY) < 3.0
