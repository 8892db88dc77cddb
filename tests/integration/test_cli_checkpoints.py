"""gpusched checkpoints: listing, checking, deleting, pinning what jobs have saved."""

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest
from checkpoint_trees import a_tree, digest_of, put, put_old, spoil
from fake_daemon import FakeDaemon, a_job, a_running_job, an_ended_job, gpusched


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("GPUSCHED_STATE_DIR", str(tmp_path / "state"))
    with FakeDaemon(str(tmp_path / "s")) as server:
        server.jobs = {"12": an_ended_job("12", checkpoint_dir=str(tmp_path / "ckpt"))}
        server.last = ["12"]
        yield server


@pytest.fixture
def saved(daemon, tmp_path):
    """Three checkpoints of job 12."""
    for step in (100, 110, 130):
        put(tmp_path / "ckpt", a_tree(step), step, seconds=0.5)
    return tmp_path / "ckpt"


def names(directory):
    return sorted(name for name in os.listdir(directory) if name.startswith("step-"))


# ---- which checkpoints are meant --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [(), ("12",), ("@",), ("list", "12"), ("./ckpt",), ("ckpt",), ("list", "ckpt/"), ("--noheader", "12")]
)
def test_jobs_and_directories_are_understood_with_and_without_list(saved, words):
    result = gpusched("checkpoints", *words)
    assert result.code == 0, result.err
    shown = [line.split()[0] for line in result.out.splitlines()]
    assert shown[-3:] == ["step-100", "step-110", "step-130"]


@pytest.mark.parametrize("word", ["12/110", "12/step-110", "@/110", "ckpt/110", "./ckpt/step-110", "12/110/"])
def test_one_checkpoint_has_a_name_behind_its_place(saved, word):
    result = gpusched("checkpoints", "--noheader", word)
    assert [line.split()[0] for line in result.out.splitlines()] == ["step-110"]


def test_a_step_number_alone_means_the_last_save_of_that_step(saved):
    for _ in range(11):
        put(saved, a_tree(110), 110)
    for word in ("12/110", "ckpt/110"):
        assert gpusched("checkpoints", "--noheader", word).out.split()[0] == "step-110.11"
        assert gpusched("checkpoints", "--noheader", word[:-3] + "step-110").out.split()[0] == "step-110"
        assert gpusched("checkpoints", "--noheader", word + ".2").out.split()[0] == "step-110.2"


def test_a_directory_needs_no_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSCHED_SOCKET", str(tmp_path / "nobody"))
    put(tmp_path / "c", a_tree())
    assert "step-10" in gpusched("checkpoints", str(tmp_path / "c")).out
    assert gpusched("checkpoints", "12").code == 69


def test_what_is_not_there_is_named(saved, daemon):
    daemon.jobs["7"] = {"array": "7", "elements": [a_job("7_0")]}
    for words, code, text in [
        (("99",), 3, "there is no job 99"),
        (("./absent",), 3, "there is no directory ./absent"),
        (("verfiy",), 3, "there is no directory verfiy"),
        (("inspect", "12/115"), 3, "there is no step-115 of job 12"),
        (("12/best",), 2, "'best' is not a checkpoint"),
        (("7",), 2, "name one: 7_0"),
        (("./s",), 2, "is not a directory"),
    ]:
        result = gpusched("checkpoints", *words)
        assert (result.code, result.out) == (code, ""), words
        assert text in result.err
    assert "there are: step-100, step-110, step-130" in gpusched("checkpoints", "inspect", "12/115").err


# ---- list -------------------------------------------------------------------------------------------------------


def test_the_list_shows_what_people_ask_about(saved):
    result = gpusched("checkpoints", "12")
    header, *rows = [line.split() for line in result.out.splitlines()]
    assert header == ["CHECKPOINT", "STEP", "EPOCH", "BATCH", "SIZE", "AGE", "TOOK", "STALL", "RANKS", "STATE"]
    assert rows[0][:4] == ["step-100", "100", "1", "2"]
    assert rows[2][-2:] == ["good,", "newest"] and rows[0][-1] == "good"
    size = sum(path.stat().st_size for path in saved.glob("step-*/*") if path.name != "manifest.json")
    assert result.err == f"3 checkpoints, {size / 1024:.1f}K, in {saved}\n"


def test_json_and_csv_have_bytes_and_seconds(saved, tmp_path):
    put(tmp_path / "ckpt", a_tree(140), 140, ranks=3, stall=0.0625)
    answer = json.loads(gpusched("checkpoints", "12", "--json").out)
    assert (answer["job"], answer["directory"]) == ("12", str(saved))
    row = answer["checkpoints"][-1]
    assert (row["checkpoint"], row["step"], row["ranks"], row["stall"], row["format"]) == (
        "step-140",
        140,
        3,
        0.0625,
        2,
    )
    assert row["size"] > 0 and row["newest_good"] and row["state"] == "good" and 0 <= row["age"] < 3600
    assert answer["size"] == sum(one["size"] for one in answer["checkpoints"])
    rows = list(csv.DictReader(gpusched("checkpoints", "12", "--csv", "--format", "step,size").out.splitlines()))
    assert [one["step"] for one in rows] == ["100", "110", "130", "140"]
    assert rows[3]["size"] == str(row["size"])
    assert "stall" in gpusched("checkpoints", "list", "--help-format").out.split()
    assert gpusched("checkpoints", "12", "--sort", "-step", "--format", "step", "--noheader").out.split()[0] == "140"


def test_torn_ones_say_why_and_newer_formats_are_not_called_torn(saved):
    (saved / "step-110" / "tensors.safetensors").unlink()
    manifest = json.loads((saved / "step-130" / "manifest.json").read_text())
    (saved / "step-130" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    result = gpusched("checkpoints", "12")
    rows = {line.split()[0]: line for line in result.out.splitlines()}
    assert "torn: tensors.safetensors cannot be read (No such file or directory)" in rows["step-110"]
    assert "newer: a newer gpusched wrote it (format 99" in rows["step-130"]
    assert rows["step-100"].endswith("good, newest") and ", 2 not good, in" in result.err


def test_a_job_that_has_saved_nothing_yet_is_no_error(daemon):
    daemon.jobs["12"] = a_running_job("12", checkpoint_dir="/nonexistent/12")
    result = gpusched("checkpoints", "12")
    assert (result.code, len(result.out.splitlines())) == (0, 1)
    assert result.err == "no checkpoints of job 12 yet, in /nonexistent/12\n"
    assert json.loads(gpusched("checkpoints", "12", "--json").out)["checkpoints"] == []


def test_checkpoints_of_the_old_format_are_listed_with_the_new(saved):
    put_old(saved, a_tree(90), 90)
    answer = json.loads(gpusched("--json", "checkpoints", "12").out)
    assert next((row["step"], row["format"], row["state"]) for row in answer["checkpoints"]) == (90, 1, "good")


def test_somebody_elses_directory_is_told_as_theirs(saved, monkeypatch):
    def closed(path="."):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", closed)
    for words in (("12",), ("verify", "12"), ("inspect", "12"), ("rm", "12/100")):
        result = gpusched("checkpoints", *words)
        assert result.code == 4, words
        assert result.err == f"gpusched: {saved}: Permission denied\n  they are alice's: ask them\n"


def test_what_hugging_faces_trainer_saved_is_listed_by_its_own_names(daemon, tmp_path):
    from gpusched.checkpoint.frameworks import sealed

    about = {"framework": "transformers", "epoch": 1, "created_at": 1.0, "seconds": 2.0}
    for step in (10, 20):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"\0" * 2048)
        sealed.seal(str(folder), {**about, "step": step})
    (tmp_path / "out" / "checkpoint-30").mkdir()
    rows = {line.split()[0]: line for line in gpusched("checkpoints", "out").out.splitlines()}
    assert rows["checkpoint-20"].endswith("good, newest") and "2.0K" in rows["checkpoint-20"]
    assert "torn: it has no seal" in rows["checkpoint-30"]
    spoil(tmp_path / "out" / "checkpoint-20" / "model.safetensors")
    result = gpusched("checkpoints", "verify", "out")
    assert result.code == 1 and result.out.splitlines()[-1] == "a resume loads checkpoint-10"
    assert "save_total_limit" in gpusched("checkpoints", "pin", "out/10").err
    assert gpusched("checkpoints", "rm", "out/checkpoint-30", "out/20").code == 1  # sizes say that 20 is good
    assert gpusched("checkpoints", "rm", "out/checkpoint-30").code == 0 and not os.path.exists("out/checkpoint-30")


# ---- verify -----------------------------------------------------------------------------------------------------


def test_verify_reads_every_byte_and_says_what_a_resume_loads(saved):
    result = gpusched("checkpoints", "verify", "12")
    assert (result.code, result.out.splitlines()[-1]) == (0, "a resume loads step-130")
    spoil(saved / "step-130" / "tensors.safetensors")
    assert "step-130" in gpusched("checkpoints", "12").out  # whose sizes are right
    result = gpusched("checkpoints", "verify", "12")
    assert result.code == 1
    assert "torn: tensors.safetensors is damaged: its checksum does not match" in result.out
    assert result.out.splitlines()[-1] == "a resume loads step-110"
    answer = json.loads(gpusched("checkpoints", "verify", "12", "--json").out)
    assert answer["loads"] == "step-110" and [row["state"] for row in answer["checkpoints"]] == ["good", "good", "torn"]
    assert gpusched("checkpoints", "verify", "12/110").out.splitlines()[-1] == "step-110 is good"
    assert gpusched("checkpoints", "verify", "12/130").code == 1


def test_verify_says_when_nothing_can_be_loaded(saved):
    for name in names(saved):
        spoil(saved / name / "state.json")
    result = gpusched("checkpoints", "verify", "12")
    assert result.code == 1 and result.out.splitlines()[-1].startswith("NONE is good")
    shutil.rmtree(saved)
    assert gpusched("checkpoints", "verify", "12").code == 1


def test_verify_names_files_that_nobody_listed(saved):
    (saved / "step-130" / "notes.txt").write_text("mine")
    result = gpusched("checkpoints", "verify", "12")
    assert result.code == 0 and "step-130 also holds notes.txt: never read, not checked" in result.err


def test_a_newer_format_stops_a_resume_and_verify_says_so(saved):
    manifest = json.loads((saved / "step-130" / "manifest.json").read_text())
    (saved / "step-130" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert gpusched("checkpoints", "verify", "12").out.splitlines()[-1].startswith("a resume stops at step-130")


# ---- rm, pin ----------------------------------------------------------------------------------------------------


def test_rm_deletes_what_is_named_and_tells_it(saved):
    result = gpusched("checkpoints", "rm", "12/100", "ckpt/110", "12/100")
    assert result.code == 0 and names(saved) == ["step-130"]
    assert [line.split(" (")[0] for line in result.out.splitlines()] == [
        f"deleted {saved}/step-{n}" for n in (100, 110)
    ]
    assert [name for name in os.listdir(saved) if name.startswith(".trash")] == []


def test_the_newest_good_one_goes_only_by_force(saved):
    result = gpusched("checkpoints", "rm", "12/100", "12/130")
    assert result.code == 1 and len(names(saved)) == 3
    assert "step-130 is the newest good checkpoint of job 12: a resume would go back to step-110" in result.err
    spoil(saved / "step-130" / "state.json")  # not seen by sizes: still the newest that looks good
    (saved / "step-130" / "state.json").unlink()
    assert gpusched("checkpoints", "rm", "12/130").code == 0  # torn: anybody may clear it away
    result = gpusched("checkpoints", "rm", "12/100", "12/110")
    assert result.code == 1 and "would have nothing to load" in result.err
    answer = json.loads(gpusched("checkpoints", "rm", "--force", "--json", "12/100", "12/110").out)
    assert [row["checkpoint"] for row in answer["deleted"]] == ["step-100", "step-110"] and names(saved) == []


def test_nothing_is_deleted_if_one_word_is_wrong(saved):
    for wrong, code in (("12/999", 3), ("12", 2), ("ckpt", 2), ("13/1", 3)):
        assert gpusched("checkpoints", "rm", "12/100", wrong).code == code
    assert len(names(saved)) == 3
    assert "write for example: gpusched checkpoints rm 12/130" in gpusched("checkpoints", "rm", "12").err


def test_what_a_running_job_may_need_goes_only_with_a_yes(saved, daemon):
    daemon.jobs["12"] = a_running_job("12", checkpoint_dir=str(saved))
    result = gpusched("checkpoints", "rm", "12/100")
    assert result.code == 2 and len(names(saved)) == 3
    assert "job 12: job 12 is running, and may need what you delete" in result.err and "--yes" in result.err
    assert gpusched("checkpoints", "rm", "--yes", "12/100").code == 0
    assert names(saved) == ["step-110", "step-130"]


def test_a_run_outside_the_scheduler_is_noticed_by_its_lock(saved):
    program = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(saved / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        result = gpusched("checkpoints", "rm", "ckpt/100")
        assert result.code == 2 and "a run saves there" in result.err
        holder.stdin.close()
        holder.wait(60)
    assert gpusched("checkpoints", "rm", "ckpt/100").code == 0
    with open(saved / ".lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing of the question is left


def test_pinned_ones_stay_until_they_are_let_go(saved):
    from gpusched.checkpoint.disk import files

    assert gpusched("checkpoints", "pin", "12/100").out == "step-100: kept until you delete it\n"
    assert "good, pinned" in gpusched("checkpoints", "12").out
    files.prune(str(saved), keep=1)
    assert names(saved) == ["step-100", "step-130"]
    assert "step-100 of job 12 is pinned" in gpusched("checkpoints", "rm", "12/100").err
    assert gpusched("checkpoints", "pin", "--off", "12/100").code == 0
    assert gpusched("checkpoints", "rm", "12/100").code == 0


# ---- help -------------------------------------------------------------------------------------------------------


def test_help_lists_the_subcommands():
    out = gpusched("checkpoints", "--help").out
    assert [name for name in ("list", "verify", "inspect", "diff", "rm", "pin", "export") if f"  {name} " in out]
    for name in ("list", "verify", "inspect", "diff", "rm", "pin", "export"):
        assert gpusched("checkpoints", name, "--help").code == 0


def test_looking_does_not_change_anything(saved):
    before = digest_of(saved)
    for words in (("12",), ("verify", "12"), ("inspect", "12"), ("diff", "12/100", "12/110")):
        gpusched("checkpoints", *words)
    assert digest_of(saved) == before
