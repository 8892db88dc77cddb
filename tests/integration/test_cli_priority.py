"""priority and shares: tables, sentences, CSV and JSON from what the daemon answers."""

import json

import pytest
from fake_daemon import FakeDaemon, gpusched


def factor(value, weight, **more):
    return {"value": value, "weight": weight, "points": value * weight, **more}


def a_row(key, place=1, **facts):
    head, _, index = key.partition("_")
    return {
        "job": key, "id": int(head), "array_id": int(head) if index else None,
        "array_index": int(index) if index else None, "name": "train", "user": "alice", "account": "vision",
        "partition": "default", "gpus": 4, "position": place, "overdue": False, "qos": "normal", "level": 100,
        "priority": 1178.25, "age": factor(0.5, 1000.0), "fair_share": factor(0.314, 2000.0, share=0.25, part=0.4175),
        "size": factor(0.5, 100.0), "nice": factor(-0.0, 1.0), **facts,
    }  # fmt: skip


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    with FakeDaemon(str(tmp_path / "s")) as server:
        yield server


def answer(daemon, *rows, policy="backfill"):
    told = {"policy": policy, "by_priority": policy == "backfill", "age_days": 7.0, "waiting": len(rows)}
    daemon.answers["GET", "/v1/priorities"] = lambda asked: {**told, "jobs": list(rows)}


def test_elements_of_an_array_that_stand_alike_are_one_row(daemon):
    answer(daemon, a_row("7_0"), a_row("7_1", 2), a_row("7_2", 3), a_row("9", 4, priority=1.0))
    lines = [line.split() for line in gpusched("priority").out.splitlines()]
    assert [line[:2] for line in lines[1:]] == [["1", "7_[0-2]"], ["4", "9"]]
    assert lines[1][6:] == ["1178.2", "500.0", "628.0", "50.0", "0.0"]


def test_named_jobs_are_told_in_sentences(daemon):
    later = a_row("43", None, size=factor(0.0, 0.0), age=factor(0.0, 1000.0), overdue=True, gpus=0)
    answer(daemon, a_row("42", 3, nice=factor(-50.0, 1.0)), later)
    result = gpusched("priority", "42", "43")
    assert result.out.splitlines() == [
        "job 42  train  alice  is number 3 of 2 that wait for devices, in QoS normal (level 100)",
        "  age           500.0  it has waited 3-12:00:00; 1000 points for every 7 days",
        "  fair share    628.0  account vision has used 41.8% of everything lately and has 25.0% of the shares: "
        "0.314 of 2000 points",
        "  size           50.0  4 devices, 50.0% of partition default, for all of which there are 100 points",
        "  nice          -50.0  --nice 50, 1 point for each step",
        "  priority     1178.2",
        "",
        "job 43  train  alice  is not among those that wait for devices, in QoS normal (level 100)",
        "  it has waited so long that it goes before the others of its level, whatever the numbers say",
        "  age             0.0  it waits for something else than devices; 1000 points for every 7 days",
        "  fair share    628.0  account vision has used 41.8% of everything lately and has 25.0% of the shares: "
        "0.314 of 2000 points",
        "  size            0.0  it needs no device",
        "  nice            0.0  no --nice",
        "  priority     1178.2",
    ]
    assert daemon.asked[-1].query == {"jobs": "42,43"}


def test_a_policy_that_goes_by_something_else_is_named(daemon):
    answer(daemon, a_row("42"), policy="las")
    result = gpusched("priority")
    assert result.err == "gpusched: the policy here is 'las', which does not go by these numbers\n"
    assert json.loads(gpusched("priority", "--json").out)["policy"] == "las"
    assert gpusched("priority", "--csv").err == ""


def test_fields_csv_and_json_hold_the_bare_numbers(daemon):
    answer(daemon, a_row("42"))
    assert gpusched("priority", "--csv", "--format", "job,priority,fair_share,factor").out.splitlines() == [
        "job,priority,fair_share,factor", "42,1178.25,628.0,0.314",
    ]  # fmt: skip
    picked = json.loads(gpusched("priority", "--json", "--format", "job,size").out)
    assert picked == {"jobs": [{"job": "42", "size": 50.0}]}
    assert "fair_share" in gpusched("priority", "--help-format").out
    assert "unknown field 'prio'" in gpusched("priority", "--format", "prio").err


def test_shares_are_listed_with_who_used_the_most_first(daemon):
    accounts = [
        {"account": "ann", "shares": 1.0, "share": 0.25, "device_seconds": 360.0, "part": 0.1, "factor": 0.758,
         "running": 0, "waiting": 2},
        {"account": "vision", "shares": 3.0, "share": 0.75, "device_seconds": 3240.0, "part": 0.9, "factor": 0.435,
         "running": 1, "waiting": 0},
    ]  # fmt: skip
    told = {"policy": "backfill", "by_priority": True, "half_life_days": 7.0, "damping": 1.0, "accounts": accounts}
    daemon.answers["GET", "/v1/shares"] = lambda asked: told
    assert [line.split() for line in gpusched("shares").out.splitlines()[1:]] == [
        ["vision", "3", "75.0%", "0.90", "90.0%", "0.435", "1", "0"],
        ["ann", "1", "25.0%", "0.10", "10.0%", "0.758", "0", "2"],
    ]
    assert json.loads(gpusched("shares", "--json").out) == told
    assert gpusched("shares", "--csv", "--format", "account,gpu_hours", "--sort", "account").out.splitlines() == [
        "account,gpu_hours", "ann,0.1", "vision,0.9",
    ]  # fmt: skip
