"""The state of a run as one tree: assembling it for a checkpoint, and putting it back in the right order.

Must not decide when to save, nor talk to the scheduler.
"""

import copy
from typing import Any, Callable, Dict, Optional

from gpusched.checkpoint.disk import contents, files
from gpusched.checkpoint.disk.vault import Vault
from gpusched.checkpoint.position import Position
from gpusched.checkpoint.state import environment, randomness
from gpusched.checkpoint.state.registry import Registry

Tree = Dict[str, Any]


class Keeper:
    """Registered objects, the script's values, the position and the generators, kept in one vault."""

    def __init__(self, registry: Registry, vault: Optional[Vault], tell: Callable[[str], None], seed: int) -> None:
        self.registry, self.vault, self.tell, self.seed = registry, vault, tell, seed
        self.values: Dict[str, Any] = {}
        self.position = Position()
        self.boundary: Optional[Tree] = None  # the small state where the present evaluation (or epoch) began
        self._epoch_rng: Tree = {}  # generators when this epoch began
        self._pending: Optional[Tree] = None  # loaded, to be put back once more when the loop over batches begins
        self._saved_from: Optional[Tree] = None
        self._stored: Optional[Tree] = None  # the position in the newest checkpoint

    @property
    def resuming(self) -> bool:
        """Whether the first lines of a resumed epoch are running again."""
        return self._pending is not None

    def tree(self, boundary: Optional[Tree] = None) -> Tree:
        """All that a checkpoint holds: the state now, or with a boundary the state as it was there."""
        small = boundary or self._small()
        parts = self.registry.capture(boundary["parts"] if boundary else None)
        shared = {"values": small["values"], "rng": small["rng"], "position": small["position"]}
        return dict(shared, parts=parts, rng_epoch=self._epoch_rng, seed=self.seed)

    def _small(self) -> Tree:
        return {"values": self.values, "rng": randomness.capture(), "position": self.position.to_plain()}

    def mark_boundary(self) -> None:
        """Remember the small state of this moment: an evaluation that is interrupted starts again from here."""
        if self.vault is None:
            return
        small = self._small()
        small["values"] = copy.deepcopy(self.values)
        self.boundary = dict(small, parts=self.registry.capture_small(), version=self.registry.version())

    def begin_epoch(self) -> None:
        self._epoch_rng = randomness.capture()
        self.mark_boundary()

    def end_epoch(self) -> None:
        self._pending = None
        self.position.next_epoch()

    def save(self, boundary: Optional[Tree] = None) -> Optional[files.Checkpoint]:
        """Write a checkpoint. None, with a sentence on why, if it cannot be written: training can go on."""
        assert self.vault is not None
        if self.vault.latest is not None and (self.resuming or (boundary is not None and boundary is self._saved_from)):
            return self.vault.latest  # nothing has happened since it was written
        if boundary is not None and boundary["version"] != self.registry.version():
            self.tell("weights changed after the epoch's last batch: a resume repeats that change, so it is not exact")
        try:
            tree = self.tree(boundary)
            where = tree["position"]
            about = {"epoch": where["epoch"], "batch": where["batch"]}
            saved = self.vault.save(tree, dict(about, environment=environment.describe(self.registry.modules)))
        except Exception as error:  # whatever it is, it must not end the training
            self.tell("CANNOT SAVE a checkpoint: " + self.vault.why_not(error))
            return None
        self._saved_from, self._stored = boundary, tree["position"]
        return saved

    def changed(self) -> bool:
        """Whether the position has moved on since the newest checkpoint."""
        return self.position.to_plain() != self._stored

    def refuse_what_cannot_be_stored(self) -> None:
        """Raises CheckpointError at the start of a run instead of at its first preemption."""
        contents.encode_all(self.tree())

    def restore(self, found: files.Checkpoint, tree: Tree) -> None:
        """Everything registered, then position and values, generators last; see run.py for the order around it."""
        self.registry.restore(tree["parts"], self.tell)
        _pour(tree["values"], self.values)
        self.position.set_plain(tree["position"])
        self.seed, self._stored = tree["seed"], tree["position"]
        middle = any(call["entered"] for call in tree["position"]["calls"])
        self._epoch_rng = tree["rng_epoch"]
        notes = randomness.restore(tree["rng_epoch"] if middle else tree["rng"])
        self._pending = tree if middle else None
        changed = environment.changes(
            found.manifest.get("environment", {}), environment.describe(self.registry.modules)
        )
        if changed:
            notes.append("%s: the run continues, but its numbers may round differently" % ", ".join(changed))
        for note in notes:
            self.tell(note)

    def finish_restore(self, index: int) -> None:
        """The loop over batches in which the run was stopped begins again: small state once more, generators last."""
        tree = self._pending
        if tree is None:
            return
        last = max(i for i, call in enumerate(tree["position"]["calls"]) if call["entered"])
        if index >= last:
            self._pending = None
            self.registry.restore_small(tree["parts"])
            _pour(tree["values"], self.values)
            randomness.restore(tree["rng"])


def _pour(saved: Tree, values: Tree) -> None:
    """Lists and dictionaries are refilled in place: the script may hold them under names of its own."""
    for key, value in copy.deepcopy(saved).items():
        live = values.get(key)
        if type(live) is list and type(value) is list:
            live[:] = value
        elif type(live) is dict and type(value) is dict:
            live.clear()
            live.update(value)
        else:
            values[key] = value
