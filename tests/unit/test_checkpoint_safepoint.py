"""What is decided at a safe point."""

import json

import pytest

from gpusched.checkpoint.interval import Interval
from gpusched.checkpoint.leave import Termination
from gpusched.checkpoint.mailbox import Mailbox
from gpusched.checkpoint.ranks.group import ALONE, Ranks
from gpusched.checkpoint.safepoint import Count, SafePoints


class Scene:
    def __init__(self, folder, ranks=ALONE, every_steps=None):
        self.folder, self.mail, self.termination = folder, Mailbox(str(folder), 1), Termination()
        self.interval = Interval(None, every_steps)
        self.points = SafePoints(self.mail, self.termination, self.interval, ranks, Count())

    def ask(self, what, seq=1, **more):
        (self.folder / "request").write_text(json.dumps({"ask": what, "seq": seq, **more}))

    def arrive(self, kind="step", steps=1, can_save=True):
        return self.points.arrive(0.0, steps, kind, can_save)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_nothing_is_decided_while_nobody_asks(scene):
    assert scene.arrive() is None and scene.arrive("check") is None


def test_a_request_is_decided_at_the_next_safe_point(scene):
    scene.ask("stop", cause="preempted by job 2", seconds_left=60)
    decision = scene.arrive()
    assert decision.stop and decision.request.cause == "preempted by job 2"
    assert 0 < decision.request.seconds_left() <= 60


def test_a_request_for_a_certain_safe_point_waits_for_it(scene):
    scene.ask("stop", safe_point=3)
    assert scene.arrive() is None and scene.arrive("check") is None
    assert scene.arrive().stop


def test_where_nothing_can_be_saved_the_wish_is_kept_for_the_next_safe_point(scene):
    scene.ask("save")
    assert scene.arrive("check", can_save=False) is None and scene.points.waiting
    decision = scene.arrive()
    assert decision is not None and not decision.stop and not scene.points.waiting


def test_a_sigterm_is_a_wish_to_stop(scene):
    scene.termination.asked = True
    assert scene.arrive("micro_step").request.cause == "SIGTERM"


def test_periodic_saves_happen_at_steps_only(tmp_path):
    scene = Scene(tmp_path, every_steps=2)
    assert scene.arrive("check", steps=2) is None and scene.arrive("micro_step", steps=2) is None
    decision = scene.arrive("step", steps=2)
    assert decision.request is None and not decision.stop


def test_only_the_first_rank_listens_to_the_scheduler_and_all_do_what_is_agreed(tmp_path):
    class Second(Ranks):
        rank, size, agreed, wishes = 1, 2, 0, ()

        def agree(self, wish, place, kind=""):
            self.wishes = (*self.wishes, wish)
            return self.agreed

    ranks = Second()
    scene = Scene(tmp_path, ranks)
    scene.ask("stop")
    assert scene.arrive() is None and ranks.wishes == (0,)
    ranks.agreed = 2
    assert scene.arrive().request.cause == "asked on another rank"
