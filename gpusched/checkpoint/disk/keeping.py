"""Which checkpoints stay: the newest, one of every so many steps, pinned ones. Stdlib only.

Deleting renames a checkpoint to a hidden name first, so that it is never half there. Must not compare checksums: those
take as long as loading.
"""

import contextlib
import os
import re
import shutil
from dataclasses import replace
from typing import Collection, Dict, List, Optional, Set

from gpusched.checkpoint.disk.draft import hidden_name, open_drafts
from gpusched.checkpoint.disk.found import Checkpoint, list_checkpoints
from gpusched.rundir import read_json, write_json

PINS = ".pins.json"
_LEFTOVER = re.compile(r"\.(?:tmp|trash)-(\d+)-")


def prune(
    directory: str, keep: int, keep_every_steps: Optional[int] = None, damaged: Collection[str] = ()
) -> List[str]:
    """Delete all good checkpoints but those of the newest `keep` steps, and torn ones that are older than those.

    With keep_every_steps=k the first good checkpoint at or after each multiple of k steps stays for good, too. Pinned
    ones (see `pin`) stay, and the newest good one always does. Of a step saved several times the last one counts. What
    an interrupted save or deletion of a dead process left is cleared. Returns what was deleted.
    damaged: names of those that look good (their checksums are not compared here) and are known not to be.
    """
    found, pinned = list_checkpoints(directory), pins(directory)
    found = [replace(item, problem="it is damaged") if item.name in damaged else item for item in found]
    by_step = {item.step: item for item in found if item.good}  # the last of a step wins
    newest = list(by_step.values())[-max(1, keep) :]
    milestones: Dict[int, Checkpoint] = {}
    for item in by_step.values():
        if keep_every_steps and item.step >= keep_every_steps:
            milestones.setdefault(item.step // keep_every_steps, item)
    kept = {item.path for item in [*newest, *milestones.values()]}
    deleted = []
    for item in found:
        torn_and_old = not item.good and not item.newer_format and bool(newest) and item.step < newest[0].step
        if item.name not in pinned and (torn_and_old or (item.good and item.path not in kept)):
            with contextlib.suppress(FileNotFoundError):  # another thread, tidying at the same time, had it
                delete(item)
                deleted.append(item.path)
    clear_leftovers(directory)
    return deleted


def delete(checkpoint: Checkpoint) -> None:
    """Delete one checkpoint, whatever it is: by renaming it first, so that it is never half there. Raises OSError."""
    trash = hidden_name(os.path.dirname(checkpoint.path), "trash")
    os.rename(checkpoint.path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def clear_leftovers(directory: str, alone: bool = False) -> None:
    """Remove what interrupted saves and deletions of processes that are gone have left. Raises OSError.

    alone: nobody else is writing here (the lock is held). A process id tells little: in containers many are 1.
    """
    for name in os.listdir(directory):
        match, path = _LEFTOVER.match(name), os.path.join(directory, name)
        if not match or path in open_drafts:
            continue
        if alone or int(match[1]) == os.getpid() or not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def pins(directory: str) -> Set[str]:
    """Names of the checkpoints that `prune` never deletes. In a file beside them: what is published never changes."""
    names = (read_json(os.path.join(directory, PINS)) or {}).get("pins")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def pin(directory: str, name: str, pinned: bool = True) -> None:
    """Let `prune` never delete the checkpoint of this name, or take that back. Raises OSError."""
    names = pins(directory) | {name} if pinned else pins(directory) - {name}
    write_json(os.path.join(directory, PINS), {"pins": sorted(names)})


def _alive(pid: int) -> bool:
    """Whether such a process exists (perhaps another one: then its leftovers wait for the next time)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
