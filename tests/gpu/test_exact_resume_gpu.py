"""Training on a CUDA device that is stopped and goes on, with the same bits; run it with pytest tests/gpu.

Every test has a twin on the CPU, which runs everywhere, so that a mistake in the tests themselves is seen there.
"""

import json
import math

import pytest

torch = pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
from torch import nn  # noqa: E402

from gpusched import rundir  # noqa: E402
from gpusched.checkpoint import CheckpointError, Run, digest, leave, list_checkpoints  # noqa: E402
from gpusched.checkpoint.disk import compare, files  # noqa: E402

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
    ],
)
EPOCHS, BATCHES = 2, 9  # 9 micro batches of an epoch make 5 steps: the last window is a short one


class Left(BaseException):
    """The process would have ended here."""


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """The name of the workspace is read when cuBLAS is used first, which no test that is collected before this does."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)


class Samples(torch.utils.data.Dataset):
    """Random transforms on the host, drawn sample by sample."""

    def __len__(self):
        return 4 * BATCHES

    def __getitem__(self, index):
        image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(index))
        return image + 0.1 * torch.randn(1, 8, 8), index % 3


class Training:
    """One run with a checkpoint directory: each call of `attempt` is what one process would do."""

    def __init__(self, folder, monkeypatch, **options):
        self.job, self.checkpoints, self.options = folder / "job", folder / "checkpoints", options
        self.job.mkdir(parents=True)
        self._patch, self.run, self.report = monkeypatch, None, []

    def attempt(self, device, stop=0):
        """Train to the end, and give what it came to; or be asked to stop at this safe point, and give None."""
        for name, value in ((rundir.ENV_JOB_DIR, self.job), (rundir.ENV_CHECKPOINT_DIR, self.checkpoints)):
            self._patch.setenv(name, str(value))
        self._patch.setattr(leave, "leave", self._leave)
        for path in self.job.iterdir():
            path.unlink()
        try:
            return self._train(torch.device(device), stop)
        except Left as left:
            assert left.args == (rundir.EXIT_SAVED,)
            answer = json.loads((self.job / rundir.SAVED).read_text())
            assert files.examine(answer["checkpoint"]).good
            return None
        finally:
            self.report = self.run.report

    @staticmethod
    def _leave(code):
        raise Left(code)

    def _ask(self):
        rundir.write_json(str(self.job / rundir.REQUEST), {"ask": "stop", "seq": 1, "seconds_left": 60}, durable=False)

    def _train(self, device, stop):
        torch.manual_seed(1)  # the device's generators, too
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(216, 3)
        ).to(device)  # fmt: skip
        ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)  # counts its steps on the device
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=10)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**20, growth_interval=3)
        own = torch.Generator(device).manual_seed(7)
        pinned = device.type == "cuda"
        loader = torch.utils.data.DataLoader(Samples(), batch_size=4, shuffle=True, pin_memory=pinned)
        half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self.run = run = Run(
            model, optimizer, scheduler, scaler, ema, generators={"own": own}, every_seconds=None, **self.options
        )
        curve, passed = run.values.setdefault("curve", []), 0
        for _ in run.epochs(EPOCHS):
            model.train()
            for images, labels in run.batches(loader):
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                noise = torch.randn(images.shape, device=device)
                noise += torch.randn(images.shape, device=device, generator=own)
                with torch.autocast(device.type, half):
                    loss = nn.functional.cross_entropy(model(images + 0.1 * noise).float(), labels) / 2
                scaler.scale(loss).backward()
                curve.append(loss.item())
                passed += 1
                if passed == stop:
                    self._ask()
                if run.batch % 2 == 0 and run.batch != BATCHES - 1:
                    run.micro_step()
                    continue
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                scheduler.step()
                ema.update_parameters(model)
                run.step()
        following = [float(torch.rand((), device=device)), float(torch.rand((), device=device, generator=own))]
        return {"curve": curve, "following": following, **{name: digest(tree) for name, tree in run.state().items()}}


@pytest.fixture
def training(tmp_path, monkeypatch):
    return lambda name, **options: Training(tmp_path / name, monkeypatch, **options)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_stopped_in_a_window_and_at_a_step_it_ends_with_the_same_bits(device, training):
    straight = training("straight").attempt(device)
    assert straight["curve"][0] != straight["curve"][-1] and len(straight["curve"]) == EPOCHS * BATCHES
    stopped = training("stopped")
    assert stopped.attempt(device, stop=3) is None  # inside the second window of the first epoch
    assert stopped.attempt(device, stop=5) is None  # at the step of the fourth, counted over both attempts
    assert stopped.attempt(device, stop=4) is None  # in the second epoch
    assert stopped.attempt(device) == straight


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_is_saved_behind_the_training_is_the_state_of_its_step(device, training):
    """Every snapshot is written while kernels of later steps change the weights; each of them leads to the same end."""
    one = training("one", every_steps=2, keep=99)
    straight = one.attempt(device)
    saved = [item for item in list_checkpoints(str(one.checkpoints), checksums=True) if item.good]
    assert [item.step for item in saved] == [2, 4, 6, 8, 10]
    assert all("stall" in item.manifest for item in saved[:-1])
    for item in reversed(saved[:-1]):  # as if everything since had been lost
        for later in list_checkpoints(str(one.checkpoints)):
            if later.step > item.step:
                files.delete(later)
        assert one.attempt(device) == straight, item.name


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_stop_and_a_save_behind_of_the_same_step_are_the_same_bytes(device, training):
    behind, asked = training("behind", every_steps=3, keep=99), training("asked")
    behind.attempt(device)
    assert asked.attempt(device, stop=6) is None
    here, there = (list_checkpoints(str(one.checkpoints))[0] for one in (behind, asked))
    assert (here.step, there.step) == (3, 3)
    differences = [str(one) for one in compare.compare(here.path, there.path) if "history/" not in one.place]
    assert [one for one in differences if "/python" not in one and "/numpy" not in one] == []  # not seeded here


@pytest.mark.parametrize(("here", "there"), [("cpu", "cpu"), *(
    pytest.param(*pair, marks=CUDA.marks) for pair in (("cuda", "cpu"), ("cpu", "cuda"))
)])  # fmt: skip
def test_what_was_saved_on_one_device_goes_on_on_another_and_that_is_told(here, there, training):
    one = training("one")
    assert one.attempt(here, stop=6) is None
    saved = list_checkpoints(str(one.checkpoints))[-1]
    result = one.attempt(there)
    assert len(result["curve"]) == EPOCHS * BATCHES and all(map(math.isfinite, result["curve"]))
    assert one.run.state()["model"]["5.weight"].device.type == there
    told = [line for line in one.report if "device was" in line]
    assert len(told) == (here != there) and f"resumed from {saved.name}" in " ".join(one.report)
    generator = [line for line in one.report if line.startswith("generators.own was saved from another kind")]
    assert len(generator) == (here != there)


@pytest.mark.parametrize(("here", "there"), [pytest.param(*pair, marks=CUDA.marks) for pair in (("cuda", "cpu"),)])
def test_who_insists_on_the_same_bits_is_refused_another_device(here, there, training):
    one = training("one", environment="exact")
    assert one.attempt(here, stop=6) is None
    with pytest.raises(CheckpointError, match="device was"):
        one.attempt(there)
