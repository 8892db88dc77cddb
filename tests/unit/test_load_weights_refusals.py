"""load_weights: files that are no weights, damaged ones, and those that hold code."""

import os
import re
import zipfile

import pytest
import torch
from weight_files import Net, error_of, write


class Planted:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


def test_code_in_a_file_is_not_run(tmp_path):
    flag = str(tmp_path / "ran")
    path = write(tmp_path / "w.pt", {"state_dict": Net().state_dict(), "x": Planted(flag)})
    message = error_of(Net(), path)
    assert "holds more than weights: " in message and "mkdir" in message and "has not been run" in message
    assert not os.path.exists(flag)


def test_a_whole_pickled_model_is_refused_with_a_way_to_convert_it(tmp_path):
    message = error_of(Net(), write(tmp_path / "w.pt", Net()))
    assert "is a whole pickled model (weight_files.Net), not weights" in message
    assert "torch.save(m.state_dict(), 'weights.pt')" in message
    wrapped = error_of(Net(), write(tmp_path / "w2.pt", {"model": Net()}))
    assert "holds more than weights" in wrapped


def test_a_torchscript_program_is_refused(tmp_path):
    names = ["x/data.pkl", "x/constants.pkl", "x/version"]
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    message = error_of(Net(), tmp_path / "w.pt")
    assert "TorchScript" in message and "torch.jit.load" in message


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n <HTML>log in</HTML>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"hello world, I am a text", "cannot be told|not a whole torch file|not a file of weights"),
        (b"\x00\x01\x02\x03" * 40, "not a whole torch file|not a file of weights"),
    ],
)
def test_a_file_of_something_else_is_named_for_what_it_is(tmp_path, data, text):
    (tmp_path / "w.pt").write_bytes(data)
    assert re.search(text, error_of(Net(), tmp_path / "w.pt"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_a_download_that_stopped_is_noticed(tmp_path, name, share):
    path = write(tmp_path / name, Net().state_dict())
    os.truncate(path, int(os.path.getsize(path) * share))
    message = error_of(Net(), path)
    assert "whole" in message and "again" in message


def test_what_is_not_there_or_not_readable_or_has_no_weights_is_said(tmp_path):
    assert "There is no file" in error_of(Net(), tmp_path / "absent.pt")
    (tmp_path / "notes.txt").write_text("x")
    assert "There are: notes.txt" in error_of(Net(), tmp_path)
    message = error_of(Net(), write(tmp_path / "w.pt", {"a": {"x": torch.ones(1)}, "b": {"y": torch.ones(1)}}))
    assert "It cannot be told where in" in message and "it holds: a, b" in message
    assert "holds: epoch" in error_of(Net(), write(tmp_path / "w.pt", {"epoch": 3}))
    assert "holds: list" in error_of(Net(), write(tmp_path / "w.pt", [torch.ones(1)]))
    assert "needs a model" in error_of({}, {})


def test_a_directory_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    def closed(path="."):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", closed)
    assert f"{tmp_path} cannot be read (Permission denied)." in error_of(Net(), tmp_path)
