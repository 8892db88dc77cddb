"""Several ranks, real processes: one stop, one checkpoint, nobody hangs and nobody is left behind."""

import json
import os

import pytest
from gangs import Gang
from training_jobs import HERE, REPOSITORY, Job

from gpusched.checkpoint.disk.files import list_checkpoints

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
SCRIPT, DDP = HERE / "ranks_training.py", REPOSITORY / "jobs" / "ddp.py"


def gang(trainer, folder, *arguments):
    return Gang(trainer, folder, SCRIPT, "--out", folder / "result", *arguments)


def result(job):
    return json.loads((job.folder / "result").read_text())


def steps(job):
    found = list_checkpoints(job.checkpoints, checksums=True)
    assert [one.problem for one in found] == [""] * len(found)
    return [one.step for one in found]


def leftovers(job):
    return [name for name in os.listdir(job.checkpoints) if not name.startswith("step-") and name != ".lock"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_ddp_job_preempted_twice_ends_bit_for_bit_like_undisturbed(trainer, tmp_path, size):
    small = ["--epochs", "2", "--samples", "480"]  # 10 steps in an epoch
    for name in ("straight", "stopped"):
        job = Gang(trainer, tmp_path / name, DDP, *small, "--out", tmp_path / name / "result")
        for stop in (1, 9) if name == "stopped" else ():
            assert job.run(size, stop_at=stop) == [85] * size, job.output
        assert job.run(size) == [0] * size, job.output
    assert result(job) == json.loads((tmp_path / "straight" / "result").read_text())
    assert result(job)["steps"] == 20 and len(result(job)["curve"]) == 20


@pytest.fixture(scope="module")
def undisturbed(trainer, tmp_path_factory):
    results = {}

    def result_of(*arguments):
        if arguments not in results:
            job = gang(trainer, tmp_path_factory.mktemp("undisturbed"), *arguments)
            assert job.run(3) == [0, 0, 0], job.output
            results[arguments] = result(job)
        return results[arguments]

    return result_of


def test_a_signal_to_one_rank_alone_stops_all_at_one_step_and_each_goes_on_with_its_own(trainer, undisturbed, tmp_path):
    job = gang(trainer, tmp_path)
    assert job.run(3, "--term", "1") == [85, 85, 85], job.output
    assert job.output.count("stopping as asked") == 1  # what concerns everybody is said once
    (step,) = steps(job)
    assert step >= 6 and job.saved()["step"] == step
    names = sorted(os.listdir(job.checkpoints / f"step-{step}"))
    assert [name for name in names if name.startswith("own-") and name.endswith(".json")] == [
        "own-0.json", "own-1.json", "own-2.json"
    ]  # fmt: skip
    assert job.run(3) == [0, 0, 0], job.output
    assert result(job) == undisturbed()
    assert len({drawn for drawn, _, _ in result(job)["drawn"]}) == 3  # every rank its own random numbers


def test_a_stop_between_micro_batches_is_exact_on_all_ranks(trainer, undisturbed, tmp_path):
    expected = undisturbed("--micro")
    for at in (2, 3):  # an even and an odd safe point, so that one of the stops is in a window
        job = gang(trainer, tmp_path / str(at), "--micro")
        assert job.run(3, stop_at=at) == [85, 85, 85], job.output
        assert job.run(3) == [0, 0, 0], job.output
        assert result(job) == expected


def test_saves_behind_the_training_are_one_checkpoint_of_all_ranks(trainer, undisturbed, tmp_path):
    job = gang(trainer, tmp_path, "--every-steps", "6")
    assert job.run(3) == [0, 0, 0], job.output
    assert steps(job) == [12, 18, 24] and leftovers(job) == []
    manifest = json.loads((job.checkpoints / "step-18" / "manifest.json").read_text())
    assert {"own-0.json", "own-1.json", "own-2.json"} < set(manifest["files"])
    assert result(job) == undisturbed()


@pytest.mark.parametrize("mode", [(), ("--blocking",)], ids=["behind", "blocking"])
def test_a_full_disk_on_one_rank_costs_no_step_and_leaves_nothing_half_saved(trainer, undisturbed, tmp_path, mode):
    job = gang(trainer, tmp_path, "--every-steps", "2", *mode)
    assert job.run(3, "--full", "1") == [0, 0, 0], job.output
    assert steps(job) in ([], [2]) and leftovers(job) == []  # written behind, step 2 may meet the full disk, too
    assert "CANNOT SAVE a checkpoint" in job.output and "(rank 1)" in job.output
    assert result(job) == undisturbed()


def test_a_stop_that_one_rank_cannot_save_ends_all_of_them_unacknowledged(trainer, tmp_path):
    job = gang(trainer, tmp_path)
    assert job.run(3, "--odd", "2", stop_at=8) == [1, 1, 1], job.output
    assert "On rank 2: ValueError: this counter is broken" in job.output
    assert "WITHOUT a new checkpoint" in job.output
    assert job.saved() is None and leftovers(job) == []


def test_a_rank_killed_while_saving_takes_the_others_with_it_and_the_last_checkpoint_stays(trainer, tmp_path):
    job = gang(trainer, tmp_path, "--every-steps", "6", "--blocking")
    assert job.run(3, "--die-saving", "1") == [1, -9, 1], job.output
    assert "another rank of this run has ended" in job.output and "Traceback" not in job.output
    assert steps(job) == [6] and leftovers(job) == []
    assert job.run(3) == [0, 0, 0], job.output
    assert "resumed from step-6" in job.output


def test_a_damaged_file_of_one_rank_makes_all_of_them_go_back_to_the_checkpoint_before(trainer, undisturbed, tmp_path):
    job = gang(trainer, tmp_path, "--every-steps", "6", "--blocking")
    assert job.run(3, stop_at=14) == [85, 85, 85], job.output
    *_, before, newest = list_checkpoints(job.checkpoints)
    with open(f"{newest.path}/own-2.json", "r+b") as file:
        file.write(b"?")
    assert job.run(3) == [0, 0, 0], job.output
    assert f"skipping checkpoint {newest.name}: own-2.json is damaged" in job.output
    assert f"resumed from {before.name}" in job.output
    assert result(job) == undisturbed()


def test_ranks_at_different_places_are_told_what_to_do(trainer, tmp_path):
    job = gang(trainer, tmp_path)
    assert set(job.run(2, "--check", "0")) == {1}
    assert "run.check() on every rank equally often" in job.output, job.output


def test_a_run_saved_on_three_ranks_goes_on_with_two_and_says_what_is_not_exact(trainer, tmp_path):
    job = gang(trainer, tmp_path)
    assert job.run(3, stop_at=4) == [85, 85, 85], job.output
    assert job.run(2) == [0, 0], job.output
    assert "the number of ranks was 3 and is 2" in job.output
    assert [steps for _, _, steps in result(job)["drawn"]] == [24, 24]


def test_a_rank_that_was_not_there_when_it_was_saved_draws_numbers_of_its_own(trainer, tmp_path):
    job = gang(trainer, tmp_path)
    assert job.run(1, stop_at=4) == [85], job.output
    assert job.run(3) == [0, 0, 0], job.output
    assert len({drawn for drawn, _, _ in result(job)["drawn"]}) == 3


def test_ranks_that_are_not_connected_are_told_so(trainer, tmp_path):
    job = Job(trainer, tmp_path, SCRIPT, "--unconnected").start(WORLD_SIZE="2", RANK="0")
    assert job.wait() == 1
    assert "Call torch.distributed.init_process_group() before Run" in job.output


def test_a_script_that_ends_while_gloo_still_tidies_up_ends_with_its_own_code(trainer, tmp_path):
    job = Job(trainer, tmp_path, HERE / "late_thread.py").start()
    assert (job.wait(), job.output) == (7, "late\n")
