"""A job from submit to history, with the real daemon, real processes, a real database and real sockets."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from daemons import COMMAND, read_until, until

from gpusched.model.errors import UsageError


def test_a_job_goes_from_submit_through_the_queue_to_the_history(place):
    gate = place.work / "gate-1"
    script = f"echo hello; while [ ! -e {gate} ]; do sleep 0.05; done"
    told = place.cli("submit", "-J", "first", "--", "sh", "-c", script)
    assert told.code == 0, told.err
    key = place.client.last()[0]
    job = place.running(key)
    assert job["name"] == "first" and len(job["devices"]) == 1 and job["pid"]
    queue = place.cli("queue")
    (line,) = [line for line in queue.out.splitlines() if "first" in line]
    assert " R " in line or "RUNNING" in line
    gate.touch()
    job = place.ended(key)
    assert (job["state"], job["exit_code"], job["exit_status"], job["attempt"]) == ("COMPLETED", 0, 0, 1)
    assert place.output(key) == "hello\n"
    assert [j["job"] for j in place.client.history(keys=[key])] == [key]
    kinds = [line["kind"] for line in job["story"]]
    assert kinds[-4:] == ["starting", "started", "exited", "completed"], kinds
    assert "first" in place.cli("history").out


ENDINGS = [
    (["sh", "-c", "exit 0"], "COMPLETED", 0, None, 0),
    (["sh", "-c", "exit 3"], "FAILED", 3, None, 3),
    (["sh", "-c", "kill -USR1 $$"], "FAILED", None, 10, 138),
    (["sh", "-c", "kill -9 $$"], "FAILED", None, 9, 137),
    (["no-such-command-here"], "FAILED", None, None, 127),
    (["./not-executable"], "FAILED", None, None, 126),
]


def test_every_way_to_end_is_told_as_it_was(place):
    (place.work / "not-executable").write_text("true\n")
    keys = [place.submit(*command, gpus=0) for command, *_ in ENDINGS]
    for key, (command, state, code, number, status) in zip(keys, ENDINGS, strict=True):
        job = place.ended(key)
        found = (job["state"], job["exit_code"], job["exit_signal"], job["exit_status"])
        assert found == (state, code, number, status), (command, job["exit_text"])
    lost = place.job(keys[4])
    assert "no-such-command-here" in lost["exit_text"] and lost["attempts"][0]["outcome"]["errno"] == 2


def test_a_working_directory_that_is_gone_is_named_in_the_end_of_the_job(place):
    gone = place.work / "gone"
    gone.mkdir()
    key = place.sh("true", cwd=str(gone), hold=True, output=str(place.work / "x.out"))
    gone.rmdir()
    place.client.release([key])
    job = place.ended(key)
    assert job["state"] == "FAILED" and f"working directory {gone}" in job["exit_text"]


def test_an_output_file_that_cannot_be_written_is_named_in_the_end_of_the_job(place):
    key = place.sh("true", output=str(place.work / "no" / "such" / "%j.out"))
    job = place.ended(key)
    assert job["state"] == "FAILED" and f"no/such/{key}.out" in job["exit_text"]
    assert job["attempts"][0]["outcome"]["kind"] == "launch-failed"


def test_run_streams_the_output_and_returns_the_code_of_the_job(place):
    gate = place.work / "gate-run"
    script = f"echo one; while [ ! -e {gate} ]; do sleep 0.05; done; echo two; echo bad >&2; exit 5"
    with subprocess.Popen(
        [*COMMAND, "run", "-g", "0", "sh", "-c", script], cwd=place.work, env=place.env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert "one" in read_until(run.stdout, "one")  # while the job still runs
        gate.touch()
        rest, _ = run.communicate(timeout=60)
        assert b"two" in rest
        assert run.returncode == 5


def test_run_returns_128_and_the_signal_and_wait_the_highest_code(place):
    assert place.cli("run", "-Q", "-g", "0", "sh", "-c", "kill -TERM $$").code == 143
    three, seven = place.sh("exit 3", gpus=0), place.sh("exit 7", gpus=0)
    waited = place.cli("wait", f"{three},{seven}")
    assert waited.code == 7 and f"job {three} FAILED: exit code 3" in waited.err
    slow = place.sh("sleep 60", gpus=0)
    assert place.cli("wait", slow, "--timeout", "0.2s").code == 124
    place.client.cancel([slow])
    assert place.cli("wait", slow).code == 130


def test_ctrl_c_without_a_terminal_cancels_the_job_of_run(place):
    with subprocess.Popen(
        [*COMMAND, "run", "-J", "interrupted", "-g", "0", "sh", "-c", "echo up; sleep 600"], cwd=place.work,
        env=place.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as run:  # fmt: skip
        read_until(run.stdout, "up")
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
        assert run.returncode == 130
    assert [j["state"] for j in place.client.history(name="interrupted")] == ["CANCELLED"]


def test_a_time_limit_ends_the_job_as_timeout_with_124(place):
    result = place.cli("run", "-g", "0", "-t", "1s", "--grace", "1s", "sh", "-c", "trap '' TERM; sleep 60")
    assert result.code == 124
    key = place.client.last()[0]
    assert place.job(key)["state"] == "TIMEOUT"


def test_output_patterns_name_job_array_element_name_user_and_restart(place):
    key = place.sh("echo out; echo err >&2", name="pat", array="3,5", gpus=0, output="%x-%A-%a-%r.o", error="%u-%j.e")
    elements = place.client.job(key)["elements"]
    for element in elements:
        place.ended(element["job"])
    for index in (3, 5):
        assert (place.work / f"pat-{key}-{index}-0.o").read_text() == "out\n"
    user = elements[0]["user"]
    assert sorted(p.name for p in place.work.glob("*.e")) == sorted(f"{user}-{e['id']}.e" for e in elements)


def test_a_checkpoint_directory_is_a_pattern_that_gives_each_element_its_own(place):
    told = place.cli("submit", "-g", "0", "-a", "3,5", "--checkpoint-dir", "ck/%x-%a", "-J", "own", "sh", "-c",
                     "echo $GPUSCHED_CHECKPOINT_DIR; touch $GPUSCHED_CHECKPOINT_DIR/here")  # fmt: skip
    assert told.code == 0, told.err
    for element in place.client.job(place.client.last()[0])["elements"]:
        job = place.ended(element["job"])
        assert job["state"] == "COMPLETED", place.output(element["job"])
        expected = place.work / "ck" / f"own-{element['array_index']}"
        assert job["checkpoint_dir"] == str(expected) and (expected / "here").exists()


def test_elements_of_an_array_that_would_save_into_one_directory_are_refused(place):
    told = place.cli("submit", "-g", "0", "-a", "3,5", "--checkpoint-dir", "ck/%A", "true")
    assert told.code == 2 and "same directory" in told.err and "ck/%A/%A_%a" in told.err
    unknown = place.cli("submit", "-g", "0", "--checkpoint-dir", "ck/%q", "true")
    assert unknown.code == 2 and "%q" in unknown.err


def test_the_environment_tells_a_job_its_devices_and_keeps_other_schedulers_out(place):
    key = place.submit(
        "sh", "-c", "env", gpus=2, env={"MINE": "1", "SLURM_JOB_ID": "9", "GPUSCHED_JOB_ID": "77"}
    )
    job = place.ended(key)
    told = dict(line.split("=", 1) for line in place.output(key).splitlines() if "=" in line)
    uuids = [device["uuid"] for device in job["attempts"][0]["devices"]]
    assert told["CUDA_VISIBLE_DEVICES"] == ",".join(uuids) and told["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert told["MINE"] == "1" and told["GPUSCHED_JOB_ID"] == key and "SLURM_JOB_ID" not in told
    assert told["MASTER_PORT"].isdigit()
    none = place.submit("sh", "-c", 'echo "[$CUDA_VISIBLE_DEVICES]"', gpus=0)
    place.ended(none)
    assert place.output(none) == "[]\n"


def test_what_no_job_could_be_is_refused_at_submit_with_a_reason(place):
    for fields, said in [
        ({"gpus": 3}, "2"),
        ({"gpu_mem_mib": 9000}, "8"),
        ({"colour": "red"}, "colour"),
        ({"qos": "gold"}, "low"),
        ({"dependency": "afterok:99999"}, "99999"),
        ({"array": "5-x"}, "5-x"),
        ({"command": []}, "command"),
        ({"env": {"A": "b\0c"}}, "NUL"),
        ({"command": ["true", "x" * 3_000_000]}, ""),
    ]:
        with pytest.raises(UsageError) as refused:
            place.client.submit({"command": ["true"], "cwd": "/", **fields})
        error = refused.value
        assert said.lower() in f"{error.message} {error.hint}".lower(), (fields.keys(), error.message, error.hint)
    unknown = place.cli("submit", "--qos", "gold", "true")
    assert unknown.code == 2 and "gold" in unknown.err and "normal" in unknown.err


def test_a_dry_run_agrees_with_what_happens_and_submits_nothing(place):
    before = place.client.last()
    said = place.cli("submit", "--dry-run", "-g", "2", "sleep", "600")
    assert said.code == 0 and "start now" in said.out + said.err
    assert place.client.last() == before
    first = place.sh("sleep 600", gpus=2)
    place.running(first)
    said = place.cli("submit", "--dry-run", "--qos", "high", "true")
    assert f"preempt job {first}" in said.out + said.err
    said = place.cli("submit", "--dry-run", "true")
    assert "Resources" in said.out + said.err
    second = place.sh("true")
    assert place.client.why(second)["reason"] == "Resources"
    place.client.cancel([first])
    assert place.ended(second)["state"] == "COMPLETED"


def test_begin_holds_a_job_back_until_its_time(place):
    told = place.cli("submit", "--parsable", "-g", "0", "-b", "now+2s", "true")
    key = told.out.strip()
    assert told.code == 0, told.err
    job = place.job(key)
    assert (job["state"], job["reason"]) == ("PENDING", "BeginTime")
    done = place.ended(key)
    assert done["state"] == "COMPLETED" and done["started_at"] >= done["begin_at"]


def test_logs_show_every_attempt_of_a_job_in_one_place(place):
    gate = place.work / "gate-logs"
    key = place.sh(f"echo attempt $GPUSCHED_ATTEMPT; [ -e {gate} ] || {{ touch {gate}; exit 85; }}", gpus=0)
    assert place.ended(key)["attempt"] == 2
    logs = place.cli("logs", key)
    assert logs.code == 0
    text = logs.out
    assert text.index("attempt 1\n") < text.index("attempt 2 ----") < text.index("attempt 2\n", text.index("----\n"))


def test_a_job_that_nobody_knows_has_the_exit_code_3(place):
    for command in (["show"], ["cancel"], ["logs"], ["why"], ["wait"]):
        result = place.cli(*command, "424242")
        assert result.code == 3 and "424242" in result.err, (command, result)


def test_a_submit_with_hold_waits_for_release_and_a_comment_stays(place):
    key = place.sh("true", hold=True, comment="why not", gpus=0)
    assert place.job(key)["reason"] == "JobHeldUser"
    place.client.release([key])
    job = place.ended(key)
    assert job["state"] == "COMPLETED" and job["comment"] == "why not"
    until(lambda: os.path.exists(job["output"]))


def test_a_script_that_was_changed_after_the_submit_is_named_in_the_story(place, tmp_path):
    script = tmp_path / "train.sh"
    script.write_text("#!/bin/sh\n#GPUSCHED --gpus 0 --hold\necho one\n")
    changed = place.cli("submit", "--parsable", str(script)).out.strip()
    unchanged = place.cli("submit", "--parsable", str(script)).out.strip()
    place.client.release([unchanged])
    place.ended(unchanged)
    script.write_text("#!/bin/sh\necho two\n")
    place.client.release([changed])
    place.ended(changed)
    until(
        lambda: any("runs a changed" in line for line in place.story(changed)), lambda: place.story(changed)
    )
    assert not any("runs a changed" in line for line in place.story(unchanged))
