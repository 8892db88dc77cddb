"""Where the reference jobs are: in the wheel inside the package, in a checkout at its top."""

from __future__ import annotations

from pathlib import Path

from gpusched.model.errors import NotFound

_PACKAGE = Path(__file__).resolve().parent.parent


def reference_job(name: str) -> Path:
    """The path of a reference job, for example `train_mlp.py`. Raises NotFound where the installation lacks it."""
    for folder in (_PACKAGE / "_jobs", _PACKAGE.parent / "jobs"):
        if (folder / name).is_file():
            return folder / name
    raise NotFound(f"the reference job {name} is missing from this installation", "install gpusched again")
