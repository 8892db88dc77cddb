"""The whole rehearsal: once undisturbed, once preempted, compare, and if they differ find out why.

1. run it undisturbed, traced; how many safe points there are, and where, comes from that trace
2. run it again, stopping it at some of them (at random times, if there is no Run in it)
3. compare the newest checkpoints bit for bit, the metrics at every safe point, and the files that were named
4. if anything differs run it undisturbed once more: what differs between these two as well is no matter of
   preemption. If that is training itself, say so; if it is a time in a metric or a file, leave it out and say that
5. find the first safe point at which the traces part, and what is likely to blame
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpusched.checkpoint import CheckpointError, list_checkpoints
from gpusched.rehearse import diagnose, files, outcome, preempted, traces
from gpusched.rehearse.attempt import Attempts, Ended, tail
from gpusched.rehearse.files import Unequal
from gpusched.rehearse.outcome import Cause, Outcome, Over
from gpusched.rehearse.plan import RUN, Plan, Tell
from gpusched.rehearse.process import CannotStart
from gpusched.rehearse.traces import Trace

_SHOWN = 6  # differences told
_ABOUT_THE_SAVE = ("history",)  # in a checkpoint, but about how long saving took, not about the run


@dataclass(slots=True)
class Made:
    """What one run has left: traces of its processes, checkpoint directories, copies of its files."""

    attempts: Attempts
    traces: list[Trace] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)

    @property
    def checkpoints(self) -> dict[str, str]:
        """Path of the newest good checkpoint of each directory of checkpoints; the run's own is called ""."""
        top, found = self.attempts.checkpoints, {}
        for place, folders, _ in os.walk(top):
            good = [one for one in list_checkpoints(place) if one.good]
            if good:
                found[os.path.relpath(place, top) if place != top else ""] = good[-1].path
            folders[:] = [name for name in folders if not name.startswith(("step-", "."))]
        return found


def rehearse(plan: Plan, tell: Tell) -> Outcome:
    """Rehearse and say how it went. The folders of the runs stay in plan.folder."""
    began = time.monotonic()
    rehearsal = _Rehearsal(plan, tell)
    try:
        result = rehearsal.run()
    except Over as over:
        result = over.outcome
    except CannotStart as error:
        result = Outcome(error.code, str(error))
    except CheckpointError as error:
        result = Outcome(outcome.DIFFERS, f"a checkpoint cannot be compared: {error.message}", notes=(error.hint,))
    result.facts.update(rehearsal.facts)
    result.facts["seconds"] = round(time.monotonic() - began, 3)
    return result


class _Rehearsal:
    def __init__(self, plan: Plan, tell: Tell) -> None:
        self.plan, self.tell = plan, tell
        self.stops: Sequence[preempted.Stop] = ()
        self._before: dict[str, tuple[int, int, int] | None] = {}
        self._unseeded: diagnose.Names = frozenset()
        self.facts: dict[str, object] = {"command": list(plan.command), "seed": plan.seed}

    def run(self) -> Outcome:
        first = self._undisturbed("run 1")
        trace = first.traces[0]
        if trace.exists:
            self._check_trace(first, trace)
            second = self._preempted(first, trace)
        else:
            second = self._interrupted(first)
        if trace.exists:
            self._unseeded = diagnose.unseeded(trace, second.traces[0])
        unequal = self._compare(first, second)
        if not unequal and diagnose.part(trace, second.traces, self._unseeded).point is None:
            return self._exact(first, second)
        self.tell("they differ; run 3: undisturbed again, to see whether it is deterministic at all")
        third = self._undisturbed("run 3")
        return self._different(first, second, third, unequal)

    # the runs

    def _undisturbed(self, name: str) -> Made:
        self.tell(f"{name}: undisturbed: {self.plan.shown()}")
        attempts = Attempts(self.plan, name, self.tell)
        self._note_old_files(attempts)
        ended = attempts.run()
        if ended.code != 0:
            raise Over(self._failed(ended))
        made = self._made(attempts)
        steps = [point.step for point in made.traces[0].main]
        safe = f"{max(steps)} steps, {len(steps)} safe points, " if steps else ""
        self.tell(f"{name}: ended after {safe}{ended.seconds:.1f} s")
        return made

    def _failed(self, ended: Ended) -> Outcome:
        hint = "it must run through by itself before it can be rehearsed"
        if ended.code == 85:
            hint = "it left with 85, which means: saved, run me again; nobody had asked it to"
        text = f"the undisturbed run failed: {ended.how()}"
        return Outcome(outcome.FAILED, text, notes=(hint,), log=tuple(tail(ended.log)))

    def _check_trace(self, made: Made, trace: Trace) -> None:
        """Whether there is anything to rehearse. Raises Over."""
        log = tuple(tail(made.attempts.ended[0].log))
        if not trace.points:
            raise Over(Outcome(
                outcome.NO_SAFE_POINT,
                "the script makes a Run and never reaches a safe point",
                notes=("call run.step() as the last line of the loop over run.batches(), inside run.epochs()",),
                log=log,
            ))  # fmt: skip
        own = os.path.realpath(made.attempts.checkpoints)
        for header in trace.headers:
            directory = header.get("directory")
            if directory is None or not os.path.realpath(directory).startswith(own):
                raise Over(Outcome(
                    outcome.BAD_INPUT,
                    f"the script saves into a directory of its own ({directory}), so its runs would resume from each "
                    "other" if directory else "the script's Run has no directory to save into",
                    notes=(f"leave out directory=, so that it takes GPUSCHED_CHECKPOINT_DIR, or pass {RUN} to the "
                           "script and make it a part of that path",),

                ))  # fmt: skip
        if not made.checkpoints:
            raise Over(Outcome(
                outcome.NEVER_SAVED,
                f"the run reached {len(trace.points)} safe points and there is no checkpoint at its end",
                notes=_said_by_the_library(log), log=log,
            ))  # fmt: skip

    def _preempted(self, first: Made, trace: Trace) -> Made:
        count = self.plan.preemptions
        self.tell(f"run 2: preempted at {count} random safe points (seed {self.plan.seed})")
        attempts = Attempts(self.plan, "run 2", self.tell)
        self._note_old_files(attempts)
        stops = preempted.at_safe_points(attempts, trace, count, self.plan.seed, self.tell)
        return self._stopped(attempts, stops)

    def _interrupted(self, first: Made) -> Made:
        seconds = first.attempts.ended[0].seconds
        self.tell("no gpusched.checkpoint.Run in it: it is asked by request or SIGTERM, and should exit with 85")
        attempts = Attempts(self.plan, "run 2", self.tell)
        self._note_old_files(attempts)
        stops = preempted.at_random_times(attempts, seconds, self.plan.preemptions, self.plan.seed, self.tell)
        made = self._stopped(attempts, stops)
        if not self.plan.compare and not files.own(attempts.checkpoints):
            raise Over(Outcome(
                outcome.NOTHING_TO_COMPARE,
                f"it was preempted {len(stops)} times, resumed and ended well, but there is nothing to compare",
                notes=(f"name the files that it writes: --compare result.json, or --compare '{RUN}/result.json'",),

            ))  # fmt: skip
        return made

    def _stopped(self, attempts: Attempts, stops: Sequence[preempted.Stop]) -> Made:
        self.facts["preemptions"] = [{"at": stop.at, "step": stop.step, "saved": stop.saved} for stop in stops]
        self.stops = stops
        if not stops:
            raise Over(Outcome(
                outcome.NEVER_SAVED, "it was never preempted: it had always ended before it could be asked",
                notes=("make the run longer",),
            ))  # fmt: skip
        return self._made(attempts)

    def _note_old_files(self, attempts: Attempts) -> None:
        """A file of an earlier run must not be taken for this one's."""
        paths = (self.plan.file(name, attempts.folder) for name in self.plan.compare)
        self._before = {path: _stamp(path) for path in paths}

    def _made(self, attempts: Attempts) -> Made:
        made = Made(attempts, [traces.read(ended.trace) for ended in attempts.ended])
        for number, name in enumerate(self.plan.compare):
            path = self.plan.file(name, attempts.folder)
            copy = os.path.join(attempts.folder, f"compared-{number}", os.path.basename(path))
            old = os.path.isfile(path) and _stamp(path) == self._before[path]
            if old or not os.path.exists(path):
                text = f"--compare {name}: the command has not written {path}"
                raise Over(Outcome(outcome.BAD_INPUT, text, log=tuple(tail(attempts.ended[-1].log))))
            os.makedirs(os.path.dirname(copy))
            (shutil.copytree if os.path.isdir(path) else shutil.copy2)(path, copy)
            made.copies[name] = copy
        return made

    # comparing

    def _compare(self, one: Made, other: Made) -> list[Unequal]:
        found: list[Unequal] = []
        if one.traces[0].exists:
            skip = tuple(f"{lead}/{name}" for _, name in self._unseeded for lead in ("rng", "rng_epoch"))
            found += [one for one in _checkpoints(one, other) if not _below(one.place, skip)]
        else:
            found += files.compare_own("checkpoints", one.attempts.checkpoints, other.attempts.checkpoints)
        for name, copy in one.copies.items():
            found += files.compare(name, copy, other.copies[name])
        return found

    def _exact(self, first: Made, second: Made, ignored: Sequence[str] = ()) -> Outcome:
        times = len(self.stops)
        text = f"resumes exactly: preempted {'once' if times == 1 else f'{times} times'}, it ends bit for bit like the"
        compared = [f"{len(second.checkpoints)} checkpoint(s)"] if second.traces[0].exists else ["the saved files"]
        if second.traces[0].exists:
            compared.append(f"state and metrics at {sum(len(one.points) for one in second.traces)} safe points")
        compared += list(second.copies)
        notes = ["compared: " + ", ".join(compared)]
        if ignored:
            notes.append("not counted, since it differs between two undisturbed runs too: " + ", ".join(ignored))
        if self._unseeded:
            names = ", ".join(sorted(name for _, name in self._unseeded))
            notes.append(f"never seeded, and nothing that was compared depends on it: random numbers of {names}")
        if counting := diagnose.counters(first.traces[0], second.traces, self._unseeded):
            notes.append(
                f"began anew after a stop: {', '.join(counting)}; nothing that was compared depends on it, but if a "
                "file of yours does, name that file with --compare, and keep the value in run.values"
            )
        if any(not stop.saved for stop in self.stops):
            notes.append("at some of the stops it left without saving")
        return Outcome(outcome.EXACT, text + " undisturbed run", notes=tuple(notes))

    def _different(self, first: Made, second: Made, third: Made, unequal: list[Unequal]) -> Outcome:
        noise = diagnose.differing_names(first.traces[0], third.traces[0])
        trained = {kind for kind, _ in noise - self._unseeded} & {"batches", "rng", "parts"}
        noisy_places = {one.place for one in self._compare(first, third)}
        if trained or any(place.startswith(_TRAINED) for place in noisy_places):
            return self._nondeterministic(first, third)
        left = [one for one in unequal if one.place not in noisy_places]
        parting = diagnose.part(first.traces[0], second.traces, noise | self._unseeded)
        if not left and parting.point is None:
            told = sorted({one.place for one in unequal} | {name for kind, name in noise if kind == "metrics"})
            return self._exact(first, second, told)
        found = diagnose.causes(parting, first.traces[0]) if first.traces[0].exists else []
        return self._report(second, left, parting, found)

    def _nondeterministic(self, first: Made, third: Made) -> Outcome:
        parting = diagnose.part(first.traces[0], third.traces, self._unseeded)
        where = f" from {parting.point.what()} on" if parting.point is not None else ""
        lines = list(parting.effects()) if parting.reference is not None else []
        lines += [str(one) for one in self._compare(first, third)[: _SHOWN - len(lines)]]
        cause = Cause(
            "nondeterministic",
            f"two undisturbed runs differ already{where}: it is not deterministic even without a preemption",
            "seed it (torch.manual_seed, random.seed, numpy.random.seed), keep time and unsorted sets out of it, use "
            "torch.use_deterministic_algorithms(True) on a GPU; then rehearse again",
        )
        text = "cannot be judged: two undisturbed runs differ already, so no resume can be exact"
        return Outcome(outcome.DIFFERS, text, tuple(lines), (cause,))

    def _report(
        self, second: Made, unequal: Sequence[Unequal], parting: diagnose.Parting, found: list[Cause]
    ) -> Outcome:
        text = "does NOT resume exactly"
        lines: list[str] = []
        if parting.point is not None:
            stop = self.stops[min(parting.attempt - 2, len(self.stops) - 1)] if parting.attempt > 1 else None
            after = f"; it had been stopped at {stop.at}" if stop is not None else ""
            text += f": the first difference is at {parting.point.what()}{after}"
            lines += parting.effects()[:_SHOWN]
            self.facts["first_difference"] = {"step": parting.point.step, "epoch": parting.point.epoch,
                                              "batch": parting.point.batch, "what": parting.effects()}  # fmt: skip
        lines += [f"at the end, {one}" for one in unequal[:_SHOWN]]
        if len(unequal) > _SHOWN:
            lines.append(f"… and {len(unequal) - _SHOWN} more at the end")
        notes = _said_by_the_library([line for ended in second.attempts.ended for line in tail(ended.log, 200)])
        if not second.traces[0].exists:
            notes = ("the program goes on from what it had saved: is everything in that, also counts and sums?", *notes)
        elif not found:
            notes = ("no likely cause was found: look for state that lives outside the script's variables (in a "
                     "dataset, a closure, a file, a C extension)", *notes)  # fmt: skip
        return Outcome(outcome.DIFFERS, text, tuple(lines), tuple(found), notes)


_TRAINED = ("model", "optimizer", "scheduler", "scaler", "ema", "position", "rng")


def _below(place: str, tops: tuple[str, ...]) -> bool:
    """Whether a place of a checkpoint is one of these, or inside one, on whatever rank."""
    inner = place.rpartition(": ")[2]
    return any(inner == top or inner.startswith(top + "/") for top in tops)


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Changes whenever a file is written."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino


def _checkpoints(one: Made, other: Made) -> list[Unequal]:
    """What differs between the newest checkpoints of two runs."""
    from gpusched.checkpoint.disk.compare import compare

    found, here, there = [], one.checkpoints, other.checkpoints
    for name in sorted({*here, *there}):
        lead = f"{name}: " if name else ""
        if name not in here or name not in there:
            where = "undisturbed" if name in here else "preempted"
            found.append(Unequal(f"{lead}checkpoint", f"there is one only in the {where} run"))
            continue
        found += [
            Unequal(lead + unequal.place, str(unequal)[len(unequal.place) :].lstrip(": "))
            for unequal in compare(here[name], there[name])
            if unequal.place.split("/")[0] not in _ABOUT_THE_SAVE
        ]
    return found


def _said_by_the_library(lines: Sequence[str]) -> tuple[str, ...]:
    """What gpusched.checkpoint told on stderr, without the ordinary."""
    said = [line.removeprefix("gpusched: ") for line in lines if line.startswith("gpusched: ")]
    usual = ("saved step-", "resumed from step-", "resuming from step-", "saving ")
    return tuple(dict.fromkeys(f"the library said: {line}" for line in said if not line.startswith(usual)))
