"""The [policy] sections of the configuration: in which order jobs start, who is asked to leave, and fair share.

The settings themselves and their defaults are gpusched/model/policy.py; here is how a person writes them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from gpusched.daemon.config_values import Seconds, Section, TimeLimit, told
from gpusched.model.errors import UsageError
from gpusched.model.policy import (
    COST_PRESETS,
    DAY,
    FairShare,
    Placement,
    PolicyName,
    PolicyRules,
    PreemptCost,
    Weights,
)
from gpusched.model.units import parse_seconds

_USUAL, _WEIGHTS, _SHARES = PolicyRules(), Weights(), FairShare()
_MOST = 1e9  # of weights and shares


def _cost(value: Any) -> Any:
    """A time, or the name of a preset."""
    if isinstance(value, str) and value in COST_PRESETS:
        return COST_PRESETS[value]
    if isinstance(value, str):
        try:
            seconds = parse_seconds(value)
        except UsageError as error:
            presets = " or ".join(f'"{name}"' for name in COST_PRESETS)
            raise ValueError(f"{value!r} is neither a time such as \"60s\" nor {presets}") from error
        return PreemptCost(seconds, seconds, seconds)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return PreemptCost(float(value), float(value), float(value))
    return value


def _limits(value: Any) -> Any:
    """Ascending times on one device."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f'{value!r} is not a list of times on one device such as ["1h", "8h"]')
    seconds = tuple(told(parse_seconds, item) for item in value)
    if seconds[0] <= 0 or list(seconds) != sorted(set(seconds)):
        raise ValueError(f"{', '.join(value)} must be more than 0 and ascending")
    return seconds


def _account(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or not value.isprintable() or len(value) > 128):
        raise ValueError(f"{value!r} is no account: a user or an account of jobs, at most 128 characters")
    return value


_Weight = Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=_MOST, allow_inf_nan=False)]


class WeightsSection(Section):
    age: _Weight = _WEIGHTS.age
    age_days: float = Field(default=_WEIGHTS.age_days, gt=0, le=36500)
    fair_share: _Weight = _WEIGHTS.fair_share
    size: _Weight = _WEIGHTS.size
    nice: _Weight = _WEIGHTS.nice

    def rules(self) -> Weights:
        return Weights(self.age, self.age_days, self.fair_share, self.size, self.nice)


class FairShareSection(Section):
    half_life: TimeLimit = _SHARES.half_life_days * DAY
    damping: float = Field(default=_SHARES.damping, gt=0, le=1000, allow_inf_nan=False)
    default_share: _Share = _SHARES.default_share
    entry: Seconds = Field(default=_SHARES.entry_hours * 3600, ge=0, le=7 * DAY)
    shares: dict[Annotated[str, BeforeValidator(_account)], _Share] = Field(default_factory=dict)

    def rules(self) -> FairShare:
        half_life = 0.0 if self.half_life is None else self.half_life / DAY
        shares = tuple(sorted(self.shares.items()))
        return FairShare(half_life, self.damping, self.default_share, shares, self.entry / 3600)


class PolicySection(Section):
    name: Annotated[PolicyName, Field(strict=False)] = _USUAL.name
    placement: Annotated[Placement, Field(strict=False)] = _USUAL.placement
    patience: TimeLimit = _USUAL.patience
    hold: Seconds = Field(default=_USUAL.hold, ge=0, le=365 * DAY)
    backfill_depth: int = Field(default=_USUAL.backfill_depth, ge=0, le=1_000_000)
    tick: Seconds = Field(default=_USUAL.tick, ge=0, le=DAY)
    min_run: Seconds = Field(default=_USUAL.min_run, ge=0, le=365 * DAY)
    las_limits: Annotated[tuple[float, ...], BeforeValidator(_limits)] = _USUAL.las_limits
    las_slices: bool = _USUAL.las_slices
    running_first: bool = _USUAL.running_first
    between_accounts: bool = _USUAL.between_accounts
    turn: Seconds = Field(default=_USUAL.turn, ge=60, le=365 * DAY)
    preempt_cost: Annotated[PreemptCost, BeforeValidator(_cost)] = _USUAL.cost
    resize_interval: Seconds = Field(default=_USUAL.resize_interval, ge=0, le=365 * DAY)
    migrate: bool = _USUAL.migrate
    weights: WeightsSection = WeightsSection()
    fair_share: FairShareSection = FairShareSection()

    def rules(self) -> PolicyRules:
        """The same as the engine and the policies read it."""
        return PolicyRules(
            name=self.name,
            placement=self.placement,
            weights=self.weights.rules(),
            fair_share=self.fair_share.rules(),
            patience=self.patience,
            hold=self.hold,
            backfill_depth=self.backfill_depth,
            tick=self.tick,
            las_limits=self.las_limits,
            las_slices=self.las_slices,
            running_first=self.running_first,
            between_accounts=self.between_accounts,
            turn=self.turn,
            min_run=self.min_run,
            cost=self.preempt_cost,
            resize_interval=self.resize_interval,
            migrate=self.migrate,
        )
