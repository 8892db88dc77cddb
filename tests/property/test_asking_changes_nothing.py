"""Who only asks changes nothing: `why`, `submit --dry-run`, estimates and the queue may be asked for at any moment,
also between two wakings of the engine, and everything that is decided later is the same, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import Play
from profiles import PROFILE
from test_policy_promises import told
from things import PEOPLE, spec
from workloads import daemon_settings, kinds_of_jobs, workloads

from gpusched.engine.picture import revive, take
from gpusched.model.errors import GpuschedError
from gpusched.model.events import JobSubmitted, Woke
from gpusched.model.policy import PolicyName
from gpusched.policy import explain

SOME = settings(PROFILE, max_examples=max(12, PROFILE.max_examples // 8))
when = st.sampled_from((0.0, 1e-7, 0.3, 0.99, 1.0))  # of the time until the next thing happens
people = st.sampled_from(("ann", "bob", "root"))


def ask_everything(play: Play, wanted: dict[str, object], by: str, part: float) -> None:
    """All that may be asked for, some time before the next thing happens."""
    engine = play.world.engine
    pause = play._next() - play.now
    now = play.world.now.later(part * pause if pause < float("inf") else 100.0)
    fields = {name: value for name, value in wanted.items() if name != "array"}
    try:
        engine.preview(JobSubmitted(spec(**fields), PEOPLE[by], array=wanted.get("array")), now)  # type: ignore[arg-type]
    except GpuschedError:
        pass  # more than the machine has
    for job in list(engine.view.waiting()):
        explain.at_length(engine.view, job, now)
        explain.ahead(engine.view, job, now)
        explain.victims(engine.view, job, now)
        explain.devices(engine.view, job, now)
    revive(take(engine, now)).handle([Woke()], now.later(1000.0))


@pytest.mark.parametrize("name", PolicyName)
@given(st.data())
@SOME
def test_questions_change_no_later_decision(name: PolicyName, data: st.DataObject) -> None:
    rules, workload = data.draw(daemon_settings(st.just(name))), data.draw(workloads(most=6))
    questions = data.draw(st.lists(st.tuples(kinds_of_jobs, people, when), min_size=1, max_size=5))
    left_alone, asked = (workload.play(rules, checked=False) for _ in range(2))
    left_alone.run(most=4000)
    place = 0
    while asked._next() < float("inf"):
        ask_everything(asked, *questions[place % len(questions)])
        asked.step()
        place += 1
    assert told(asked) == told(left_alone)
