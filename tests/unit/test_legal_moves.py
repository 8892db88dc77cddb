"""The table of legal moves, and the diagrams that are drawn from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from builders import World

from gpusched.engine.turn import IllegalMove, Turn
from gpusched.model.state import FINAL, LEGAL_MOVES, LIVE, JobState, StopKind, diagram

ROOT = Path(__file__).parents[2]
ARROW = re.compile(r"^    ([A-Z]+) --> ([A-Z]+)", re.MULTILINE)


def test_every_state_has_its_row_and_its_own_short_code():
    assert set(LEGAL_MOVES) == set(JobState)
    assert len({state.code for state in JobState}) == len(JobState)
    assert {JobState.PENDING} | LIVE | FINAL == set(JobState)


def test_a_final_state_is_left_only_by_a_requeue_and_every_state_can_be_reached():
    for state in FINAL:
        assert LEGAL_MOVES[state] == {JobState.PENDING}
    reached, todo = set(), [JobState.PENDING]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += LEGAL_MOVES[state]
    assert reached == set(JobState)


def test_only_a_job_that_was_asked_to_stop_can_time_out_or_be_preempted():
    for target in (JobState.TIMEOUT, JobState.PREEMPTED):
        assert {state for state, targets in LEGAL_MOVES.items() if target in targets} == {JobState.STOPPING}


def test_the_diagram_shows_every_legal_move_once_and_no_other():
    arrows = ARROW.findall(diagram())
    assert len(arrows) == len(set(arrows))
    assert set(arrows) == {(str(a), str(b)) for a, targets in LEGAL_MOVES.items() for b in targets}
    assert diagram().startswith("stateDiagram-v2\n    [*] --> PENDING\n")


def test_the_diagram_in_the_documentation_is_the_one_drawn_from_the_table():
    page = ROOT / "docs" / "architecture.md"
    assert f"```mermaid\n{diagram().strip()}\n```" in page.read_text(encoding="utf-8"), (
        "put the output of gpusched.model.state.diagram() into docs/architecture.md"
    )


@pytest.mark.parametrize("old", list(JobState))
@pytest.mark.parametrize("new", list(JobState))
def test_the_engine_makes_no_move_that_the_table_does_not_allow(old, new):
    world = World(1)
    job = world.job(world.submit(hold=True))
    turn = Turn(world.engine.state, world.now)
    object.__setattr__(job, "state", old)  # put there by force: only the check of the move is of interest
    if new is old or new in LEGAL_MOVES[old]:
        assert turn.put_job(job, state=new).state is new
    else:
        with pytest.raises(IllegalMove, match=f"{old} → {new}"):
            turn.put_job(job, state=new)


def test_only_cancel_and_the_time_limit_are_for_good():
    assert {kind for kind in StopKind if not kind.resumes} == {StopKind.CANCEL, StopKind.TIME_LIMIT}
