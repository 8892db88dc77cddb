"""Quotas of accounts: who runs as of right, and who runs on what nobody else wants.

Within its quota an account's jobs run as of right. Over it a job may run too, but only as preemptible: it waits behind
all who are not over theirs, it asks nobody to leave, and a job within its own quota may ask it to (also inside one QoS
level, never one of a higher level). Of an account's running jobs the latest started ones are over the quota. Accounts
for which no quota is set, not even "*", are neither within nor over one: nothing changes for them. After the borrowing
of Kueue's cluster queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusched.model.job import Job
from gpusched.policy.limits import need, usage_of

if TYPE_CHECKING:
    from gpusched.policy.view import View


def over_quota(view: View, job: Job) -> bool:
    """A waiting job would be, or a running one is, beyond the quota of its account. Jobs without devices never are."""
    usage = usage_of(view)
    account = usage.account(job.account) if usage.active else None
    if account is None or not job.spec.request.gpus:
        return False
    if job.id in view.live:
        return job.id in account.over
    return account.parts - usage.held(job) + need(view, job) > account.quota


def guaranteed(view: View, job: Job) -> bool:
    """The job runs, or would run, within the quota of its account."""
    usage = usage_of(view)
    return usage.active and usage.account(job.account) is not None and not over_quota(view, job)


def may_reclaim(view: View, victim: Job, job: Job) -> bool:
    """`job` is within its quota and `victim` runs over its own, on a level that is not higher: it may be asked to go.

    Whether the victim can be asked at all (it runs, and is not leaving already) is for policy/preempt.py to say.
    """
    if not usage_of(view).active or view.priority(victim) > view.priority(job):
        return False
    return over_quota(view, victim) and guaranteed(view, job)
