"""The training-side library and the reference jobs run where the daemon does not: Python 3.9, standard library only."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = [ROOT / "gpusched/__init__.py", ROOT / "gpusched/rundir.py"]
OURS = LEAVES + sorted((ROOT / "gpusched/checkpoint").glob("*.py"))
IN_ROOMS = sorted((ROOT / "gpusched/checkpoint").glob("*/*.py"))  # test_import_rules.py says what those may import
JOBS = sorted((ROOT / "jobs").glob("*.py"))
SCRIPT = """
import sys
from gpusched.checkpoint import Run, list_checkpoints
from gpusched.checkpoint.disk.files import examine
import gpusched.rundir
stop = len(sys.argv) > 2
run = Run(directory=sys.argv[1], every_steps=2)
seen = run.values.setdefault("seen", [])
import random
random.seed(4)
for epoch in run.epochs(2):
    for number in run.batches(range(4)):
        seen.append([number, random.random()])
        run.step(loss=number)
        if stop and run.steps == 6:
            sys.exit(9)
print(sum(value for _, value in seen), len(list_checkpoints(sys.argv[1], checksums=True)))
"""


@pytest.mark.parametrize("path", OURS + IN_ROOMS + JOBS, ids=lambda path: path.name)
def test_the_grammar_is_that_of_python_39(path):
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_nothing_of_gpusched_but_rundir_is_imported_and_torch_only_lazily(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("gpusched"):
                assert name.startswith(("gpusched.rundir", "gpusched.checkpoint"))
            elif node in tree.body and path.name != "keyed.py":  # which is itself imported lazily
                assert name.split(".")[0] in sys.stdlib_module_names


def python39():
    """A Python 3.9 of this machine, if there is one."""
    candidates = [shutil.which("python3.9"), *sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python"))]
    for candidate in filter(None, candidates):
        version = subprocess.run([str(candidate), "-c", "import sys; print(sys.version_info[:2])"], capture_output=True)
        if version.stdout.strip() == b"(3, 9)":
            return str(candidate)
    return None


@pytest.mark.skipif(python39() is None, reason="there is no Python 3.9 on this machine")
def test_a_run_is_stopped_and_resumed_under_python_39_without_any_package(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*arguments):
        command = [python39(), "-W", "error", "train.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    straight = run("straight")
    assert straight.returncode == 0, straight.stderr
    assert run("stopped", "stop").returncode == 9
    resumed = run("stopped")
    assert "resumed from step-6" in resumed.stderr
    assert resumed.stdout.split()[0] == straight.stdout.split()[0]
