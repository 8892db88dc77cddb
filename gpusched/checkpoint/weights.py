"""load_weights: a pre-trained file into a model, before the run begins. Strict unless told otherwise, and never silent.

    model = Net(classes=10)
    print(load_weights(model, "imagenet.pt", partial=True, skip=["head."]))
    run = Run(model=model, optimizer=…)     # after it: run.epochs() restores a checkpoint over what was loaded here

Nothing in a file is executed, and nothing of the model is touched before all has been compared. A load in which almost
nothing fits is an error even where parts may be missing: a model that trains from random numbers looks like one that
learns slowly. Must not touch optimizers, schedulers or a run's position.
"""

import fnmatch
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from gpusched.checkpoint import foreign, matching
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.checkpoint.state.names import clean_names

_ALMOST_NOTHING = 1 / 3  # of the names, both of the model and of the file
_SHOWN = 5


@dataclass(frozen=True)
class Loaded:
    """What load_weights did. All names are the model's; `unexpected` and `mismatched` tell the file's side, too."""

    source: str
    loaded: Tuple[str, ...]
    missing: Tuple[str, ...] = ()  # in the model, not in the file: left as they were
    unexpected: Tuple[str, ...] = ()  # in the file, not in the model: not used
    skipped: Tuple[str, ...] = ()  # left as they were because the caller said so
    mismatched: Tuple[Tuple[str, Tuple[int, ...], Tuple[int, ...]], ...] = ()  # (name, shape in the file, in the model)
    numbers: int = 0  # parameters and buffer elements that were loaded
    cast: Tuple[str, ...] = ()  # those whose kind of number was converted

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model came from the file."""
        return not (self.missing or self.skipped or self.mismatched)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.skipped) + len(self.mismatched)
        text = "loaded %d of %d tensors (%s numbers) from %s"
        parts = [text % (len(self.loaded), total, _count(self.numbers), self.source)]
        if self.cast:
            parts.append("%d converted to the model's kind of number" % len(self.cast))
        parts += ["%s is %s in the file and %s in the model, left as it was" % one for one in _shapes(self.mismatched)]
        for names, text in (
            (self.missing, "not in the file, left as they were"),
            (self.skipped, "skipped"),
            (self.unexpected, "in the file only"),
        ):
            if names:
                parts.append("%d %s (%s)" % (len(names), text, _some(names)))
        return "; ".join(parts)


def load_weights(
    model: Any,
    source: Any,
    *,
    partial: bool = False,
    rename: Optional[matching.Rename] = None,
    prefix: str = "",
    skip: Sequence[str] = (),
    map_location: Any = None,
    cast: bool = False,
    part: str = "model",
) -> Loaded:
    """Load a file of weights into a model, in place, on whatever device it is. Returns what was done; print it.

    source: a torch file (.pt, .pth, .bin), a .safetensors file, an index of several, a directory from Hugging Face, a
    checkpoint directory of gpusched (its newest good one; `part` says which of its objects), or a state_dict. The
    model may be nested under the names that trainers use, and prefixes of wrappers are matched.
    partial: tensors that are missing or of another shape stay as they are, and are told; else they are errors.
    rename: {beginning of a name in the file: what to put there}, or a function of a name (None: do not use it).
    prefix: use only names that begin so, without it. skip: names of the model, or beginnings ("head."), or patterns
    ("*.bias"), that shall stay as they are. cast: convert numbers of another kind (float16 to float32).
    map_location: a device on which tensors are put before they are copied into the model (default: none in between).
    Raises CheckpointError, the model untouched, for a file that does not fit, is damaged, or holds code.
    """
    if not hasattr(model, "load_state_dict") or not hasattr(model, "state_dict"):
        raise CheckpointError("load_weights needs a model, not a %s." % type(model).__name__, "Give it a torch module.")
    where = "the given state_dict" if hasattr(source, "items") else str(source)
    table, dropped = matching.renamed(foreign.read_table(source, part), prefix, rename)
    fit = _Fit(model, table, list(skip), cast, where)
    fit.check(partial)
    result = fit.apply(map_location, dropped)
    if not result.complete and partial:
        say(str(result))
    return result


class _Fit:
    """A table of tensors laid beside a model: what goes where, and what does not."""

    def __init__(self, model: Any, table: Dict[str, Any], skip: List[str], cast: bool, where: str) -> None:
        self.model, self.where, self.cast = model, where, cast
        self.live: Dict[str, Any] = model.state_dict()
        self.clean = clean_names(model, list(self.live))  # live name → name without wrappers
        _refuse_what_cannot_be_filled(self.live)
        names = matching.align(table, list(self.clean.values()))
        theirs = {new: table[name] for name, new in names.items()}
        _refuse_a_skip_of_nothing(skip, list(self.clean.values()))
        self.skipped = [name for name in self.live if _skips(skip, self.clean[name])]
        wanted = [name for name in self.live if name not in self.skipped]
        left_out = {self.clean[name] for name in self.skipped}
        self.pairs = {name: theirs[self.clean[name]] for name in wanted if self.clean[name] in theirs}
        known = set(self.clean.values())
        self.unexpected = [name for name, new in names.items() if new not in known]
        self.offered = len([new for new in theirs if new not in left_out])
        self._theirs = {name: table[name] for name in self.unexpected}
        self.wrong_shape = [name for name, value in self.pairs.items() if _shape(value) != _shape(self.live[name])]
        self.wrong_kind = [name for name in self.pairs if name not in self.wrong_shape and self._other_kind(name)]
        self.good = [name for name in self.pairs if name not in set(self.wrong_shape)]
        self._filled = {_memory(self.live[name]) for name in self.good} - {None}
        self.missing = [name for name in wanted if name not in self.pairs and not self._tied(name)]

    def _other_kind(self, name: str) -> bool:
        return getattr(self.pairs[name], "dtype", None) != getattr(self.live[name], "dtype", None)

    def _tied(self, name: str) -> bool:
        """Whether it is another name of a tensor that the file has: safetensors holds shared tensors once."""
        return _memory(self.live[name]) in self._filled

    def check(self, partial: bool) -> None:
        """Raises CheckpointError, naming the first mismatch, if this must not be loaded."""
        if self._almost_nothing():
            raise CheckpointError(self._hardly(), self._how_to_match())
        lossy = [name for name in self.wrong_kind if not _convertible(self.pairs[name], self.live[name])]
        if lossy or (self.wrong_kind and not self.cast):
            name = (lossy or self.wrong_kind)[0]
            kinds = (self.clean[name], _kind(self.pairs[name]), self.where, _kind(self.live[name]))
            raise CheckpointError(
                "%s is %s in %s and %s in the model%s." % (*kinds, _and_more(self.wrong_kind)),
                "That cannot be converted without loss: is it a file of another model?"
                if lossy
                else "Convert with cast=True, or the model first (model.half(), model.bfloat16()).",
            )
        if partial:
            return
        if self.wrong_shape:
            name = self.wrong_shape[0]
            shapes = (self.clean[name], list(_shape(self.pairs[name])), self.where, list(_shape(self.live[name])))
            raise CheckpointError(
                "%s is %s in %s and %s in the model%s." % (*shapes, _and_more(self.wrong_shape)),
                "To load the rest and keep the model's own there: partial=True, or skip=[%r]." % self.clean[name],
            )
        missing = [name for name in self.missing if not name.endswith("num_batches_tracked")]  # older torch had none
        if missing:
            text = "%s is not in %s%s." % (self.clean[missing[0]], self.where, _and_more(missing))
            raise CheckpointError(text, self._how_to_match("To leave what is missing as it is: partial=True."))
        if self.unexpected:
            raise CheckpointError(
                "%s of %s is not in the model%s." % (self.unexpected[0], self.where, _and_more(self.unexpected)),
                self._how_to_match("To load what the model has: partial=True."),
            )

    def _almost_nothing(self) -> bool:
        wanted = len(self.live) - len(self.skipped)
        good = len(self.good)
        return good == 0 or (good <= _ALMOST_NOTHING * wanted and good <= _ALMOST_NOTHING * self.offered)

    def _hardly(self) -> str:
        wanted = len(self.live) - len(self.skipped)
        text = "%d of the model's %d tensors fit what is in %s, so nothing was loaded." % (
            len(self.good), wanted, self.where,
        )  # fmt: skip
        if self.missing:
            text += " %s is not there" % self.clean[self.missing[0]]
            return text + ("; it has names such as %s." % self.unexpected[0] if self.unexpected else ".")
        if self.wrong_shape:
            name = self.wrong_shape[0]
            shapes = (self.clean[name], list(_shape(self.pairs[name])), list(_shape(self.live[name])))
            return "%s %s is %s there and %s in the model." % (text, *shapes)
        return text + " All of them are to be skipped." * (wanted == 0)

    def _how_to_match(self, otherwise: str = "") -> str:
        missing = {self.clean[name]: self.live[name] for name in self.missing}
        hint = matching.hint_to_rename(missing, self._theirs)
        if not hint:
            return otherwise or "Is it a file of another model?"
        return ("The names would fit with %s. %s" % (hint, otherwise)).strip()

    def apply(self, device: Any, dropped: List[str]) -> Loaded:
        """Copy everything that fits into the model."""
        state = {name: self.pairs[name] for name in self.good}
        if device is not None:
            state = {name: one.to(device) if foreign.is_tensor(one) else one for name, one in state.items()}
        self.model.load_state_dict(state, strict=False)
        tied = [name for name in self.live if name not in self.pairs and self._tied(name) and name not in self.skipped]
        loaded = [name for name in self.live if name in state or name in tied]
        return Loaded(
            source=self.where,
            loaded=tuple(self.clean[name] for name in loaded),
            missing=tuple(self.clean[name] for name in self.missing),
            unexpected=tuple(self.unexpected + dropped),
            skipped=tuple(self.clean[name] for name in self.skipped),
            mismatched=tuple(
                (self.clean[name], _shape(self.pairs[name]), _shape(self.live[name])) for name in self.wrong_shape
            ),
            numbers=sum(self.live[name].numel() for name in loaded if foreign.is_tensor(self.live[name])),
            cast=tuple(self.clean[name] for name in self.wrong_kind),
        )


def _refuse_what_cannot_be_filled(live: Dict[str, Any]) -> None:
    for name, value in live.items():
        if type(value).__name__ == "DTensor":
            raise CheckpointError(
                "%s is sharded over processes already." % name, "Call load_weights before fully_shard(model)."
            )
        if getattr(value, "is_meta", False):
            raise CheckpointError(
                "%s is on the meta device and has no memory." % name, "First: model.to_empty(device='cpu')."
            )
        if type(value).__name__.startswith("Uninitialized"):
            raise CheckpointError(
                "%s has no shape yet (a lazy module)." % name, "Run one batch through the model before load_weights."
            )


def _refuse_a_skip_of_nothing(skip: List[str], names: List[str]) -> None:
    for one in skip:
        if not any(_skips([one], name) for name in names):
            raise CheckpointError(
                "skip names %r, which is nothing in the model." % one,
                "It has names such as %s; a beginning ends with a dot." % _some(names[-3:]),
            )


def _convertible(value: Any, live: Any) -> bool:
    """Between two kinds of floating point, or two kinds of whole numbers."""
    if not foreign.is_tensor(value) or not foreign.is_tensor(live):
        return False
    return (value.is_floating_point(), value.is_complex()) == (live.is_floating_point(), live.is_complex())


def _skips(patterns: List[str], name: str) -> bool:
    return any(
        name == one or (one.endswith(".") and name.startswith(one)) or fnmatch.fnmatchcase(name, one)
        for one in patterns
    )


def _shape(value: Any) -> Tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _memory(value: Any) -> Optional[Tuple[Any, ...]]:
    """What tensors that share all their memory have in common; None for what has none."""
    if not foreign.is_tensor(value) or not value.numel():
        return None
    return value.device, value.data_ptr(), _shape(value), tuple(value.stride())


def _kind(value: Any) -> str:
    return str(value.dtype).split(".")[-1] if foreign.is_tensor(value) else type(value).__name__


def _shapes(mismatched: Any) -> List[Tuple[str, List[int], List[int]]]:
    return [(name, list(theirs), list(ours)) for name, theirs, ours in mismatched]


def _and_more(names: Sequence[str]) -> str:
    return " (and %d more)" % (len(names) - 1) if len(names) > 1 else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _count(number: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= size:
            return "%.3g %s" % (number / size, unit)
    return str(number)
