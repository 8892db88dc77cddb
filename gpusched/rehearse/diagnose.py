"""Where two traces of the same script part, and why that is likely so.

The traces are compared safe point by safe point. What differs is either *state* (batches handed out, generators,
registered parts, run.values, reported metrics) or *around* the run (what the script holds and has not registered). The
first point at which state differs is the step to name; what around the run differed by then is the suspect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpusched.checkpoint.state.unregistered import with_article
from gpusched.rehearse import source
from gpusched.rehearse.outcome import Cause
from gpusched.rehearse.traces import Key, Point, Trace

STATE = ("batches", "rng", "parts", "values", "metrics")
AROUND = ("objects", "plain")
Names = frozenset[tuple[str, str]]  # (field of the trace, name in it)

_METRIC = "metric"
_SIDE_EFFECTS = ("values", "metrics")  # what a wrong sum or metric changes, while training itself goes on exactly


@dataclass(frozen=True, slots=True)
class Parting:
    """The first safe point at which state differs (None: it never does), and what differed around the run by then."""

    point: Point | None
    reference: Point | None  # the same safe point of the other run; None: the other run was never there
    differing: Names
    around: Mapping[tuple[str, str], Point] = field(default_factory=dict)  # first point of each, in order
    resumed: bool = False  # it is the first safe point after a resume
    attempt: int = 0

    def effects(self) -> list[str]:
        """What differs there, for people, the cause of the others first."""
        words = {"batches": "the batch that was handed out", "rng": "random numbers of {}", "parts": "{}",
                 "values": "run.values[{!r}]", "metrics": "metric {!r}"}  # fmt: skip
        order = sorted(self.differing, key=lambda one: (STATE.index(one[0]), one[1]))
        return [words[kind].format(name) for kind, name in order]


def part(reference: Trace, others: Sequence[Trace], noise: Names = frozenset()) -> Parting:
    """Compare the processes of a run, in their order, with the one process of another. `noise` is not looked at."""
    known = reference.by_key()
    around: dict[tuple[str, str], Point] = {}
    for number, trace in enumerate(others):
        seen_ranks: set[int] = set()
        for point in trace.points:
            first = number > 0 and point.rank not in seen_ranks
            seen_ranks.add(point.rank)
            twin = known.get((point.rank, *point.key))
            if twin is None:
                return Parting(point, None, frozenset(), around, first, number + 1)
            for one in sorted(_differing(twin, point, AROUND) - noise):
                around.setdefault(one, point)
            state = _differing(twin, point, STATE) - noise
            if state:
                return Parting(point, twin, state, around, first, number + 1)
    return Parting(None, None, frozenset(), around)


def unseeded(reference: Trace, other: Trace) -> Names:
    """Generators that began differently in two runs, before anything else could: the script does not seed them.

    Whatever is drawn from them shows elsewhere, if it matters; their own states cannot be compared.
    """
    known = reference.by_key()
    found: set[tuple[str, str]] = set()
    for point in other.points:
        if point.number == 1 and (twin := known.get((point.rank, *point.key))) is not None:
            found |= _differing(twin, point, ("rng",))
    return frozenset(found)


def differing_names(one: Trace, other: Trace) -> Names:
    """Everything that differs anywhere between two runs of one process each."""
    known = one.by_key()
    found: set[tuple[str, str]] = set()
    for point in other.points:
        twin = known.get((point.rank, *point.key))
        if twin is not None:
            found |= _differing(twin, point, (*STATE, *AROUND))
    return frozenset(found)


def _differing(one: Point, other: Point, fields: Iterable[str]) -> Names:
    found = set()
    for kind in fields:
        here, there = one.line.get(kind), other.line.get(kind)
        if here is None or there is None or here == there:
            continue
        if kind == "batches":
            # after a stop in the middle of a step, or a restarted evaluation, one of them may have seen fewer
            if here[-1:] != there[-1:]:
                found.add((kind, ""))
            continue
        found |= {(kind, name) for name in {**here, **there} if here.get(name) != there.get(name)}
        if kind in ("plain", "metrics"):  # not assigned yet, or not reported yet by this process, is no difference
            found -= {(kind, name) for name in {**here, **there} if name not in here or name not in there}
    return frozenset(found)


def causes(parting: Parting, reference: Trace) -> list[Cause]:
    """Likely causes, the likeliest first; [] if nothing points to one."""
    loop = _loop_without_run(reference)
    if loop is not None and (parting.point is None or parting.reference is None or parting.resumed):
        return [loop]
    if parting.point is not None and parting.reference is None:
        return [_restarted(parting.point)]
    kinds = {kind for kind, _ in parting.differing}
    if "batches" in kinds:
        return [*_objects(parting, {"generator"}), _another_batch()]
    trains_alike = kinds <= set(_SIDE_EFFECTS)
    after = _after_step(parting, reference)
    found: list[Cause] = []
    if trains_alike:
        found += _objects(parting, {_METRIC})
        found += (after if parting.resumed else []) + _variables(parting)
        found += after
    else:
        found += _objects(parting, never={_METRIC})
        found += after or _variables(parting)
        found += _objects(parting, {_METRIC})
    if not found and kinds == {"rng"}:
        names = ", ".join(name for kind, name in sorted(parting.differing))
        found.append(Cause("generator-use", f"after the resume another number of random numbers was drawn from {names}",
                           "look for draws that do not happen in every step, or that depend on the time"))  # fmt: skip
    return list({cause.text: cause for cause in found}.values())


def _loop_without_run(reference: Trace) -> Cause | None:
    steps = [point for point in reference.points if point.kind == "step"]
    outside = next((point for point in steps if point.call is None), None)
    if outside is None:
        return None
    place = f" ({_place(outside.at[0])})" if outside.at else ""
    return Cause(
        "loader-restarted",
        f"run.step(){place} is called outside a loop over run.batches(): after a stop the epoch starts again from its "
        "first batch",
        "put it inside the loop over run.batches(loader), as the last line of its body"
        if outside.batch
        else "loop over run.batches(loader) instead of the loader itself",
    )


def _restarted(point: Point) -> Cause:
    return Cause(
        "position",
        f"the undisturbed run was never at {point.what()}: after the stop the script took another way",
        "the loops must depend only on what is registered: use run.epochs(n) and run.batches(loader), and run.epoch, "
        "run.batch and run.steps instead of counters of your own",
    )


def _another_batch() -> Cause:
    return Cause(
        "loader",
        "the loader gave another batch than in the undisturbed run: what it gives depends on more than seed, epoch and "
        "place",
        "look for state that the dataset, sampler or iterable keeps between batches, for time, or for unsorted sets; "
        "give an iterable state_dict() and load_state_dict(), or make it depend on run.epoch alone",
    )


def _objects(parting: Parting, only: Collection[str] = (), never: Collection[str] = ()) -> list[Cause]:
    """Unregistered objects that differ, generators first; of these kinds only, or of all but those."""
    found: list[tuple[bool, int, Cause]] = []
    for (kind, name), point in parting.around.items():
        if kind != "objects":
            continue
        what = (point.line["objects"].get(name) or ["object"])[0]
        if (only and what not in only) or what in never:
            continue
        word = {"generator": "generators=", _METRIC: "metrics=", "optimizer": "optimizer=", "averaged model": "ema=",
                "learning-rate scheduler": "scheduler=", "gradient scaler": "scaler="}.get(what, "extra=")  # fmt: skip
        text = f"{name} is {with_article(what)} that is not registered: after a stop it starts afresh"
        cause = Cause(f"unregistered-{what.split()[-1]}", text, f"register it: Run(..., {word}...)")
        found.append((what != "generator", len(found), cause))
    return [cause for _, _, cause in sorted(found, key=lambda one: one[:2])]


def _after_step(parting: Parting, reference: Trace) -> list[Cause]:
    """What follows run.step() was run by the undisturbed process and not by the one that stopped there."""
    for point in [one for one in (parting.reference, *reference.points) if one is not None and one.kind == "step"]:
        found = source.after_step(point.at)
        if found is not None:
            file, line, text = found
            return [Cause(
                "after-step",
                f"{_place((file, line, ''))} follows run.step() in the body of the loop ({text}): it is not run again "
                "after a stop at that step",
                "make run.step() the last line of the loop's body",
            )]  # fmt: skip
        return []
    return []


def _variables(parting: Parting) -> list[Cause]:
    """Plain variables that begin anew: those that differed first, counters and sums rather than what follows them."""
    names = [(name, point) for (kind, name), point in parting.around.items() if kind == "plain"]
    if not names:
        return []
    first = names[0][1]
    values = {name: str(first.line["plain"][name]) for name, point in names if point is first}
    chosen = sorted(values, key=lambda name: (_rank(values[name]), name))[:4]
    told = [name if values[name].startswith("#") else f"{name} (now {values[name]})" for name in chosen]
    return [Cause(
        "variable",
        f"{_listed(told)} began anew after the stop, or went on otherwise than in the undisturbed run",
        'keep it in run.values (best = run.values.setdefault("best", 0.0)), or use run.steps, run.batch and run.epoch',
    )]  # fmt: skip


def counters(reference: Trace, others: Sequence[Trace], noise: Names = frozenset()) -> list[str]:
    """Whole numbers of the script's own that began anew after a stop, though nothing that was compared shows it."""
    around = part(reference, others, noise).around
    found = []
    for (kind, name), point in around.items():
        value = str(point.line["plain"].get(name)) if kind == "plain" else ""
        if value.lstrip("-").isdigit():
            found.append(name)
    return sorted(found)[:4]


def _rank(value: str) -> int:
    """Counters before lists before numbers with a fraction: those may be a consequence."""
    return 1 if value.startswith("#") else 2 if "." in value else 0


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _place(at: tuple[str, int, Any]) -> str:
    return f"{at[0].rpartition('/')[2]}:{at[1]}"


__all__ = ["AROUND", "STATE", "Key", "Names", "Parting", "causes", "differing_names", "part", "unseeded"]
