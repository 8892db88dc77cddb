"""Limits and quotas with the real daemon: refused, waiting, explained, and a configuration that changes."""

from __future__ import annotations

import json

import pytest
from daemons import Place, a_daemon, until

LIMITED = '[limits.user."*"]\nmax_devices = 1\nmax_jobs = 3\nmax_time = "2:00:00"\n'


@pytest.fixture
def limited(tmp_path, zygote):
    with a_daemon(tmp_path / "p", zygote, config=LIMITED) as place:
        yield place


def reason(place: Place, key: str) -> str:
    return str(place.client.why(key)["reason"])


def test_a_limited_job_waits_says_why_and_starts_when_its_turn_has_come(limited):
    first = limited.submit("sleep", "60")
    limited.running(first)
    second = limited.submit("true")
    assert reason(limited, second) == "AssocGrpGRES"
    told = limited.cli("why", second)
    assert "uses 1 of at most 1 device" in told.out and "an administrator raises max_devices" in told.out
    (devices, *_) = json.loads(limited.cli("limits", "--me", "--json").out)["limits"]
    assert (devices["limit"], devices["used"], devices["most"], devices["jobs"]) == ("max_devices", 1.0, 1.0, [first])
    limited.client.cancel([first])
    assert limited.ended(second)["state"] == "COMPLETED"


def test_what_can_never_run_or_is_too_much_is_refused_with_the_limits_name(limited):
    refused = limited.cli("submit", "-g", "2", "--", "true")
    assert refused.code == 2
    assert "may use at most 1 at once (max_devices)" in refused.err
    assert limited.cli("submit", "--time", "3:00:00", "--", "true").code == 2
    many = limited.cli("submit", "--array", "0-3", "--gpus", "0", "--", "true")
    assert many.code == 1
    assert "has 0 of at most 3 waiting and running jobs (max_jobs), and this array has 4 elements" in many.err
    key = limited.submit("true")
    assert limited.ended(key)["time_limit"] == 7200.0


def test_a_new_configuration_ends_nothing_and_lets_nothing_more_start(limited):
    key = limited.submit("sleep", "60")
    waits = limited.submit("true", gpus=0)
    limited.running(key)
    limited.ended(waits)
    limited.stop()
    limited.config.write_text(limited.config.read_text().replace("max_devices = 1", "max_devices = 0.5"))
    limited.start()
    assert limited.state_of(key) == "RUNNING"
    shared = limited.submit("true", shared=True, gpu_mem_mib=1024)
    assert reason(limited, shared) == "AssocGrpGRES"
    limited.client.cancel([key])
    until(lambda: limited.state_of(shared) == "COMPLETED")


def test_a_mistake_in_the_limits_keeps_the_daemon_from_starting_with_its_line(own):
    own.stop()
    own.config.write_text('sample_interval = 0.2\n[limits.user.ann]\nmax_device = 1\n')
    failed = own.cli("daemon", "run", "--state-dir", str(own.state), "--config", str(own.config))
    assert failed.code != 0
    assert f"{own.config}:3: unknown setting 'limits.user.ann.max_device'; did you mean 'max_devices'?" in failed.err
    own.config.write_text("sample_interval = 0.2\n")
    own.start()
