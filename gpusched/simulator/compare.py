"""Several policies on one workload: one after the other, or in processes of their own."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from gpusched.model.policy import PreemptCost
from gpusched.model.rules import Rules
from gpusched.simulator.errors import SimulationError
from gpusched.simulator.workload import Fleet, Outcome, Workload
from gpusched.simulator.world import simulate

_TELL_EVERY = 0.2  # seconds between words about progress
Progress = Callable[[str, int, int], None]  # policy, finished jobs, all jobs


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all policies. cost: what being moved really costs a job."""

    workload: Workload
    fleet: Fleet
    durations: str  # given or unknown
    cost: PreemptCost
    timeline: bool = False  # keep which device was whose, for a picture


def compare(setting: Setting, rules: Sequence[Rules], progress: Progress, processes: int = 1) -> Iterator[Outcome]:
    """The outcome of each set of rules, in their order, as soon as it and those before it are known."""
    if processes > 1 and len(rules) > 1:
        yield from _side_by_side(setting, rules, progress, processes)
        return
    for rule in rules:
        yield _run(setting, rule, partial(progress, str(rule.policy.name)))


def _run(setting: Setting, rules: Rules, progress: Callable[[int, int], None]) -> Outcome:
    return simulate(
        setting.workload,
        setting.fleet,
        rules,
        durations=setting.durations,
        cost=setting.cost,
        progress=progress,
        timeline=setting.timeline,
    )


# ---- in processes ---------------------------------------------------------------------------------------------------


class _Child(NamedTuple):
    place: int  # of its rules
    policy: str
    process: SpawnProcess


def _side_by_side(
    setting: Setting, rules: Sequence[Rules], progress: Progress, processes: int
) -> Iterator[Outcome]:
    """One fresh process for each policy, at most so many at once. Those that run end with this one."""
    waiting = deque(enumerate(rules))
    running: dict[Connection, _Child] = {}
    outcomes: dict[int, Outcome] = {}
    try:
        for place in range(len(rules)):
            while place not in outcomes:
                while waiting and len(running) < processes:
                    _start(setting, *waiting.popleft(), running)
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    child = running[connection]
                    told = _heard(connection, child)
                    if isinstance(told, Outcome):
                        outcomes[child.place] = told
                        del running[connection]
                        child.process.join()
                    else:
                        progress(child.policy, *told)
            yield outcomes.pop(place)
    finally:
        for child in running.values():
            child.process.terminate()
        for child in running.values():
            child.process.join()


def _start(setting: Setting, place: int, rules: Rules, running: dict[Connection, _Child]) -> None:
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, setting, rules), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: no Ctrl-C in the middle of imports
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    running[here] = _Child(place, str(rules.policy.name), process)


def _heard(connection: Connection, child: _Child) -> Outcome | tuple[int, int]:
    """How far the child is, or its outcome. Raises what it raised, and SimulationError if it is gone."""
    try:
        told = connection.recv()
    except EOFError:
        child.process.join()
        raise SimulationError(
            f"{child.policy}: its process ended in the middle (exit code {child.process.exitcode})",
            "was there too little memory? try without --processes, or a shorter trace with --max-jobs",
        ) from None
    if isinstance(told, BaseException):
        raise told
    assert isinstance(told, Outcome | tuple)
    return told


def _child(parent: Connection, setting: Setting, rules: Rules) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the parent to tell of
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    last = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_EVERY:
            last = time.monotonic()
            parent.send((done, of))

    try:
        parent.send(_run(setting, rules, progress))
    except BrokenPipeError:
        pass  # the parent is gone, and nobody waits for this
    except Exception as error:
        parent.send(error)
