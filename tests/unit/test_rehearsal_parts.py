"""The parts of a rehearsal: choosing safe points, matching traces, comparing files, reading a script's source."""

import json

import pytest

from gpusched.rehearse import diagnose, files, points, preempted, source, traces
from gpusched.rehearse.points import CHECK, FIRST, LAST, MIDDLE, WINDOW


class Line:
    """Lines of a trace, as gpusched.checkpoint would write them."""

    def __init__(self):
        self.number = 0

    def point(self, kind, epoch, batch, step, call=0, **more):
        self.number += 1
        line = {"n": self.number, "run": 0, "kind": kind, "phase": 0, "epoch": epoch, "batch": batch, "step": step}
        line.update(calls=[batch], call=call, metrics={}, rng={"torch": "a"}, batches=[str(step)], values={}, plain={})
        return json.dumps(dict(line, parts={"model": f"after {step}"}, **more))


def a_run(epochs=2, batches=3, checks=2, first=0, change=lambda line: line):
    """The lines of a run from its safe point `first` on."""
    lines = Line()
    found = [json.dumps({"trace": 1, "rank": 0, "directory": "/c"})]
    for epoch in range(epochs):
        found += [
            lines.point("step", epoch, batch, epoch * batches + batch, at=[["train.py", 7, "main"]])
            for batch in range(1, batches + 1)
        ]
        found += [lines.point("check", epoch, batches, (epoch + 1) * batches, None) for _ in range(checks)]
    chosen = [found[0], *found[1 + first :]]
    return [json.dumps(change(json.loads(line))) if number else line for number, line in enumerate(chosen)]


@pytest.fixture
def read(tmp_path):
    def read_lines(lines, name="trace"):
        (tmp_path / name).write_text("\n".join(lines) + '\n{"n": 99, "torn')
        return traces.read(str(tmp_path / name))

    return read_lines


def test_every_kind_of_safe_point_is_chosen_before_any_is_chosen_twice(read):
    run = read(a_run(epochs=3, batches=4)).main
    assert points.kinds(run)[:6] == [FIRST, MIDDLE, MIDDLE, LAST, CHECK, CHECK]
    for seed in range(20):
        chosen = points.choose(run, 4, seed)
        assert {kind for _, kind in chosen} == {FIRST, MIDDLE, LAST, CHECK}
        assert [index for index, _ in chosen] == sorted({index for index, _ in chosen})
        assert chosen == points.choose(run, 4, seed)
        assert points.choose(run, 1, seed)[0][1] == MIDDLE
    assert len(points.choose(run, 100, 0)) == len(run) == 18


def test_a_stop_in_an_evaluation_goes_on_at_its_beginning_and_any_other_after_it(read):
    run = read(a_run(batches=2, checks=3)).main  # step step check check check …
    assert traces.after_resume(run, run[0]) == 1
    assert traces.after_resume(run, run[1]) == 2
    assert [traces.after_resume(run, run[index]) for index in (2, 3, 4)] == [2, 2, 2]


def test_the_same_run_has_no_parting_and_a_torn_last_line_does_not_matter(read):
    run = read(a_run())
    assert len(run.main) == 10 and run.exists
    later = read(a_run(first=4), "later")
    assert diagnose.part(run, [run, later]).point is None
    assert not read([], "empty").points


def test_the_first_safe_point_whose_state_differs_is_named_with_what_differed_before_it(read):
    def change(line):
        if line["step"] >= 3:
            line["objects"] = {"noise": ["generator", "other"]}
        if line["step"] >= 5:
            line["parts"]["model"] = "other"
        return line

    def with_noise(line):
        return dict(line, objects={"noise": ["generator", "mine"]})

    reference = read(a_run(change=with_noise))
    stopped = read(a_run(change=with_noise)[:3], "first")
    parting = diagnose.part(reference, [stopped, read(a_run(first=2, change=change), "second")])
    assert (parting.point.step, parting.attempt, parting.resumed) == (5, 2, False)
    assert parting.effects() == ["model"]
    assert parting.around["objects", "noise"].step == 3
    causes = diagnose.causes(parting, reference)
    assert [cause.kind for cause in causes] == ["unregistered-generator"] and "generators=" in causes[0].hint


def test_another_batch_is_blamed_on_the_loader_and_another_place_on_the_way(read):
    reference, stopped = read(a_run()), read(a_run()[:3], "first")
    other = read(a_run(first=2, change=lambda line: dict(line, batches=["other"])), "other")
    parting = diagnose.part(reference, [stopped, other])
    assert parting.resumed and parting.effects() == ["the batch that was handed out"]
    assert [cause.kind for cause in diagnose.causes(parting, reference)] == ["loader"]
    astray = read(a_run(first=2, change=lambda line: dict(line, step=line["step"] + 50)), "astray")
    parting = diagnose.part(reference, [stopped, astray])
    assert parting.reference is None
    assert [cause.kind for cause in diagnose.causes(parting, reference)] == ["position"]


def test_generators_that_begin_differently_are_never_seeded_ones(read):
    def numpy(value):
        return lambda line: dict(line, rng={"torch": "a", "numpy": f"{value} {line['n']}"})

    one, other = read(a_run(change=numpy("x"))), read(a_run(change=numpy("y")), "other")
    assert diagnose.unseeded(one, other) == {("rng", "numpy")}
    assert diagnose.part(one, [other], diagnose.unseeded(one, other)).point is None


SCRIPT = """
def train():
    for epoch in run.epochs(3):
        for batch in run.batches(loader):
            learn(batch)
            if ready:
                run.step()
                print("done")
            bar.update(1)
            {after}
        evaluate()
"""


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ("pass", None),
        ("run.log(loss=1)", None),
        ("if verbose: logger.info('x')", None),
        ("scheduler.step()", "scheduler.step()"),
        ("total += loss", "total += loss"),
        ("metric.update(loss)", "metric.update(loss)"),
        ("if loss < 0.1: break", "if loss < 0.1:"),
    ],
)
def test_what_follows_the_step_in_its_loop_is_found_unless_it_only_tells(tmp_path, after, found):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(after=after))
    at = (("/nowhere/helper.py", 3, "advance"), (str(path), 7, "train"), (str(path), 1, "<module>"))
    assert source.after_step(at) == (None if found is None else (str(path), 10, found))


def test_a_step_in_a_function_of_its_own_is_judged_by_the_loop_that_calls_it(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("def advance():\n    run.step()\n    return 1\nfor b in batches:\n    advance()\n    sum += 1\n")
    assert source.after_step(((str(path), 2, "advance"), (str(path), 5, "<module>"))) == (str(path), 6, "sum += 1")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("zero(); opt.step(); run.step()", None),
        ("zero(); run.step(); opt.step()", "opt.step()"),
        ("zero(); opt.step(); trainer.step()", None),
    ],
)
def test_what_precedes_the_step_in_its_own_line_does_not_follow_it(tmp_path, body, found):
    path = tmp_path / "train.py"
    path.write_text(f"for b in batches:\n    {body}\n")
    followed = source.after_step(((str(path), 2, "<module>"),))
    assert (followed and followed[2]) == found


def test_an_accumulation_window_is_among_the_first_two_stops(read):
    lines = a_run()
    run = read([lines[0], *(line.replace('"check"', '"micro_step"') for line in lines[1:])]).points
    for seed in range(10):
        assert {kind for _, kind in points.choose(run, 2, seed)} == {MIDDLE, WINDOW}


def test_a_counter_that_began_anew_is_named_even_if_nothing_compared_depends_on_it(read):
    def counting(start):
        def change(line):
            line["plain"] = {"number": str(line["n"] - start), "speed": f"{line['n'] - start}.5"}
            return line

        return change

    one, rest = read(a_run(change=counting(0))), read(a_run(first=4, change=counting(4)), "rest")
    assert diagnose.part(one, [rest]).point is None
    assert diagnose.counters(one, [rest]) == ["number"]


def test_a_step_behind_the_loop_over_batches_is_told_to_go_inside(read):
    behind = read(a_run(change=lambda line: dict(line, call=None)))
    (cause,) = diagnose.causes(diagnose.part(behind, [behind]), behind)
    assert "put it inside the loop over run.batches(loader)" in cause.hint


def test_files_are_compared_by_their_structure_or_their_bytes(tmp_path):
    def pair(name, one, other):
        for folder, content in (("a", one), ("b", other)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
        return [str(one) for one in files.compare(name, str(tmp_path / "a" / name), str(tmp_path / "b" / name))]

    assert pair("same.json", b'{"x": [1, NaN]}', b'{ "x": [1, NaN] }') == []
    assert pair("x.json", b'{"x": [1, 2], "y": 3}', b'{"x": [1, 2.5]}') == [
        "x.json [x] [1]: 2 and 2.5",
        "x.json [y]: is there only in the undisturbed run",
    ]
    assert pair("log.jsonl", b"1\n2\n", b"1\n") == ["log.jsonl: 2 and 1 items"]
    assert pair("text", b"one\ntwo\n", b"one\ntwo!\n") == ["text: differs from byte 7 (line 2) on; 8 and 9 bytes"]
    assert pair("torn.json", b"{", b"{}") == ["torn.json: differs from byte 1 (line 1) on; 1 and 2 bytes"]
    (tmp_path / "a" / "extra").write_text("")
    found = files.compare("all", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "all/extra: is there only in the undisturbed run" in [str(one) for one in found] and len(found) == 6


def test_a_variable_of_the_loop_used_behind_it_is_explained():
    assert "the loop's body does not run" in preempted._unbound(["UnboundLocalError: cannot access 'loss'"])[0]
    assert preempted._unbound(["ValueError: x"]) == ()
