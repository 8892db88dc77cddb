"""Priority and fair share with the real daemon: who goes first, what the commands tell, and what a restart keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from daemons import Place, Zygote, a_daemon

CONFIG = """
[policy.weights]
fair_share = 500
[policy.fair_share]
entry = "1h"
[policy.fair_share.shares]
vision = 3
"""


@pytest.fixture
def busy(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[Place]:
    """One device, which a job of account vision has."""
    with a_daemon(tmp_path_factory.mktemp("priority") / "p", zygote, devices="sim:1x8G", config=CONFIG) as place:
        place.running(place.sh("sleep 600", account="vision"))
        yield place


def test_the_waiting_jobs_are_shown_in_their_order_with_every_factor(busy: Place) -> None:
    nice, plain, vision, cpu = (
        busy.cli("submit", "--parsable", "-J", name, *options, "--", "true").out.strip()
        for name, options in (
            ("nice", ["--nice", "700", "--expect", "2h"]),
            ("plain", []),
            ("vision", ["-A", "vision"]),
            ("later", ["-H", "--nice=-10"]),
        )
    )
    answer = json.loads(busy.cli("priority", "--json").out)
    assert (answer["policy"], answer["by_priority"], answer["waiting"]) == ("backfill", True, 3)
    assert [row["job"] for row in answer["jobs"]] == [plain, vision, nice, cpu]
    assert [row["position"] for row in answer["jobs"]] == [1, 2, 3, None]
    rows = {row["job"]: row for row in answer["jobs"]}
    assert [rows[key]["fair_share"]["value"] for key in (plain, nice)] == [1.0, 1.0]
    fair = rows[vision]["fair_share"]
    assert (fair["part"], fair["share"], fair["weight"]) == (1.0, 0.75, 500)
    assert fair["points"] == pytest.approx(500 * 2 ** (-1 / 0.75))
    assert (rows[nice]["nice"]["points"], rows[cpu]["nice"]["points"]) == (-700, 10)
    for row in answer["jobs"]:
        points = [row[name]["points"] for name in ("age", "fair_share", "size", "nice")]
        assert row["priority"] == pytest.approx(sum(points))
    table = busy.cli("priority").out.splitlines()
    assert table[0].split() == [
        "PLACE", "JOBID", "USER", "ACCOUNT", "QOS", "LEVEL", "PRIORITY", "AGE", "FAIR_SHARE", "SIZE", "NICE",
    ]  # fmt: skip
    assert [line.split()[1] for line in table[1:]] == [plain, vision, nice, cpu]
    told = busy.cli("priority", vision, nice)
    assert told.code == 0
    assert "is number 2 of 3 that wait for devices, in QoS normal (level 100)" in told.out
    assert "account vision has used 100.0% of everything lately and has 75.0% of the shares" in told.out
    assert "--nice 700, 1 point for each step" in told.out
    assert "100.0% of partition default; size does not count here" in told.out
    shown = busy.cli("show", nice).out
    assert "expected     2:00:00" in shown and "nice         700" in shown and "+ nice -700.0" in shown
    job = busy.job(nice)
    assert (job["expected"], job["nice"], job["factors"]["nice"]["points"]) == (7200.0, 700, -700)
    listed = busy.cli("queue", "--format", "job,nice,expected,priority", "--csv").out
    assert f"{nice},700,7200.0," in listed
    assert busy.cli("update", nice, "--nice", "0", "--expect", "0").code == 0
    assert [row["job"] for row in busy.client.priorities()["jobs"]] == [nice, plain, vision, cpu]
    assert busy.job(nice)["expected"] is None


def test_what_is_not_waiting_has_no_priority_and_an_unknown_job_is_told(busy: Place) -> None:
    running = busy.client.jobs(states=["RUNNING"])[0]["job"]
    assert busy.job(running)["priority"] is None and "factors" not in busy.job(running)
    told = busy.cli("priority", running)
    assert (told.code, told.out) == (1, "")
    assert f"job {running} is RUNNING: only waiting jobs have a priority" in told.err
    told = busy.cli("priority", "4711")
    assert told.code == 3 and "there is no job 4711" in told.err
    for words in (["--nice", "10001"], ["--nice", "much"], ["--expect", "soon"]):
        assert busy.cli("submit", *words, "--", "true").code == 2


def test_a_directive_in_a_script_gives_nice_and_expected_time_as_well(busy: Place) -> None:
    script = busy.work / "job.sh"
    script.write_text("#!/bin/sh\n#GPUSCHED --nice 5 --expect 3h -A lab\ntrue\n")
    job = busy.job(busy.cli("submit", "--parsable", str(script)).out.strip())
    assert (job["nice"], job["expected"], job["account"]) == (5, 10800.0, "lab")
    script.write_text("#!/bin/sh\n#SBATCH --nice=7\ntrue\n")
    job = busy.job(busy.cli("submit", "--parsable", str(script)).out.strip())
    assert job["nice"] == 7


def test_a_restart_keeps_what_accounts_have_used_and_goes_on_charging(busy: Place) -> None:
    short = busy.sh("true", gpus=0, account="cpu-only")
    busy.ended(short)
    first = busy.client.jobs(states=["RUNNING"])[0]["job"]
    second = busy.sh("sleep 600", account="lab")
    busy.client.cancel([first])
    busy.ended(first)
    busy.running(second)
    before = {row["account"]: row for row in busy.client.shares()["accounts"]}
    assert before["vision"]["shares"] == 3 and before["lab"]["running"] == 1
    assert before["vision"]["device_seconds"] > 0
    busy.restart()
    after = {row["account"]: row for row in busy.client.shares()["accounts"]}
    assert after["vision"]["device_seconds"] == pytest.approx(before["vision"]["device_seconds"], rel=1e-3)
    assert after["lab"]["device_seconds"] == pytest.approx(3600.0, rel=1e-2)  # the charge of its start
    assert after["lab"]["running"] == 1
    table = [line.split() for line in busy.cli("shares").out.splitlines()]
    assert table[0] == ["ACCOUNT", "SHARES", "SHARE", "GPU_HOURS", "USED", "FACTOR", "RUNNING", "WAITING"]
    assert table[1][:2] == ["lab", "1"]
    busy.client.cancel([second])
    busy.ended(second)
    used = {row["account"]: row["device_seconds"] for row in busy.client.shares()["accounts"]}
    assert used["lab"] < 600  # what it really ran, in place of the charge
