"""Where exactly a run may be saved: evaluations between batches, two loaders at once, windows that an epoch cuts short.

Each story is told twice, undisturbed and stopped at one place, and must end with the same weights and values.
"""

import os
import threading

import pytest
import torch

from gpusched import rundir
from gpusched.checkpoint import Run, digest, leave, list_checkpoints
from gpusched.checkpoint.disk.vault import Vault

POINTS = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))


class Left(BaseException):
    """The process would have ended here."""


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """attempt(story, name, stop) runs a story, which calls at(place) where it may be stopped."""

    def leaving(code):
        raise Left(code)

    monkeypatch.setattr(leave, "leave", leaving)
    numbers = iter(range(100))

    def start(story, name, stop=None):
        directory = tmp_path / f"attempt-{next(numbers)}"
        directory.mkdir()
        monkeypatch.setenv(rundir.ENV_JOB_DIR, str(directory))
        monkeypatch.setenv(rundir.ENV_CHECKPOINT_DIR, str(tmp_path / name))

        def at(place):
            if place == stop:
                value = {"ask": "stop", "seq": 1, "seconds_left": 60}
                rundir.write_json(str(directory / rundir.REQUEST), value, durable=False)

        return story(at)

    return start


def same(attempt, story, stop):
    expected = attempt(story, "straight")
    with pytest.raises(Left):
        attempt(story, "stopped", stop)
    assert attempt(story, "stopped") == expected


def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loader(size=4, count=24, shuffle=True):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(POINTS[:count]), size, shuffle=shuffle)


def learn(model, optimizer, batch):
    model.train()
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def evaluating_between_batches(at):
    (model, optimizer), training, held_out = make(), loader(), loader(8)
    run = Run(model, optimizer, every_seconds=None)
    scores = run.values.setdefault("scores", [])
    for epoch in run.epochs(2):
        for (batch,) in run.batches(training):
            if run.batch % 2 == 0:
                model.eval()
                with torch.no_grad():
                    for number, (points,) in enumerate(run.batches(held_out)):
                        scores.append(model(points).sum().item())
                        at(("evaluation", epoch, run.batch, number))
                        run.check()
            learn(model, optimizer, batch)
            at(("step", epoch, run.batch))
            run.step()
    return digest(model), list(scores)


@pytest.mark.parametrize("stop", [("step", 0, 0), ("step", 0, 4), ("step", 1, 3)])
def test_evaluations_over_batches_inside_the_training_loop_leave_it_exact(attempt, stop):
    same(attempt, evaluating_between_batches, stop)


@pytest.mark.parametrize("stop", [("evaluation", 0, 0, 0), ("evaluation", 0, 2, 1), ("evaluation", 1, 0, 2)])
def test_a_stop_in_an_evaluation_inside_an_unfinished_step_waits_for_the_step(attempt, stop):
    same(attempt, evaluating_between_batches, stop)


def test_many_evaluations_in_one_epoch_leave_nothing_behind(attempt):
    found = []

    def story(at):
        run, held_out = Run(every_seconds=None), loader(8)
        for _ in run.epochs(1):
            for _ in run.batches(range(50)):
                for _ in run.batches(held_out):
                    pass
                run.step()
            found.append((len(run._keeper.position.calls), len(run._keeper.sources)))

    attempt(story, "straight")
    assert found == [(1, 1)]


def two_at_once(at):
    model, optimizer = make()
    one, other = loader(), loader(2)
    run = Run(model, optimizer, every_seconds=None)
    for epoch in run.epochs(2):
        for (a,), (b,) in zip(run.batches(one), run.batches(other), strict=False):
            model.train()
            model(torch.cat([a, b])).square().mean().backward()
            at((epoch, run.batch))
            if run.batch % 2 == 0:
                run.micro_step()
                continue
            optimizer.step()
            optimizer.zero_grad()
            run.step()
    return digest(model)


@pytest.mark.parametrize("stop", [(0, 0), (0, 1), (1, 0), (1, 4)])
def test_two_loaders_in_one_loop_go_on_together(attempt, stop):
    same(attempt, two_at_once, stop)


def evaluating_two_at_once(at):
    run, scores = Run(torch.nn.Linear(1, 1).eval(), every_seconds=None), []
    scores = run.values.setdefault("scores", [])
    for _ in run.epochs(1):
        with torch.no_grad():
            for a, b in zip(run.batches(range(5)), run.batches(list("abcdef")), strict=False):
                scores.append(f"{a}{b}")
                at(a)
                run.check()
    return list(scores)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_evaluation_of_two_loaders_goes_on_with_both(attempt, stop):
    same(attempt, evaluating_two_at_once, stop)


def one_loop_after_the_other(at):
    (model, optimizer), training = make(), loader()
    run = Run(model, optimizer, every_seconds=None)
    for epoch in run.epochs(2):
        for part in range(2):
            run.values["drawn"] = torch.rand(()).item()  # drawn again after a stop in the second loop
            for (batch,) in run.batches(training):
                learn(model, optimizer, batch)
                at((epoch, part, run.batch))
                run.step()
    return digest(model), run.values["drawn"]


def test_a_stop_in_the_second_loop_of_an_epoch_is_resumed_there(attempt):
    expected = attempt(one_loop_after_the_other, "straight")
    with pytest.raises(Left):
        attempt(lambda at: one_loop_after_the_other(lambda place: at(place[:2])), "stopped", (1, 1))
    assert attempt(one_loop_after_the_other, "stopped") == expected


def evaluating_first(at):
    (model, optimizer), training = make(), loader()
    run = Run(model, optimizer, every_seconds=None)
    for epoch in run.epochs(2):
        for (batch,) in run.batches(training):
            if run.batch % 3 == 0:
                model.eval()
                at((epoch, run.batch))
                run.check()
            learn(model, optimizer, batch)
            run.step()
        model.eval()
    return digest(model), run.steps


@pytest.mark.parametrize("stop", [(0, 0), (0, 3), (1, 0)])
def test_a_check_before_the_first_step_of_an_epoch_skips_no_batch(attempt, stop):
    same(attempt, evaluating_first, stop)


def windows_cut_short(at):
    (model, optimizer), training = make(), loader()
    run = Run(model, optimizer, every_seconds=None)
    for epoch in run.epochs(3):
        for (batch,) in run.batches(training):
            model.train()
            model(batch).square().mean().backward()
            if run.batch % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
                run.step()
            else:
                run.micro_step()
        for number in range(2):
            at((epoch, number))
            run.check()
        at((epoch, "end"))
    return digest(model)


@pytest.mark.parametrize("stop", [(0, 0), (0, 1), (0, "end"), (1, "end")])
def test_gradients_of_a_window_that_the_epoch_cuts_short_are_not_lost(attempt, stop):
    same(attempt, windows_cut_short, stop)


def test_a_save_after_the_batches_repeats_the_evaluation_from_their_end(attempt):
    died = []

    def story(die):
        (model, optimizer), training = make(), loader()
        run = Run(model, optimizer, every_seconds=None)
        curve = run.values.setdefault("curve", [])
        for epoch in run.epochs(3):
            for (batch,) in run.batches(training):
                if die and not died and (epoch, run.batch) == (1, 1):
                    died.append(True)
                    raise Left
                learn(model, optimizer, batch)
                run.step()
            curve.append(model.eval()(POINTS).sum().item())
            assert run.save()
        return digest(model), list(curve)

    expected = attempt(lambda at: story(False), "straight")
    with pytest.raises(Left):
        attempt(lambda at: story(True), "killed")
    assert attempt(lambda at: story(True), "killed") == expected


def test_a_save_inside_an_unfinished_step_happens_at_the_step(attempt):
    def story(at):
        run, answers = Run(every_seconds=None), []
        for _ in run.epochs(1):
            for number in run.batches(range(4)):
                if number == 1:
                    answers.append(run.save())
                run.step()
            run._answers.collect(wait=True)
            answers += [found.name for found in list_checkpoints(run.directory)]
        assert "run.save() inside an unfinished step" in " ".join(run.report)
        return answers

    assert attempt(story, "straight") == [False, "step-2"]


def test_a_write_that_is_collected_at_once_is_acknowledged(attempt, monkeypatch):
    """The watchdog's thread may come by the moment the write is done, before the training thread goes on."""

    def story(at):
        run = Run(every_seconds=None)
        vault, directory = run._keeper.vault, os.environ[rundir.ENV_JOB_DIR]

        def save_behind(tree, about):
            stall = Vault.save_behind(vault, tree, about)
            vault._writer.wait()
            run._answers.collect()
            return stall

        monkeypatch.setattr(vault, "save_behind", save_behind)
        rundir.write_json(os.path.join(directory, rundir.REQUEST), {"ask": "save", "seq": 1}, durable=False)
        for _ in run.epochs(1):
            for _ in run.batches(range(1)):
                run.step()
        return rundir.read_json(os.path.join(directory, rundir.SAVED))

    assert attempt(story, "straight")["step"] == 1


def test_a_write_whose_failure_is_collected_at_once_counts_as_not_saved(attempt, monkeypatch):
    def story(at):
        run = Run(every_steps=2)
        vault = run._keeper.vault

        def save_behind(tree, about):
            def fail(*arguments):
                raise OSError(5, "Input/output error")

            with monkeypatch.context() as patch:
                patch.setattr(vault, "_publish", fail)
                stall = Vault.save_behind(vault, tree, about)
                vault._writer.wait()
            run._answers.collect()
            return stall

        monkeypatch.setattr(vault, "save_behind", save_behind)
        for _ in run.epochs(1):
            for _ in run.batches(range(2)):
                run.step()
                assert run.steps < 2 or run._keeper._stored is None
        return [found.name for found in list_checkpoints(run.directory)]

    assert attempt(story, "straight") == ["step-2"]


def test_a_stop_right_after_a_write_that_fails_is_not_answered_with_an_older_checkpoint(attempt, monkeypatch):
    def story(at):
        run, go, directory = Run(every_steps=1, every_seconds=None), threading.Event(), os.environ[rundir.ENV_JOB_DIR]
        vault = run._keeper.vault

        def fail(*arguments):
            go.wait(60)
            raise OSError(5, "Input/output error")

        for _ in run.epochs(1):
            for _ in run.batches(range(1)):
                run.step()
            run._answers.collect(wait=True)
            with monkeypatch.context() as patch:
                patch.setattr(vault, "_publish", fail)
                run._keeper.save_behind(run._keeper.boundary)
                rundir.write_json(os.path.join(directory, rundir.REQUEST), {"ask": "stop", "seq": 1}, durable=False)
                patch.setattr(vault, "why_not", lambda error: go.is_set() and "as planned")
                threading.Timer(0.05, go.set).start()
                run.check()

    with pytest.raises(Left) as left:
        attempt(story, "straight")
    assert left.value.args == (1,)
    answer = os.path.join(os.environ[rundir.ENV_JOB_DIR], rundir.SAVED)
    assert not os.path.exists(answer)


def test_enumerate_from_run_batch_counts_on_after_a_stop(attempt):
    def story(at):
        torch.manual_seed(0)
        model, seen = torch.nn.Linear(4, 2), []
        run = Run(model=model)
        for epoch in run.epochs(2):
            for number, _ in enumerate(run.batches(range(5)), start=run.batch):
                assert number == run.batch
                seen.append(number)
                at((epoch, number))
                run.step()
            assert run.batch == 4
        return seen[-1:]

    for place in [(0, 0), (0, 2), (0, 4), (1, 3)]:
        with pytest.raises(Left):
            attempt(story, str(place), place)
        assert attempt(story, str(place)) in ([4], [])


@pytest.mark.parametrize("nested", [True, False])
def test_training_in_a_loop_inside_another_one_is_told_and_in_a_zip_of_both_is_not(tmp_path, nested):
    run = Run(directory=tmp_path, every_seconds=None)
    for _ in run.epochs(1):
        if nested:
            for _ in run.batches(range(2)):
                for _ in run.batches(range(3)):
                    run.step()
        else:
            for _ in zip(run.batches(range(3)), run.batches(range(3))):  # noqa: B905
                run.step()
    told = [sentence for sentence in run.report if "inside a batch of another one" in sentence]
    assert len(told) == nested
