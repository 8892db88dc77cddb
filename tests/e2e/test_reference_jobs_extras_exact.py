"""The reference jobs that need an extra: preempted twice, they end with the same bits as undisturbed."""

import importlib.util
import json
from pathlib import Path

import pytest
from reference_jobs import JOBS, ends_the_same, newest
from training_jobs import Job, Zygote

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
HEAVY = {
    "torchmetrics": "torchmetrics.classification",
    "sklearn": "sklearn.datasets",
    "torchensemble": "torchensemble",
    "transformers": "transformers.models.gpt2.modeling_gpt2",
    "peft": "peft",
}


def has(*names):
    """Whether these are installed; importing them here as well would cost seconds."""
    return all(importlib.util.find_spec(name) for name in names)


needs_peft = pytest.mark.skipif(not has("peft", "transformers"), reason="needs the extra gpusched[frameworks]")


@pytest.fixture(scope="module")
def trainer():
    zygote = Zygote(*[module for name, module in HEAVY.items() if has(name)])
    yield zygote
    zygote.close()


@pytest.mark.skipif(not has("torchmetrics"), reason="needs the extra gpusched[test]")
def test_metrics_in_progress(trainer, tmp_path):
    arguments = ["--epochs", "2", "--samples", "640", "--batch", "32"]
    # 15 steps and 5 batches of evaluation in each epoch: stopped among the one and among the other
    result = ends_the_same(trainer, tmp_path, "metrics.py", *arguments, points=40, seed=1)
    for epoch in result["history"]:
        for part, count in (("training", 480), ("testing", 160)):
            assert sum(map(sum, epoch[part]["confusion"])) == count  # every sample once
            right = sum(epoch[part]["confusion"][one][one] for one in range(4))
            assert epoch[part]["accuracy"] == pytest.approx(right / count)
    assert result["history"][-1]["testing"]["accuracy"] > 0.8


@needs_peft
@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt", "p-tuning"])
def test_adapting_a_gpt2_and_saving_only_what_is_trained(trainer, tmp_path, method):
    arguments = ["--method", method, "--epochs", "1", "--batch", "32"]
    result = ends_the_same(trainer, tmp_path, "finetune_lora.py", *arguments, points=9, seed=len(method))
    assert result["trained"] < result["whole"] / 4
    folder = Path(newest(Job(trainer, tmp_path / "stopped", JOBS / "finetune_lora.py")).path)
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert result["saved"] < on_disk < result["saved"] + 20_000  # the rest: generators, and the names of tensors


@pytest.mark.skipif(not has("sklearn"), reason="needs the extra gpusched[frameworks]")
def test_mixed_precision_learns_from_real_scans_too(trainer, tmp_path):
    arguments = ["--data", "digits", "--epochs", "2", "--samples", "600", "--out", tmp_path / "result"]
    job = Job(trainer, tmp_path, JOBS / "train_cnn_amp.py", *arguments).start()
    assert job.wait() == 0, job.output
    assert json.loads((tmp_path / "result").read_text())["accuracy"][-1] > 0.3


@pytest.mark.skipif(not has("torchensemble", "sklearn"), reason="needs torchensemble")
def test_bagging_by_a_library_a_member_at_a_time(trainer, tmp_path):
    arguments = ["--members", "3", "--epochs", "2"]
    result = ends_the_same(trainer, tmp_path, "ensemble_library.py", *arguments, points=3)
    assert (result["steps"], len(result["scores"])) == (3, 3)
