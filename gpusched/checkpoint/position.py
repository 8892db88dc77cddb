"""Where a run is: phase, epoch, batch and step, as plain numbers.

A *phase* is one call of run.epochs(); a *call* is one call of run.batches() within an epoch (training, validation…).
Must not know about files, torch or requests.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

NESTED = (
    "run.step() in a loop over run.batches() inside a batch of another one: a resume goes on with the outer loop's "
    "next batch and leaves out what was left of the inner one. Use run.batches() for one of the two, or zip() both"
)


@dataclass(eq=False)
class Call:
    """One run.batches() of the present epoch; two of them are never the same one."""

    count: int = 0  # batches handed out, of which the last may still be in work
    done: bool = False  # its loop is over
    steps: int = 0  # run.step() calls during it
    entered: bool = False
    open_batch: bool = False  # a batch was handed out and no safe point has followed
    turn: int = 0  # loops inside other loops that were over when this one was made: another turn, another order
    # of this process only:
    worked: bool = False  # run.step() or run.micro_step() was called during it
    evaluating: bool = False  # its batches are handed out to a model that does not train
    outer: "Optional[Call]" = None  # the loop that was running when this one began
    outer_count: int = 0  # and its batches by then

    @property
    def inside(self) -> bool:
        """Within one batch of another loop, without a step of its own: an evaluation there. Not so in zip(), where both
        go on together. It is never continued, so its place is not saved."""
        return self.outer is not None and not self.worked and self.outer.count == self.outer_count

    @property
    def nested(self) -> bool:
        """A training loop within one batch of another loop, which nothing can continue. Clear at its second batch."""
        return self.outer is not None and self.count > 1 and self.outer.count == self.outer_count

    def to_plain(self) -> Dict[str, Any]:
        names = ("count", "done", "steps", "entered", "open_batch", "turn")
        return {name: getattr(self, name) for name in names}


@dataclass
class Position:
    """What of the run is done."""

    phase: int = 0
    epoch: int = 0
    steps: int = 0
    base: int = 0  # steps when this phase began
    accumulating: bool = False  # inside an accumulation window: gradients hold work that is not in the weights yet
    calls: List[Call] = field(default_factory=list)
    turns: int = 0  # loops inside others that are over, in this epoch

    def to_plain(self) -> Dict[str, Any]:
        last = len(self.calls)
        while last and self.calls[last - 1].inside:
            last -= 1
        calls = [call.to_plain() for call in self.calls[:last]]
        numbers = {"phase": self.phase, "epoch": self.epoch, "steps": self.steps, "base": self.base}
        return dict(numbers, batch=self.batch, calls=calls, accumulating=self.accumulating, turns=self.turns)

    def set_plain(self, plain: Dict[str, Any]) -> None:
        """Continue from a saved position: its loops have not been entered yet in this process."""
        self.phase, self.epoch = plain["phase"], plain["epoch"]
        self.steps, self.base = plain["steps"], plain["base"]
        self.accumulating, self.turns = plain.get("accumulating", False), plain.get("turns", 0)
        self.calls = [
            Call(count=one["count"], done=one["done"], steps=one["steps"], turn=one.get("turn", 0))
            for one in plain["calls"]
        ]

    def running(self) -> List[Call]:
        """The loops over batches that are running now, outer ones first."""
        return [call for call in self.calls if call.entered and not call.done]

    def close_batches(self, training: bool) -> bool:
        """Whether no batch is in work. One that was only looked at, in an evaluation, is over: as good as a step."""
        opened = [call for call in self.running() if call.open_batch]
        if any(training or call.worked or not call.evaluating for call in opened):
            return False
        if any(call.inside and call.count == 1 for call in opened):
            return False  # the next batch will tell whether both loops go on together, as in zip()
        for call in opened:
            call.open_batch = False
        return True

    def active(self) -> Optional[Call]:
        """The innermost loop over batches that is running now."""
        for call in reversed(self.calls):
            if call.entered and not call.done:
                return call
        return None

    def training_call(self) -> Optional[Call]:
        """The loop in which steps are taken; the first one while there were none."""
        return next((call for call in self.calls if call.steps), self.calls[0] if self.calls else None)

    @property
    def batch(self) -> int:
        """Batches of this epoch that its training loop has been given."""
        call = self.training_call()
        return call.count if call else 0

    def total(self, epochs: int, length: Optional[int]) -> Optional[int]:
        """Steps of the run up to the end of this phase, judged by the batches that a step takes."""
        call = self.training_call()
        if call is None or length is None or not call.steps:
            return None
        return self.base + epochs * max(1, round(length * call.steps / call.count))

    def begin_phase(self, phase: int) -> None:
        self.phase, self.epoch, self.calls, self.base, self.turns = phase, 0, [], self.steps, 0

    def next_epoch(self) -> None:
        self.epoch += 1
        self.calls, self.turns = [], 0
