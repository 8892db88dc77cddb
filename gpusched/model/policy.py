"""The policies by name, and the settings that they read. docs/policies.md explains each with its figures.

Plain values. `PolicyRules.check` is the one place that says whether a set of them makes sense.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gpusched.model.errors import UsageError

DAY = 86400.0
MOST_NICE = 10_000  # of --nice, in either direction


class PolicyName(StrEnum):
    """How the waiting jobs of one QoS level are ordered, and what happens when the first of them does not fit."""

    FIFO = "fifo"  # in the order of submission; the first that does not fit blocks those behind it
    BACKFILL = "backfill"  # by priority; later jobs go past if they do not delay the first one's reservation
    FIT_FIRST = "fit-first"  # by priority; whatever fits starts, until the first was passed `bypass_limit` times
    SJF = "sjf"  # shortest expected duration first, the first blocks
    SRTF = "srtf"  # shortest remaining time first, preemptive
    SRSF = "srsf"  # smallest remaining time × devices first, preemptive
    LAS = "las"  # least attained device-seconds first, in queues, preemptive; needs no durations
    PREDICTED = "predicted"  # by what the jobs that have ended say about the time that is left, preemptive

    __hash__ = str.__hash__  # as good as that of Enum, and asked for all the time

    @property
    def preemptive(self) -> bool:
        """Jobs of one level may be asked to leave for one another, and come back."""
        return self in _PREEMPTIVE


_PREEMPTIVE = frozenset({PolicyName.SRTF, PolicyName.SRSF, PolicyName.LAS, PolicyName.PREDICTED})


class Placement(StrEnum):
    """How the devices of a gang are chosen from the groups (nodes, or devices with a fast link between them)."""

    PREFER = "prefer"  # one group if there is room in one, best fit; else as few groups as possible
    PACK = "pack"  # one group if it is large enough, else whole free groups and the rest in one: otherwise wait
    COUNT = "count"  # any devices


@dataclass(frozen=True, slots=True)
class PreemptCost:
    """Seconds that being moved costs a job: saving, leaving, starting, loading. Assumed until its restarts tell.

    seconds: for gangs of up to `large` devices; large_seconds: for larger ones; single: for one device.
    """

    seconds: float = 60.0
    large_seconds: float = 60.0
    single: float = 60.0
    large: int = 8

    def of(self, gpus: int) -> float:
        if gpus > self.large:
            return self.large_seconds
        return self.single if gpus <= 1 else self.seconds


# Presets from the literature: Lucid (ASPLOS'23) and Helios (SC'21).
COST_PRESETS = {
    "lucid": PreemptCost(40.0, 60.0, 40.0),
    "helios": PreemptCost(30.0, 60.0, 7.0),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """What the factors of the multifactor priority (each 0 to 1) are worth. Age has no upper end: nobody starves."""

    age: float = 1000.0  # reached after `age_days` of waiting
    age_days: float = 7.0
    fair_share: float = 2000.0
    size: float = 0.0  # for a gang that needs the whole partition, less for smaller ones
    nice: float = 1.0  # per step of --nice


@dataclass(frozen=True, slots=True)
class FairShare:
    """Slurm's classic formula: F = 2^(−usage / (share × damping)), usage decaying with a half-life.

    shares: weight of each account; those that are not named have `default_share`.
    entry_hours: device-hours charged for each device at a start until real use has reached them: bursts count at once.
    """

    half_life_days: float = 7.0
    damping: float = 1.0
    default_share: float = 1.0
    shares: tuple[tuple[str, float], ...] = ()
    entry_hours: float = 0.25


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """Everything about ordering and preempting that an administrator may choose. Times in seconds."""

    name: PolicyName = PolicyName.BACKFILL
    placement: Placement = Placement.PREFER
    weights: Weights = field(default_factory=Weights)
    fair_share: FairShare = field(default_factory=FairShare)
    patience: float | None = 14 * DAY  # a job that has waited so long goes before its level: the starvation bound
    hold: float = 600.0  # backfill: what a waiting job is supposed to need of which nothing is known
    backfill_depth: int = 2000  # how many alike jobs are looked at for one that is over before a reservation begins
    # ---- policies that preempt
    tick: float = 60.0  # preemptions are decided at multiples of this only; 0: at every event
    tick_starts: bool = False  # starts too wait for the tick, as the published simulators have it
    las_limits: tuple[float, ...] = (18_000.0,)  # attained device-seconds at which a job changes its queue
    las_slices: bool = False  # behind the last limit, queues go on at twice the seconds each: equals take turns
    running_first: bool = True  # inside one queue a running job stays
    between_accounts: bool = True  # las: accounts that wait first get the devices that are their share
    turn: float = 3600.0  # of the whole machine: how long an account keeps more than its share from another
    min_run: float = 600.0  # a job is not asked to leave before it has run so long
    cost: PreemptCost = field(default_factory=PreemptCost)
    calm: bool = True  # weigh gains against costs, and ask nobody to leave for a job that then would not fit
    resize_interval: float = 300.0  # an elastic job is not moved for an equal, or to grow, before it has run so long
    migrate: bool = False  # move running jobs to other devices to make room for a gang

    def check(self) -> PolicyRules:
        """These rules, if they make sense. Raises UsageError that names what does not."""
        limits = self.las_limits
        if not limits or any(limit <= 0 for limit in limits) or list(limits) != sorted(set(limits)):
            raise UsageError("the limits of las must be ascending device-seconds above 0", "for example 3600 and 28800")
        for name in ("hold", "tick", "min_run", "backfill_depth", "resize_interval"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} of the policy cannot be negative", "write 0 to switch it off")
        if self.patience is not None and self.patience <= 0:
            raise UsageError("the patience of the policy must be more than nothing", 'for example "14d"')
        fair, weights = self.fair_share, self.weights
        if min(weights.age, weights.fair_share, weights.size, weights.nice) < 0 or weights.age_days <= 0:
            raise UsageError("the weights of the priority cannot be negative", "write 0 for what shall not count")
        if fair.half_life_days < 0 or fair.entry_hours < 0:
            raise UsageError("the times of fair share cannot be negative", "write 0 to switch them off")
        if fair.damping <= 0 or fair.default_share <= 0:
            raise UsageError("damping and default_share of fair share must be more than 0", "1 is usual")
        for account, share in self.fair_share.shares:
            if share <= 0:
                raise UsageError(f"the share of account {account!r} must be more than 0", "leave it out, or give it 1")
        return self
