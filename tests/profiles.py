"""How long Hypothesis looks. One place: `HYPOTHESIS_PROFILE=long` looks for minutes, with fresh seeds.

The usual profile is derandomised: the same cases every time, so that a red build is red for everyone. A failing
case prints its steps; copy them into a named case.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, max_examples=100, print_blob=True,
    report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.register_profile(
    "long", derandomize=False, deadline=None, database=None, max_examples=1500, print_blob=True,
    report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
)  # fmt: skip
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def steps(count: int) -> settings:
    """The settings of a state machine that takes so many steps per case."""
    return settings(PROFILE, stateful_step_count=count)
