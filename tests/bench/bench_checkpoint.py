"""What saving costs: the stall and the whole price of a save behind the training, bytes per second of writes and loads.

    bench_checkpoint.py [repeats]

The state is 500 MB in 120 tensors. The baselines are taken in the same run, in turns with what is measured: torch.save
with fsync, the disk's own write with fsync, and its own read. All with one thread of torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from stage import Line, table

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpusched.checkpoint.disk.files import list_checkpoints
from gpusched.checkpoint.disk.vault import Vault

COUNT, LENGTH = 120, 1 << 20  # 120 tensors of 4 MiB: 503 MB
MATRIX = 192  # small enough for its product to stay in the processor's caches

Times = dict[str, list[float]]


def state() -> dict[str, torch.Tensor]:
    return {f"tensor {n}": torch.randn(LENGTH) for n in range(COUNT)}


def tree(step: int, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"shared": {"position": {"steps": step}, "seed": 1, "parts": {"model": tensors}}, "own": {"values": {}}}


@contextlib.contextmanager
def timed(times: list[float]) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    times.append(time.perf_counter() - begin)


# baselines


def torch_save(home: Path, tensors: dict[str, torch.Tensor]) -> None:
    """What a careful script does: a temporary file, fsync, rename, fsync of the directory."""
    with open(home / "temporary", "wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(home / "temporary", home / "saved.pt")
    fd = os.open(home, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def raw_write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for tensor in tensors.values():
        os.write(fd, memoryview(tensor.numpy()).cast("B"))
    os.fsync(fd)
    os.close(fd)


def raw_read(path: Path) -> None:
    buffer = bytearray(8 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def forget(path: Path) -> None:
    """Have the kernel drop its copy of a file's pages, so that the next read comes from the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# what is measured


def saving(home: Path, tensors: dict[str, torch.Tensor], times: Times, repeats: int) -> None:
    """Stalls and writes, each right after its baseline."""
    vault = Vault(str(home / "vault"), 1, print)
    with timed(times["first stall"]):
        vault.save_behind(tree(0, tensors), {})
    vault.settle()
    for number in range(1, repeats + 1):
        with timed(times["torch.save"]):
            torch_save(home, tensors)
        with timed(times["raw write"]):
            raw_write(home / "raw", tensors)
        with timed(times["save"]):
            vault.save(tree(3 * number, tensors), {})
        times["stall"].append(vault.save_behind(tree(3 * number + 1, tensors), {}))
        outcome = vault.settle()
        assert outcome is not None and outcome.checkpoint is not None, outcome
        times["behind"].append(outcome.seconds)
    vault.tidy()
    vault.release()


def looping(home: Path, tensors: dict[str, torch.Tensor], times: Times, repeats: int) -> None:
    """A loop of one thread that computes, with and without a save behind it. (Its steps are counted, not timed.)"""
    vault = Vault(str(home / "loop"), 1, print)
    vault.save_behind(tree(0, tensors), {})
    vault.settle()
    one = torch.randn(MATRIX, MATRIX)
    count = calibrated(one, 6 * median(times["torch.save"]))
    for number in range(1, repeats + 1):
        with timed(times["loop"]):
            work(one, count)
        with timed(times["loop with a save"]):
            work(one, count // 3)
            vault.save_behind(tree(number, tensors), {})
            work(one, count - count // 3)
        outcome = vault.settle()
        assert outcome is not None and outcome.checkpoint is not None, outcome
    vault.release()


def work(one: torch.Tensor, count: int) -> None:
    for _ in range(count):
        torch.mm(one, one)


def calibrated(one: torch.Tensor, seconds: float) -> int:
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 1.0:
        work(one, 10)
        count += 10
    return max(100, int(count * seconds))


def loading(home: Path, times: Times, repeats: int) -> None:
    (found,) = list_checkpoints(str(home / "vault"))
    path = Path(found.path) / "tensors.safetensors"
    read: list[tuple[str, Callable[[], Any]]] = [
        ("raw read", lambda: raw_read(home / "raw")),
        ("load", lambda: Vault(str(home / "vault"), 1, print).load()),
        ("torch.load", lambda: torch.load(home / "saved.pt", weights_only=True)),
    ]
    for _ in range(repeats):
        for name, action in read:
            for how in ("cold", "warm"):
                if how == "cold":
                    for one in (path, home / "raw", home / "saved.pt"):
                        forget(one)
                with timed(times[f"{how} {name}"]):
                    action()


def main(repeats: int) -> None:
    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp(prefix="gpusched-bench-"))
    names = ["first stall", "stall", "behind", "save", "torch.save", "raw write", "loop", "loop with a save"]
    names += [f"{how} {what}" for how in ("cold", "warm") for what in ("raw read", "load", "torch.load")]
    times: Times = {name: [] for name in names}
    tensors = state()
    size = COUNT * LENGTH * 4
    try:
        saving(home, tensors, times, repeats)
        loading(home, times, repeats)
        looping(home, tensors, times, repeats)
    finally:
        shutil.rmtree(home)
    mid = {name: median(values) for name, values in times.items()}
    extra = median(b - a for a, b in zip(times["loop"], times["loop with a save"], strict=True))
    least, quickest = min(times["loop with a save"]) - min(times["loop"]), min(times["torch.save"])

    def rate(name: str) -> str:
        return f"{size / mid[name] / 1e6:.0f} MB/s ({mid[name]:.2f} s)"

    def share(part: float, whole: str) -> str:
        return f"{100 * part / mid[whole]:.0f} %"

    blocking = f"torch.save + fsync {mid['torch.save']:.2f} s"
    lines = [
        Line("stall of a save behind the training", f"{mid['stall'] * 1000:.0f} ms", blocking,
             share(mid["stall"], "torch.save"), "under 15 %"),
        Line("the same, the first one", f"{mid['first stall'] * 1000:.0f} ms", blocking,
             share(mid["first stall"], "torch.save")),
        Line("extra time of a loop with one save", f"{extra * 1000:.0f} ms", blocking,
             share(extra, "torch.save"), "under 35 %"),
        Line("the same, of the quickest of each", f"{least * 1000:.0f} ms", f"torch.save + fsync {quickest:.2f} s",
             f"{100 * least / quickest:.0f} %", "under 35 %"),
        Line("a save that is waited for", rate("save"), blocking, share(mid["save"], "torch.save")),
        Line("the same", rate("save"), f"the disk's write + fsync {rate('raw write')}",
             f"{mid['raw write'] / mid['save']:.2f}"),
        Line("a save behind, until durable", rate("behind"), f"the disk's write + fsync {rate('raw write')}",
             f"{mid['raw write'] / mid['behind']:.2f}"),
    ]  # fmt: skip
    for how in ("warm", "cold"):
        lines += [
            Line(f"load and check, {how}", rate(f"{how} load"), f"the disk's read {rate(f'{how} raw read')}",
                 f"{mid[f'{how} raw read'] / mid[f'{how} load']:.2f}"),
            Line("the same", rate(f"{how} load"), f"torch.load, nothing checked {rate(f'{how} torch.load')}",
                 f"{mid[f'{how} torch.load'] / mid[f'{how} load']:.2f}"),
        ]  # fmt: skip
    table(f"Checkpoints of {size / 1e6:.0f} MB, medians of {repeats}", lines)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
