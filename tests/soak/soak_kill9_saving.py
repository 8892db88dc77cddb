"""kill -9 at random moments of saving, on a disk with room and on a full one, and renames that were torn.

    python tests/soak/soak_kill9_saving.py --kills 1000

A process saves one checkpoint after the other (blocking and behind, in turns) and tells each that is durable. It is
killed at a random moment, and the next one must load at least the last that was told, with every byte of it. Nothing
may be lost, and nobody may start from zero. Takes minutes, on a busy disk many; root makes the full disk a real one.
"""

import argparse
import collections
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.vault import Vault

PATIENCE = 120.0  # seconds
TENSORS, LENGTH = 12, 20_000  # a state of about a megabyte


class Wrong(Exception):
    """What must not happen has happened."""


def tree(step):
    """A state that tells by itself to which step each of its parts belongs."""
    weights = {str(n): torch.full((LENGTH,), float(step * 100 + n)) for n in range(TENSORS)}
    if step % 7 == 0:
        weights["large"] = torch.full((2 * TENSORS * LENGTH,), float(step))  # too large for the small disk
    shared = {"position": {"steps": step}, "seed": 1, "parts": {"model": weights}}
    return {"shared": shared, "own": {"values": {"step": step, "text": "x" * (step % 50)}, "mask": weights["0"] > 0}}


def check(found, loaded):
    """That a loaded state is whole and of one moment."""
    step = loaded["shared"]["position"]["steps"]
    expected = tree(step)
    same = all(
        torch.equal(loaded["shared"]["parts"]["model"][name], tensor)
        for name, tensor in expected["shared"]["parts"]["model"].items()
    )
    if not same or loaded["own"]["values"] != expected["own"]["values"] or found.step != step:
        raise Wrong(f"{found.path} was loaded and is not what was saved at step {step}")
    return step


# the process that saves


def attempt(directory, pipe, limit):
    """In the child: load, then save until killed. Lines on the pipe tell how far it has come."""

    def tell(word, number):
        os.write(pipe, f"{word} {number}\n".encode())

    vault = Vault(directory, 2, lambda sentence: None)
    vault.claim()
    loaded = vault.load()
    step = check(loaded[0], loaded[1]) if loaded is not None else 0
    tell("loaded", step)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    while True:
        step += 1
        state = tree(step)
        tell("begun", step)
        if step % 3 == 0:
            if step % 9 == 0 and os.fork() == 0:  # a data-loader worker, forked in the middle of things, that lives on
                tell("worker", os.getpid())
                time.sleep(PATIENCE)
                os._exit(0)
            one_save(vault, state, step, tell)
        else:
            vault.save_behind(state, {})
            for tensor in state["shared"]["parts"]["model"].values():
                tensor.zero_()  # the training goes on
            outcome = vault.settle() if step % 2 else vault.finished()
            while outcome is not None:
                tell("durable", outcome.checkpoint.step) if outcome.checkpoint else tell("failed", step)
                outcome = vault.finished()


def one_save(vault, state, step, tell):
    try:
        tell("durable", vault.save(state, {}).step)
        vault.tidy()
    except OSError:
        tell("failed", step)


# the one who kills


class Tally:
    """What has been seen."""

    def __init__(self):
        self.counts = collections.Counter()
        self.durable, self.workers, self.seconds = 0, [], 0.05  # seconds: that a save takes about

    def look(self, directory):
        """In which stage of a save the kill came."""
        kinds = set()
        for name in os.listdir(directory):
            if name.startswith(".trash-"):
                kinds.add("deleting an old one")
            elif name.startswith(".tmp-"):
                inside = os.listdir(os.path.join(directory, name))
                kinds.add("sealing" if any("manifest" in one for one in inside) else "writing data")
        for kind in kinds or {"between"}:
            self.counts[kind] += 1

    def read(self, text):
        for line in text.splitlines():
            word, number = line.split()
            self.counts[word] += 1
            if word == "worker":
                self.workers.append(int(number))
            if word == "loaded":
                if int(number) < self.durable:
                    raise Wrong(f"step {number} was loaded, and step {self.durable} had been durable")
                self.durable = int(number)
            if word == "durable":
                self.durable = max(self.durable, int(number))

    def end_workers(self):
        for pid in self.workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.workers = []


def kill_once(directory, tally, chance, limit=0):
    """One attempt that is killed. Raises Wrong if it did not load what it should, or ended by itself."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(here)
            attempt(directory, there, limit)
        except BaseException as error:
            os.write(2, f"the attempt failed: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    os.close(there)
    saves = chance.randrange(1, 4)
    text, took = until_begun(here, saves)
    before, tally.workers = tally.workers, []
    if saves > 1:
        tally.seconds += 0.1 * (took / (saves - 1) - tally.seconds)
    time.sleep(chance.uniform(0, 1.5 * tally.seconds))
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.set_blocking(here, False)  # a worker may hold the other end
    try:
        text += os.read(here, 1 << 20).decode()
    except BlockingIOError:
        pass
    os.close(here)
    tally.read(text)
    tally.workers, after = before, tally.workers
    tally.end_workers()  # those of the attempt before: this one has claimed the directory beside them
    tally.workers = after
    tally.look(directory)
    if status != -signal.SIGKILL or "loaded" not in text:
        raise Wrong(f"an attempt ended by itself with {status}, having told {text!r}")


def until_begun(pipe, saves):
    """What is told until so many saves have begun, and the seconds that those before the last one took."""
    text, first = b"", 0.0
    while text.count(b"begun") < saves:
        data = os.read(pipe, 4096)
        if not data:
            break
        text += data
        if not first and b"begun" in text:
            first = time.monotonic()
    return text.decode(), time.monotonic() - first


def kills(directory, count, chance, tally):
    for _ in range(count):
        kill_once(directory, tally, chance)
    left = [name for name in os.listdir(directory) if name.startswith((".tmp-", ".trash-"))]
    if len(left) > 2:  # of the last attempt; all others were cleared by the one that followed
        raise Wrong(f"{len(left)} remains of killed processes were not cleared")


def kills_on_a_full_disk(directory, count, chance, tally):
    """A file system with room for two checkpoints and a half; without root, a limit on the size of files."""
    size = sum(tensor.nbytes for tensor in tree(1)["shared"]["parts"]["model"].values())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", directory]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        for _ in range(count):
            limit = 0 if mounted or chance.random() < 0.5 or not tally.durable else size // 2
            kill_once(directory, tally, chance, limit)
    finally:
        tally.end_workers()
        if mounted:
            subprocess.run(["umount", "-l", directory], check=True)
    tally.counts["file system of its own"] = int(bool(mounted))


def torn_renames(directory, count, chance, tally):
    """What a crash of the machine may leave where the file system does not keep its promises."""
    vault = Vault(directory, 3, lambda sentence: None)
    vault.claim()
    for step in range(1, count + 1):
        good = vault.save(tree(step), {})
        for number in range(1, chance.randrange(1, 4)):
            tear(good.path, os.path.join(directory, f"step-{step + number}"), chance, tally)
        if chance.random() < 0.3:
            shutil.copytree(good.path, os.path.join(directory, f".tmp-{os.getpid()}-{step}"))
        fresh = Vault(directory, 3, lambda sentence: None)
        found, loaded, _ = fresh.load()
        if check(found, loaded) != step:
            raise Wrong(f"step {found.step} was loaded instead of {step}")
        vault.tidy()
        for torn in files.list_checkpoints(directory):
            if torn.step > step:
                files.delete(torn)  # the next step needs its name; a real run would save as step-<n>.1
    vault.release()


def tear(whole, target, chance, tally):
    shutil.copytree(whole, target)
    names = sorted(os.listdir(target))
    name = chance.choice(names)
    path, kind = (
        os.path.join(target, name),
        chance.choice(["missing", "empty", "cut", "zeros", "flipped", "all missing"]),
    )
    size = os.path.getsize(path)
    if kind == "missing":
        os.unlink(path)
    elif kind == "all missing":
        for one in names:
            os.unlink(os.path.join(target, one))
    else:
        with open(path, "r+b") as file:
            if kind == "flipped":
                file.seek(chance.randrange(size))
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))
            else:
                file.truncate(0 if kind in ("empty", "zeros") else chance.randrange(size))
                file.truncate(size if kind == "zeros" else os.path.getsize(path))
    tally.counts[kind] += 1


def part(name, action, count, seed):
    """Run one part in a directory of its own and print what it saw. False if something was lost."""
    directory, tally, began = tempfile.mkdtemp(prefix="gpusched-soak-"), Tally(), time.monotonic()
    try:
        action(directory, count, random.Random(seed), tally)
    except Wrong as wrong:
        print(f"{name}: WRONG (seed {seed}): {wrong}; kept: {directory}", flush=True)
        return False
    finally:
        tally.end_workers()
    shutil.rmtree(directory)
    seen = ", ".join(f"{word} {number}" for word, number in sorted(tally.counts.items()))
    print(f"{name}: {count}, nothing lost, in {time.monotonic() - began:.0f} s ({seen})", flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--full", type=int, default=200, help="kills on a full disk")
    parser.add_argument("--torn", type=int, default=200, help="steps with torn renames")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = [
        part("kill -9 while saving", kills, args.kills, args.seed),
        part("kill -9 on a full disk", kills_on_a_full_disk, args.full, args.seed + 1),
        part("torn renames", torn_renames, args.torn, args.seed + 2),
    ]
    sys.exit(0 if all(done) else 1)


if __name__ == "__main__":
    main()
