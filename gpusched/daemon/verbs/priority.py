"""priority and shares: the numbers behind the order of the waiting jobs, and what accounts have used."""

from __future__ import annotations

from typing import Any

from gpusched.api.server import Call
from gpusched.daemon.service import Service
from gpusched.daemon.views import factors_view
from gpusched.model.errors import NotFound, Refused
from gpusched.model.job import Job
from gpusched.model.state import JobState
from gpusched.policy.priority import by_priority


async def priorities(service: Service, call: Call) -> dict[str, Any]:
    """The waiting jobs (or those of `jobs`) in scheduling order, each with its priority in its factors."""
    engine, now = service.loop.engine, service.loop.clock.now()
    view, positions = engine.view, service.positions()
    keys = [key for key in call.query.get("jobs", "").split(",") if key]
    if keys:
        jobs = [job for key in dict.fromkeys(keys) for job in await _waiting(service, key)]
    else:
        jobs = [job for job in engine.state.jobs.values() if job.state is JobState.PENDING and job.spec.cron is None]
    places = {job.id: service.place(job, positions) for job in jobs}
    jobs.sort(key=lambda job: (places[job.id] or float("inf"), job.id))
    rules = view.rules.policy
    return {
        "policy": str(rules.name),
        "by_priority": by_priority(view.rules),
        "age_days": rules.weights.age_days,
        "waiting": sum(job.size for job in view.waiting()),
        "jobs": [
            {
                "job": job.key,
                "id": job.id,
                "array_id": job.array.array_id if job.array else None,
                "array_index": job.array.index if job.array else None,
                "name": job.spec.name,
                "user": job.owner.user,
                "account": job.account,
                "partition": job.spec.request.partition,
                "gpus": job.spec.request.gpus,
                "position": places[job.id],
                "overdue": view.bucket(job).overdue,
                **factors_view(view, job, now),
            }
            for job in {job.id: job for job in jobs}.values()
        ],
    }


async def _waiting(service: Service, key: str) -> list[Job]:
    """The waiting jobs that a key names. Raises NotFound, Refused if none of them waits."""
    found, _ = await service.find(key)
    if not found:
        raise NotFound(f"there is no job {key}", "see: gpusched queue --all")
    waiting = [job for job in found if job.state is JobState.PENDING]
    if not waiting:
        state = str(found[0].state) if len(found) == 1 else "not waiting any more"
        raise Refused(f"job {key} is {state}: only waiting jobs have a priority", f"see: gpusched show {key}")
    if waiting[0].spec.cron is not None:
        raise Refused(f"job {key} is a --cron job: it submits others and never runs itself", "see: gpusched queue")
    return waiting


async def shares(service: Service, _call: Call) -> dict[str, Any]:
    """Every account that is known: its shares, what it has used, and the factor that follows from both."""
    view, now = service.loop.engine.view, service.loop.clock.now().wall
    ledger, rules = view.ledger, view.rules.policy.fair_share
    total = ledger.total(now)
    jobs = [job for job in view.jobs.values() if not job.state.final and job.spec.cron is None]
    running = [job.account for job in jobs if job.state.live]
    waiting = [job.account for job in jobs if not job.state.live]
    return {
        "half_life_days": rules.half_life_days,
        "damping": rules.damping,
        "by_priority": by_priority(view.rules),
        "policy": str(view.rules.policy.name),
        "accounts": [
            {
                "account": account,
                "shares": ledger.weight(account),
                "share": ledger.share(account),
                "device_seconds": (used := ledger.usage(account, now)),
                "part": used / total if total else 0.0,
                "factor": ledger.factor(account, now),
                "running": running.count(account),
                "waiting": waiting.count(account),
            }
            for account in ledger.accounts()
        ],
    }
