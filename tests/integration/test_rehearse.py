"""`gpusched rehearse` says which scripts resume exactly, and finds the mistake in those that do not."""

import json

import pytest
from rehearsals import Stage
from training_jobs import Zygote

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote("torchmetrics")
    yield zygote
    zygote.close()


@pytest.fixture
def stage(zygote, tmp_path):
    return Stage(zygote, tmp_path)


EXACT = """
run = Run(model, optimizer, scheduler)
losses = run.values.setdefault("losses", [])
for epoch in run.epochs(2):
    for points, labels in run.batches(loader):
        losses.append(learn(points, labels))
        scheduler.step()
        run.step(loss=losses[-1])
    for _ in range(2):
        run.check()
if len(sys.argv) > 1:
    with open(sys.argv[1], "w") as file:
        json.dump({"losses": losses}, file)
"""


def test_a_script_that_resumes_exactly_is_told_so(stage):
    outcome = stage.rehearse(EXACT, "{run}/result.json", preemptions=3, compare=("{run}/result.json",))
    assert outcome.code == 0, (outcome, stage.told)
    assert "resumes exactly: preempted 3 times" in outcome.sentence
    assert [stop["saved"] for stop in outcome.facts["preemptions"]] == [True, True, True]
    assert any("in the middle of an epoch" in line for line in stage.told)
    assert any("never seeded" in note and "python" in note for note in outcome.notes)


def causes(outcome):
    return [cause.kind for cause in outcome.causes]


def test_an_unregistered_generator_is_named(stage):
    outcome = stage.rehearse("""
        noise = numpy.random.default_rng(3)
        run = Run(model, optimizer)
        for epoch in run.epochs(2):
            for points, labels in run.batches(loader):
                run.step(loss=learn(points + float(noise.normal()), labels))
    """)
    assert outcome.code == 1, (outcome, stage.told)
    assert causes(outcome) == ["unregistered-generator"] and outcome.causes[0].text.startswith("noise is a generator")
    first = outcome.facts["first_difference"]
    assert first["step"] == outcome.facts["preemptions"][0]["step"] + 1
    assert "model" in first["what"] and any("model/0.weight" in line for line in outcome.lines)


def test_a_loader_that_is_not_given_to_the_run_is_named(stage):
    outcome = stage.rehearse("""
        run = Run(model, optimizer)
        for epoch in run.epochs(2):
            for points, labels in loader:
                run.step(loss=learn(points, labels))
    """)
    assert outcome.code == 1
    assert causes(outcome) == ["loader-restarted"] and "train.py:" in outcome.causes[0].text


def test_an_unregistered_metric_is_named_and_the_training_itself_is_not_blamed(stage):
    outcome = stage.rehearse("""
        import torchmetrics
        mean = torchmetrics.MeanMetric()
        run = Run(model, optimizer)
        for epoch in run.epochs(2):
            for points, labels in run.batches(loader):
                mean.update(learn(points, labels))
                run.step(mean=float(mean.compute()))
    """)
    assert outcome.code == 1, (outcome, stage.told)
    assert causes(outcome) == ["unregistered-metric"] and outcome.causes[0].text.startswith("mean is a metric")
    assert outcome.facts["first_difference"]["what"] == ["metric 'mean'"]


def test_what_follows_the_step_is_named_with_its_line(stage):
    outcome = stage.rehearse("""
        run = Run(model, optimizer, scheduler)
        for epoch in run.epochs(2):
            for points, labels in run.batches(loader):
                run.step(loss=learn(points, labels))
                print("a harmless line")
                scheduler.step()
    """)
    assert outcome.code == 1, (outcome, stage.told)
    assert causes(outcome)[0] == "after-step" and "scheduler.step()" in outcome.causes[0].text
    line = (stage.folder / "train.py").read_text().splitlines().index("        scheduler.step()") + 1
    assert f"train.py:{line} " in outcome.causes[0].text


def test_a_sum_of_ones_own_that_begins_anew_is_named(stage):
    outcome = stage.rehearse(
        """
        class Meter:
            total, count = 0.0, 0

        meter, losses = Meter(), []
        run = Run(model, optimizer)
        for epoch in run.epochs(2):
            for points, labels in run.batches(loader):
                loss = learn(points, labels)
                losses.append(loss)
                meter.total, meter.count = meter.total + loss, meter.count + 1
                run.step(loss=loss)
        with open(sys.argv[1], "w") as file:
            json.dump({"mean": meter.total / meter.count, "losses": losses}, file)
        """,
        "{run}/result.json",
        compare=("{run}/result.json",),
    )
    assert outcome.code == 1, (outcome, stage.told)
    assert causes(outcome) == ["variable"] and "meter.count" in outcome.causes[0].text
    assert any("result.json [mean]" in line for line in outcome.lines), outcome.lines


def test_a_script_that_depends_on_the_time_cannot_be_judged_and_that_is_said(stage):
    outcome = stage.rehearse("""
        import time
        run = Run(model, optimizer)
        for epoch in run.epochs(2):
            for points, labels in run.batches(loader):
                run.step(loss=learn(points * (time.time_ns() % 1000), labels))
    """)
    assert outcome.code == 1 and causes(outcome) == ["nondeterministic"]
    assert "two undisturbed runs differ already" in outcome.sentence


def test_a_time_among_the_metrics_is_left_out_and_that_is_said(stage):
    outcome = stage.rehearse(
        """
        import time
        run = Run(model, optimizer)
        for epoch in run.epochs(2):
            for points, labels in run.batches(loader):
                run.step(loss=learn(points, labels), speed=time.time())
        with open(sys.argv[1], "w") as file:
            json.dump({"steps": run.steps, "seconds": time.time()}, file)
        """,
        "{run}/result.json",
        compare=("{run}/result.json",),
    )
    assert outcome.code == 0, (outcome, stage.told)
    assert any("speed" in note and "[seconds]" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("sys.exit('no data')", 10, "the undisturbed run failed: exit code 1"),
        ("Run(model, optimizer)", 11, "never reaches a safe point"),
        (
            "run = Run(model, directory=sys.argv[0] + '-own')\nfor _ in run.epochs(1):\n run.step()",
            2,
            "saves into a directory of its own",
        ),
        (
            "run = Run(model)\nfor _ in run.epochs(1):\n for n in run.batches(range(5)):\n  try: run.step()\n"
            "  except SystemExit: __import__('os')._exit(0)",
            12,
            "instead of saving",
        ),
        (
            "import os\nif os.environ['GPUSCHED_ATTEMPT'] == '2': sys.exit('moved')\n"
            "run = Run(model)\nfor _ in run.epochs(1):\n for n in run.batches(range(5)):\n  run.step()",
            13,
            "failed after it was resumed from its stop at step",
        ),
    ],
    ids=["fails", "no safe point", "own directory", "does not leave", "fails after a stop"],
)
def test_a_script_that_cannot_be_rehearsed_is_told_why(stage, body, code, words):
    outcome = stage.rehearse(body, preemptions=1)
    assert (outcome.code, words in outcome.sentence) == (code, True), (outcome, stage.told)
    assert json.loads(json.dumps(outcome.to_json()))["exit_code"] == code
