"""`gpusched simulate --from-history` on the past of a real daemon, as it tells of it."""

from __future__ import annotations

import json
from typing import Any

from daemons import Place


def test_what_the_daemon_ran_can_be_simulated_with_other_policies(own: Place) -> None:
    nothing = own.cli("simulate", "--from-history")
    assert nothing.code == 1 and "no job that used a device has ended in this time" in nothing.err
    first, second = own.work / "first", own.work / "second"
    keys = [own.sh(f"while [ ! -e {first} ]; do sleep 0.02; done", gpus=gpus, name="train") for gpus in (1, 1, 0)]
    keys.append(own.sh(f"while [ ! -e {second} ]; do sleep 0.02; done", gpus=2, name="train"))
    for key in keys[:3]:
        own.running(key)
    first.touch()
    own.running(keys[3])
    second.touch()
    for key in keys:
        own.ended(key)
    result = own.cli("simulate", "--from-history", "--since", "1d", "--policy", "fifo,las", "--json")
    assert result.code == 0, result.err
    assert "1 job without a GPU left out" in result.err
    told = json.loads(result.out)
    rows: dict[str, dict[str, Any]] = {row["policy"]: row for row in told["policies"]}
    assert list(rows) == ["as it was", "fifo", "las"]
    assert {(row["jobs"], row["unfinished"]) for row in rows.values()} == {(3, 0)}
    assert told["devices"]["per_node"] == 2
    ran = sum(own.job(key)["ran"] for key in (*keys[:2], keys[3]))
    was = rows["as it was"]
    assert ran > 0 and was["mean_completion_s"] * 3 >= ran - 1e-6
    assert was["mean_wait_s"] >= was["mean_first_wait_s"] - 1e-6
    assert rows["fifo"]["mean_completion_s"] <= was["mean_completion_s"] + ran
