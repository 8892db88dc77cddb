"""What people write to choose a simulation: policies, a fleet of devices, what preemptions cost, queues of las."""

from __future__ import annotations

import re

from gpusched.model.errors import UsageError
from gpusched.model.policy import COST_PRESETS, PolicyName, PreemptCost
from gpusched.model.units import parse_seconds
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.workload import Fleet

MOST_DEVICES = 1_000_000


def parse_policies(text: str) -> tuple[PolicyName, ...]:
    """`las,srtf` or `all`, each once. Raises SimulationError that lists the policies."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    known = f"known: {', '.join(PolicyName)}; all"
    if not words:
        raise SimulationError("no policy is named", known)
    if words == ["all"]:
        return tuple(PolicyName)
    for word in words:
        if word not in list(PolicyName):
            raise SimulationError(f"unknown policy {word!r}", known)
    return tuple(dict.fromkeys(PolicyName(word) for word in words))


def parse_fleet(text: str) -> Fleet:
    """`8x8` (nodes × devices) or `16` (one node). Raises UsageError."""
    found = re.fullmatch(r"(?:(\d{1,7})\s*[x×*]\s*)?(\d{1,7})", text.strip(), re.ASCII | re.IGNORECASE)
    fleet = Fleet(int(found[1] or 1), int(found[2])) if found else None
    if fleet is None or not 1 <= fleet.devices <= MOST_DEVICES:
        raise UsageError(f"{text!r} is no number of devices", "write for example 8x8 (8 nodes of 8 each) or 16")
    return fleet


def parse_cost(text: str) -> PreemptCost:
    """Seconds such as `60s`, or costs by size from the literature: `lucid`, `helios`. Raises UsageError."""
    word = text.strip().lower()
    if word in COST_PRESETS:
        return COST_PRESETS[word]
    try:
        seconds = parse_seconds(text)
    except UsageError as error:
        raise UsageError(
            f"preemption cost {text!r} cannot be read", f"{error.hint}, or {', '.join(COST_PRESETS)}"
        ) from None
    return PreemptCost(seconds, seconds, seconds)


def parse_limits(text: str) -> tuple[float, ...]:
    """`3600,28800` or `1h,8h`: attained device-seconds at which a job changes its queue. Raises UsageError."""
    return tuple(parse_seconds(word) for word in text.split(",") if word.strip())
