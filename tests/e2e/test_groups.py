"""Simulated devices in groups: a gang gets its devices in one, and people see which."""

from __future__ import annotations

import pytest
from daemons import a_daemon


@pytest.fixture
def grouped(tmp_path_factory, zygote):
    with a_daemon(tmp_path_factory.mktemp("groups") / "p", zygote, devices="sim:2x2x8G") as place:
        yield place


def test_a_gang_gets_its_devices_in_one_group_and_gpus_shows_them(grouped):
    single = grouped.sh("sleep 600")
    assert [device["index"] for device in grouped.running(single)["devices"]] == [0]
    gang = grouped.sh("sleep 600", gpus=2)
    assert [device["index"] for device in grouped.running(gang)["devices"]] == [2, 3]
    shown = [line.split() for line in grouped.cli("gpus").out.splitlines()]
    assert [line[3] for line in shown] == ["group:0", "group:0", "group:1", "group:1"]
    assert grouped.cli("gpus", "--format", "index,group", "--csv", "--noheader").out.splitlines()[3] == "3,group:1"
