"""Anything may happen at any moment, crashes included: the engine keeps its promises and lets nobody wait for ever."""

from __future__ import annotations

from typing import Any

from builders import World, gpu
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from profiles import steps

from gpusched.model.events import (
    AttemptProgressed,
    AttemptSaved,
    AttemptStarted,
    CancelRequested,
    CheckpointRequested,
    CronFired,
    Event,
    HoldRequested,
    PreemptRequested,
    ReleaseRequested,
    RequeueRequested,
    ServiceStopping,
    UpdateRequested,
    Woke,
)
from gpusched.model.gpu_count import make_count
from gpusched.model.job import AttemptKey
from gpusched.model.rules import Partition, PreemptMode, Qos, Rules
from gpusched.model.state import JobState, Outcome, OutcomeKind, Saved

RULES = Rules(
    qos={
        "low": Qos("low", 0, grace=30),
        "spot": Qos("spot", 0, mode=PreemptMode.CANCEL, grace=5),
        "normal": Qos("normal", 100, ("low", "spot")),
        "high": Qos("high", 1000, ("low", "spot", "normal")),
    },
    partitions={"default": Partition("default"), "small": Partition("small", ("0", "1"), max_time=600)},
    cpu_jobs=2,
    bypass_limit=3,
    max_unasked_requeues=2,
    max_requeues=2,
)
GPUS = (gpu(0), gpu(1), gpu(2), gpu(3, "NVIDIA H100 80GB HBM3", 80))
users = st.sampled_from(("ann", "bob", "root"))
some_key = st.integers(1, 30)  # a job id that may or may not exist
pick = st.integers(0, 9)  # which of the processes there are
outcomes = st.one_of(
    st.sampled_from((0, 0, 1, 85, 85)).map(lambda code: Outcome(OutcomeKind.EXITED, code=code)),
    st.just(Outcome(OutcomeKind.SIGNALLED, signal=9)),
    st.just(Outcome(OutcomeKind.LOST, text="nobody saw it")),
    st.just(Outcome(OutcomeKind.LAUNCH_FAILED, errno=2, text="no such file")),
    st.just(Outcome(OutcomeKind.EXITED, code=85, saved=Saved("ckpt", 7, 1.0))),
)
crashes = st.sampled_from(("", "", "", "", "before the commit", "after the commit"))


class Machine(RuleBasedStateMachine):
    """Every rule posts one event, as the daemon would; now and then the daemon dies around the commit."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(*GPUS, rules=RULES)

    def post(self, crash: str, *events: Event) -> tuple[Any, ...]:
        """Handle, commit and act, or die 1. before the commit (the step is lost), 2. between commit and actions."""
        world = self.world
        if not crash:
            return world.handle(*events)
        step = world.decide(*events)
        if crash == "after the commit":
            world.commit(step)
        world.crash()
        return ()

    def alive(self) -> list[AttemptKey]:
        return [key for key, process in self.world.processes.items() if process.alive]

    # ---- people ---------------------------------------------------------------------------------------------

    @rule(
        crash=crashes, by=users, qos=st.sampled_from(tuple(RULES.qos)), gpus=st.integers(0, 4), hold=st.booleans(),
        name=st.sampled_from(("a", "b")), time_limit=st.sampled_from((None, 120.0)), warn=st.sampled_from((0.0, 30.0)),
        requeue=st.sampled_from((True, True, False)), grace=st.sampled_from((None, 10.0)),
    )  # fmt: skip
    def submit_exclusive(self, crash: str, by: str, hold: bool, **wanted: Any) -> None:
        self.post(crash, self.world.submission(by, hold=hold and by == "bob", **wanted))

    @rule(crash=crashes, qos=st.sampled_from(tuple(RULES.qos)), gib=st.integers(4, 30), gpus=st.integers(1, 2))
    def submit_shared(self, crash: str, qos: str, gib: int, gpus: int) -> None:
        self.post(crash, self.world.submission(qos=qos, gpus=gpus, shared=True, gpu_mem_mib=gib * 1024))

    @rule(
        crash=crashes, qos=st.sampled_from(tuple(RULES.qos)), array=st.sampled_from(("0-3%1", "0-4%2", "1,3,5")),
        gpus=st.integers(0, 2), after=st.one_of(st.none(), st.just("singleton")),
    )  # fmt: skip
    def submit_array(self, crash: str, **wanted: Any) -> None:
        self.post(crash, self.world.submission(**wanted))

    @rule(
        crash=crashes, relation=st.sampled_from(("after", "afterok", "afterany", "afternotok")), one=some_key,
        two=some_key, glue=st.sampled_from((",", "?")), cancel=st.booleans(), array=st.sampled_from((None, "0-2")),
    )  # fmt: skip
    def submit_dependent(
        self, crash: str, relation: str, one: int, two: int, glue: str, cancel: bool, array: str | None
    ) -> None:
        text = f"{relation}:{one}{glue}afterany:{two}"
        recalled = tuple(job for key in (one, two) for job in self.world._ended(str(key)))
        self.post(
            crash,
            self.world.submission(after=text, cancel_on_bad_dependency=cancel, array=array, recalled=recalled),
        )

    @rule(
        crash=crashes, by=users, qos=st.sampled_from(tuple(RULES.qos)), requeue=st.sampled_from((True, True, False)),
        counts=st.lists(st.integers(1, 4), min_size=2, unique=True).map(sorted),
        max_requeues=st.sampled_from((None, 1)),
    )  # fmt: skip
    def submit_elastic(self, crash: str, by: str, counts: list[int], **wanted: Any) -> None:
        count = make_count(counts)
        wanted |= {"gpus": count.least, "gpus_max": count.most, "gpu_counts": count.only}
        self.post(crash, self.world.submission(by, **wanted))

    @rule(crash=crashes, delay=st.integers(-10, 600), gpu_type=st.sampled_from((None, "h100", "*4090")))
    def submit_timed(self, crash: str, delay: int, gpu_type: str | None) -> None:
        self.post(crash, self.world.submission(begin=self.world.now.wall + delay, gpu_type=gpu_type))

    @rule(crash=crashes)
    def submit_small(self, crash: str) -> None:
        self.post(crash, self.world.submission(partition="small", time_limit=300.0))

    @rule(crash=crashes)
    def submit_cron(self, crash: str) -> None:
        self.post(crash, self.world.submission(cron="0 * * * *", next_run=self.world.now.wall + 60))

    @rule(
        crash=crashes, by=users, key=some_key,
        kind=st.sampled_from(
            (CancelRequested, HoldRequested, ReleaseRequested, RequeueRequested, PreemptRequested, CheckpointRequested)
        ),
    )  # fmt: skip
    def ask(self, crash: str, by: str, key: int, kind: Any) -> None:
        caller = self.world.submission(by).caller
        self.post(crash, kind((str(key),), caller, recalled=tuple(self.world._ended(str(key)))))

    @rule(
        crash=crashes, key=some_key, other=some_key,
        field=st.sampled_from(("qos", "gpus", "name", "dependency", "time_limit", "begin", "gpu_mem_mib", "partition")),
    )  # fmt: skip
    def update(self, crash: str, key: int, other: int, field: str) -> None:
        values = {
            "qos": tuple(RULES.qos)[other % 4], "gpus": other % 5, "name": "ab"[other % 2],
            "dependency": ("", f"afterok:{other}", "singleton")[other % 3], "time_limit": 60.0 * (other % 3),
            "begin": self.world.now.wall + other, "gpu_mem_mib": 1024 * (other % 3), "partition": "small",
        }  # fmt: skip
        recalled = tuple(job for k in (key, other) for job in self.world._ended(str(k)))
        caller = self.world.submission("root").caller
        self.post(crash, UpdateRequested((str(key),), caller, recalled=recalled, **{field: values[field]}))

    # ---- the world ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.alive())
    @rule(crash=crashes, which=pick)
    def process_starts(self, crash: str, which: int) -> None:
        key = self.alive()[which % len(self.alive())]
        self.world.processes[key].started = True
        self.post(crash, AttemptStarted(key, 4000))

    @precondition(lambda self: self.alive())
    @rule(crash=crashes, which=pick, step=st.integers(0, 3))
    def process_saves(self, crash: str, which: int, step: int) -> None:
        key = self.alive()[which % len(self.alive())]
        process = self.world.processes[key]
        process.started, process.saved = True, Saved(f"ckpt-{step}", step, 1.0)
        self.post(crash, AttemptSaved(key, process.saved))

    @precondition(lambda self: self.alive())
    @rule(crash=crashes, which=pick, step=st.integers(0, 1000), total=st.sampled_from((None, 500.0, 100_000.0)))
    def process_tells_its_progress(self, crash: str, which: int, step: int, total: float | None) -> None:
        key = self.alive()[which % len(self.alive())]
        self.world.processes[key].started = True
        self.post(crash, AttemptStarted(key, 4000), AttemptProgressed(key, step, self.world.now.wall, total))

    @precondition(lambda self: self.alive())
    @rule(crash=crashes, which=pick, outcome=outcomes, clear=st.booleans())
    def process_ends(self, crash: str, which: int, outcome: Outcome, clear: bool) -> None:
        key = self.alive()[which % len(self.alive())]
        self.post(crash, self.world.end(key, outcome, clear))

    @precondition(lambda self: self.world.processes)
    @rule(crash=crashes, which=pick)
    def old_news_arrives(self, crash: str, which: int) -> None:
        over = [key for key, process in self.world.processes.items() if not process.alive]
        for key in over[which : which + 1]:
            self.post(crash, AttemptStarted(key, 1), AttemptSaved(key, Saved("old")), self.world.end(key, _LOST))

    @rule(crash=crashes)
    def memory_is_seen_to_be_free(self, crash: str) -> None:
        for process in self.world.processes.values():
            if not process.alive:
                process.on.clear()
        self.post(crash, self.world.reading())

    @rule(crash=crashes, index=st.integers(0, 3), fault=st.sampled_from(("", "it fell off the bus")))
    def device_changes(self, crash: str, index: int, fault: str) -> None:
        self.world.gpus[index].fault = fault
        self.post(crash, self.world.reading())

    @rule(crash=crashes, index=st.integers(0, 3), missing=st.booleans())
    def device_comes_and_goes(self, crash: str, index: int, missing: bool) -> None:
        self.world.unplug(index) if missing else self.world.plug_in(index)
        self.post(crash, self.world.reading())

    @rule(crash=crashes, index=st.integers(0, 3), mib=st.sampled_from((0, 100, 2000, 30_000)))
    def somebody_else_uses_a_device(self, crash: str, index: int, mib: int) -> None:
        self.world.gpus[index].foreign_mib = mib
        self.post(crash, self.world.reading())

    @rule(crash=crashes, error=st.sampled_from((None, "the driver does not answer")))
    def probe_answers_or_not(self, crash: str, error: str | None) -> None:
        self.world.probe_error = error
        self.post(crash, self.world.reading())

    @rule(seconds=st.sampled_from((1.0, 20.0, 65.0, 400.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.passes(seconds)

    @rule(crash=crashes)
    def woken_for_nothing(self, crash: str) -> None:
        self.post(crash, Woke())

    @rule(crash=crashes, key=some_key)
    def cron_fires(self, crash: str, key: int) -> None:
        job = self.world.engine.state.jobs.get(key)
        if job is not None and job.spec.cron and job.spec.begin is not None:
            self.post(crash, CronFired(key, job.spec.begin, job.spec.begin + 60))

    @rule()
    def daemon_is_killed(self) -> None:
        self.world.crash()

    @rule(ask=st.booleans())
    def daemon_is_stopped_and_started(self, ask: bool) -> None:
        self.post("", ServiceStopping(self.world.submission("root").caller, ask_jobs=ask))
        self.world.crash()

    # ---- promises -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        for job_id in self.world.acknowledged:
            assert self.world.store.job(job_id) is not None, f"job {job_id} was acknowledged and is gone"

    @invariant()
    def the_store_and_the_engine_agree(self) -> None:
        for job in self.world.engine.state.jobs.values():
            assert self.world.store.job(job.id) == job, f"{self.world.store.job(job.id)} is stored, {job} is known"

    def teardown(self) -> None:
        drain(self.world)


_LOST = Outcome(OutcomeKind.LOST)


def drain(world: World) -> None:
    """When the machine is well again and every process does as it is told, every job comes to its end."""
    for device in world.gpus:
        device.fault, device.foreign_mib = "", 0
        world.plug_in(device.index)
    world.probe_error = None
    world.sample()
    _let_everyone_go(world)
    for _ in range(len(world.engine.state.jobs) * 8 + 40):
        unfinished = [job for job in world.engine.state.jobs.values() if not job.state.final]
        if not unfinished:
            return
        _one_round(world)
    stuck = {job.key: (job.state, world.why(job.id) if job.state is JobState.PENDING else "") for job in unfinished}
    raise AssertionError(f"these jobs never end: {stuck}")


def _let_everyone_go(world: World) -> None:
    """What only a person can solve: holds, dependencies that can never be met, cron templates, limits."""
    for job in sorted(world.engine.state.jobs.values(), key=lambda j: j.id):
        caller = world.submission("root").caller
        if job.state.final:
            continue
        if job.spec.cron is not None:
            world.handle(CancelRequested((str(job.id),), caller))
        if job.hold is not None:
            world.handle(ReleaseRequested((str(job.id),), caller))


def _one_round(world: World) -> None:
    for key, process in list(world.processes.items()):
        if not process.alive:
            process.on.clear()
            continue
        if not process.started:
            process.started = True
            world.handle(AttemptStarted(key, 4000))
        code = 85 if process.asked else 0
        world.handle(world.end(key, Outcome(OutcomeKind.EXITED, code=code)))
    world.sample()
    world.passes(700.0)
    for job_id in list(world.engine.state.jobs):
        job = world.job(job_id)  # as it is now: one that was cancelled may have taken others with it
        if job.dependency_failed and not job.state.final:
            world.cancel(job.id, by="root")
        elif job.hold is not None and not job.state.final:
            world.release(job.id, by="root")


TestEngine = Machine.TestCase
TestEngine.settings = steps(40)
