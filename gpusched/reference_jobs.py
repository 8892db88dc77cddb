"""Where the reference jobs are: in the wheel beside this file, in a checkout at its top."""

from __future__ import annotations

from pathlib import Path

from gpusched.model.errors import NotFound

_HERE = Path(__file__).resolve().parent


def reference_job(name: str) -> Path:
    """The path of a reference job, for example `train_mlp.py`. Raises NotFound where the installation lacks it."""
    for folder in (_HERE / "_jobs", _HERE.parent / "jobs"):
        if (folder / name).is_file():
            return folder / name
    raise NotFound(f"the reference job {name} is missing from this installation", "install gpusched again")
