"""What a person is told when safe points are too rare."""

import time

import pytest

from gpusched import rundir
from gpusched.checkpoint import Run
from gpusched.checkpoint.mailbox import Request
from gpusched.checkpoint.watchdog import Watchdog


class Scene:
    def __init__(self, monkeypatch, grace="60"):
        monkeypatch.setenv("GPUSCHED_GRACE_SECONDS", grace)
        self.request, self.told, self.collected = None, [], 0
        self.dog = Watchdog(lambda: self.request, self.told.append, lambda: "epoch 1, batch 7", self.collect)
        self.now = time.monotonic()
        self.dog.seen(self.now)

    def collect(self):
        self.collected += 1

    def after(self, seconds):
        self.dog.look(self.now + seconds)
        return self.told


def test_a_gap_longer_than_the_grace_period_is_told_once_before_anybody_asks(monkeypatch):
    scene = Scene(monkeypatch)
    assert scene.after(59) == []
    told = scene.after(61)
    assert len(told) == 1 and "no safe point for 61 s (epoch 1, batch 7)" in told[0] and "run.check()" in told[0]
    assert len(scene.after(120)) == 1


def test_an_unanswered_request_is_told_with_the_time_that_is_left(monkeypatch):
    scene = Scene(monkeypatch)
    scene.request = Request(True, "preempted by job 2", 1, until=scene.now + 60)
    assert scene.after(4) == []
    told = scene.after(6)
    assert len(told) == 1 and "asked to stop" in told[0] and "ends this process in 54 s" in told[0]
    assert len(scene.after(30)) == 1
    scene.request = Request(True, "again", 2, until=scene.now + 60)
    assert len(scene.after(31)) == 2


def test_a_loop_that_comes_by_hears_nothing(monkeypatch):
    scene = Scene(monkeypatch)
    scene.request = Request(True, "x", 1, until=scene.now + 60)
    scene.dog.seen(scene.now + 10)
    assert scene.after(11) == []


@pytest.mark.parametrize("grace", ["", "soon"])
def test_without_a_known_grace_period_only_requests_are_watched(monkeypatch, grace):
    assert Scene(monkeypatch, grace).after(10_000) == []


def test_its_thread_collects_what_was_written_behind_and_ends(monkeypatch):
    scene = Scene(monkeypatch)
    scene.dog.start()
    thread = scene.dog._thread
    deadline = time.monotonic() + 60
    while not scene.collected and time.monotonic() < deadline:
        time.sleep(0.01)
    scene.dog.stop()
    thread.join(60)
    assert scene.collected and not thread.is_alive()


def test_a_run_that_never_comes_by_a_safe_point_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv(rundir.ENV_JOB_DIR, str(tmp_path))
    run = Run(directory=tmp_path / "checkpoints", every_seconds=None)
    for _ in run.epochs(1):
        for _ in run.batches(range(1)):
            rundir.write_json(str(tmp_path / "request"), {"ask": "stop", "seq": 1, "seconds_left": 4}, durable=False)
            deadline = time.monotonic() + 60
            while not run.report and time.monotonic() < deadline:
                time.sleep(0.05)
            rundir.write_json(str(tmp_path / "request"), {"ask": "save", "seq": 2}, durable=False)
    assert run.report[0].startswith("asked to stop, but no safe point was reached for")
    assert "(epoch 0, batch 0, step 0)" in run.report[0] and "It ends this process in" in run.report[0]
