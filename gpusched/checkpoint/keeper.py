"""The state of a run as one tree: assembling it for a checkpoint, and putting it back in the right order.

The tree has two halves: `shared` is equal on all ranks (models, optimizers, the position), `own` belongs to one rank
(generators, metrics, values). A single process has both. Must not decide when to save, nor talk to the scheduler.
"""

import copy
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from gpusched.checkpoint.errors import CheckpointError, Complaints
from gpusched.checkpoint.interval import Interval
from gpusched.checkpoint.position import Position
from gpusched.checkpoint.ranks import together
from gpusched.checkpoint.ranks.ddp import Buckets
from gpusched.checkpoint.state import environment, gradients, randomness
from gpusched.checkpoint.state.registry import Registry

if TYPE_CHECKING:  # reading and writing is only loaded by a run that saves
    from gpusched.checkpoint.disk import files
    from gpusched.checkpoint.disk.vault import Vault

Tree = Dict[str, Any]
Loaded = Tuple["files.Checkpoint", Tree, int]  # checkpoint, tree, number of ranks that saved it


class Keeper:
    """Registered objects, the script's values, the position and the generators, kept in one vault."""

    def __init__(
        self,
        registry: Registry,
        vault: "Optional[Vault]",
        ranks: Any,
        interval: Interval,
        tell: Callable[[str], None],
        seed: int,
    ) -> None:
        self.registry, self.vault, self.ranks, self.interval = registry, vault, ranks, interval
        self.tell, self.seed = tell, seed
        self._failures = Complaints(tell)
        self.values: Dict[str, Any] = {}
        self.position = Position()
        self.boundary: Optional[Tree] = None  # the small state where the present evaluation (or epoch) began
        self._paces: Dict[str, float] = {}  # of the run that saved: seconds per batch, by the number of the call
        self.sources: Dict[int, Any] = {}  # where the batches of this epoch come from, by the number of the call
        self._epoch_rng: Tree = {}  # generators when this epoch began
        self._pending: Optional[Tree] = None  # loaded, to be put back once more when the loop over batches begins
        self._foreign = False  # this rank did not exist when the checkpoint was saved: it draws numbers of its own
        self._saved_from: Optional[Tree] = None
        self._stored: Optional[Tree] = None  # the position in the newest checkpoint
        self._buckets = Buckets(registry.modules if ranks.size > 1 else {}, tell)

    @property
    def resuming(self) -> bool:
        """Whether the first lines of a resumed epoch are running again."""
        return self._pending is not None

    # taking the state

    def tree(self, boundary: Optional[Tree] = None) -> Tree:
        """All that a checkpoint holds: the state now, or with a boundary the state as it was there."""
        small = boundary or self._small()
        shared_parts, own_parts = self.registry.split(self.registry.capture(boundary["parts"] if boundary else None))
        identities = {str(call): source.identity() for call, source in self.sources.items()}
        shared = {"position": small["position"], "seed": self.seed, "parts": shared_parts, "sources": identities}
        shared["history"], buckets = self.interval.history(time.monotonic()), self._buckets.capture()
        if buckets:
            shared["ddp"] = buckets
        own = {"values": small["values"], "rng": small["rng"], "rng_epoch": self._epoch_rng, "parts": own_parts}
        own["sources"] = small["sources"]
        window = small["position"]["accumulating"]
        grads = gradients.capture(self.registry.modules, self.registry.optimizers, window)
        sharded = any(hasattr(grad, "placements") for grad in grads["values"].values())
        (shared if sharded else own)["grads"] = grads
        return {"shared": shared, "own": own}

    def _small(self) -> Tree:
        states = {str(call): source.state() for call, source in self.sources.items()}
        states = {call: state for call, state in states.items() if state is not None}
        position = self.position.to_plain()
        return {"values": self.values, "rng": randomness.capture(), "position": position, "sources": states}

    def mark_boundary(self) -> None:
        """Remember the small state of this moment: an evaluation that is interrupted starts again from here."""
        if self.vault is None:
            return
        try:
            small = self._small()
            small["values"] = copy.deepcopy(self.values)
            self.boundary = dict(small, parts=self.registry.capture_small(), version=self.registry.version())
        except Exception as error:  # of an object of the script's, perhaps; training goes on without
            self.boundary = None
            self.cannot_save(error)

    def begin_epoch(self) -> None:
        self._epoch_rng = randomness.capture()
        self._buckets.watch()
        self.mark_boundary()

    def end_epoch(self) -> None:
        self._pending = None
        self.sources = {}
        self.position.next_epoch()

    # saving

    def save(self, boundary: Optional[Tree] = None, stop: bool = False) -> "Optional[files.Checkpoint]":
        """Write a checkpoint, durable on return. None, with a sentence on why, if that cannot be done."""
        assert self.vault is not None
        if self.vault.latest is not None and self._nothing_new(boundary):
            return self.vault.latest
        try:
            tree = self._checked_tree(boundary)
            saved = self.vault.save(tree, self._about(tree, stop))
        except Exception as error:  # whatever it is, it must not end the training
            self.cannot_save(error)
            return None
        self._saved_from, self._stored = boundary, tree["shared"]["position"]
        self._failures.over()
        return saved

    def cannot_save(self, error: Any) -> None:
        """Tell why, and what is still there; of a disk that stays full not at every save."""
        assert self.vault is not None
        self._failures.tell("CANNOT SAVE a checkpoint: " + self.vault.why_not(error))

    def saved_behind(self) -> None:
        """A write behind the training has succeeded."""
        self._failures.over()

    def prepare(self) -> None:
        """Have the memory for snapshots got ready, so that the first save behind costs no more than the others."""
        assert self.vault is not None
        try:
            self.vault.prepare(self.tree())
        except Exception:  # the first save will tell
            pass

    def save_behind(self, boundary: Optional[Tree] = None) -> bool:
        """Take a snapshot now and write it while training goes on. False, with a sentence, if it cannot be taken."""
        assert self.vault is not None
        began, before = time.monotonic(), (self._saved_from, self._stored)
        try:
            tree = self._checked_tree(boundary)
            # before the write begins: the watchdog may find, and forget, one that has failed before this returns
            self._saved_from, self._stored = boundary, copy.deepcopy(tree["shared"]["position"])
            stall = self.vault.save_behind(tree, self._about(tree, False))
        except BaseException as error:
            self._saved_from, self._stored = before
            if not isinstance(error, Exception):
                raise
            self.cannot_save(error)
            self.interval.saved(began)
            return False
        self.interval.saved(began, stall)
        return True

    def _nothing_new(self, boundary: Optional[Tree]) -> bool:
        return self.resuming or (boundary is not None and boundary is self._saved_from)

    def _checked_tree(self, boundary: Optional[Tree]) -> Tree:
        if boundary is not None and boundary["version"] != self.registry.version():
            self.tell("weights changed after the epoch's last batch: a resume repeats that change, so it is not exact")
        return together.each(self.ranks, lambda: self.tree(boundary))

    def _about(self, tree: Tree, stop: bool) -> Dict[str, Any]:
        where = tree["shared"]["position"]
        about = {"epoch": where["epoch"], "batch": where["batch"], "stop": stop, "ranks": self.ranks.size}
        # seconds per batch, of sources that a resume will have to replay
        about["pace"] = {str(call): source.pace for call, source in self.sources.items() if source.pace is not None}
        return dict(about, environment=environment.describe(self.registry.modules))

    def forget_save(self) -> None:
        """A write behind the training has failed: what it was to hold is still to be saved."""
        self._saved_from = self._stored = None

    def changed(self) -> bool:
        """Whether the position has moved on since the newest checkpoint."""
        return self.position.to_plain() != self._stored

    def refuse_what_cannot_be_stored(self) -> None:
        """Raises CheckpointError at the start of a run instead of at its first preemption."""
        from gpusched.checkpoint.disk import contents

        together.each(self.ranks, lambda: contents.encode_all(self.tree()))

    # putting it back

    def restore(self, loaded: Loaded, policy: str, same_bits_anyway: bool) -> None:
        """Everything registered, then position and values, generators last; see run.py for the order around it.

        policy: what to do when the environment changed ("exact" refuses, "warn" tells, "any" does neither).
        same_bits_anyway: the number of ranks does not matter for this run (logical ranks).
        """
        found, tree, owners = loaded
        self._foreign = self.ranks.rank >= owners and not same_bits_anyway
        tree = _for_a_new_rank(tree) if self._foreign else tree
        shared, own = tree["shared"], tree["own"]
        notes = self._compare_environment(found, owners, policy, same_bits_anyway)
        self._buckets.restore(shared.get("ddp", {}))  # before weights and generators: see ranks/ddp.py
        self._buckets.watch()
        self.registry.restore(dict(shared["parts"], **own["parts"]), self.tell)
        _pour(own["values"], self.values)
        self.position.set_plain(shared["position"])
        self.seed, self._stored = shared["seed"], shared["position"]
        self.interval.begin(time.monotonic(), shared.get("history"), unprepared=not found.manifest.get("stop", True))
        self._paces = found.manifest.get("pace", {})
        middle = any(call["entered"] for call in shared["position"]["calls"])
        self._epoch_rng = own["rng_epoch"]
        notes += randomness.restore(own["rng_epoch"] if middle else own["rng"])
        self._pending = tree if middle else None
        if not middle:  # gradients of a window that the epoch's end cut short
            self._restore_gradients(tree)
        if self._foreign:
            randomness.seed_everything(randomness.mix(self.seed, "new rank", self.ranks.rank, self.position.steps))
        for note in notes:
            self.tell(note)

    def _compare_environment(self, found: "files.Checkpoint", owners: int, policy: str, any_ranks: bool) -> List[str]:
        changed = environment.changes(
            found.manifest.get("environment", {}), environment.describe(self.registry.modules)
        )
        if owners != self.ranks.size and not any_ranks:
            lost = " (what the missing ones had counted is not continued)" if self.ranks.size < owners else ""
            changed.append("the number of ranks was %d and is %d%s" % (owners, self.ranks.size, lost))
        if not changed or policy == "any":
            return []
        if policy == "exact":
            raise CheckpointError(
                'This run must resume exactly (environment="exact"), and %s.' % ", ".join(changed),
                'Resume where it is as it was, or allow the change: Run(..., environment="warn").',
            )
        return ["%s: the run continues, but its numbers may round differently" % ", ".join(changed)]

    def source_state(self, index: int, source: Any, policy: str) -> Any:
        """Register where the batches of a call come from. Returns the state to continue from; None: its beginning.

        Raises CheckpointError, or tells, if the data is not what it was; see restore() for the policy.
        """
        self.sources[index] = source
        if self._pending is None:
            return None
        source.pace = self._paces.get(str(index))
        saved, now = self._pending["shared"].get("sources", {}).get(str(index), {}), source.identity()
        changed = [
            "%s was %s and is %s" % (name.replace("_", " "), value, now.get(name))
            for name, value in saved.items()
            if now.get(name) != value
        ]
        if changed and policy != "any":
            text = "the data is not what it was when this was saved (%s)" % ", ".join(changed)
            if policy == "exact":
                hint = 'Resume with the same data and batch size, or allow it: Run(..., environment="warn").'
                raise CheckpointError(text[0].upper() + text[1:] + ".", hint)
            self.tell(text + ": the run goes on at the same batch, but not as it would have without the stop")
        return self._pending["own"].get("sources", {}).get(str(index))

    def finish_restore(self, index: int) -> None:
        """The loop over batches in which the run was stopped begins again: small state once more, generators last."""
        tree = self._pending
        if tree is None:
            return
        shared, own = tree["shared"], tree["own"]
        last = max(i for i, call in enumerate(shared["position"]["calls"]) if call["entered"])
        if index >= last:
            self._pending = None
            self.registry.restore_small(dict(shared["parts"], **own["parts"]))
            _pour(own["values"], self.values)
            self._restore_gradients(tree)
            if not self._foreign:
                randomness.restore(own["rng"])

    def _restore_gradients(self, tree: Tree) -> None:
        shared, own = tree["shared"], tree["own"]
        self.position.accumulating = shared["position"].get("accumulating", False)
        grads = shared.get("grads", own.get("grads"))
        if grads is not None:  # else it is of an older version
            for name in gradients.restore(self.registry.modules, self.registry.optimizers, grads):
                self.tell("the gradient of %s was saved, and no such parameter is here: it is lost" % name)


def _for_a_new_rank(tree: Tree) -> Tree:
    """A rank that did not exist at the save gets the first one's values, but must not count or draw the same again."""
    parts = tree["own"]["parts"].items()
    kept = {key: part for key, part in parts if key.split(".")[0] not in ("metrics", "generators")}
    return dict(tree, own=dict(tree["own"], parts=kept))


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
