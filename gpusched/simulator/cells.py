"""What the cells of a trace may hold, column by column, and one line of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpusched.simulator.errors import SimulationError

REQUIRED = ("job_id", "user", "vc", "submit_s", "gpus", "duration_s", "status")
LONGEST = 1e10  # seconds: three hundred years
MOST_GPUS = 1_000_000
WHOLE_MILLI = 1000  # gpu_milli of a job that has its devices alone
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _text(cell: str) -> bool:
    return cell.isprintable()


def _number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))


def _steps(cell: str) -> bool:
    """Numbers with dashes between them, as in steps of deadlines and values."""
    return all(_NUMBER.fullmatch(part) is not None for part in cell.split("-"))


_WORDS: dict[Callable[[str], bool], str] = {_text: "text", _number: "a number", _steps: "numbers such as 99 or 60-120"}

# Every column there may be, and what a cell that is not empty must be.
COLUMNS: dict[str, Callable[[str], bool]] = {
    "job_id": _text, "user": _text, "vc": _text, "submit_s": _number, "gpus": _number, "duration_s": _number,
    "status": _text, "model": _text, "batch_size": _number, "iterations": _number, "iteration_s": _number,
    "priority": _number, "steps": _number, "mode": _text, "deadline_s": _number, "deadline_min": _steps,
    "value": _steps, "best_effort": _number, "job_type": _text, "gpu_milli": _number, "gpu_spec": _text,
    "cpu_milli": _number, "memory_mib": _number, "qos": _text, "queue_s": _number,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cells:
    """One line of a trace. All methods raise SimulationError that names the file, the line and the column."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def error(self, message: str, hint: str) -> SimulationError:
        return SimulationError(f"{self.path}, line {self.line}: {message}", hint)

    def check(self) -> None:
        """Every cell is of its column's type."""
        for name, cell in self.cells.items():
            good = COLUMNS[name]
            if cell and not good(cell):
                raise self._wrong(name, _WORDS[good])

    def text(self, name: str) -> str:
        return self.cells.get(name, "")

    def needed(self, name: str) -> str:
        if not self.cells[name]:
            raise self.error(f"{name} is empty", "every job needs one")
        return self.cells[name]

    def seconds(self, name: str) -> float:
        """A time or a length of time: finite, not negative."""
        cell = self.needed(name)
        value = float(cell) if _number(cell) else math.nan
        if not 0 <= value <= LONGEST:
            raise self._wrong(name, "seconds, 0 or more" + (f", at most {LONGEST:,.0f}" if value > LONGEST else ""))
        return value

    def whole(self, name: str) -> int:
        """A whole number, 1 or more, also if it is written as 2.0."""
        cell = self.needed(name)
        value = float(cell) if _number(cell) else math.nan
        if not 1 <= value <= MOST_GPUS or value != int(value):
            most = f", at most {MOST_GPUS:,}" if value > MOST_GPUS else ""
            raise self._wrong(name, f"a whole number, 1 or more{most}")
        return int(value)

    def gpus(self) -> int:
        if self.cells["gpus"] in ("0", "0.0"):
            raise self.error(
                f"gpus of job {self.cells['job_id']} is 0: jobs without devices are not simulated", "take the line out"
            )
        return self.whole("gpus")

    def milli(self) -> int:
        """How much of each of its devices a job needs, in thousandths; where nothing is said, all of it."""
        if not self.text("gpu_milli"):
            return WHOLE_MILLI
        value = float(self.cells["gpu_milli"])
        if not 1 <= value <= WHOLE_MILLI or value != int(value):
            raise self._wrong("gpu_milli", f"a whole number from 1 to {WHOLE_MILLI} (a whole device)")
        return int(value)

    def _wrong(self, name: str, expected: str) -> SimulationError:
        shown = self.cells[name]
        shown = repr(shown if len(shown) <= 40 else shown[:40] + "…")
        job = self.cells["job_id"] if name != "job_id" else ""
        return self.error(f"{name} is {shown}" + (f" (job {job})" if job else ""), f"expected: {expected}")
