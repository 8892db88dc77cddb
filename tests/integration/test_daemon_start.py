"""What a start of the daemon decides before it does anything: which devices, and how long things are kept."""

from __future__ import annotations

from pathlib import Path

from gpusched.daemon import app, retention
from gpusched.daemon.places import Places


def test_the_devices_of_the_last_start_are_remembered_until_others_are_named(tmp_path: Path) -> None:
    places = Places(tmp_path)
    assert app._remembered_devices(places, None, "nvml") == "nvml"
    assert app._remembered_devices(places, "sim:2x8G", "nvml") == "sim:2x8G"
    assert app._remembered_devices(places, None, "nvml") == "sim:2x8G"
    assert app._remembered_devices(places, "nvml", "sim:1x1G") == "nvml"
    assert app._remembered_devices(places, None, "sim:1x1G") == "nvml"


def test_zero_days_of_retention_keep_everything() -> None:
    assert retention.before(0, 1_000_000.0) == 0.0
    assert retention.before(1, 1_000_000.0) == 1_000_000.0 - 86_400
