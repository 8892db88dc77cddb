"""What `gpusched limits` is told: every limit that is named, the caller's own, and those of whoever has jobs."""

from __future__ import annotations

from typing import Any

from builders import GIB, PEOPLE, World

from gpusched.daemon.verbs.limits import rows
from gpusched.model.limits import LimitRules, Limits
from gpusched.model.rules import Rules


def told(world: World, by: str = "ann") -> list[tuple[Any, ...]]:
    found = rows(world.engine.view, PEOPLE[by])
    return [(r["kind"], r["name"], r["user"], r["limit"], r["used"], r["most"], r["jobs"]) for r in found]


def test_a_machine_without_limits_has_no_rows():
    assert told(World(1)) == []


def test_what_is_used_is_told_for_the_caller_the_named_and_those_with_jobs():
    limits = LimitRules(
        user={"*": Limits(max_devices=2, max_jobs=9), "cyd": Limits(max_running=1)},
        qos={"high": Limits(max_devices=3, max_devices_per_user=1)},
    )
    world = World(4, rules=Rules(limits=limits))
    world.submit(shared=True, gpu_mem_mib=6 * GIB)
    world.submit(by="bob", qos="high")
    world.submit(by="bob", hold=True)
    assert told(world) == [
        ("qos", "high", None, "max_devices", 1.0, 3, ["2"]),
        ("qos", "high", "ann", "max_devices", 0.0, 1, []),
        ("qos", "high", "bob", "max_devices", 1.0, 1, ["2"]),
        ("user", "ann", None, "max_devices", 0.25, 2, ["1"]),
        ("user", "ann", None, "max_jobs", 1, 9, []),
        ("user", "bob", None, "max_devices", 1.0, 2, ["2"]),
        ("user", "bob", None, "max_jobs", 2, 9, []),
        ("user", "cyd", None, "max_running", 0, 1, []),
    ]
    sections = {r["name"]: r["section"] for r in rows(world.engine.view, PEOPLE["ann"])}
    assert sections == {"high": "limits.qos.high", "ann": 'limits.user."*"', "bob": 'limits.user."*"',
                        "cyd": "limits.user.cyd"}  # fmt: skip


def test_quotas_tell_what_is_used_and_who_is_over():
    world = World(3, rules=Rules(limits=LimitRules(quota={"vision": 1.0, "*": 2.0})))
    first, second = world.submit(account="vision"), world.submit(account="vision")
    by_name = {r["name"]: r for r in rows(world.engine.view, PEOPLE["bob"])}
    assert set(by_name) == {"vision", "bob"}
    vision = by_name["vision"]
    assert (vision["limit"], vision["used"], vision["most"]) == ("quota", 2.0, 1.0)
    assert (vision["jobs"], vision["over_quota"]) == ([str(first), str(second)], [str(second)])
    assert by_name["bob"]["section"] == 'quota.account."*"'


def test_a_limit_of_each_job_has_nothing_that_is_used():
    limits = LimitRules(group={"lab": Limits(max_job_devices=2, max_time=60.0)}, gids={1001: "lab"})
    assert told(World(1, rules=Rules(limits=limits))) == [
        ("group", "lab", None, "max_job_devices", None, 2, []),
        ("group", "lab", None, "max_time", None, 60.0, []),
    ]
