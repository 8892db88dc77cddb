"""A run that is preempted again and again: at chosen safe points, or, without a Run, after random times."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gpusched.rehearse import outcome, points, traces
from gpusched.rehearse.attempt import Attempts, Ended, tail
from gpusched.rehearse.outcome import Outcome, Over
from gpusched.rehearse.plan import Tell
from gpusched.rehearse.traces import Trace

_AGREEING = 4  # safe points by which several ranks may stop later than the one that was named
_PAUSE = 0.3  # seconds that a process without a Run has at least before it is asked to stop


@dataclass(frozen=True, slots=True)
class Stop:
    """One preemption that took place."""

    at: str
    step: int | None
    saved: bool


def at_safe_points(attempts: Attempts, undisturbed: Trace, count: int, seed: int, tell: Tell) -> list[Stop]:
    """Run it, stopping at `count` safe points of the undisturbed run; the last attempt runs to its end. Raises Over."""
    reference = undisturbed.main
    late = _AGREEING if any(header.get("rank") for header in undisturbed.headers) else 0
    chosen = points.choose(reference[: max(1, len(reference) - late)], count, seed)
    if len(chosen) < count:
        tell(f"{attempts.name}: there are only {len(chosen)} safe points, so it is preempted {len(chosen)} times")
    stops: list[Stop] = []
    reached = 0  # index of the first safe point of the present process
    while chosen:
        target, kind = chosen.pop(0)
        if target < reached:
            continue
        ended = attempts.run(stop_at=target - reached + 1)
        trace = traces.read(ended.trace)
        if not ended.stopped:
            _check_end(ended, trace, target - reached + 1 + late, stops)
            tell(f"{attempts.name}: was to stop {kind}, and had ended before that")
            return stops
        at = trace.main[-1] if trace.main else reference[target]
        place = traces.index(reference, at)
        example = points.kinds(reference)[place] if place is not None else kind
        tell(f"{attempts.name}: stopped at {at.where()}, {example}")
        stops.append(Stop(f"{at.where()}, {example}", at.step, ended.saved is not None))
        reached = traces.after_resume(reference, at)
        if place is None:
            tell(f"{attempts.name}: the undisturbed run was never there")
    ended = attempts.run()
    if ended.code != 0:
        raise Over(_failed(ended, stops))
    tell(f"{attempts.name}: resumed and ran to its end")
    return stops


def _check_end(ended: Ended, trace: Trace, asked_at: int, stops: Sequence[Stop]) -> None:
    """An attempt that was asked to stop has ended in another way."""
    was_there = bool(trace.main) and trace.main[-1].number >= asked_at
    if ended.code == 0 and not was_there:
        return
    if was_there and ended.code in (0, 1):
        raise Over(Outcome(
            outcome.NEVER_SAVED,
            f"the script was asked to stop at {trace.main[-1].what()} and ended with {ended.how()} instead of saving",
            notes=("let SystemExit pass: no bare except around run.step(), and no exit code of your own after it",),
            log=tuple(tail(ended.log)),
        ))  # fmt: skip
    raise Over(_failed(ended, stops))


def _failed(ended: Ended, stops: Sequence[Stop]) -> Outcome:
    if not stops:
        text = f"the script ran well once and failed when it was run again: {ended.how()}"
        return Outcome(outcome.FAILED_AFTER_STOP, text, log=tuple(tail(ended.log)))
    return Outcome(
        outcome.FAILED_AFTER_STOP,
        f"the script failed after it was resumed from its stop at {stops[-1].at}: {ended.how()}",
        notes=_unbound(tail(ended.log)),
        log=tuple(tail(ended.log)),
    )


def _unbound(log: Sequence[str]) -> tuple[str, ...]:
    """A variable that only the loop's body sets, used behind the loop: the commonest failure of a resumed script."""
    if not any(line.strip().startswith(("NameError: ", "UnboundLocalError: ")) for line in log):
        return ()
    return ("after a stop at an epoch's last step no batch is left, so the loop's body does not run: give the variable "
            "a value before the loop, or keep it in run.values",)  # fmt: skip


def at_random_times(attempts: Attempts, seconds: float, count: int, seed: int, tell: Tell) -> list[Stop]:
    """For a program that saves on a signal and exits with 85: ask it after random times of its whole run."""
    chance = random.Random(seed)
    times = sorted(chance.uniform(0.1, 0.9) * seconds for _ in range(count))
    stops: list[Stop] = []
    before = 0.0
    for moment in times:
        ended = attempts.run(stop_after=max(_PAUSE, moment - before))
        before = moment
        if ended.killed:
            raise Over(Outcome(
                outcome.NEVER_SAVED,
                f"the program did not leave within {attempts.plan.grace:g} s after it was asked to stop",
                notes=("on SIGTERM it must save, and end with exit code 85 (see the docs: Any language)",),
                log=tuple(tail(ended.log)),
            ))  # fmt: skip
        if ended.code == 0:
            tell(f"{attempts.name}: had ended before it was asked, or because of that")
            break
        what = "saved and left" if ended.stopped else f"left without saving ({ended.how()})"
        tell(f"{attempts.name}: asked to stop after {ended.seconds:.1f} s, {what}")
        stops.append(Stop(f"{ended.seconds:.1f} s", None, ended.stopped))
    else:
        ended = attempts.run()
        if ended.code != 0:
            raise Over(_failed(ended, stops))
        tell(f"{attempts.name}: resumed and ran to its end")
    if stops and not any(stop.saved for stop in stops):
        raise Over(Outcome(
            outcome.NEVER_SAVED,
            f"the program was asked to stop {len(stops)} times and never saved: every start began from zero",
            notes=("make it save on SIGTERM and end with exit code 85, or use gpusched.checkpoint or checkpoint-exec",),
            log=tuple(tail(attempts.ended[0].log)),
        ))  # fmt: skip
    return stops
