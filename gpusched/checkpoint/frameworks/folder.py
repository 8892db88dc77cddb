"""Checkpoint directories of the adapters: a framework's own file with our state and a manifest around it.

Must not import any framework. The framework's file is handed out only when its checksum fits the manifest.
"""

import os
from typing import Any, Callable, Dict, List, Optional

from gpusched.checkpoint.disk import contents, files
from gpusched.checkpoint.errors import CheckpointError

Tell = Callable[[str], None]


def newest(directory: str, file: str, tell: Tell) -> Optional[files.Checkpoint]:
    """The newest good checkpoint that holds `file`; None if there is no checkpoint at all.

    Torn ones are skipped with a sentence. Raises CheckpointError if there are checkpoints and none can be used.
    """
    skipped: List[str] = []
    try:
        for found in files.newest_good(directory):
            if found.newer_format:
                raise CheckpointError("%s cannot be read: %s." % (found.path, found.problem), "Update gpusched here.")
            problem = found.problem
            if not problem and file not in found.manifest["files"]:
                who = found.manifest.get("framework", "gpusched.checkpoint.Run")
                problem = "it was written by %s and has no %s" % (who, file)
            if not problem:
                return found
            skipped.append(found.name)
            tell("skipping checkpoint %s: %s" % (found.name, problem))
    except OSError as error:
        raise CheckpointError(
            "The checkpoint directory %s cannot be read (%s)." % (directory, error.strerror),
            "Check its permissions, or choose another directory.",
        ) from None
    if skipped:
        raise CheckpointError(
            "None of the %d checkpoint(s) in %s can be used." % (len(skipped), directory),
            "Move that directory away to start from zero, or restore it from a backup.",
        )
    return None


def publish(
    directory: str, framework: str, write: Callable[[str], None], tree: Dict[str, Any], about: Dict[str, Any]
) -> files.Checkpoint:
    """One checkpoint: `write(folder)` puts the framework's file in place. Durable when this returns.

    tree: "shared" (with the position) and "own", as in every checkpoint. Raises OSError, CheckpointError.
    """

    def everything(folder: str) -> None:
        write(folder)
        odd = [name for name in os.listdir(folder) if not os.path.isfile(os.path.join(folder, name))]
        if odd:
            raise CheckpointError(
                "%s wrote a directory (%s) instead of a file." % (framework, odd[0]),
                "Sharded strategies are not supported here: write the loop with gpusched.checkpoint.Run.",
            )
        contents.write_shared(folder, tree)
        contents.write_own(folder, 0, tree)

    position = tree["shared"]["position"]
    about = dict(about, framework=framework, epoch=position["epoch"], batch=position["batch"])
    return files.publish(directory, position["steps"], everything, about)


def read(path: str) -> Dict[str, Any]:
    """Our own state in a checkpoint that was found good."""
    return contents.read(path)[0]


def check_readable(path: str, tell: Tell) -> None:
    """Say it at the first save, not at the first resume, if torch's safe loader refuses the framework's file."""
    import torch

    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        tell(
            "%s holds objects that torch's safe loader refuses: a resume needs trainer.fit(..., weights_only=False), "
            "or hyperparameters and callback states of plain values (%s)" % (os.path.basename(path), why)
        )
