"""Run, in one process: what is asked, saved, answered, restored and told. Leaving is replaced by an exception."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from gpusched import rundir
from gpusched.checkpoint import CheckpointError, Run, leave, list_checkpoints


class Left(BaseException):
    """The process would have ended here."""

    def __init__(self, code):
        self.code = code


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The inside of gpusched: job.ask(…) writes the request."""
    for name, value in ((rundir.ENV_JOB_DIR, "job"), (rundir.ENV_CHECKPOINT_DIR, "checkpoints")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv(rundir.ENV_ATTEMPT, "3")
    (tmp_path / "job").mkdir()

    def leaving(code):
        raise Left(code)

    monkeypatch.setattr(leave, "leave", leaving)
    return Inside(tmp_path / "job", tmp_path / "checkpoints")


class Inside:
    def __init__(self, directory, checkpoints):
        self.directory, self.checkpoints = directory, checkpoints

    def ask(self, what, seq=1):
        value = {"ask": what, "seq": seq, "cause": "preempted by job 9", "deadline": None, "seconds_left": 60}
        rundir.write_json(str(self.directory / rundir.REQUEST), value, durable=False)

    def answer(self):
        return rundir.read_json(str(self.directory / rundir.SAVED))

    def names(self):
        return [found.name for found in list_checkpoints(str(self.checkpoints), checksums=True) if found.good]

    def progress(self):
        return [json.loads(line) for line in (self.directory / rundir.PROGRESS).read_text().splitlines()]

    def new_attempt(self):
        for path in self.directory.iterdir():
            path.unlink()


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Outside gpusched."""
    for name in (rundir.ENV_JOB_DIR, rundir.ENV_CHECKPOINT_DIR, rundir.ENV_ATTEMPT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def count(run, epochs=2, batches=5, each=lambda number: None):
    """A training loop that only counts."""
    numbers = run.values.setdefault("numbers", [])
    for epoch in run.epochs(epochs):
        for number in run.batches(range(batches)):
            numbers.append([epoch, number])
            each(run.steps + 1)
            run.step(loss=number)
    return numbers


EVERYTHING = [[epoch, number] for epoch in range(2) for number in range(5)]


def test_outside_gpusched_the_loop_just_runs_and_nothing_is_written(alone):
    run = Run()
    assert count(run) == EVERYTHING
    assert run.report == [] and run.directory is None and os.listdir(alone) == []


def test_with_a_directory_the_same_script_resumes_by_hand(alone):
    def stop(step):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count(Run(directory=alone / "here", every_steps=3), each=stop)
    assert [found.name for found in list_checkpoints("here")] == ["step-3", "step-6"]
    run = Run(directory=alone / "here")
    assert count(run) == EVERYTHING
    assert "resumed from step-6 (epoch 1, batch 1)" in run.report[0]
    again = Run(directory=alone / "here")
    assert count(again) == EVERYTHING
    assert "training is complete" in again.report[0]
    assert len(list_checkpoints("here")) == 3


@pytest.mark.parametrize("step", [1, 4, 5, 6, 10])
def test_a_stop_is_saved_then_acknowledged_then_obeyed(job, step):
    run = Run()
    with pytest.raises(Left) as left:
        count(run, each=lambda now: job.ask("stop") if now == step else None)
    assert left.value.code == 85
    answer = job.answer()
    assert answer["attempt"] == 3 and answer["step"] == step
    assert answer["checkpoint"] == str(job.checkpoints / f"step-{step}") and job.names() == [f"step-{step}"]
    job.new_attempt()
    assert count(Run()) == EVERYTHING


def test_a_save_is_answered_once_and_the_run_goes_on(job):
    def each(step):
        if step in (2, 3):
            job.ask("save", seq=1)  # asked again under a number that has been answered
        if step == 6:
            job.ask("save", seq=2)

    assert count(Run(), each=each) == EVERYTHING
    assert job.answer()["step"] == 6
    assert job.names() == ["step-2", "step-6", "step-10"]


def test_it_announces_itself_while_it_polls_and_withdraws_at_the_end(job):
    seen = []
    count(Run(), each=lambda step: seen.append(rundir.read_json(str(job.directory / rundir.WATCHING))))
    assert seen[0] == {"pid": os.getpid()}
    assert not (job.directory / rundir.WATCHING).exists()


def test_garbage_in_the_request_file_is_ignored(job):
    def each(step):
        text = {1: "", 2: "{", 3: "[1]", 4: '{"ask": "stop"}', 5: '{"ask": "dance", "seq": 4}'}.get(step)
        if text is not None:
            (job.directory / rundir.REQUEST).write_text(text)

    run = Run()
    assert count(run, each=each) == EVERYTHING
    assert job.answer() is None


def test_progress_is_written_with_totals_and_ends_with_the_last_step(job):
    count(Run())
    lines = job.progress()
    assert lines[0]["step"] == 1 and lines[0]["total"] == 10
    assert (lines[-1]["step"], lines[-1]["metrics"]) == (10, {"loss": 4})
    assert set(lines[0]) == {"epoch", "step", "total", "metrics", "time"}
    assert len(lines) < 10


def test_metrics_may_be_tensors_or_anything(job):
    run = Run()
    for _ in run.epochs(1):
        for _ in run.batches([1]):
            run.log(tensor=torch.tensor(1.5), bad=float("nan"), text="x" * 999, thing=object(), flag=True)
            run.step()
    metrics = job.progress()[-1]["metrics"]
    assert metrics == {"tensor": 1.5, "bad": "nan", "text": "x" * 200, "flag": True}


def test_several_micro_batches_per_step_count_once_in_the_total(job):
    run = Run()
    for _ in run.epochs(3):
        for number in run.batches(range(8)):
            if number % 2:
                run.step()
    assert job.progress()[-1]["total"] == 12 and run.steps == 12


def test_only_the_newest_checkpoints_are_kept(job):
    count(Run(every_steps=1, keep=2))
    assert job.names() == ["step-9", "step-10.1"]  # step 10 again, with the epochs over


def test_code_around_the_loop_over_batches_runs_again_without_harm(job):
    """Counters reset and numbers drawn before the loop, as every training script does it."""

    def script(each=lambda step: None):
        torch.manual_seed(1)
        run, drawn = Run(), run_values()
        log = run.values.setdefault("log", [])
        for epoch in run.epochs(2):
            drawn["total"], offset = 0.0, float(torch.rand(()))
            run.values["sum"] = 0.0
            for number in run.batches(range(4)):
                run.values["sum"] += number * offset + float(torch.rand(()))
                each(run.steps + 1)
                run.step()
            log.append([epoch, offset, run.values["sum"], float(torch.rand(()))])
        return log

    def run_values():
        return {}

    expected = script()
    for step in (2, 4, 7):
        for path in job.checkpoints.glob("step-*"):
            shutil.rmtree(path)
        job.new_attempt()
        with pytest.raises(Left):
            script(lambda now, step=step: job.ask("stop") if now == step else None)
        job.new_attempt()
        assert script() == expected


def test_check_stops_inside_an_evaluation_that_then_starts_again(job):
    def script(stop_at=None):
        torch.manual_seed(2)
        run = Run()
        scores = run.values.setdefault("scores", [])
        for epoch in run.epochs(2):
            for _ in run.batches(range(2)):
                run.step()
            run.values["done"] = run.values.get("done", 0) + 1
            score = 0.0
            for number in range(3):
                score += float(torch.rand(()))
                if stop_at == (epoch, number):
                    job.ask("stop")
                run.check()
            scores.append(score)
        return scores, run.values["done"]

    expected = script()
    for path in job.checkpoints.iterdir():
        path.rename(path.with_name("kept-" + path.name))
    with pytest.raises(Left):
        script((1, 1))
    assert job.answer()["step"] == 4
    job.new_attempt()
    assert script() == expected


def test_a_stop_after_the_last_epoch_leaves_with_the_checkpoint_that_is_there(job):
    run = Run()
    count(run)
    job.ask("stop")
    with pytest.raises(Left) as left:
        run.check()
    assert left.value.code == 85 and job.names() == ["step-10"] and job.answer()["step"] == 10


def test_a_stop_before_the_first_batch_of_a_resumed_epoch_needs_no_new_checkpoint(job):
    with pytest.raises(Left):
        count(Run(), each=lambda step: job.ask("stop") if step == 3 else None)
    job.new_attempt()
    job.ask("stop")
    run = Run()
    with pytest.raises(Left) as left:
        for _ in run.epochs(2):
            run.check()
    assert left.value.code == 85 and job.names() == ["step-3"] and job.answer()["step"] == 3


def test_check_inside_an_unfinished_step_waits_for_that_step(job):
    run, steps = Run(), []
    with pytest.raises(Left):
        for _ in run.epochs(1):
            for number in run.batches(range(4)):
                if number == 1:
                    job.ask("stop")
                run.check()
                steps.append(number)
                run.step()
    assert steps == [0, 1] and job.answer()["step"] == 2
    assert "unfinished step" in " ".join(run.report)


def test_check_in_a_validation_loop_of_its_own_resumes_in_its_middle(job):
    def script(stop=False):
        model = torch.nn.Linear(1, 1)
        run = Run(model)
        seen = run.values.setdefault("seen", [])
        for _ in run.epochs(1):
            for number in run.batches(range(2)):
                seen.append(number)
                run.step()
            model.eval()
            for number in run.batches(list("abcd")):
                seen.append(number)
                if stop and number == "c":
                    job.ask("stop")
                run.check()
        return seen

    with pytest.raises(Left):
        script(stop=True)
    job.new_attempt()
    assert script() == [0, 1, "a", "b", "c", "d"]


def test_a_second_phase_has_epochs_of_its_own_and_the_first_is_not_repeated(job):
    def script(stop=None):
        run = Run()
        log = run.values.setdefault("log", [])
        for phase in ("pretrain", "finetune"):
            for epoch in run.epochs(2):
                for number in run.batches(range(2)):
                    log.append([phase, epoch, number])
                    if len(log) == stop:
                        job.ask("stop")
                    run.step()
        return log

    with pytest.raises(Left):
        script(stop=6)
    job.new_attempt()
    log = script()
    assert log == [[phase, e, n] for phase in ("pretrain", "finetune") for e in range(2) for n in range(2)]


def test_two_loops_side_by_side_resume_together(job):
    def script(stop=False):
        run = Run()
        seen = run.values.setdefault("seen", [])
        for _ in run.epochs(2):
            for pair in zip(run.batches(range(3)), run.batches(list("abc")), strict=True):
                seen.append(list(pair))
                if stop and run.steps == 4:
                    job.ask("stop")
                run.step()
        return seen

    with pytest.raises(Left):
        script(stop=True)
    job.new_attempt()
    assert script() == [[0, "a"], [1, "b"], [2, "c"]] * 2


def test_a_broken_off_loop_is_not_continued(job):
    def script(stop=False):
        run = Run()
        seen = run.values.setdefault("seen", [])
        for _ in run.epochs(1):
            for number in run.batches(range(5)):
                seen.append(number)
                run.step()
                if number == 2:
                    break
            if stop:
                job.ask("stop")
            run.check()
        return seen

    with pytest.raises(Left):
        script(stop=True)
    job.new_attempt()
    assert script() == [0, 1, 2]


def test_steps_without_batches_are_told_to_start_the_epoch_again(job):
    run = Run()
    for _ in run.epochs(1):
        run.step()
        run.step()
    assert [line for line in run.report if "starts again from its beginning" in line] == run.report


def test_the_seed_follows_torch_and_the_checkpoint_goes_on_with_its_own(job):
    torch.manual_seed(77)
    first = Run()
    assert first.seed == 77
    count(first)
    torch.manual_seed(78)
    second = Run(seed=5)
    count(second)
    assert second.seed == 77 and "seed=5 is not used" in " ".join(second.report)


def test_a_change_of_threads_is_told(job):
    count(Run(torch.nn.Linear(1, 1)))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        run = Run(torch.nn.Linear(1, 1))
        count(run)
    finally:
        torch.set_num_threads(threads)
    assert f"thread count was {threads} and is {threads + 1}" in " ".join(run.report)


def test_what_cannot_be_stored_is_refused_at_the_start_and_not_at_the_first_preemption(job):
    run = Run()
    run.values["config"] = {"when": object()}
    with pytest.raises(CheckpointError, match=r"values/config/when is a builtins.object"):
        count(run)


def test_loops_in_the_wrong_place_are_told_apart(alone):
    run = Run()
    with pytest.raises(CheckpointError, match=r"outside run.epochs"):
        run.step()
    with pytest.raises(CheckpointError, match=r"outside run.epochs"):
        run.batches([1])
    with pytest.raises(CheckpointError, match=r"inside run.epochs"):
        for _ in run.epochs(1):
            for _ in run.epochs(1):
                pass


def test_several_ranks_are_refused_where_something_would_be_saved(job, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(CheckpointError, match="3 ranks"):
        count(Run())


def test_a_job_without_a_checkpoint_directory_does_not_promise_to_save(job, monkeypatch):
    monkeypatch.delenv(rundir.ENV_CHECKPOINT_DIR)
    run = Run()
    assert count(run, each=lambda step: job.ask("stop")) == EVERYTHING
    assert not (job.directory / rundir.WATCHING).exists() and "cannot save itself" in run.report[0]


@pytest.fixture
def writes_fail():
    """No file may grow beyond 50 kB: what a full disk feels like, for everybody."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_when_nothing_can_be_written_the_training_goes_on_and_the_last_good_one_stays(job, writes_fail):
    model = torch.nn.Linear(10, 10)

    def each(step):
        if step == 4:
            model.big = torch.nn.Parameter(torch.zeros(100_000))
            job.ask("save")

    run = Run(model, every_steps=3)
    assert count(run, each=each) == EVERYTHING
    assert job.names() == ["step-3"] and job.answer() is None
    assert "CANNOT SAVE" in run.report[0] and "step-3" in run.report[0]
    assert not [name for name in os.listdir(job.checkpoints) if name.startswith(".tmp")]


def test_a_stop_that_cannot_be_saved_leaves_with_1_and_without_an_answer(job, writes_fail):
    run = Run(torch.nn.Linear(200, 200))
    with pytest.raises(Left) as left:
        count(run, each=lambda step: job.ask("stop") if step == 4 else None)
    assert left.value.code == 1 and job.answer() is None and job.names() == []
    assert "WITHOUT a new checkpoint" in run.report[-1]


def test_a_checkpoint_directory_that_cannot_be_a_directory_is_told_and_training_goes_on(job):
    job.checkpoints.write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        count(Run())
    job.checkpoints.unlink()

    def each(step):
        if step == 2:
            shutil.rmtree(job.checkpoints)
            job.checkpoints.write_text("a file in the way")

    run = Run(every_steps=5)
    assert count(run, each=each) == EVERYTHING
    assert run.report and all("CANNOT SAVE" in line for line in run.report)


def test_sigterm_sets_a_flag_that_the_next_safe_point_obeys(job):
    run = Run()
    with pytest.raises(Left) as left:
        count(run, each=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    assert left.value.code == 85 and job.names() == ["step-3"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_handler_of_the_scripts_own_is_left_alone(job):
    def own(number, frame):
        pass

    signal.signal(signal.SIGTERM, own)
    try:
        count(Run(), each=lambda step: pytest.fail("replaced") if signal.getsignal(signal.SIGTERM) is not own else None)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_importing_the_library_imports_neither_torch_nor_numpy():
    code = "import sys, gpusched.checkpoint; print([n for n in ('torch', 'numpy', 'asyncio') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
