"""How the numbers of two arrays of equal shape differ, in words: how many, where first, by how much.

Bytes are compared in pieces without torch; only pieces that differ are looked at as numbers, with torch (numpy for
numpy's own kinds). Must not hold more than a piece of each array in memory.
"""

from typing import Any, List, Optional, Tuple

from gpusched.checkpoint.disk.arrays import Array

PIECE = 8 << 20  # bytes, a multiple of every width


def describe(one: Array, other: Array) -> str:
    """Empty if all bytes are equal; else such as `3 of 40 elements differ; first [1, 2]: 0.5 and 0.25; …`."""
    tally = _Tally(one)
    width = max(1, one.width)
    piece = max(width, PIECE // width * width)
    for start in range(0, one.size, piece):
        here, there = one.bytes_at(start, piece), other.bytes_at(start, piece)
        if here != there:
            tally.add(start // width, here, there)
    return str(tally)


class _Tally:
    """What has been found so far."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self._count, self._largest, self._lost = 0, 0.0, 0
        self._first: Optional[Tuple[int, str, str]] = None
        self._counted = True

    def add(self, start: int, here: bytes, there: bytes) -> None:
        """A piece that differs; `start` is the number of its first element."""
        width = max(1, self._array.width)
        numbers = _numbers(self._array, here), _numbers(self._array, there)
        if numbers[0] is None or numbers[1] is None:
            unequal = _unequal(here, there, width)
        else:
            unequal = _unequal_quickly(here, there, width)
            self._measure(*numbers)
        index = unequal[1]
        self._count += unequal[0]
        if self._first is None:
            texts = [_text(self._array, values, index, data) for values, data in zip(numbers, (here, there))]  # noqa: B905
            self._first = (start + index, texts[0], texts[1])

    def _measure(self, here: Any, there: Any) -> None:
        """The largest difference between numbers; those that are NaN or infinite on one side only are counted."""
        import torch

        wide = torch.complex128 if here.is_complex() else torch.float64
        a, b = here.to(wide), there.to(wide)
        distance = (a - b).abs()
        finite = torch.isfinite(a) & torch.isfinite(b)
        self._lost += int((torch.isfinite(a) != torch.isfinite(b)).sum())
        if bool(finite.any()):
            self._largest = max(self._largest, float(distance[finite].max()))

    def __str__(self) -> str:
        if self._first is None:
            return ""
        place, here, there = self._first
        text = "%d of %d elements differ; first %s: %s and %s"
        text = text % (self._count, self._array.count, list(_unravel(place, self._array.shape)), here, there)
        if self._count > 1 and self._largest:
            text += "; largest difference %.3g" % self._largest
        return text + ("; %d finite on one side only" % self._lost if self._lost else "")


def _numbers(array: Array, data: bytes) -> Any:
    """A flat tensor of these bytes; None where torch is not there or does not know the kind."""
    try:
        import torch

        if array.kind == "numpy":
            import numpy

            return torch.from_numpy(numpy.frombuffer(data, numpy.dtype(array.dtype)).copy())
        return torch.frombuffer(bytearray(data), dtype=getattr(torch, array.dtype))
    except (ImportError, AttributeError, TypeError, ValueError):
        return None


def _unequal_quickly(here: bytes, there: bytes, width: int) -> Tuple[int, int]:
    """(how many elements differ in their bits, the first of them)."""
    import torch

    pair = [torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, width) for data in (here, there)]
    unequal = (pair[0] != pair[1]).any(dim=1).nonzero()
    return len(unequal), int(unequal[0])


def _unequal(here: bytes, there: bytes, width: int) -> Tuple[int, int]:
    found: List[int] = [
        at // width for at in range(0, len(here), width) if here[at : at + width] != there[at : at + width]
    ]
    return len(found), found[0]


def _text(array: Array, values: Any, index: int, data: bytes) -> str:
    """One element as people write it, exactly: 9 digits tell every float32 apart, 17 every float64."""
    if values is None:
        width = max(1, array.width)
        return "0x" + data[index * width : (index + 1) * width].hex()
    value = values[index].item()
    if isinstance(value, float):
        return "%.17g" % value if array.width == 8 else "%.9g" % value
    return str(value)


def _unravel(place: int, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    result = []
    for length in reversed(shape):
        place, inner = divmod(place, length)
        result.append(inner)
    return tuple(reversed(result))
