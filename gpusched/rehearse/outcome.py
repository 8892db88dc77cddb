"""What a rehearsal ends with: a verdict, an exit code, and what a person should read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXACT = 0
DIFFERS = 1
BAD_INPUT = 2
FAILED = 10  # the undisturbed run failed by itself
NO_SAFE_POINT = 11
NEVER_SAVED = 12
FAILED_AFTER_STOP = 13
NOTHING_TO_COMPARE = 14

_WORDS = {
    EXACT: "exact",
    DIFFERS: "differs",
    BAD_INPUT: "bad-input",
    FAILED: "failed",
    NO_SAFE_POINT: "no-safe-point",
    NEVER_SAVED: "never-saved",
    FAILED_AFTER_STOP: "failed-after-stop",
    NOTHING_TO_COMPARE: "nothing-to-compare",
    126: "cannot-start",
    127: "cannot-start",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely reason for a difference, and what to do about it. `kind` is one word for programs."""

    kind: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a rehearsal. `lines`: what differs; `notes`: what else a person should know; `log`: output's end."""

    code: int
    sentence: str
    lines: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    notes: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def word(self) -> str:
        return _WORDS.get(self.code, "failed")

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.word,
            "exit_code": self.code,
            "sentence": self.sentence,
            "differences": list(self.lines),
            "causes": [{"kind": one.kind, "text": one.text, "hint": one.hint} for one in self.causes],
            "notes": list(self.notes),
            "output": list(self.log),
            **self.facts,
        }


class Over(Exception):
    """The rehearsal is over before its end; carries the outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.sentence)
        self.outcome = outcome
