"""The unit files are read by the real systemd-analyze."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("*.service"))


def test_there_is_a_unit_for_a_personal_daemon() -> None:
    assert "gpusched-user.service" in [unit.name for unit in UNITS]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert verified.returncode == 0 and str(unit.name) not in verified.stderr, verified.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_the_end_of_the_daemon_is_not_the_end_of_its_jobs(unit: Path) -> None:
    assert "KillMode=process" in unit.read_text().splitlines()
