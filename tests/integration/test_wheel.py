"""What people install: the wheel has all that runs, and alone it is the training library on an old Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    return next(folder.glob("gpusched-*.whl"))


def _python39() -> str | None:
    found = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))]
    return next((python for python in found if python and _runs(python)), None)


def _runs(python: str) -> bool:
    """A pyenv shim is on the PATH even where its version is not installed."""
    return subprocess.run([python, "-c", ""], capture_output=True, timeout=30).returncode == 0


def test_the_wheel_carries_the_demos_training_script_and_the_sql(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("gpusched/_jobs/train_mlp.py", "gpusched/store/schema.sql", "gpusched/store/queries.sql"):
        assert needed in names
    assert any(name.startswith("gpusched/store/migrations/") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = [p for p in (ROOT / "gpusched").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert not [str(p) for p in kept if str(p.relative_to(ROOT)) not in names]


def test_every_reference_job_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.rpartition("/")[2] for name in names if name.startswith("gpusched/_jobs/")}
    assert shipped == {path.name for path in (ROOT / "jobs").iterdir() if path.is_file()}


@pytest.mark.skipif(_python39() is None, reason="there is no Python 3.9 here")
def test_alone_it_is_the_training_library_of_an_old_python(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(_python39()), "-m", "venv", str(tmp_path / "venv")], check=True, timeout=100)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=100)
    program = "import gpusched.rundir, gpusched.checkpoint.disk.files; from gpusched.checkpoint import Run; Run()"
    subprocess.run([str(python), "-c", program], check=True, cwd=tmp_path, timeout=60)
    command = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "gpusched"), "queue"], capture_output=True, text=True, timeout=60
    )
    assert command.returncode == 1
    assert "need Python 3.11" in command.stderr and "Traceback" not in command.stderr
