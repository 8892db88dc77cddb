"""Runs of Lightning, Hugging Face Trainer and accelerate that were preempted in mid-epoch end bit for bit like others.

Real processes of the real libraries, stopped at chosen safe points by requests.
"""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from training_jobs import HERE, PATIENCE, Job, Zygote

from gpusched.checkpoint.disk.files import list_checkpoints

for package in ("lightning", "pytorch_lightning", "transformers", "accelerate", "torchmetrics"):
    pytest.importorskip(package, reason="needs the extra gpusched[frameworks]")
LIGHTNING, TRAINER, ACCELERATE = (HERE / f"{name}_training.py" for name in ("lightning", "transformers", "accelerate"))
MODULES = ["lightning.pytorch", "pytorch_lightning", "torchmetrics", "transformers.trainer", "accelerate"]

OLDER = ("--package", "pytorch_lightning")
STORIES = {
    # the third and fourth attempt stop in the validation of the first epoch and at the beginning of the second one
    "lightning": (LIGHTNING, [3, 4, 1, 4], ()),
    "lightning, validation in an accumulation window": (
        LIGHTNING, [2, 3], ("--workers", "2", "--check-every", "0.5", "--accumulate", "4"),
    ),
    "lightning, no length": (LIGHTNING, [2, 14], ("--iterable", "--plateau")),
    "lightning, two loaders": (LIGHTNING, [4], ("--two-loaders", "--every-steps", "4")),
    "trainer": (TRAINER, [3, 4], ("--workers", "2")),  # the second one stops inside an evaluation
    "trainer, accumulation": (TRAINER, [3, 2], ("--accumulate", "3", "--evaluate", "epoch")),
    "trainer, no length": (TRAINER, [9], ("--iterable",)),
    "accelerate": (ACCELERATE, [3, 5], ("--workers", "2", "--accumulate", "4")),
    "accelerate, no length": (ACCELERATE, [4], ("--iterable", "--accumulate", "4")),
}  # fmt: skip


class PatientZygote(Zygote):
    """One that several threads may ask."""

    lock = threading.Lock()

    def start(self, *arguments):
        with self.lock:
            return super().start(*arguments)


@pytest.fixture(scope="module")
def zygote():
    zygote = PatientZygote(*MODULES, "transformers.models.gpt2.modeling_gpt2")
    yield zygote
    zygote.close()


def result_of(job):
    """What the script ended with, and every line that its logger got."""
    assert job.wait() == 0, job.output
    log = job.folder / "result.log"
    lines = log.read_text().splitlines() if log.exists() else []
    result = json.loads((job.folder / "result").read_text())
    result.pop("told", None)
    return result, [json.loads(line) for line in lines]


def new_job(zygote, folder, script, *arguments):
    return Job(zygote, folder, script, "--out", folder / "result", *arguments)


def stop_at(job, points):
    for point in points:
        assert job.start(stop_at=point, HF_HUB_OFFLINE="1").wait() == 85, job.output
        assert job.saved()["attempt"] == job.attempt, job.output


def undisturbed_run(zygote, folder, script, arguments):
    return result_of(new_job(zygote, folder, script, *arguments).start(HF_HUB_OFFLINE="1"))


def stopped_run(zygote, folder, script, arguments, points):
    job = new_job(zygote, folder, script, *arguments)
    stop_at(job, points)
    outcome = result_of(job.start(HF_HUB_OFFLINE="1"))
    assert "not registered" not in job.output
    return (*outcome, list_checkpoints(str(job.checkpoints), checksums=True))


@pytest.fixture(scope="module")
def stories(zygote, tmp_path_factory):
    """What came out of each story, without and with stops: told two at a time, and waited for where they are needed."""
    with ThreadPoolExecutor(2) as two:
        told = {}
        for name, (script, points, arguments) in STORIES.items():
            folder = tmp_path_factory.mktemp("story")
            straight = two.submit(undisturbed_run, zygote, folder / "straight", script, arguments)
            told[name] = straight, two.submit(stopped_run, zygote, folder / "stopped", script, arguments, points)
        yield told


@pytest.mark.parametrize("name", STORIES)
def test_a_stopped_run_ends_like_one_that_was_not(stories, name):
    straight, stopped = (future.result() for future in stories[name])
    assert stopped[1] == straight[1]
    assert stopped[0] == straight[0]
    if "--every-steps" in STORIES[name][2]:
        assert [found.step for found in stopped[2]] == [12, 16, 18]


def test_the_older_package_of_lightning_resumes_to_the_same_bits(zygote, stories, tmp_path):
    job = new_job(zygote, tmp_path, LIGHTNING, *OLDER)
    stop_at(job, [4])
    assert result_of(job.start()) == stories["lightning"][0].result()


def test_accelerate_makes_a_step_of_an_epochs_last_batch(stories):
    for name in ("accelerate", "accelerate, no length"):
        assert stories[name][0].result()[0]["synced"][:6] == [False, False, False, True, False, True]


def run_ranks(zygote, folder, attempt, stop_at=None):
    """Three processes under accelerate, as torchrun would start them. Returns their exit codes."""
    job = folder / f"attempt-{attempt}"
    job.mkdir(parents=True)
    if stop_at is not None:
        (job / "request").write_text(json.dumps({"ask": "stop", "seq": 1, "safe_point": stop_at}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    env = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    env["GPUSCHED_AGREE"] = "always"
    env.update(GPUSCHED_JOB_DIR=str(job), GPUSCHED_CHECKPOINT_DIR=str(folder / "checkpoints"))
    pids = []
    for rank in range(3):
        argv = [ACCELERATE, "--out", folder / f"result-{rank}", "--accumulate", "2"]
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        pids.append(zygote.start(argv, dict(env, **ranks), folder / f"output-{attempt}"))
    with zygote.ended:
        assert zygote.ended.wait_for(lambda: all(pid in zygote.codes for pid in pids), timeout=PATIENCE)
    return [zygote.codes[pid] for pid in pids]


def test_three_ranks_with_accelerate_end_like_ones_that_were_not_stopped(zygote, tmp_path):
    assert run_ranks(zygote, tmp_path / "straight", 1) == [0, 0, 0]
    assert run_ranks(zygote, tmp_path / "stopped", 1, stop_at=3) == [85, 85, 85]
    assert run_ranks(zygote, tmp_path / "stopped", 2) == [0, 0, 0]
    for rank in range(3):
        one, other = (json.loads((tmp_path / name / f"result-{rank}").read_text()) for name in ("straight", "stopped"))
        assert dict(one, told=()) == dict(other, told=())


def test_a_torn_checkpoint_is_skipped_and_forgetting_the_path_starts_nothing_over(zygote, stories, tmp_path):
    job = new_job(zygote, tmp_path, LIGHTNING)
    stop_at(job, [2, 2])
    assert job.start("--forget").wait() == 1
    assert "was not told to continue from them" in job.output
    assert "ckpt_path=callback.resume_path()" in job.output
    newest = list_checkpoints(str(job.checkpoints))[-1]
    with open(f"{newest.path}/lightning.ckpt", "r+b") as file:
        file.seek(1000)
        file.write(b"torn")
    result, _ = result_of(job.start())
    assert f"skipping checkpoint {newest.name}: lightning.ckpt is damaged" in job.output
    assert result == stories["lightning"][0].result()[0]


def test_a_sigterm_by_hand_saves_and_leaves_lightning(zygote, tmp_path):
    job = new_job(zygote, tmp_path, LIGHTNING).start("--terminate-at", "4")
    assert job.wait() == 85, job.output
    assert [found.step for found in list_checkpoints(str(job.checkpoints))] == [4]


def test_a_stop_that_cannot_be_saved_is_told_and_not_acknowledged(zygote, tmp_path):
    job = new_job(zygote, tmp_path, LIGHTNING, "--small-disk")
    assert job.start(stop_at=2).wait() == 1
    assert "CANNOT SAVE a checkpoint" in job.output
    assert "WITHOUT a new checkpoint" in job.output
    assert job.saved() is None
    assert list_checkpoints(str(job.checkpoints)) == []


def test_a_torn_checkpoint_of_trainer_is_skipped(zygote, stories, tmp_path):
    job = new_job(zygote, tmp_path, TRAINER, "--workers", "2")
    stop_at(job, [2, 2])
    (tmp_path / "result.checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"torn")
    result, _ = result_of(job.start(HF_HUB_OFFLINE="1"))
    assert "skipping checkpoint-4: optimizer.pt has 4 bytes" in job.output
    assert result == stories["trainer"][0].result()[0]
