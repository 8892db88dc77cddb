"""How much of every limit and quota is used now, kept up to date job by job: reading it costs the same in any queue.

The view owns one `Usage` and tells it of every job and attempt that it takes in. Only what the rules limit is counted,
so that a machine without limits pays nothing. It decides nothing: see policy/limits.py and policy/rights.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gpusched.model.device import Device
from gpusched.model.job import Attempt, Job
from gpusched.model.limits import WHOLE, LimitRules, Limits, Scope, parts
from gpusched.model.state import LIVE


@dataclass(slots=True)
class Tally:
    """What the jobs of one scope use together. Devices in parts of one (model.limits.WHOLE)."""

    scope: Scope
    limits: Limits
    most_parts: int | None = None  # max_devices in parts
    jobs: int = 0  # that wait or run
    parts: int = 0
    holders: dict[int, int] = field(default_factory=dict)  # jobs that run, or are promised devices → their parts
    kept_for: int | None = None  # the job for which what is left is kept: see policy/keeping_room.py

    @property
    def running(self) -> int:
        return len(self.holders)


@dataclass(slots=True)
class Account:
    """An account with a quota: what its jobs hold, and which of the running ones are over the quota."""

    name: str
    quota: int  # in parts
    parts: int = 0
    running: dict[int, tuple[float, int, int]] = field(default_factory=dict)  # job → (created, job, parts), who stay
    _over: frozenset[int] | None = None

    def changed(self) -> None:
        self._over = None

    @property
    def over(self) -> frozenset[int]:
        """The running jobs over the quota: of those that are not leaving, the latest started, until the rest fits."""
        if self._over is None:
            started, used = sorted(self.running.values()), sum(size for _, _, size in self.running.values())
            over = set()
            while used > self.quota:
                _, job_id, size = started.pop()
                used -= size
                if size:
                    over.add(job_id)
            self._over = frozenset(over)
        return self._over


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one job adds, so that exactly that can be taken away again."""

    tallies: tuple[Tally, ...]
    account: Account | None
    holds: int | None  # parts, of a job that runs or is promised devices; None: it only waits
    jobs: int = 1  # more for elements of an array that wait as one row


_Family = tuple[str, int, str, str, str]


class Usage:
    """The counters behind all limits and quotas. Changed by the view only."""

    def __init__(self, rules: LimitRules) -> None:
        self.rules = rules
        self.active = bool(rules)
        self.quotas = bool(rules.quota)
        self.exceeding: set[str] = set()  # accounts that hold more than their quota
        self.tallies: dict[Scope, Tally] = {}
        self.accounts: dict[str, Account] = {}
        self._families: dict[_Family, tuple[Tally, ...]] = {}  # jobs of one family have the same limits
        self._entries: dict[int, _Entry] = {}
        self._totals: dict[str, int] = {}  # MiB of every device that told its size
        self._sharing: dict[int, tuple[Job, Attempt | None, bool]] = {}  # jobs whose parts depend on those sizes
        self._kept: list[Tally] = []

    # ---- what the view puts in ------------------------------------------------------------------------------

    def put_device(self, device: Device) -> None:
        """A device that has failed may not tell its size any more: what it said before stays."""
        if device.total_mib <= 0 or self._totals.get(device.uuid) == device.total_mib:
            return
        self._totals[device.uuid] = device.total_mib
        for job, attempt, promised in list(self._sharing.values()):
            self.put(job, attempt, promised)

    def put(self, job: Job, attempt: Attempt | None, promised: bool) -> None:
        """Count a new or changed job. attempt: its live one; promised: devices are being kept for it."""
        if not self.active:
            return
        self.drop(job.id)
        if job.state.final:
            return
        holds = self._holds(job, attempt, promised)
        entry = self._add(job, holds)
        if entry.account is not None and holds is not None and attempt is not None and job.stop is None:
            entry.account.running[job.id] = (attempt.created, job.id, holds)
            entry.account.changed()
        if holds is not None and job.spec.request.shared:
            self._sharing[job.id] = (job, attempt, promised)

    def _add(self, job: Job, holds: int | None) -> _Entry:
        entry = _Entry(self.of(job), self.account(job.account), holds, job.size)
        self._entries[job.id] = entry
        for tally in entry.tallies:
            tally.jobs += entry.jobs
            if holds is not None:
                tally.holders[job.id] = holds
                tally.parts += holds
        if entry.account is not None and holds is not None:
            self._hold(entry.account, holds)
        return entry

    def assume(self, job: Job, size: int) -> None:
        """Count a waiting job as if it held so many parts, until it is put again: for a decision being tried out."""
        if self.active:
            self.drop(job.id)
            self._add(job, size)

    def drop(self, job_id: int) -> None:
        """Take away what a job has added."""
        entry = self._entries.pop(job_id, None)
        if entry is None:
            return
        for tally in entry.tallies:
            tally.jobs -= entry.jobs
            if entry.holds is not None:
                tally.parts -= tally.holders.pop(job_id)
        if entry.account is not None and entry.holds is not None:
            self._hold(entry.account, -entry.holds)
            if entry.account.running.pop(job_id, None) is not None:
                entry.account.changed()
        self._sharing.pop(job_id, None)

    def keep(self, tally: Tally, job_id: int) -> None:
        """Keep what is left of a limit for this job."""
        tally.kept_for = job_id
        self._kept.append(tally)

    def keep_nothing(self) -> None:
        for tally in self._kept:
            tally.kept_for = None
        self._kept.clear()

    # ---- what the policies ask ------------------------------------------------------------------------------

    def of(self, job: Job) -> tuple[Tally, ...]:
        """The counters of everything that limits this job."""
        owner, spec = job.owner, job.spec
        family = (owner.user, owner.gid, job.account, spec.qos, spec.request.partition)
        found = self._families.get(family)
        if found is None:
            found = self._families[family] = tuple(self._tally(*each) for each in self.rules.scopes(job))
        return found

    def account(self, name: str) -> Account | None:
        """The account, if a quota says anything about it."""
        found = self.accounts.get(name)
        if found is None and (quota := self.rules.quota_of(name)) is not None:
            found = self.accounts[name] = Account(name, parts(quota))
        return found

    def part(self, uuid: str, mib: int | None) -> int:
        """Parts that so much memory of a device is (None: the whole); of one that never told its size a whole."""
        total = self._totals.get(uuid)
        return WHOLE if mib is None or not total else min(WHOLE, mib * WHOLE // total)

    def held(self, job: Job) -> int:
        """Parts of devices that are counted for this job already."""
        entry = self._entries.get(job.id)
        return entry.holds or 0 if entry is not None else 0

    def all(self) -> Iterator[Tally]:
        """Every scope that any job has brought up so far, in a stable order."""
        return iter(sorted(self.tallies.values(), key=lambda tally: tally.scope))

    # ---- bookkeeping ----------------------------------------------------------------------------------------

    def _tally(self, scope: Scope, limits: Limits) -> Tally:
        found = self.tallies.get(scope)
        if found is None:
            most = None if limits.max_devices is None else parts(limits.max_devices)
            found = self.tallies[scope] = Tally(scope, limits, most)
        return found

    def _hold(self, account: Account, more: int) -> None:
        account.parts += more
        (self.exceeding.add if account.parts > account.quota else self.exceeding.discard)(account.name)

    def _holds(self, job: Job, attempt: Attempt | None, promised: bool) -> int | None:
        if attempt is not None:
            now = sum(self.part(share.uuid, share.mem_mib) for share in attempt.devices)
            keeps = job.stop.keeps if job.stop is not None else ()  # it grows: they are kept for it already
            return max(now, len(keeps) * WHOLE)
        if promised:
            mib = job.spec.request.gpu_mem_mib if job.spec.request.shared else None
            return sum(self.part(uuid, mib) for uuid in job.earmark)
        return 0 if job.state in LIVE else None

