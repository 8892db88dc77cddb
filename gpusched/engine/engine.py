"""The one door through which state changes.

    step = engine.handle(events, now)

handles a batch: each event in turn, then one scheduling cycle. The shell commits `step.changes` in one
transaction, answers the callers with `step.replies`, and performs `step.actions`. If that commit fails, or if this
method raises, the shell throws the engine away and builds a new one from the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpusched.engine import attempts, elastic
from gpusched.engine.deadlines import next_begin, next_deadline, run_out
from gpusched.engine.dependencies import Met, evaluate, known, look_again, settle
from gpusched.engine.devices import on_sampled
from gpusched.engine.following import corresponding, follow, followed_alone
from gpusched.engine.requests import on_request
from gpusched.engine.reservations import on_reserve, on_time, on_unreserve
from gpusched.engine.schedule import schedule
from gpusched.engine.submit import array_rows, check, on_cron, on_submitted
from gpusched.engine.turn import State, Turn, describe_devices, eligible
from gpusched.model.actions import Ask, Asked
from gpusched.model.changes import Reply, Snapshot, Step, Submitted
from gpusched.model.clock import Instant
from gpusched.model.dependency import Dependency
from gpusched.model.errors import GpuschedError
from gpusched.model.events import (
    AttemptExited,
    AttemptProgressed,
    AttemptSaved,
    AttemptStarted,
    AttemptWatching,
    CronFired,
    DevicesSampled,
    Event,
    JobSubmitted,
    ReservationRequested,
    ScriptChanged,
    ServiceStarted,
    ServiceStopping,
    UnreserveRequested,
    Woke,
)
from gpusched.model.evolve import evolve
from gpusched.model.job import Job, Share
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, Stop, StopKind
from gpusched.policy.cycle import cycle
from gpusched.policy.decisions import Preempt, Start
from gpusched.policy.explain import reason
from gpusched.policy.policies import policy_of
from gpusched.policy.priority import charged
from gpusched.policy.view import View

KEPT = 64


class Engine:
    """The state of all jobs, attempts and devices, and what follows from each event."""

    def __init__(self, rules: Rules, boot_id: str, story: bool = True) -> None:
        """story: tell what happens to every job in sentences. Nobody reads those of a simulation or a forecast."""
        self.state = State(rules, boot_id, View(rules, policy_of(rules).rank), story=story)
        self.look_at = KEPT  # how many ended jobs are kept before the engine looks which it can let go

    @property
    def view(self) -> View:
        return self.state.view

    def restore(self, snapshot: Snapshot, now: Instant) -> None:
        """Take in what the store has kept. What became of the attempts meanwhile, the shell tells as events."""
        self.state.next_job_id = snapshot.next_job_id
        for reservation in snapshot.reservations:
            self.view.put_reservation(reservation)
        turn = Turn(self.state, now)
        for job in snapshot.jobs:
            turn.add_job(job)
            if job.spec.begin is not None and job.state is JobState.PENDING and not job.spec.cron:
                self.state.waiting_for_time.add(job.id)
        for job in snapshot.jobs:
            if job.state is JobState.PENDING and not job.dependency_met:
                follow(self.state, job)
        for attempt in snapshot.attempts:
            if not attempt.released:
                self.view.put_attempt(attempt)
        for past in snapshot.past:
            self.view.durations.learn(past)
        self.state.observing = not self.view.live
        self._charge_again(snapshot, now)

    def _charge_again(self, snapshot: Snapshot, now: Instant) -> None:
        """Fair share: what ended attempts have used was committed with them, what live ones use follows from them."""
        ledger = self.view.ledger
        ledger.load(snapshot.usage, now.wall)
        for attempt in sorted(self.view.live.values(), key=lambda a: (a.created_at, a.key)):
            job = self.state.jobs[attempt.job_id]
            ledger.resume(job, charged(attempt), attempt.created_at, now.wall)

    def handle(self, events: Sequence[Event], now: Instant) -> Step:
        """Handle a batch of events. A request that is refused gets its error as reply and changes nothing."""
        turn = Turn(self.state, now)
        replies = [self._reply(turn, event) for event in events]
        if turn.view.reservations:
            on_time(turn)
        schedule(turn)
        if turn.ended or turn.names_left:
            settle(turn)
        step = Step(turn.changes(), tuple(replies), tuple(turn.actions), next_deadline(turn), next_begin(turn))
        if len(self.state.ended) >= self.look_at:
            self._forget_ended(turn)
        return step

    def answered(self, step: Step, now: Instant) -> Step:
        """The step just made, with a sentence for everybody who submitted: where it starts, or why it waits."""
        if not any(isinstance(reply, Submitted) for reply in step.replies):
            return step
        made = {job.id: job for job in step.changes.jobs}  # not the engine's: it may have let go of one that has ended
        replies = [
            replace(reply, note=self._how_things_stand(made[reply.job_ids[0]], now))
            if isinstance(reply, Submitted)
            else reply
            for reply in step.replies
        ]
        return replace(step, replies=tuple(replies))

    def preview(self, event: JobSubmitted, now: Instant) -> str:
        """What a submit would do, in a sentence. Raises what the submit would raise; nothing is submitted."""
        Turn(self.state, now).recall(event.recalled)
        job, array = check(self.state, event, now)
        spec = job.spec
        if array is not None:
            job = evolve(array_rows(job, array)[0], folded=())
        many = f"{array.count} jobs; the first " if array is not None else ""
        met = evaluate(self.state, job)
        if met is Met.NEVER and spec.cancel_on_bad_dependency:
            return f"{many}would be cancelled: its dependency {spec.dependency} can never be met"
        job = evolve(job, dependency_met=met is Met.YES, dependency_failed=met is Met.NEVER)
        self.view.put_job(job, eligible(self.view, job, now))
        try:
            return many + self._forecast(job, now)
        finally:
            self.view.drop_job(job.id)

    def _forecast(self, job: Job, now: Instant) -> str:
        """What the next scheduling cycle will decide about a job that is in the view."""
        decision = None if self.view.closing else next(cycle(self.view, now), None)
        match decision:
            case Start(job.id, devices):
                more = ", and on more that are free" if job.spec.request.most > len(devices) else ""
                return f"would start now on {describe_devices(self.state, devices)}{more}"
            case Preempt(job.id, plan) if plan.victims:
                return f"would preempt job {', '.join(self.state.jobs[v.job_id].key for v in plan.victims)}"
            case Preempt(job.id, plan) if plan.gives:
                lent = ", ".join(self.state.jobs[each.attempt.job_id].key for each in plan.gives)
                return f"would get devices that job {lent} gives back"
            case Preempt(job.id, plan):
                shares = tuple(Share(uuid) for uuid in plan.devices)
                return f"would wait for jobs that are leaving {describe_devices(self.state, shares)}"
            case _:
                why = reason(self.view, job, now)
                return f"would wait ({why.word}: {why.text})"

    # ---- inside ---------------------------------------------------------------------------------------------

    def _reply(self, turn: Turn, event: Event) -> Reply:
        try:
            reply = self._dispatch(turn, event)
        except GpuschedError as error:
            return error
        if turn.ended or turn.names_left:
            settle(turn)
        return reply

    def _dispatch(self, turn: Turn, event: Event) -> Reply:
        match event:
            case JobSubmitted():
                if event.recalled:
                    turn.recall(event.recalled)
                return on_submitted(turn, event)
            case AttemptStarted():
                attempts.on_started(turn, event)
            case AttemptExited():
                attempts.on_exited(turn, event)
            case AttemptWatching():
                attempts.on_watching(turn, event)
            case AttemptSaved():
                attempts.on_saved(turn, event)
            case AttemptProgressed():
                elastic.on_progressed(turn, event)
            case ScriptChanged():
                attempts.on_script_changed(turn, event)
            case DevicesSampled():
                on_sampled(turn, event)
            case Woke():
                run_out(turn)
            case CronFired():
                on_cron(turn, event)
            case ReservationRequested():
                return on_reserve(turn, event)
            case UnreserveRequested():
                return on_unreserve(turn, event)
            case ServiceStarted():
                turn.state.observing = True
                self._ask_again(turn)
            case ServiceStopping():
                self._ask_everyone(turn, event)
            case _:
                return on_request(turn, event)
        return None

    def _ask_again(self, turn: Turn) -> None:
        """After a restart: every stop in progress is asked again (harmless if it was) and deadlines are looked at."""
        for job_id in sorted(self.view.live):
            job = self.state.jobs[job_id]
            if job.state is JobState.STOPPING and job.stop is not None:
                turn.act(Ask(job.attempt_key, Asked.STOP, job.stop.phrase(), job.stop.deadline, job.spec.signal))
        for job in list(self.state.jobs.values()):
            look_again(turn, job)
        run_out(turn)
        turn.dirty = True

    def _ask_everyone(self, turn: Turn, event: ServiceStopping) -> None:
        if not event.ask_jobs:
            return
        self.view.closing = True
        for job_id in sorted(self.view.live):
            job = self.state.jobs[job_id]
            if job.state in (JobState.STARTING, JobState.RUNNING):
                deadline = turn.now.boot + attempts.grace(turn, job)
                attempts.ask_to_stop(turn, job, Stop(StopKind.SHUTDOWN, deadline, by=event.caller.user))

    def _how_things_stand(self, job: Job, now: Instant) -> str:
        live = self.view.live.get(job.id)
        if live is not None:
            return f"starting on {describe_devices(self.state, live.devices)}"
        if job.state is not JobState.PENDING:
            return f"{job.state.lower()}: {job.ended_because}"
        why = reason(self.view, job, now)
        return f"waiting ({why.word}: {why.text})"

    def _forget_ended(self, turn: Turn) -> None:
        """Ended jobs live in the store; the engine keeps those that a waiting job names, and what arrays have come to.

        Looked through only when the number of ended jobs has doubled, so that the cost per job stays constant.
        """
        needed = bool(self.state.dependents)
        for job_id in sorted(self.state.ended):
            job = self.state.jobs[job_id]
            if not needed or next(followed_alone(self.state, job), None) is None:
                turn.forget_job(job)
        for array_id in [array_id for array_id, array in self.state.arrays.known.items() if not array.rows]:
            if str(array_id) not in self.state.dependents:
                self.state.arrays.forget(array_id)
        self.look_at = 2 * len(self.state.ended) + KEPT


def unknown_dependencies(engine: Engine, dependency: Dependency | None) -> tuple[str, ...]:
    """Keys in a new dependency that the engine does not keep; the shell may find them in the store."""
    if dependency is None:
        return ()
    missing = [key for key in dependency.keys if not known(engine.state, key)]
    # which elements of an array have ended well is asked one by one: all of their rows are needed for that
    arrays = ((array_id, engine.state.arrays.known.get(array_id)) for array_id in corresponding(dependency))
    missing += [str(array_id) for array_id, array in arrays if array is not None and array.let_go]
    return tuple(dict.fromkeys(missing))
