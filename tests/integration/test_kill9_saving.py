"""A few kills of tests/soak/soak_kill9_saving.py, which does a thousand: nothing that was durable is ever lost."""

from training_jobs import REPOSITORY, Job


def test_nothing_is_lost_when_a_saving_process_is_killed_and_the_disk_is_full_and_renames_are_torn(trainer, tmp_path):
    script = REPOSITORY / "tests" / "soak" / "soak_kill9_saving.py"
    job = Job(trainer, tmp_path, script, "--kills", "12", "--full", "6", "--torn", "12", "--seed", "5")
    assert job.start(TMPDIR=str(tmp_path)).wait() == 0, job.output
    assert job.output.count("nothing lost") == 3
