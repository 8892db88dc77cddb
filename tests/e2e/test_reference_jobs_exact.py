"""Every reference job that needs nothing but torch: preempted twice, it ends with the same bits as undisturbed."""

import pytest
from reference_jobs import JOBS, ends_the_same
from training_jobs import Job

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")


def test_the_example_of_a_plain_loop(trainer, tmp_path):
    result = ends_the_same(trainer, tmp_path, "train_mlp.py", "--epochs", "2", "--samples", "512", points=16)
    assert result["steps"] == 16


def test_mixed_precision_with_augmentation_accumulation_and_an_average_of_the_weights(trainer, tmp_path):
    arguments = ["--epochs", "2", "--samples", "300", "--batch", "16", "--workers", "2"]
    # 15 micro batches make 8 steps, and the evaluation of an epoch asks once more: stopped inside a step and in there
    result = ends_the_same(trainer, tmp_path, "train_cnn_amp.py", *arguments, points=32, seed=3, seeds_all=True)
    assert (result["steps"], len(result["curve"]), result["scale"]) == (16, 30, 65536.0)


def test_every_usual_way_to_save_and_load(trainer, tmp_path):
    result = ends_the_same(trainer, tmp_path, "save_load.py", "--epochs", "1", "--samples", "200", points=11)
    learned = result["learned"]
    assert list(learned) == [
        "state_dict", "whole_module", "safe_loading", "map_location", "one_layer", "strictness", "prefixes",
    ]  # fmt: skip
    assert learned["whole_module"].startswith("refused") and learned["whole_module"].endswith("the same weights")
    assert learned["safe_loading"] == "refused (UnpicklingError); its code was not executed"
    assert learned["map_location"].startswith("cpu to cpu")
    assert "that layer: the same weights, the head: other weights" in learned["one_layer"]
    assert learned["strictness"].count("refused (RuntimeError)") == 2 and "ACCEPTED" not in learned["strictness"]
    assert learned["prefixes"] == "plainly: refused (RuntimeError); by load_weights: the same weights"


def test_fine_tuning_with_frozen_blocks_and_unfreezing(trainer, tmp_path):
    arguments = ["--epochs", "4", "--samples", "128", "--pretrain-samples", "640"]
    # frozen for two epochs of 8 steps: stopped before and after the unfreezing
    result = ends_the_same(trainer, tmp_path, "finetune.py", *arguments, points=32, seed=7)
    assert result["frozen statistics untouched"] and result["steps"] == 32


def test_data_parallel(trainer, tmp_path):
    result = ends_the_same(trainer, tmp_path, "data_parallel.py", "--epochs", "2", "--samples", "800", points=20)
    assert result["exact"] and result["steps"] == 20


def test_a_tiny_gpt_has_the_same_loss_curve(trainer, tmp_path):
    arguments = ["--epochs", "1", "--batch", "32", "--width", "32"]
    result = ends_the_same(trainer, tmp_path, "tiny_gpt.py", *arguments, points=19)
    assert result["curve"][-1] < result["curve"][0] and result["sample"].startswith("Shall I")


def test_a_limit_of_memory(trainer, tmp_path):
    arguments = ["--epochs", "2", "--samples", "1024", "--hidden", "256", "--limit-mib", "1"]
    result = ends_the_same(trainer, tmp_path, "memory.py", *arguments, points=8)
    assert result["out_of_memory"] == [{"step": 1, "piece": 256}] and result["piece"] == 128
    assert 0 < result["peak"] <= 1024 * 1024


def test_a_single_sample_that_does_not_fit_ends_the_job_with_a_sentence(trainer, tmp_path):
    arguments = ["--samples", "64", "--batch", "4", "--hidden", "256", "--limit-mib", "0.005"]
    job = Job(trainer, tmp_path, JOBS / "memory.py", *arguments).start()
    assert job.wait() == 1, job.output
    assert "out of memory in step 1 with pieces of 4" in job.output
    assert "not even one sample fits into the memory (simulated: more than 0.00499" in job.output
    assert "Traceback" not in job.output


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_boosting_whose_members_follow_one_another(trainer, tmp_path, task):
    arguments = ["--method", "boosting", "--task", task, "--members", "3", "--epochs", "2"]
    arguments += ["--folder", str(tmp_path / "parts"), "--batch", "100"]
    result = ends_the_same(trainer, tmp_path, "ensemble.py", *arguments, points=36, seed=2)
    assert result["steps"] == 36 and result["scores"]["together"] > 0.3


def test_what_combines_members_of_a_regression(trainer, tmp_path):
    """Stacked members that were not disturbed; the job that combines them was."""
    arguments = ["--method", "stacking", "--task", "regression", "--members", "2", "--folder", tmp_path / "parts"]
    train = Job(trainer, tmp_path / "members", JOBS / "ensemble.py", *arguments, "--epochs", "2").start()
    assert train.wait() == 0, train.output
    combined = ends_the_same(trainer, tmp_path / "combine", "ensemble_combine.py", *arguments, points=38, seed=2)
    assert len(combined["members"]) == 2 and combined["together"] > 0.3


@pytest.mark.parametrize("method", ["bagging", "stacking"])
def test_a_member_of_an_ensemble_and_what_combines_the_members(trainer, tmp_path, method):
    arguments = ["--method", method, "--members", "2", "--epochs", "2", "--folder", tmp_path / "parts"]
    train = ["ensemble.py", *arguments, "--batch", "100", "--member"]
    other = Job(trainer, tmp_path / "other", JOBS / train[0], *train[1:], "1").start()
    points = 12 if method == "bagging" else 36  # steps; stacking trains on three folds, then on all
    result = ends_the_same(trainer, tmp_path / "member", *train, "0", points=points)
    assert result["steps"] == points and list(result["scores"]) == ["member 0"]
    assert other.wait() == 0, other.output
    if method == "stacking":
        combined = ends_the_same(trainer, tmp_path / "combine", "ensemble_combine.py", *arguments, points=38, seed=2)
        assert combined["members"][0] == result["scores"]["member 0"] and 0.3 < combined["together"] <= 1


def test_members_that_are_missing_are_named(trainer, tmp_path):
    job = Job(trainer, tmp_path, JOBS / "ensemble_combine.py", "--folder", tmp_path / "nowhere").start()
    assert job.wait() == 1
    assert f"{tmp_path}/nowhere/bagging-classification-0.pt is missing. Train the members first" in job.output
