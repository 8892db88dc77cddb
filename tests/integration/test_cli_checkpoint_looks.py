"""gpusched checkpoints inspect, diff and export: what is in a checkpoint, without executing anything in it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoint_trees import a_tree, put, spoil
from fake_daemon import FakeDaemon, an_ended_job, gpusched


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


def test_inspect_shows_names_shapes_values_and_surroundings(saved):
    result = gpusched("checkpoints", "inspect", "12")
    assert result.code == 0, result.err
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == [str(saved / "step-130")]
    assert ["made", "with", "torch", "2.13.0", "python", "3.11"] in lines
    assert ["model", "2", "tensors,", "15", "numbers,", "60B"] in lines
    assert ["model/0.weight", "float32", "48B", "[3,", "4]"] in lines
    assert ["position/steps", "int", "130"] in lines
    part = gpusched("checkpoints", "inspect", "12/100", "--part", "optimizer", "--noheader").out.splitlines()
    assert part[0].split() == ["optimizer/state/0.weight/exp_avg", "float32", "48B", "[3,", "4]"]
    assert gpusched("checkpoints", "inspect", "12", "--part", "mode").code == 3
    answer = json.loads(gpusched("checkpoints", "inspect", "12", "--json").out)
    assert answer["environment"] == {"torch": "2.13.0", "python": "3.11"} and answer["format"] == 2
    first = answer["entries"][0]
    assert (first["place"], first["kind"], first["shape"], first["size"]) == ("model/0.weight", "float32", [3, 4], 48)


def test_inspect_never_imports_torch(saved):
    program = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from gpusched.cli.main import run_command; sys.exit(run_command(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "checkpoints", "inspect", str(saved)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "model/0.weight" in done.stdout, done.stderr


def test_names_from_a_checkpoint_are_shown_and_not_obeyed(daemon, tmp_path):
    put(tmp_path / "c", a_tree(**{"\x1b[2J": "\x1b[31m"}))
    for words in (("inspect", "./c"), ("diff", "./c", "./d")):
        put(tmp_path / "d", a_tree(**{"\x1b[2J": "\x1b[32m"}))
        assert "\x1b" not in gpusched("checkpoints", *words).out


def test_a_torn_or_newer_checkpoint_cannot_be_looked_into(saved):
    (saved / "step-110" / "state.json").unlink()
    result = gpusched("checkpoints", "inspect", "12/110")
    assert result.code == 1 and "step-110 of job 12 is torn: state.json cannot be read" in result.err
    for name in ("step-100", "step-110", "step-130"):
        (saved / name / "manifest.json").unlink()
    result = gpusched("checkpoints", "inspect", "12")
    assert result.code == 1 and "none of the 3 checkpoints of job 12 is good" in result.err


def test_inspect_looks_into_any_file_of_weights(saved, tmp_path):
    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2, 3)}, "sizes": [1, 2]}, tmp_path / "x.pt")
    rows = [line.split() for line in gpusched("checkpoints", "inspect", "x.pt", "--noheader").out.splitlines()]
    assert rows == [
        ["epoch", "int", "3"],
        ["state_dict/w", "float32", "24B", "[2,", "3]"],
        ["sizes", "list", "of", "2", "1,", "2"],
    ]
    answer = json.loads(gpusched("checkpoints", "inspect", "ckpt/step-100/tensors.safetensors", "--json").out)
    assert {"model/0.weight", "model/0.bias"} <= {row["place"] for row in answer["entries"]}
    (tmp_path / "y.pt").write_text("hello, this is no file of weights")
    result = gpusched("checkpoints", "inspect", "y.pt")
    assert result.code == 1 and "is not a whole safetensors file" in result.err


def test_a_newer_format_is_not_passed_over_for_an_older_one(saved):
    manifest = json.loads((saved / "step-130" / "manifest.json").read_text())
    (saved / "step-130" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    for words in (("inspect", "12"), ("export", "12", "--to", "w.pt"), ("diff", "12", "12/100")):
        result = gpusched("checkpoints", *words)
        assert result.code == 1 and "step-130 of job 12 cannot be read: a newer gpusched wrote it" in result.err
    assert gpusched("checkpoints", "inspect", "12/110").code == 0


def test_diff_tells_the_first_difference_and_exits_like_diff(saved, tmp_path):
    assert gpusched("checkpoints", "diff", "12/100", "12/100").code == 0
    put(tmp_path / "other", a_tree(130, weight=torch.zeros(3, 4)), 130)
    result = gpusched("checkpoints", "diff", "12", "other")
    assert result.code == 1
    assert result.out.splitlines()[2:] == [
        "1 difference (A and B):",
        "  model/0.weight: 11 of 12 elements differ; first [0, 1]: 1 and 0; largest difference 11",
    ]
    answer = json.loads(gpusched("checkpoints", "diff", "12", "other", "--json").out)
    assert answer["equal"] is False and answer["differences"][0]["place"] == "model/0.weight"
    same = gpusched("checkpoints", "diff", "12/130", "12/step-130")
    assert same.out.splitlines()[-1] == "equal: all tensors and values have the same bits"


def test_diff_of_another_model_names_the_first_mismatch(saved, tmp_path):
    tree = a_tree(130)
    tree["parts"]["model"] = {"conv.weight": torch.zeros(2, 2)}
    put(tmp_path / "other", tree, 130)
    lines = gpusched("checkpoints", "diff", "12", "other").out.splitlines()
    assert lines[3] == "  model/0.weight is only in the first (float32 [3, 4])"


def test_diff_explains_a_damaged_file_and_another_environment(saved, tmp_path):
    put(tmp_path / "other", a_tree(130), 130, environment={"torch": "2.14.0"})
    spoil(tmp_path / "other" / "step-130" / "tensors.safetensors")
    result = gpusched("checkpoints", "diff", "12", "other")
    assert result.code == 1
    assert "made in different environments: torch was 2.13.0 and is 2.14.0" in result.err
    assert "tensors.safetensors is damaged: its checksum does not match" in result.err


def test_many_differences_are_cut_unless_all_are_asked_for(daemon, tmp_path):
    put(tmp_path / "a", a_tree(**{f"v{n}": 0 for n in range(100)}))
    put(tmp_path / "b", a_tree(**{f"v{n}": 1 for n in range(100)}))
    short = gpusched("checkpoints", "diff", "a", "b")
    assert len(short.out.splitlines()) == 43 and "and 60 more" in short.err
    assert len(gpusched("checkpoints", "diff", "a", "b", "--all").out.splitlines()) == 103


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_export_writes_weights_that_load_without_gpusched(saved, tmp_path, name):
    result = gpusched("checkpoints", "export", "12", "--to", name)
    assert result.code == 0, result.err
    assert result.out.startswith(f"wrote model of step-130 to {name}: 2 tensors, 15 numbers, ")
    if name.endswith(".pt"):
        state = torch.load(tmp_path / name, weights_only=True)
    else:
        state = pytest.importorskip("safetensors.torch", reason="needs safetensors").load_file(tmp_path / name)
    assert torch.equal(state["0.weight"], torch.arange(12.0).reshape(3, 4))
    again = gpusched("checkpoints", "export", "12/100", "--to", name)
    assert again.code == 1 and "exists already" in again.err and "--force" in again.err
    assert gpusched("checkpoints", "export", "12/100", "--to", name, "--force").code == 0


def test_export_skips_a_damaged_newest_and_refuses_a_damaged_one_by_name(saved):
    spoil(saved / "step-130" / "tensors.safetensors")
    answer = json.loads(gpusched("checkpoints", "export", "12", "--to", "w.safetensors", "--json").out)
    assert answer["checkpoint"] == str(saved / "step-110") and answer["tensors"] == 2
    assert (
        "skipping step-130: tensors.safetensors is damaged"
        in gpusched("checkpoints", "export", "12", "--to", "v.safetensors").err
    )
    result = gpusched("checkpoints", "export", "12/130", "--to", "x.safetensors")
    assert result.code == 1 and "checksum" in result.err and not os.path.exists("x.safetensors")
    assert gpusched("checkpoints", "export", "12").code == 2
    assert gpusched("checkpoints", "export", "12", "--to", "weights").code == 1
    assert gpusched("checkpoints", "export", "12", "--to", "y.pt", "--ema").code == 1
