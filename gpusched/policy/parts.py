"""What part of the devices is each account's, while several want them: nobody has to give a duration for it.

An account's part is its share of all devices among the accounts that have jobs (deserved share first, the rest by the
order of the policy). A gang that is larger than its account's part would never fit into it: for such gangs accounts
take turns, and a turn ends when the account has used `turn` seconds of the whole machine more than another one, both
by their shares and as fair share counts it, but without what it charges beforehand: that comes with every start and
goes with every end, and the turn would follow it back and forth.
"""

from __future__ import annotations

from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.policy.view import View

_SLACK = 1e-9


class Parts:
    """The parts of all accounts at one moment, and what of them has been granted so far."""

    def __init__(self, view: View, now: Instant, movable: set[int]) -> None:
        """movable: running jobs that may lose their devices; the others' are taken off their account's part."""
        accounts = {bucket.account for bucket in view.buckets if bucket.request.gpus}
        holding = [view.jobs[i] for i in (*view.live, *view.claimants) if i not in view.stopping]
        accounts |= {job.account for job in holding if job.spec.request.gpus}
        able = sum(slot.able for slot in view.slots.values())
        weight = {account: view.ledger.weight(account) for account in accounts}
        shares = sum(weight.values())
        self._part = {account: able * weight[account] / shares for account in accounts}
        self._left = dict(self._part)
        self._granted = dict.fromkeys(self._part, 0.0)
        self._used = {account: view.ledger.served(account, now.wall) / weight[account] for account in accounts}
        turn = view.rules.policy.turn * able * len(accounts) / shares if accounts else 0.0
        self._turn_of = self._whose_turn(view, sorted(holding, key=lambda job: job.id), turn)
        for job in holding:
            if job.id not in movable and job.account in self._left:
                self._left[job.account] -= job.spec.request.gpus

    @property
    def several(self) -> bool:
        """There is more than one account to share with."""
        return len(self._part) > 1

    def grant(self, job: Job, size: float, *, overdue: bool = False) -> bool:
        """Whether these devices are within the part of the job's account, or it has the turn; then they are taken.

        overdue: where jobs of its own account hold them that stay for now, no other job of it gets what they leave.
        """
        account = job.account
        if self._turn_of is not None or size > self._part[account] + _SLACK:
            return account == self._turn_of and size > self._part[account] + _SLACK  # its small jobs go in order too
        enough = self._left[account] >= size - _SLACK
        if enough or (overdue and self._granted[account] + size <= self._part[account] + _SLACK):
            self._left[account] -= size
            self._granted[account] += size
        return enough

    def _whose_turn(self, view: View, holding: list[Job], turn: float) -> str | None:
        """The account whose gang runs, until another is a turn behind it; else the one that has used least of those
        that wait with such a gang and are a turn behind another."""
        for job in holding:
            others = [used for other, used in self._used.items() if other != job.account]
            if self._too_large(job) and others and self._used[job.account] <= min(others) + turn:
                return job.account
        waiting = {bucket.account for bucket in view.buckets if self._too_large(view.head(bucket))}
        behind = [account for account in waiting if self._used[account] + turn < max(self._used.values())]
        return min(behind, key=lambda account: (self._used[account], account), default=None)

    def _too_large(self, job: Job) -> bool:
        """A gang that does not fit into the part of its account."""
        return job.spec.request.gpus > self._part.get(job.account, float("inf")) + _SLACK
