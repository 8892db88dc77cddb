"""gpusched limits: the table, the filters and JSON from what the daemon answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_daemon import FakeDaemon, gpusched


def row(name: str, limit: str, used: float | None, most: float, **facts: Any) -> dict[str, Any]:
    kind = facts.pop("kind", "user")
    return {
        "kind": kind, "name": name, "user": None, "limit": limit, "used": used, "most": most, "jobs": [],
        "over_quota": [], "section": f"limits.{kind}.{name}", **facts,
    }  # fmt: skip


ROWS = [
    row("ann", "max_devices", 2.25, 4, jobs=["3", "4_1"]),
    row("ann", "max_time", None, 7200.0),
    row("high", "max_running", 1, 1, kind="qos", user="bob", jobs=["7"]),
    row("vision", "quota", 3, 2, kind="account", jobs=[str(n) for n in range(10, 22)], over_quota=["12"]),
]


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    with FakeDaemon(str(tmp_path / "s")) as server:
        server.answers["GET", "/v1/limits"] = lambda asked: {"limits": ROWS}
        yield server


def test_a_row_says_whose_limit_what_is_used_and_by_whom(daemon):
    assert [line.split(None, 7) for line in gpusched("limits").out.splitlines()] == [
        ["WHO", "LIMIT", "USED", "MOST", "JOBS"],
        ["user", "ann", "max_devices", "2.25", "4", "3,", "4_1"],
        ["user", "ann", "max_time", "-", "2:00:00", "-"],
        ["bob", "in", "QoS", "high", "max_running", "1", "1", "7"],
        ["account", "vision", "quota", "3", "2", "10,", "11,", "12*, 13, 14, 15, 16, 17, and 4 more"],
    ]


def test_names_pick_rows_of_a_user_account_or_level(daemon):
    assert [r["limit"] for r in json.loads(gpusched("limits", "ann", "--json").out)["limits"]] == [
        "max_devices", "max_time"
    ]  # fmt: skip
    found = json.loads(gpusched("limits", "bob", "vision", "--json").out)["limits"]
    assert found == ROWS[2:]


def test_csv_and_format_have_the_plain_values(daemon):
    said = gpusched("limits", "--csv", "--format", "who,used,most,over_quota", "--sort", "-used").out.splitlines()
    assert said == ["who,used,most,over_quota", 'account vision,3,2,"[""12""]"', "user ann,2.25,4,[]",
                    "bob in QoS high,1,1,[]", "user ann,,7200.0,[]"]  # fmt: skip
    assert "over_quota" in gpusched("limits", "--help-format").out.split()
    assert gpusched("limits", "--format", "nonsense").code == 2


def test_without_limits_it_says_who_could_set_some(daemon):
    daemon.answers["GET", "/v1/limits"] = lambda asked: {"limits": []}
    result = gpusched("limits")
    assert (result.code, result.out.splitlines()[1:]) == (0, [])
    assert result.err.startswith("no limits are set (an administrator sets them")
    assert "no limits for nobody" in gpusched("limits", "nobody").err
