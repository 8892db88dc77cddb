"""Preempts reference jobs at random safe points, many times over, and compares every end bit for bit with the end of a
run that was not disturbed: final weights, optimizer state, generators, metrics, the loss curve, the last checkpoint.

    python tests/soak/soak_exact.py                      20 seeds, 1, 3 and 7 preemptions, with and without workers
    python tests/soak/soak_exact.py --seeds 2 --only mlp

Prints one line for each run that differs, and a table at the end. Exit code 1 if any differed.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from training_jobs import REPOSITORY, Job, Zygote

from gpusched.checkpoint import list_checkpoints
from gpusched.checkpoint.disk.compare import compare

JOBS = REPOSITORY / "jobs"
# name: (script, arguments, numbers of loader workers, ranks)
SUBJECTS = {
    "mlp": ("train_mlp.py", ["--epochs", "2", "--samples", "640", "--batch", "32"], ["0", "2"], 1),
    "cnn_amp": ("train_cnn_amp.py", ["--epochs", "2"], ["0", "2"], 1),
    "ddp": ("ddp.py", ["--epochs", "6"], ["0", "1"], 3),
}  # fmt: skip


# The generators that these jobs neither seed nor draw from.
NO_MATTER = ("rng/python", "rng_epoch/python", "rng/numpy", "rng_epoch/numpy")


class Runs:
    """Runs of one job; those of several ranks share everything but their rank."""

    def __init__(self, zygote, folder, script, arguments, ranks):
        self.zygote, self.folder, self.ranks = zygote, Path(folder), ranks
        self.job = Job(zygote, folder, JOBS / script, *arguments, "--out", self.folder / "result.json")

    def attempt(self, stop_at=None):
        if self.ranks == 1:
            return self.job.start(stop_at=stop_at).wait()
        return start_ranks(self.job, self.ranks, stop_at)


def start_ranks(job, size, stop_at):
    """All ranks of one attempt, forked from the zygote; the first exit code that is not 0."""
    port = free_port()
    env = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    job.start(stop_at=stop_at, RANK="0", LOCAL_RANK="0", **env)
    here = {
        "GPUSCHED_JOB_ID": "1",
        "GPUSCHED_ATTEMPT": str(job.attempt),
        "GPUSCHED_JOB_DIR": str(job.directory),
        "GPUSCHED_CHECKPOINT_DIR": str(job.checkpoints),
    }
    others = []
    for rank in range(1, size):
        more = dict(env, RANK=str(rank), LOCAL_RANK=str(rank), **here)
        others.append(job.zygote.start(job.command, more, job.folder / f"output-{job.attempt}-rank{rank}"))
    codes = [job.wait()]
    for pid in others:
        with job.zygote.ended:
            assert job.zygote.ended.wait_for(lambda pid=pid: pid in job.zygote.codes, timeout=60.0), "a rank hangs"
        codes.append(job.zygote.codes[pid])
    return next((code for code in codes if code), 0)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_of(runs, stops):
    """(result, newest checkpoint, preemptions) of a run that is stopped at these steps, counted over all attempts.

    Several ranks agree first, so they stop a little later; one that was asked at the very end may just finish.
    """
    passed = preempted = 0
    for stop in stops:
        if stop <= passed:
            continue
        code = runs.attempt(stop - passed)
        if code == 0:
            break
        assert code in (85, 1), f"attempt {runs.job.attempt} ended with {code}:\n{runs.job.output}"
        saved = runs.job.saved()
        assert saved, runs.job.output
        passed, preempted = saved["step"], preempted + 1
    else:
        code = runs.attempt()
    assert code == 0, f"the last attempt ended with {code}:\n{runs.job.output}"
    result = json.loads((runs.folder / "result.json").read_text())
    return result, list_checkpoints(runs.job.checkpoints)[-1].path, preempted


def one(zygote, root, name, script, arguments, ranks, seed, count, straight):
    folder = root / f"{name}-{'-'.join(arguments)}-{seed}-{count}".replace("/", "")
    expected, newest, points = straight
    stops = sorted(random.Random(f"{name} {seed} {count} {arguments}").sample(range(1, points), count))
    try:
        found, last, preempted = end_of(Runs(zygote, folder, script, [*arguments, "--seed", str(seed)], ranks), stops)
        differences = [] if found == expected else ["result.json"]
        matter = [one for one in compare(newest, last) if not one.place.rpartition(": ")[2].startswith(NO_MATTER)]
        differences += [f"{one.place}: {one.what}" for one in matter]
    except AssertionError as error:
        differences, preempted = [str(error)], 0
    if not differences:
        shutil.rmtree(folder)
    else:
        print(f"DIFFERS {name} {arguments} seed {seed} stops {stops}: {differences[:3]}  ({folder})", flush=True)
    return not differences, preempted


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--preemptions", type=int, nargs="+", default=[1, 3, 7])
    parser.add_argument("--only", nargs="+", choices=sorted(SUBJECTS), default=sorted(SUBJECTS))
    parser.add_argument("--parallel", type=int, default=2)
    return parser.parse_args()


class Soak:
    """All runs of one job with one number of workers; `straight` holds the undisturbed end of every seed."""

    def __init__(self, pool, zygote, root, name, workers, seeds):
        self.script, common, _, self.ranks = SUBJECTS[name]
        self.pool, self.zygote, self.root, self.name, self.seeds = pool, zygote, root, name, seeds
        self.arguments = [*common, "--workers", workers]
        self.straight = list(pool.map(self.undisturbed, range(seeds)))

    def undisturbed(self, seed):
        folder = self.root / f"{self.name}-{self.arguments[-1]}-{seed}-straight"
        runs = Runs(self.zygote, folder, self.script, [*self.arguments, "--seed", str(seed)], self.ranks)
        result, newest, _ = end_of(runs, [])
        return result, newest, result["steps"]

    def preempted(self, count):
        """(runs that ended equal, runs, preemptions)."""

        def single(seed):
            job = (self.name, self.script, self.arguments, self.ranks)
            return one(self.zygote, self.root, *job, seed, count, self.straight[seed])

        same = list(self.pool.map(single, range(self.seeds)))
        return sum(equal for equal, _ in same), len(same), sum(times for _, times in same)


def main():
    args = parse()
    root, zygote, began = Path(tempfile.mkdtemp(prefix="gpusched-soak-")), Zygote(), time.monotonic()
    table = []
    with ThreadPoolExecutor(args.parallel) as pool:
        for name in args.only:
            for workers in SUBJECTS[name][2]:
                soak = Soak(pool, zygote, root, name, workers, args.seeds)
                for count in args.preemptions:
                    table.append(soak.preempted(count))
                    equal, runs, stops = table[-1]
                    what = f"{name:8} {workers} worker(s)  {soak.ranks} rank(s)  K = {count}"
                    print(f"{what}: {equal} of {runs} equal ({stops} preemptions)", flush=True)
    zygote.close()
    equal, runs, stops = (sum(column) for column in zip(*table, strict=True))
    print(f"{equal} of {runs} preempted runs ({stops} preemptions) equal in {time.monotonic() - began:.0f} s")
    if equal == runs:
        shutil.rmtree(root)
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
