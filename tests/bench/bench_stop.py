"""What a stop costs: from the request to the last process gone with the checkpoint durable; and a safe point's price.

Three things in one run: a training script with 500 MB of state and four loader workers that is asked to stop, against
the disk's own write and fsync of the same bytes; the same script with a small model; a bare loop over run.step()
against the empty loop. Also the import of the library without torch. Run by hand: python tests/bench/bench_stop.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = '''
import sys, time, torch
from gpusched.checkpoint import Run
torch.set_num_threads(1)
megabytes, workers = int(sys.argv[1]), int(sys.argv[2])
model = torch.nn.Module()
for index in range(120):
    model.register_buffer("part%d" % index, torch.rand(max(1, megabytes * 250_000 // 120)))
class Data(torch.utils.data.Dataset):
    def __len__(self): return 10**6
    def __getitem__(self, index): time.sleep(0.001); return torch.zeros(8)
loader = torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=workers)
run = Run(model, every_seconds=None)
for epoch in run.epochs(1):
    for batch in run.batches(loader):
        run.step()
'''
STEPS = '''
import sys, time
from gpusched.checkpoint import Run
run, count = Run(every_seconds=600.0), 200_000
times = []
for epoch in run.epochs(1):
    for batch in run.batches(range(1_000)):
        run.step()
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count // 5): pass
        empty = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(count // 5): run.step()
        times.append((time.perf_counter() - began - empty) / (count // 5))
print(sorted(times)[2])
'''  # fmt: skip


def environment(folder: Path, attempt: int) -> dict[str, str]:
    job = folder / f"job-{attempt}"
    job.mkdir()
    ours = {"GPUSCHED_JOB_DIR": str(job), "GPUSCHED_ATTEMPT": str(attempt), "GPUSCHED_JOB_ID": "1"}
    return {**os.environ, "PYTHONPATH": str(ROOT), "GPUSCHED_CHECKPOINT_DIR": str(folder / f"ckpt-{attempt}"), **ours}


def wait(condition: object, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the training script did not come so far")
        time.sleep(0.01)


def family(session: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(name))
    return found


def stop_once(folder: Path, script: Path, attempt: int, megabytes: int, workers: int) -> float:
    """Seconds from the request to nobody left; the checkpoint is durable before the main process leaves."""
    env = environment(folder, attempt)
    command = [sys.executable, str(script), str(megabytes), str(workers)]
    process = subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    job = Path(env["GPUSCHED_JOB_DIR"])
    progress = job / "progress.jsonl"
    wait(lambda: progress.exists() and (not workers or len(family(process.pid)) > workers), process)
    time.sleep(0.5)
    began = time.perf_counter()
    (job / "new").write_text(json.dumps({"ask": "stop", "seq": 1, "cause": "bench", "deadline": None}))
    (job / "new").rename(job / "request")
    code = process.wait(120)
    while family(process.pid):
        time.sleep(0.001)
    took = time.perf_counter() - began
    assert code == 85 and (job / "saved").exists(), code
    return took


def write_once(folder: Path, size: int, number: int) -> float:
    data = os.urandom(4 << 20)
    began = time.perf_counter()
    with open(folder / f"raw-{number}", "wb", buffering=0) as file:
        for _ in range(size // len(data)):
            file.write(data)
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    os.unlink(folder / f"raw-{number}")
    return took


def python(folder: Path, program: str, **env: str) -> float:
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run([sys.executable, "-c", program], env=whole, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, attempt = Path(name), 0
        script = folder / "train.py"
        script.write_text(SCRIPT)
        raw, large, small = [], [], []
        for number in range(args.repeat):
            raw.append(write_once(folder, 500_000_000, number))
            attempt += 1
            large.append(stop_once(folder, script, attempt, 500, 4))
            subprocess.run(["rm", "-rf", str(folder / f"ckpt-{attempt}")], check=True)
            attempt += 1
            small.append(stop_once(folder, script, attempt, 0, 0))
        disk = statistics.median(raw)
        print(f"write + fsync of 500 MB by itself: {disk:.2f} s ({min(raw):.2f} to {max(raw):.2f})")
        took = statistics.median(large)
        print(f"request → last process gone, 500 MB, 4 workers: {took:.2f} s ({min(large):.2f} to {max(large):.2f})")
        print(f"    as a share of the disk's own write and fsync: {took / disk:.2f} (aim: under 1.5)")
        took = statistics.median(small)
        print(f"the same, small model, no workers: {took:.3f} s ({min(small):.3f} to {max(small):.3f}; aim: under 0.3)")
        job = environment(folder, 9999)
        mine = {key: value for key, value in job.items() if key.startswith("GPUSCHED_")}
        print(f"run.step() under gpusched, nothing asked: {python(folder, STEPS, **mine) * 1e6:.1f} µs (aim: under 20)")
        print(f"run.step() by hand, nothing saved: {python(folder, STEPS) * 1e6:.1f} µs")
    timed = "import time; t=time.perf_counter(); import gpusched.checkpoint; print(time.perf_counter()-t)"
    bare = "import time; t=time.perf_counter(); import json, typing; print(time.perf_counter()-t)"
    ours = statistics.median(python(ROOT, timed) for _ in range(9)) * 1e3
    base = statistics.median(python(ROOT, bare) for _ in range(9)) * 1e3
    print(f"import gpusched.checkpoint, without torch: {ours:.1f} ms (json and typing {base:.1f} ms; aim: under 30)")


if __name__ == "__main__":
    main()
