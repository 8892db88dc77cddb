"""State on a CUDA device on its way to the disk and back. Run with an NVIDIA GPU: pytest tests/gpu"""

import os

import pytest
import torch

from gpusched.checkpoint.disk import tensors
from gpusched.checkpoint.disk.vault import Vault

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]


def state():
    weight = torch.randn(3000, 1000, device="cuda")
    return {
        "weight": weight,
        "turned": weight.t(),
        "last": torch.randn(2, 3, 4, 5, device="cuda").to(memory_format=torch.channels_last),
        "gaps": torch.randn(50, 50, device="cuda")[:, ::3],
        "half": torch.randn(7, device="cuda").bfloat16(),
        "pair": torch.randn(3, dtype=torch.complex64, device="cuda"),
        "host": torch.randn(9),
        "step": torch.tensor(3.0, device="cuda"),
    }


def same(loaded, expected):
    for name, tensor in expected.items():
        assert loaded[name].device.type == "cpu" and loaded[name].stride() == tensor.stride()
        assert torch.equal(loaded[name], tensor.cpu()), name


def test_tensors_on_a_device_are_written_in_pieces_and_read_on_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "PIECE", 1 << 16)
    given = state()
    entry = tensors.write(str(tmp_path / "x"), given)
    same(tensors.read(str(tmp_path / "x"), entry["checksum"]), given)
    assert entry["size"] == os.path.getsize(tmp_path / "x")


def test_a_save_behind_holds_the_state_at_the_call_though_kernels_are_in_flight(tmp_path):
    vault = Vault(str(tmp_path), 3, print)
    given = state()
    for step in (1, 2):
        product = torch.eye(1000, device="cuda")
        for _ in range(50):
            product = product @ product  # work that is still being done when the save begins
        given["weight"] += product.sum() - 1000 + 1
        expected = {name: tensor.cpu().clone(memory_format=torch.preserve_format) for name, tensor in given.items()}
        tree = {"shared": {"position": {"steps": step}, "parts": {"model": given}}, "own": {}}
        vault.save_behind(tree, {})
        given["weight"].zero_()
        assert vault.settle().checkpoint.good
        _, loaded, _ = Vault(str(tmp_path), 3, print).load()
        assert loaded["shared"]["position"]["steps"] == step
        assert torch.equal(loaded["shared"]["parts"]["model"]["weight"], expected["weight"])
        assert torch.equal(loaded["shared"]["parts"]["model"]["turned"], expected["weight"].t())
    vault.release()
