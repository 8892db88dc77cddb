"""Quotas of accounts: who runs as of right, and who runs on what nobody else wants.

Within its quota an account's jobs run as of right. Over it a job may run too, but only as preemptible, as if it were
below all QoS levels: else a right could be evaded by asking for a higher level. It waits behind all who are not over
theirs, it asks nobody to leave, and a job of any level that is within its own quota may ask it to. Of an account's
running jobs the latest started ones are over the quota. Accounts for which no quota is set, not even "*", are neither
within nor over one: nothing changes for them. After the borrowing of Kueue's cluster queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpusched.model.job import Job
from gpusched.model.limits import WHOLE
from gpusched.policy.limits import devices_text, need

if TYPE_CHECKING:
    from gpusched.policy.view import View


def over_quota(view: View, job: Job) -> bool:
    """A waiting job would be, or a running one is, beyond the quota of its account. Jobs without devices never are."""
    usage, request = view.in_use, job.spec.request
    account = usage.account(job.account) if usage.quotas and request.gpus else None
    if account is None:
        return False
    if job.id in view.live:
        return job.id in account.over
    if not request.shared and job.id not in view.claimants:  # the usual case, asked for every bucket in every cycle
        return account.parts + request.gpus * WHOLE > account.quota
    return account.parts - usage.held(job) + need(view, job) > account.quota


def claim(view: View, job: Job) -> int:
    """0: within the quota of its account, 1: no quota says anything about it, 2: over it."""
    if not view.in_use.quotas or view.in_use.account(job.account) is None:
        return 1
    return 2 if over_quota(view, job) else 0


def guaranteed(view: View, job: Job) -> bool:
    """The job runs, or would run, within the quota of its account."""
    return claim(view, job) == 0


def quota_text(view: View, job: Job) -> str:
    """What is used of the quota of its account, or of a waiting job would be: for jobs that are over it."""
    account = view.in_use.account(job.account)
    if account is None:
        return f"account {job.account} has no quota"
    waits = job.id not in view.live
    parts = account.parts - view.in_use.held(job) + need(view, job) if waits else account.parts
    used, quota = devices_text(parts), devices_text(account.quota)
    what = f"{used} device{'' if used == '1' else 's'}, its quota is {quota}"
    return f"with this job account {job.account} would use {what}" if waits else f"account {job.account} uses {what}"


def may_reclaim(view: View, victim: Job, job: Job) -> bool:
    """`job` is within its quota and `victim` runs over its own: it may be asked to go, whatever their levels.

    Whether the victim can be asked at all (it runs, and is not leaving already) is for policy/preempt.py to say.
    """
    return view.in_use.quotas and over_quota(view, victim) and guaranteed(view, job)
