"""What `gpusched submit` sends to the daemon, and what it refuses before."""

import hashlib
import json
import os
import shlex
import subprocess

import pytest
from fake_daemon import FakeDaemon, an_ended_job, gpusched


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NO_COLOR", "1")
    with FakeDaemon(str(tmp_path / "s")) as server:
        yield server


def test_nothing_after_the_first_word_of_the_command_is_eaten(daemon):
    assert gpusched("submit", "-g", "2", "python", "t.py", "--gpus", "3", "-J", "x", "--", "--help").code == 0
    assert daemon.submitted["command"] == ["python", "t.py", "--gpus", "3", "-J", "x", "--", "--help"]
    assert daemon.submitted["gpus"] == 2
    assert "name" not in daemon.submitted


@pytest.mark.parametrize(
    ("text", "sent"),
    [("h100:2-8", (2, 8, [], "*h100*")), ("1,2,4", (1, 4, [1, 2, 4], None)), ("2-2", (2, None, None, None))],
)
def test_an_elastic_job_is_sent_with_its_least_and_its_most(daemon, text, sent):
    assert gpusched("submit", "-g", text, "true").code == 0
    assert tuple(daemon.submitted.get(name) for name in ("gpus", "gpus_max", "gpu_counts", "gpu_type")) == sent


@pytest.mark.parametrize(
    ("text", "said"), [("8-2", "did you mean 2-8?"), ("0-2", "write --gpus 1-2"), ("2-", "has no end")]
)
def test_a_range_that_makes_no_sense_is_refused_with_what_to_write(daemon, text, said):
    refused = gpusched("submit", "-g", text, "true")
    assert refused.code == 2 and said in refused.err


def test_two_dashes_are_optional_before_the_command(daemon):
    gpusched("submit", "-g", "0", "--", "-odd-program", "-g", "1")
    assert daemon.submitted["command"] == ["-odd-program", "-g", "1"]
    assert daemon.submitted["gpus"] == 0


def test_every_option_reaches_the_daemon_as_the_api_names_it(daemon, tmp_path):
    daemon.last = ["41", "40"]
    words = shlex.split(
        "-J run1 -g h100:2 --gpu-mem 20G -q high -p big -A lab -t 1-12:00:00 -b 2030-01-01T00:00Z --after 1,2 "
        "-d afternotok:@~1 --keep-on-dep-fail -a 0-7%2 --env A=1 --env HOME -o o-%j -e e-%j --no-requeue "
        "--max-requeues 3 --grace 2m --signal USR1@90 --checkpoint-dir ck/%j -H --comment 'my note'"
    )
    result = gpusched("submit", *words, "true")
    assert result.code == 0, result.err
    body = daemon.submitted
    expected = {
        "name": "run1", "gpus": 2, "gpu_type": "*h100*", "gpu_mem_mib": 20480, "qos": "high", "partition": "big",
        "account": "lab", "time_limit": 129600.0, "begin": 1893456000.0, "array": "0-7%2", "output": "o-%j",
        "dependency": "afterok:1:2,afternotok:40", "cancel_on_bad_dependency": False, "error": "e-%j",
        "requeue": False, "max_requeues": 3, "grace": 120.0, "signal": 10, "warn": 90.0, "hold": True,
        "checkpoint_dir": "ck/%j", "comment": "my note", "cwd": str(tmp_path / "work"),
        "command": ["true"],
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    assert body["env"]["A"] == "1" and body["env"]["HOME"] == os.environ["HOME"]
    assert set(body) == {*expected, "env", "umask", "source"}


@pytest.mark.parametrize("words", [["-G", "3"], ["--gres", "gpu:3"], ["--gres=gpu:3"], ["--gpus=3"], ["-g3"]])
def test_slurms_ways_to_ask_for_gpus_work(daemon, words):
    gpusched("submit", *words, "true")
    assert daemon.submitted["gpus"] == 3


def test_what_is_not_asked_for_is_left_to_the_daemon(daemon):
    gpusched("submit", "true")
    assert set(daemon.submitted) == {"command", "cwd", "env", "umask", "source"}


def test_a_time_limit_of_zero_is_no_limit(daemon):
    assert "time limit" not in gpusched("submit", "-t", "0", "true").out
    assert "time_limit" not in daemon.submitted


def test_the_parsed_time_limit_is_read_back(daemon):
    assert gpusched("submit", "-t", "90", "true").out == (
        "job 42 submitted (time limit 1:30:00): starting on device 0\n"
    )


def test_a_cron_job_is_confirmed_in_words(daemon):
    result = gpusched("submit", "--cron", "0 9 * * mon", "true")
    assert daemon.submitted["cron"] == "0 9 * * mon"
    assert "At 09:00 on Monday; next: Mon " in result.err


def test_parsable_prints_just_the_id_and_quiet_nothing(daemon):
    assert gpusched("submit", "--parsable", "true").out == "42\n"
    assert gpusched("submit", "-Q", "true").out == ""
    assert json.loads(gpusched("submit", "--json", "true").out)["job"] == "42"


def test_a_dry_run_submits_nothing_and_says_what_would_happen(daemon):
    daemon.answers["POST", "/v1/jobs"] = lambda asked: {
        "job": None, "ids": [], "note": "would start on device 1", "dry_run": asked.query == {"dry_run": "1"},
    }  # fmt: skip
    assert gpusched("submit", "--dry-run", "true").out == "the job would be submitted: would start on device 1\n"


# ---- scripts --------------------------------------------------------------------------------------------------


def write(name: str, text: str, executable: bool = False) -> str:
    with open(name, "w") as file:
        file.write(text)
    os.chmod(name, 0o755 if executable else 0o644)
    return os.path.abspath(name)


def test_a_script_carries_options_and_the_command_line_wins(daemon):
    path = write("job.sh", "#!/bin/bash\n#GPUSCHED -g 2 --time 4:00:00\n# GPUSCHED --env A=1\necho\n#GPUSCHED -g 9\n")
    gpusched("submit", "-t", "1:00:00", "--env", "B=2", "job.sh", "--gpus", "7")
    body = daemon.submitted
    assert (body["gpus"], body["time_limit"]) == (2, 3600.0)
    assert (body["env"]["A"], body["env"]["B"]) == ("1", "2")
    assert body["command"] == ["/bin/bash", path, "--gpus", "7"]
    assert body["source"]["script"] == path


def test_an_unknown_option_in_a_script_names_file_and_line(daemon):
    write("job.sh", "#!/bin/sh\n\n#GPUSCHED --gpus 1\n#GPUSCHED --gpsu 2\n")
    result = gpusched("submit", "./job.sh")
    assert result.code == 2
    assert "job.sh:4: no such option: --gpsu" in result.err and "--gpus" in result.err
    assert daemon.bodies("/v1/jobs") == []


def test_a_bad_value_in_a_script_names_file_and_line(daemon):
    write("job.sh", "#GPUSCHED --time soon\n")
    result = gpusched("submit", "./job.sh")
    assert result.code == 2 and "job.sh:1: time 'soon' cannot be read" in result.err


def test_slurms_lines_are_honoured_and_what_is_ignored_is_listed(daemon):
    text = "#!/bin/sh\n#SBATCH -J old --nodes=1 --gres=gpu:2 # note\n#SBATCH --mem 10G -t 2:00:00\ntrue\n"
    write("job.sh", text, executable=True)
    result = gpusched("submit", "job.sh")
    assert result.code == 0, result.err
    assert {name: daemon.submitted[name] for name in ("name", "gpus", "time_limit")} == {
        "name": "old", "gpus": 2, "time_limit": 7200.0,
    }  # fmt: skip
    assert "job.sh:2: --nodes=1" in result.err and "job.sh:3: --mem 10G" in result.err


def test_slurms_lines_do_not_count_beside_ours(daemon):
    write("job.sh", "#!/bin/sh\n#SBATCH --gpus 8\n#GPUSCHED -J mine\n", True)
    assert gpusched("submit", "job.sh").err == ""
    assert "gpus" not in daemon.submitted and daemon.submitted["name"] == "mine"


@pytest.mark.parametrize(
    ("name", "text", "executable", "interpreter"),
    [
        ("a.sh", "#!/bin/sh\n", True, []),
        ("a.sh", "echo\n", False, ["sh"]),
        ("a.bash", "echo\n", True, ["bash"]),
        ("a.py", "#!/usr/bin/env -S python3 -u\n", False, ["/usr/bin/env", "-S python3 -u"]),
        ("a", "echo\n", False, ["sh"]),
    ],
)
def test_a_script_runs_even_if_it_is_not_executable(daemon, name, text, executable, interpreter):
    path = write(name, text, executable)
    gpusched("submit", f"./{name}", "x")
    assert daemon.submitted["command"] == [*interpreter, path, "x"]
    assert daemon.submitted["source"]["script_sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_program_on_the_path_is_not_taken_for_a_script_of_the_same_name(daemon):
    write("true", "#GPUSCHED --gpus 8\n")
    gpusched("submit", "true")
    assert daemon.submitted["command"] == ["true"] and "gpus" not in daemon.submitted


def test_the_script_of_an_interpreter_and_the_git_commit_are_recorded(daemon):
    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True).stdout.strip()

    path = write("train.py", "print()\n")
    git("init", "-q")
    git("add", "train.py")
    git("commit", "-qm", "one")
    gpusched("submit", "python", "train.py")
    assert daemon.submitted["source"] == {
        "script": path,
        "script_sha256": hashlib.sha256(b"print()\n").hexdigest(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": False,
    }
    daemon.asked.clear()
    git("pack-refs", "--all")
    write("train.py", "print(1)\n")
    gpusched("submit", "python", "train.py")
    source = daemon.submitted["source"]
    assert (source["git_commit"], source["git_dirty"]) == (git("rev-parse", "HEAD"), True)


# ---- environment ----------------------------------------------------------------------------------------------


def test_an_outer_jobs_variables_are_not_handed_on(daemon, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("GPUSCHED_JOB_ID", "8")
    monkeypatch.setenv("MINE", "9")
    gpusched("submit", "true")
    env = daemon.submitted["env"]
    assert env["MINE"] == "9" and not [name for name in env if name.startswith(("SLURM_", "GPUSCHED_"))]


def test_export_chooses_what_is_handed_on(daemon, monkeypatch):
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.setenv("WANTED", "w")
    gpusched("submit", "--export", "WANTED,X=1", "true")
    env = daemon.submitted["env"]
    assert (env["WANTED"], env["X"], env["PATH"]) == ("w", "1", os.environ["PATH"]) and "SECRET" not in env
    daemon.asked.clear()
    gpusched("submit", "--export=NONE", "--env", "SECRET", "true")
    assert daemon.submitted["env"]["SECRET"] == "s" and "WANTED" not in daemon.submitted["env"]


def test_a_variable_that_is_not_text_is_left_out_and_that_is_said(daemon, monkeypatch):
    monkeypatch.setenv("ODD", "\udcff")
    result = gpusched("submit", "true")
    assert result.code == 0 and "'ODD'" in result.err and "ODD" not in daemon.submitted["env"]


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is no command to run"),
        (["--"], "there is no command to run"),
        ([""], "the command is empty"),
        (["echo", "x" * (3 << 20)], "the system allows 128 KiB"),
        (["--env", "NOT_THERE_AT_ALL", "true"], "there is no such variable here"),
        (["-D", "/not/there", "true"], "there is no directory /not/there"),
        (["--shared", "true"], "--shared needs --gpu-mem"),
        (["--gpu-mem", "20", "true"], "has no unit"),
        (["-g", "two", "true"], "no number of GPUs"),
        (["-g", "a:1", "--gpu-type", "b", "true"], "given twice"),
        (["-b", "now+60", "true"], "has no unit"),
        (["-a", "3-1", "true"], "runs backwards"),
        (["-d", "afterok:x", "true"], "is not a job id"),
        (["--after", "1", "-d", "afterok:1?afterok:2", "true"], "means any"),
        (["--cron", "nonsense", "true"], "cron expression"),
        (["--signal", "KILL", "true"], "no program can catch it"),
        (["-o", "", "true"], "output is empty"),
        (["--gpsu", "2", "true"], "No such option"),
        (["-f", "-a", "0-3", "true"], "no single output"),
    ],
)
def test_bad_input_is_refused_with_a_sentence_and_nothing_is_submitted(daemon, words, sentence):
    result = gpusched("submit", *words)
    assert result.code == 2
    assert sentence in result.err and result.err.startswith("gpusched: ")
    assert daemon.bodies("/v1/jobs") == []


def test_an_unknown_option_lists_the_known_ones(daemon):
    assert "--gpu-mem, --gpu-type, --gpus" in gpusched("submit", "--gpsu", "2", "true").err


def test_a_directory_that_is_gone_is_named(daemon, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    result = gpusched("submit", "true")
    assert result.code == 2 and "current directory has been removed" in result.err
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [("usage", 400, 2), ("not-found", 404, 3), ("not-allowed", 403, 4), ("refused", 409, 1), ("degraded", 507, 1)],
)
def test_the_daemons_errors_become_exit_codes(daemon, code, status, exit_code):
    daemon.answers["POST", "/v1/jobs"] = lambda asked: (
        status,
        {"error": {"code": code, "message": "it cannot be", "hint": "do that"}},
    )
    result = gpusched("submit", "true")
    assert (result.code, result.out, result.err) == (exit_code, "", "gpusched: it cannot be\n  do that\n")
    told = json.loads(gpusched("--json", "submit", "true").out)
    assert told == {"error": {"code": code, "message": "it cannot be", "hint": "do that"}}


def test_at_names_the_last_job_and_its_absence_is_told(daemon):
    assert gpusched("submit", "--after", "@", "true").code == 3
    daemon.last = ["17_4"]
    gpusched("submit", "--after", "@", "true")
    assert daemon.submitted["dependency"] == "afterok:17_4"


def test_wait_ends_with_the_jobs_own_code(daemon):
    daemon.jobs["42"] = an_ended_job("42", "FAILED", 7)
    assert gpusched("submit", "-W", "false").code == 7


def test_the_environment_is_not_handed_to_a_stranger(daemon, monkeypatch):
    monkeypatch.setattr("gpusched.client.peer_uid", lambda sock: 65534)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    result = gpusched("submit", "true")
    assert result.code == 4 and "runs as uid 65534" in result.err
    assert daemon.asked == []
