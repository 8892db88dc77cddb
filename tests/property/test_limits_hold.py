"""In no history, crashes and changes included, is a hard limit exceeded; who is over a quota takes nobody's devices.

What is used is added up here from jobs, attempts and devices alone. The counters of the view are compared with the
same by engine/invariants.py after every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

from builders import World
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from profiles import steps
from test_engine_machine import GPUS, RULES, Machine

from gpusched.engine import schedule
from gpusched.model.clock import Instant
from gpusched.model.job import Job
from gpusched.model.limits import WHOLE, LimitRules, Limits, Scope
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.policy.cycle import cycle
from gpusched.policy.decisions import Decision, Preempt
from gpusched.policy.view import View

LIMITS = LimitRules(
    user={"*": Limits(max_devices=1.5, max_jobs=4), "ann": Limits(max_devices=2, max_job_devices=2, max_jobs=6)},
    group={"staff": Limits(max_running=2)},
    gids={1002: "staff"},
    account={"*": Limits(max_devices=2, max_time=900.0)},
    qos={"high": Limits(max_devices_per_user=1), "low": Limits(max_devices=1)},
    partition={"small": Limits(max_running_per_user=1)},
)
TOTAL = {gpu.uuid: gpu.total_mib for gpu in GPUS}
quotas = st.dictionaries(st.sampled_from(("ann", "bob", "*")), st.sampled_from((0.0, 0.5, 1.0, 2.0)))


class LimitedMachine(Machine):
    """The machine of test_engine_machine.py under limits, quotas and every policy."""

    @initialize(policy=st.sampled_from(PolicyName), quota=quotas, calm=st.booleans(), limited=st.booleans())
    def begin(self, policy: PolicyName, quota: dict[str, float], calm: bool, limited: bool) -> None:
        rules = PolicyRules(name=policy, tick=0.0, min_run=0.0, calm=calm)
        limits = replace(LIMITS if limited else LimitRules(), quota=quota)
        self.world = World(*GPUS, rules=replace(RULES, policy=rules, limits=limits))

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        jobs, running, parts = Counter[Scope](), Counter[Scope](), Counter[Scope]()
        for job in self.world.engine.state.jobs.values():
            for scope, limits in self.world.rules.limits.scopes(job):
                jobs[scope] += not job.state.final
                running[scope] += job.state.live
                parts[scope] += held(self.world.engine.view, job)
                used = (jobs[scope], running[scope], parts[scope] / WHOLE)
                for what, most in zip(used, (limits.max_jobs, limits.max_running, limits.max_devices), strict=True):
                    assert most is None or what <= most, f"{scope}: {used} (jobs, running, devices) of {limits}"


def held(view: View, job: Job) -> int:
    """Parts of devices that the job's processes hold."""
    attempt = view.live.get(job.id)
    shares = attempt.devices if attempt else ()
    return sum(WHOLE if share.mem_mib is None else share.mem_mib * WHOLE // TOTAL[share.uuid] for share in shares)


def is_over(view: View, job: Job) -> bool:
    """A waiting job would bring its account over its quota."""
    quota = view.rules.limits.quota_of(job.account)
    if quota is None or not job.spec.request.gpus:
        return False
    others = [other for other in view.jobs.values() if other.account == job.account and other.id != job.id]
    return sum(held(view, other) for other in others) + least(job) > quota * WHOLE


def least(job: Job) -> int:
    """Parts of devices that it needs on the largest devices."""
    request = job.spec.request
    part = WHOLE if not request.shared else (request.gpu_mem_mib or 0) * WHOLE // max(TOTAL.values())
    return request.gpus * part


def watched(view: View, now: Instant) -> Iterator[Decision]:
    """The decisions of a cycle, each looked at before it is carried out."""
    for decision in cycle(view, now):
        if isinstance(decision, Preempt) and decision.plan.victims:
            job = view.jobs[decision.job_id]
            assert not is_over(view, job), f"job {job.key} is over the quota of {job.account}: {decision}"
        yield decision


class TestLimits(LimitedMachine.TestCase):
    settings = steps(40)

    def runTest(self) -> None:
        with patch.object(schedule, "cycle", watched):
            super().runTest()
