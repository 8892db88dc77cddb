"""Who has used how much of the devices lately, and what that means for whose turn it is.

Usage is counted in device-seconds per account and decays with a half-life, continuously: an attempt on g devices
that has run for t seconds weighs g·(1 − e^(−λt))/λ with λ = ln 2 / half-life. Of each account a few sums are kept
(policy/decay.py), decayed on reading, so that reading costs the same however many jobs run.

The factor is Slurm's classic one (priority/multifactor, "Classic Fairshare"): F = 2^(−U/(S·d)), where U is the
account's part of all decayed usage and S its part of the shares of all known accounts. An account is known while
it has jobs that wait or run, or usage that is not forgotten.

No clock here: the wall time is passed in. It may jump: time that seems to run backwards counts as none at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import log

from gpusched.model.changes import AccountUsage
from gpusched.model.job import Job
from gpusched.model.policy import DAY, FairShare
from gpusched.policy.decay import Decayed

FORGOTTEN = 0.01  # device-seconds: an account without jobs that has decayed to less is forgotten
SLEW = 1.0  # seconds by which a clock may be set back without anything being counted anew
_LEAST = 1e-300  # of a factor, which is above 0 however much was used


@dataclass(slots=True)
class Running:
    """A live attempt, as it is being charged."""

    account: str
    gpus: float
    started: float  # wall clock


class Ledger:
    """The usage of all accounts. The engine tells it of starts and ends; policies read `factor`."""

    def __init__(self, rules: FairShare) -> None:
        self.rules = rules
        self.version = 0  # (version, now) decides every answer: for callers that keep what they have worked out
        half_life = rules.half_life_days * DAY
        self._decay = log(2) / half_life if half_life else 0.0
        self._entry = rules.entry_hours * 3600
        self._named = dict(rules.shares)
        self._accounts: dict[str, Decayed] = {}
        self._all = Decayed(self._decay, self._entry, 0.0)
        self._running: dict[int, Running] = {}  # job id → its live attempt
        self._jobs: Counter[str] = Counter()  # account → its jobs that wait or run
        self._shares = 0.0  # of all known accounts
        self._changed: set[str] = set()  # accounts whose row is to be committed
        self._seen = 0.0  # the latest wall time of a change

    # ---- what the engine tells ------------------------------------------------------------------------------

    def enter(self, account: str) -> None:
        """The account has one more job that waits or runs."""
        jobs = self._jobs[account] = self._jobs[account] + 1
        if jobs == 1 and account not in self._accounts:
            self._count_shares()

    def leave(self, account: str) -> None:
        """One of the account's jobs has ended for good."""
        jobs = self._jobs[account] = self._jobs[account] - 1
        if jobs > 0:
            return
        del self._jobs[account]
        if self._forget(account) or account not in self._accounts:
            self._count_shares()

    def start(self, job: Job, gpus: float, now_wall: float) -> None:
        """An attempt of the job has been given so many devices (a part of one, where it shares its memory)."""
        self.resume(job, gpus, now_wall, now_wall)

    def resume(self, job: Job, gpus: float, started: float, now_wall: float) -> None:
        """After a restart: an attempt that started then (wall clock) lives. To be told in the order of the starts."""
        self._at(now_wall)
        account, started = job.account, min(started, now_wall)
        usage = self._accounts.get(account)
        if usage is None:
            usage = self._accounts[account] = Decayed(self._decay, self._entry, now_wall)
            self._count_shares()
        usage.start(gpus, started, now_wall)
        self._all.start(gpus, started, now_wall)
        self._running[job.id] = Running(account, gpus, started)
        self.version += 1

    def end(self, job_id: int, ran: float, now_wall: float) -> None:
        """The job's attempt has ended and ran for `ran` seconds. Nothing, if no start of it was told."""
        if job_id not in self._running:
            return
        self._at(now_wall)
        running = self._running.pop(job_id)
        self._accounts[running.account].end(running.gpus, running.started, ran, now_wall)
        self._all.end(running.gpus, running.started, ran, now_wall)
        self._changed.add(running.account)
        self.version += 1

    # ---- what the policies ask ------------------------------------------------------------------------------

    def usage(self, account: str, now_wall: float) -> float:
        """Decayed device-seconds of an account, with what its live attempts have used or are charged at once."""
        usage = self._accounts.get(account)
        return usage.value(now_wall) if usage is not None else 0.0

    def served(self, account: str, now_wall: float) -> float:
        """Decayed device-seconds that an account has really had: without what starts are charged beforehand."""
        usage = self._accounts.get(account)
        return usage.value(now_wall) - usage.young.ahead(now_wall) if usage is not None else 0.0

    def total(self, now_wall: float) -> float:
        """Decayed device-seconds of all accounts."""
        return self._all.value(now_wall)

    def weight(self, account: str) -> float:
        """The configured shares of an account."""
        return self._named.get(account, self.rules.default_share)

    def share(self, account: str) -> float:
        """The account's part (0 to 1) of the shares of all accounts that are known."""
        weight = self.weight(account)
        known = account in self._jobs or account in self._accounts
        return weight / (self._shares if known else self._shares + weight)

    def factor(self, account: str, now_wall: float) -> float:
        """2^(−U/(S·d)), in (0, 1]: 1 without usage, ½ when the account has used just its share (with d = 1)."""
        used, total = self.usage(account, now_wall), self._all.value(now_wall)
        if used <= 0 or total <= 0:
            return 1.0
        part = min(1.0, used / total)
        return max(_LEAST, float(2.0 ** (-part / (self.share(account) * self.rules.damping))))

    def accounts(self) -> list[str]:
        """All accounts that are known, in the order of their names."""
        return sorted(self._jobs.keys() | self._accounts.keys())

    def running(self) -> dict[int, float]:
        """The jobs that are being charged now, with the devices that they are charged for."""
        return {job_id: running.gpus for job_id, running in self._running.items()}

    def unfinished(self) -> Counter[str]:
        """How many jobs each account has that wait or run."""
        return self._jobs.copy()

    # ---- over a restart -------------------------------------------------------------------------------------

    def changed(self) -> tuple[AccountUsage, ...]:
        """The rows to commit: accounts of which attempts have ended since this was last asked."""
        if not self._changed:
            return ()
        names, self._changed = self._changed, set()
        rows = tuple([self._row(account) for account in sorted(names)])
        if not names <= self._jobs.keys():  # most have jobs left
            forgotten = [account for account in sorted(names) if self._forget(account)]
            if forgotten:
                self._count_shares()
        return rows

    def entries(self) -> tuple[AccountUsage, ...]:
        """What ended attempts have used, of every account; live ones are told anew by `start` after `load`."""
        return tuple(self._row(account) for account in sorted(self._accounts))

    def load(self, entries: Iterable[AccountUsage], now_wall: float) -> None:
        """Take in what was committed, in an empty ledger. A moment that lies ahead (a clock set back) counts as now."""
        self._at(now_wall)
        for entry in entries:
            usage = Decayed(self._decay, self._entry, min(entry.at, now_wall))
            usage.ended = max(0.0, entry.device_seconds)
            usage.settle(now_wall)
            if usage.ended < FORGOTTEN:
                continue
            self._accounts[entry.account] = usage
            self._all.settle(now_wall)
            self._all.ended += usage.ended
        self._count_shares()

    # ---- inside ---------------------------------------------------------------------------------------------

    def _forget(self, account: str) -> bool:
        """Let go of an account that has neither jobs nor usage to speak of, once its row is committed."""
        usage = self._accounts.get(account)
        if usage is None or account in self._jobs or account in self._changed or usage.gpus:
            return False
        if usage.value(self._seen) >= FORGOTTEN:
            return False
        del self._accounts[account]
        return True

    def _row(self, account: str) -> AccountUsage:
        usage = self._accounts[account]
        return AccountUsage(account, usage.ended, usage.at)

    def _count_shares(self) -> None:
        self._shares = sum(self.weight(account) for account in self.accounts())
        self.version += 1

    def _at(self, now: float) -> None:
        """Note the time of a change. Has the clock been set back, count live attempts anew from what is now true."""
        if now < self._seen - SLEW:
            for usage in (*self._accounts.values(), self._all):
                usage.restart(now)
            for running in self._running.values():
                running.started = min(running.started, now)
            for running in sorted(self._running.values(), key=lambda r: r.started):
                for usage in (self._accounts[running.account], self._all):
                    usage.start(running.gpus, running.started, now)
            self._seen = now
        elif now > self._seen:
            self._seen = now
