"""limits: who has what limit, and how much of it is used now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpusched.api.server import Call
from gpusched.daemon.service import Service
from gpusched.model.job import Caller
from gpusched.model.limits import EVERYONE, WHOLE, Kind, LimitRules, Limits, Scope
from gpusched.policy.usage import Tally, Usage
from gpusched.policy.view import View


async def limits(service: Service, call: Call) -> dict[str, Any]:
    return {"limits": rows(service.loop.engine.view, call.caller)}


def rows(view: View, caller: Caller) -> list[dict[str, Any]]:
    """One row for every limit and quota: those of sections with a name, of the caller, and of whoever has jobs."""
    usage = view.in_use
    found: list[dict[str, Any]] = []
    for scope, each in sorted(_scopes(usage, caller).items()):
        tally = usage.tallies.get(scope) or Tally(scope, each)
        found += _limit_rows(view, usage.rules, tally)
    for account in _accounts(usage, caller):
        found.append(_quota_row(view, usage, account))
    return found


def _scopes(usage: Usage, caller: Caller) -> dict[Scope, Limits]:
    rules, found = usage.rules, {tally.scope: tally.limits for tally in usage.tallies.values() if tally.jobs}
    for kind in Kind:
        names = {name: each for name, each in rules.of(kind).items() if name != EVERYONE}
        own = {Kind.USER: caller.user, Kind.ACCOUNT: caller.user, Kind.GROUP: rules.gids.get(caller.gid)}.get(kind)
        if own is not None and (each := names.get(own, rules.of(kind).get(EVERYONE))) is not None:
            names[own] = each
        for name, each in names.items():
            found[Scope(kind, name)] = each
            if kind is not Kind.USER and each.per_user and (kind is not Kind.GROUP or name == own):
                found[Scope(kind, name, caller.user)] = each.per_user
    return found


def _accounts(usage: Usage, caller: Caller) -> list[str]:
    rules = usage.rules
    names = {name for name in rules.quota if name != EVERYONE}
    names |= {name for name, account in usage.accounts.items() if account.parts}
    if rules.quota_of(caller.user) is not None:
        names.add(caller.user)
    return sorted(names)


def _limit_rows(view: View, rules: LimitRules, tally: Tally) -> Iterator[dict[str, Any]]:
    each = tally.limits
    measured: list[tuple[str, float | None, float | None, bool]] = [  # the limit, the most, what is used, by whom
        ("max_devices", each.max_devices, tally.parts / WHOLE, True),
        ("max_running", each.max_running, tally.running, True),
        ("max_jobs", each.max_jobs, tally.jobs, False),
        ("max_job_devices", each.max_job_devices, None, False),
        ("max_time", each.max_time, None, False),
    ]
    for name, most, used, by_holders in measured:
        if most is not None:
            yield {
                "kind": str(tally.scope.kind),
                "name": tally.scope.name,
                "user": tally.scope.user or None,
                "limit": name,
                "used": used,
                "most": most,
                "jobs": _keys(view, tally.holders) if by_holders else [],
                "over_quota": [],
                "section": rules.section(tally.scope),
            }


def _quota_row(view: View, usage: Usage, name: str) -> dict[str, Any]:
    account = usage.account(name)
    assert account is not None
    return {
        "kind": "account",
        "name": name,
        "user": None,
        "limit": "quota",
        "used": account.parts / WHOLE,
        "most": account.quota / WHOLE,
        "jobs": _keys(view, account.running),
        "over_quota": _keys(view, account.over),
        "section": f"quota.account.{name}" if name in usage.rules.quota else 'quota.account."*"',
    }


def _keys(view: View, ids: Any) -> list[str]:
    return [view.jobs[job_id].key for job_id in sorted(ids)]
