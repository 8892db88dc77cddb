"""The set-up of a fresh clone: which Python, uv or pip, and no gigabytes by surprise. With a Python that pretends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU = ["aiohttp==3.0", "torch==2.13.0+cpu"]
CUDA = [*CPU[:1], "torch==2.13.0", "nvidia-cublas==13.1.1.3"]

PRETENDER = """#!/bin/sh
# Stands in for the Python of a virtual environment and writes down what it was asked to install, and with what.
case "$*" in
    "-c "*) exit 0 ;;
    "-m uv --version") [ "$HAS_UV" = 1 ] ;;
    *"pip config get global.find-links") echo "/wheels /more wheels" ;;
    *"pip config get"*) exit 1 ;;
    *"-version-check uv") exit 1 ;;
    *--dry-run*--torch-backend*) for name in $CPU_PLAN; do echo " + $name"; done ;;
    *"uv pip"*--dry-run*) for name in $PLAN; do echo " + $name"; done ;;
    *--dry-run*) echo "Would install $(echo $PLAN | sed 's/==/-/g')" ;;
    *) echo "$* LINKS=${UV_FIND_LINKS:-}" >> "$LOG" ;;
esac
"""


class Clone:
    """A folder with the files of the set-up, and a virtual environment that pretends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".ci").mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "install", folder / ".ci" / "install")
        (folder / "v" / "bin").mkdir(parents=True)
        (folder / "v" / "pyvenv.cfg").touch()
        python = folder / "v" / "bin" / "python"
        python.write_text(PRETENDER)
        python.chmod(0o755)

    def install(self, plan: list[str], cpu_plan: list[str] | None = None, **env: str) -> tuple[int, str, list[str]]:
        """Exit code, what was said, and what was installed."""
        log = self.folder / "log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
        given = {"HAS_UV": "1", "NVIDIA_DEVICE": "/nowhere", "LOG": str(log), **env}
        plans = {"PLAN": " ".join(plan), "CPU_PLAN": " ".join(cpu_plan or [])}
        done = self.run("v", **{**clean, **plans, **given})
        return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []

    def run(self, venv: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", ".ci/install", venv, "torch"]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def test_it_installs_with_uv_handing_pips_find_links_on_and_says_how_much(clone: Clone) -> None:
    code, said, installed = clone.install(CPU)
    assert code == 0
    assert "installing 2 packages with uv: about 260 MB to download" in said
    assert len(installed) == 1
    assert "-m uv pip install" in installed[0]
    assert "-c constraints.txt -q -e .[torch]" in installed[0]
    assert "LINKS=/wheels,/more,wheels" in installed[0]


def test_without_uv_pip_does_it(clone: Clone) -> None:
    code, said, installed = clone.install(CPU, HAS_UV="0")
    assert code == 0
    assert "uv cannot be had here" in said
    assert "installing 2 packages with pip" in said
    assert installed[-1].startswith("-m pip install")


@pytest.mark.parametrize("has_uv", ["0", "1"])
def test_cuda_libraries_are_not_fetched_onto_a_machine_without_a_driver(clone: Clone, has_uv: str) -> None:
    code, said, installed = clone.install(CUDA, HAS_UV=has_uv)
    assert code != 0
    assert "several GB of CUDA libraries" in said
    assert "make ... CUDA=1" in said
    assert not installed


def test_the_cpu_build_of_torch_is_taken_where_it_can_be_had(clone: Clone) -> None:
    code, said, installed = clone.install(CUDA, CPU)
    assert code == 0
    assert "taking the CPU build of torch" in said
    assert "--torch-backend cpu" in installed[0]


@pytest.mark.parametrize("env", [{"CUDA": "1"}, {"NVIDIA_DEVICE": "/dev/null"}])
def test_with_a_driver_or_on_request_cuda_comes_and_is_announced(clone: Clone, env: dict[str, str]) -> None:
    code, said, installed = clone.install(CUDA, **env)
    assert code == 0
    assert "installing 3 packages with uv: about 3 GB" in said
    assert "--torch-backend" not in installed[0]


def test_nothing_is_announced_when_everything_is_there(clone: Clone) -> None:
    code, said, installed = clone.install([])
    assert (code, said, len(installed)) == (0, "", 1)


def tools(folder: Path, **scripts: str) -> str:
    """A PATH with a few ordinary tools, and these scripts."""
    folder.mkdir()
    for tool in ("sed", "rm", "tr", "grep", "xargs"):
        (folder / tool).symlink_to(shutil.which(tool) or "")
    for name, text in scripts.items():
        (folder / name.replace("_", ".")).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name.replace("_", ".")).chmod(0o755)
    return str(folder)


def test_without_a_python_it_says_what_to_install(clone: Clone, tmp_path: Path) -> None:
    done = clone.run("new", PATH=tools(tmp_path / "bin", python3="exit 1"))
    assert done.returncode != 0
    assert "gpusched needs Python 3.11 or newer" in done.stderr
    assert "apt-get install python3.11 python3.11-venv" in done.stderr


def test_any_name_of_a_good_python_will_do_and_a_missing_venv_module_is_named(clone: Clone, tmp_path: Path) -> None:
    too_old, no_venv = "exit 1", 'case "$*" in *print*) echo 3.12 ;; *venv*) exit 1 ;; esac'
    done = clone.run("new", PATH=tools(tmp_path / "bin", python3_11=too_old, python3=no_venv))
    assert done.returncode != 0
    assert "making new with python3" in done.stderr
    assert "apt-get install python3.12-venv" in done.stderr
    assert not (clone.folder / "new").exists()


def test_a_folder_that_is_no_virtual_environment_is_not_replaced(clone: Clone, tmp_path: Path) -> None:
    (clone.folder / "mine").mkdir()
    done = clone.run("mine", PATH=tools(tmp_path / "bin", python3="exit 0"))
    assert done.returncode != 0
    assert "is no virtual environment" in done.stderr
    assert (clone.folder / "mine").exists()


def test_the_pins_name_torch_without_a_local_build() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==[0-9.]+$", pins, re.MULTILINE)
    assert "file://" not in pins
    assert "nvidia-cublas==" in pins  # for machines with GPUs


def test_continuous_integration_does_what_people_do() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["make check", "make test"]
    assert "set -euo pipefail" in lines
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_help_lists_every_target() -> None:
    told = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    assert [line.split()[1] for line in told.splitlines()] == targets[1].split()
