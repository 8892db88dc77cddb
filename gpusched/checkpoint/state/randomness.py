"""Random numbers: the state of every global generator, and streams that depend on nothing but numbers.

Data loading must not draw from the generators that training draws from: how often a loader draws depends on the
number of its workers and on where it was resumed. So batches are produced inside a Stream, whose generators are
seeded from (seed, epoch), and each sample is made from a seed of its own.
Must not import torch or numpy before the script does.
"""

import contextlib
import random
import sys
from typing import Any, Dict, Iterator, List, Optional, Sequence


def mix(*parts: Any) -> int:
    """A seed of 63 bits from numbers and strings; equal on every machine and version."""
    import hashlib  # loads OpenSSL: a millisecond that a script without a loader need not pay

    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def first_seed(given: Optional[int]) -> int:
    """torch's initial seed follows torch.manual_seed and is random where nothing was seeded, like torch itself."""
    torch = sys.modules.get("torch")
    if given is not None or torch is None:
        return given or 0
    return int(torch.initial_seed())


def seed_everything(seed: int) -> None:
    """Seed the host's global generators (python, numpy, torch CPU). A device's generator is left alone."""
    random.seed(seed)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)
    if torch is not None:
        torch.default_generator.manual_seed(seed)


def capture(devices: bool = True) -> Dict[str, Any]:
    """The state of the global generators; with `devices` also that of every CUDA device that is in use."""
    state: Dict[str, Any] = {"python": random.getstate()}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        state["numpy"] = numpy.random.get_state(legacy=False)
    if torch is not None:
        state["torch"] = torch.default_generator.get_state()
        if devices and torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: Dict[str, Any]) -> List[str]:
    """Put captured states back. Returns a sentence for every state that had nowhere to go."""
    notes = []
    random.setstate(state["python"])
    if "numpy" in state:
        import numpy

        numpy.random.set_state(state["numpy"])
    if "torch" in state:
        import torch

        torch.default_generator.set_state(state["torch"])
        saved, present = state.get("cuda", []), torch.cuda.device_count() if "cuda" in state else 0
        if len(saved) != present and saved:
            notes.append(
                "random numbers of %d CUDA device(s) were saved and %d are here: what is drawn on a device differs "
                "from an uninterrupted run" % (len(saved), present)
            )
        for index, one in enumerate(saved[:present]):
            torch.cuda.set_rng_state(one, index)
    return notes


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn or seeded on the host inside leaves no trace outside."""
    outside = capture(devices=False)
    try:
        yield
    finally:
        restore(outside)


@contextlib.contextmanager
def lent(generators: Sequence[Any], seed: int) -> Iterator[None]:
    """Explicit generators start from `seed` inside and are as they were afterwards."""
    outside = [generator_state(one) for one in generators]
    for one in generators:
        reseed(one, seed)
    try:
        yield
    finally:
        for one, state in zip(generators, outside):  # noqa: B905 - strict= needs Python 3.10
            set_generator_state(one, state)


class Stream:
    """Global generators of its own (and the own generators of samplers), seeded from a number and used in turns."""

    def __init__(self, seed: int, own: Sequence[Any] = ()) -> None:
        self._seed, self._own = seed, own
        self._state: Optional[Dict[str, Any]] = None
        self._own_states: List[Any] = []

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        outside, own_outside = capture(devices=False), [generator_state(one) for one in self._own]
        if self._state is None:
            seed_everything(self._seed)
            for one in self._own:
                reseed(one, self._seed)
        else:
            restore(self._state)
            for one, state in zip(self._own, self._own_states):  # noqa: B905
                set_generator_state(one, state)
        try:
            yield
        finally:
            self._state, self._own_states = capture(devices=False), [generator_state(one) for one in self._own]
            restore(outside)
            for one, state in zip(self._own, own_outside):  # noqa: B905
                set_generator_state(one, state)


def is_generator(value: Any) -> bool:
    """Whether this is an explicit generator of python, numpy or torch."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    return (
        isinstance(value, random.Random)
        or (numpy is not None and isinstance(value, (numpy.random.Generator, numpy.random.RandomState)))
        or (torch is not None and isinstance(value, torch.Generator))
    )


def generators_in(value: Any, depth: int = 4) -> List[Any]:
    """Explicit generators that a dataset or sampler holds: its own, its transforms', those of what it wraps."""
    found: Dict[int, Any] = {}
    level, seen = [value], set()
    for _ in range(depth):
        below: List[Any] = []
        for one in level:
            if id(one) in seen:
                continue
            seen.add(id(one))
            if is_generator(one):
                found[id(one)] = one
            elif isinstance(one, (list, tuple)):
                below += one[:64]  # transforms, not data
            elif isinstance(one, dict):
                below += list(one.values())[:64]
            elif not isinstance(one, type) and not hasattr(type(one), "__array__"):
                below += list(getattr(one, "__dict__", {}).values())
        level = below
    return list(found.values())


def generator_state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state(legacy=False) if hasattr(generator, "random_sample") else generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def reseed(generator: Any, seed: int) -> None:
    """Start a generator anew from a number alone."""
    if hasattr(generator, "manual_seed"):
        generator.manual_seed(seed)
    elif hasattr(generator, "bit_generator"):
        fresh = type(generator.bit_generator)(seed)
        generator.bit_generator.state = fresh.state
    else:
        generator.seed(seed & 0xFFFFFFFF)
