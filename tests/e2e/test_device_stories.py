"""Who gets which device: shared memory, foreign use, devices that fail. Real processes on simulated devices."""

from __future__ import annotations

import json
import sys

from daemons import until
from device_processes import Processes


def devices(place) -> list[dict]:
    return place.client.devices()["devices"]


def set_faults(place, faults: dict) -> None:
    new = place.faults.with_suffix(".new")
    new.write_text(json.dumps(faults))
    new.rename(place.faults)


def test_sharing_jobs_are_packed_as_their_memory_allows(place):
    share = {"shared": True, "gpu_mem_mib": 3000}
    keys = [place.sh("sleep 600", **share) for _ in range(5)]
    placed = [place.running(key)["devices"][0] for key in keys[:4]]
    assert sorted(d["index"] for d in placed) == [0, 0, 1, 1]  # 2 x 3000 of 8192 each
    assert all(d["mem_mib"] == 3000 for d in placed)
    fifth = place.job(keys[4])
    assert (fifth["state"], fifth["reason"]) == ("PENDING", "Resources")
    small = place.sh("sleep 600", shared=True, gpu_mem_mib=2000)
    place.running(small)
    assert {d["state"] for d in devices(place)} == {"shared"}
    place.client.cancel([keys[0]])
    assert place.running(keys[4])["devices"][0]["index"] == placed[0]["index"]
    place.client.cancel([*keys[1:], small])
    for key in [*keys, small]:
        place.ended(key)


def test_a_device_that_somebody_else_uses_is_not_given_away(place):
    first = devices(place)[0]
    processes = Processes()
    try:
        foreign = processes.hold(first["uuid"], mib=600)
        until(lambda: devices(place)[0]["state"] == "foreign", lambda: devices(place)[0])
        assert devices(place)[0]["foreign"][0]["pid"] == foreign.pid
        jobs = [place.sh("sleep 600", gpus=1) for _ in range(2)]
        assert place.running(jobs[0])["devices"][0]["index"] == 1
        assert place.job(jobs[1])["state"] == "PENDING"
        place.client.cancel([jobs[0]])
        place.ended(jobs[0])
        until(lambda: place.state_of(jobs[1]) == "RUNNING", lambda: place.client.why(jobs[1]))
        gang = place.sh("true", gpus=2)
        place.client.cancel([jobs[1]])
        place.ended(jobs[1])
        assert place.job(gang)["reason"] == "ForeignUse", place.client.why(gang)
        processes.end(foreign)
        assert place.ended(gang)["state"] == "COMPLETED"  # noticed without anybody asking
    finally:
        processes.end_all()


def test_the_memory_of_a_job_is_shown_on_its_device_and_not_taken_for_foreign(place):
    code = "import time\nheld = b'x' * (700 << 20)\nprint('up', flush=True)\ntime.sleep(600)"
    key = place.submit(sys.executable, "-S", "-c", code)
    until(lambda: "up" in place.output(key), lambda: place.story(key))
    index = place.running(key)["devices"][0]["index"]
    until(lambda: devices(place)[index]["memory_used"] >= 700, lambda: devices(place)[index])
    device = devices(place)[index]
    assert device["state"] == "busy" and device["foreign"] == [] and device["jobs"][0]["job"] == key
    row = place.cli("gpus", "--query", "index,memory.used,job.id", "--format", "csv,noheader,nounits")
    shown = [line.split(", ") for line in row.out.splitlines()]
    assert int(shown[index][1]) >= 700 and shown[index][2] == key
    place.client.cancel([key])
    place.ended(key)


def test_the_job_of_a_device_that_is_lost_goes_on_elsewhere(place):
    key = place.sh("trap 'exit 85' TERM; sleep 600 & wait", gpus=1)
    index = place.running(key)["devices"][0]["index"]
    try:
        set_faults(place, {"devices": {str(index): {"lost": True}}})
        until(lambda: place.job(key)["attempt"] == 2, lambda: place.story(key))
        assert place.running(key)["devices"][0]["index"] == 1 - index
        broken = devices(place)[index]
        assert broken["state"] == "failed" and "lost" in broken["fault"]
        assert any("device-failed" in line for line in place.story(key))
        doctor = place.cli("doctor")
        assert f"device {index}" in doctor.out
        waits = place.sh("true", gpus=2)
        assert place.job(waits)["reason"] in ("Resources", "DeviceUnavailable")
        place.client.cancel([key])
        place.ended(key)
        assert place.state_of(waits) == "PENDING"
    finally:
        place.faults.unlink(missing_ok=True)
    assert place.ended(waits)["state"] == "COMPLETED"  # the device is back


def test_a_probe_that_fails_starts_nothing_and_harms_nobody(place):
    key = place.sh("sleep 600", gpus=1)
    place.running(key)
    try:
        set_faults(place, {"error": "the driver is being replaced"})
        until(lambda: place.client.devices()["error"], "the error of the probe")
        until(lambda: {d["state"] for d in devices(place)} <= {"stale", "busy"}, lambda: devices(place))
        waits = place.sh("true", gpus=1)
        job = place.job(waits)
        assert job["state"] == "PENDING" and "driver is being replaced" in json.dumps(place.client.devices())
        assert place.state_of(key) == "RUNNING"
        without = place.sh("true", gpus=0)
        assert place.ended(without)["state"] == "COMPLETED"
    finally:
        place.faults.unlink(missing_ok=True)
    assert place.ended(waits)["state"] == "COMPLETED"
    place.client.cancel([key])
    place.ended(key)


def test_a_probe_that_hangs_stops_neither_answers_nor_ends_nor_jobs_without_devices(place):
    gate = place.work / "gate-hang"
    key = place.sh(f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 6", gpus=2)
    place.running(key)
    try:
        set_faults(place, {"hang_ms": 60_000})
        gate.touch()
        assert place.ended(key)["exit_code"] == 6  # recorded, though nobody can say whether it has left its devices
        waits = place.sh("true", gpus=1)
        assert place.ended(place.sh("true", gpus=0))["state"] == "COMPLETED"
        assert place.state_of(waits) == "PENDING"
    finally:
        place.faults.unlink(missing_ok=True)
    assert place.ended(waits)["state"] == "COMPLETED"
