"""The rules of a simulation: those of the daemon, or those that the published simulators share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpusched.model.policy import Placement, PolicyName, PolicyRules, PreemptCost
from gpusched.model.rules import Rules

FREE = PreemptCost(0.0, 0.0, 0.0)
ENDLESS = 1_000_000_000  # a bypass limit that is never reached


def daemon_rules(name: PolicyName, rules: Rules | None = None, **changes: Any) -> Rules:
    """What the daemon would do with this policy: its calm rules, its starvation bound. Machines are packed one by
    one (`pack`), because a job runs on one machine unless it is larger than one."""
    rules = rules or Rules.default()
    policy = replace(rules.policy, **{"name": name, "placement": Placement.PACK, **changes})
    return replace(rules, policy=policy).check()


def published_rules(name: PolicyName, **changes: Any) -> Rules:
    """What Tiresias', Muri's and Lucid's simulators do: decisions by the count of devices, at every event unless a
    tick is given, nobody spared, no bound on starvation, two queues (`las_limits`) and no slices behind them."""
    policy = PolicyRules(
        name=name, placement=Placement.PACK, patience=None, tick=0.0, tick_starts=True, las_limits=(18_000.0,),
        las_slices=False, running_first=False, between_accounts=False, min_run=0.0, cost=FREE, calm=False,
    )
    return replace(Rules.default(), policy=replace(policy, **changes)).check()
