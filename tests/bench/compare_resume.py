"""Side by side: what comes back after a preemption in the middle of an epoch, with each tool as documented.

Run by hand: python tests/bench/compare_resume.py [variant...]. Every variant trains the same small model (see
compare_variants.py) once undisturbed and once preempted after batch 9 of 18 and resumed, in processes of its own, and
is compared with *its own* undisturbed run. Prints a table in Markdown. Takes a minute or two.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
warnings.filterwarnings("ignore")

import compare_variants as variants  # noqa: E402

STOP = 9
HELPERS = {"lightning_stateful": ["train_lightning"], "accelerate_stateful": ["train_accelerate"]}
ROWS = {
    "gpusched_run": "gpusched `Run`, plain loop",
    "gpusched_lightning": "gpusched `GpuschedCallback`, Lightning",
    "gpusched_trainer": "gpusched `preemptible`, HF Trainer",
    "gpusched_accelerate": "gpusched `AcceleratedRun`, accelerate",
    "lightning": "Lightning, plain loader",
    "lightning_stateful": "Lightning, StatefulDataLoader",
    "trainer": "HF Trainer, `save_steps`",
    "trainer_jit": "HF Trainer, `enable_jit_checkpoint`",
    "accelerate": "accelerate, `skip_first_batches`",
    "accelerate_stateful": "accelerate, StatefulDataLoader",
    "submitit": "submitit, recipe of its documentation",
}


def attempt(name: str, folder: Path, stop: int | None) -> int:
    """One process; under gpusched it has a job directory, where the request to stop will appear."""
    log = folder / "log"
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 0
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        if name.startswith("gpusched"):
            job = folder / f"job-{len(list(folder.glob('job-*')))}"
            job.mkdir()
            os.environ.update(GPUSCHED_JOB_DIR=str(job), GPUSCHED_CHECKPOINT_DIR=str(folder / "checkpoints"))
        getattr(variants, "train_" + name)(str(folder), stop)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def metric_of(folder: Path, epoch: int) -> float:
    """Of the epoch in which the preemption came."""
    lines = [json.loads(line) for line in (folder / "epochs").read_text().splitlines()]
    return next(line["metric"] for line in reversed(lines) if line["epoch"] == epoch)


def batches(folder: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in (folder / "batches").read_text().splitlines()]
    return {line["batch"]: line for line in lines}


def compare(name: str, root: Path) -> dict[str, object]:
    straight, stopped = root / name / "straight", root / name / "stopped"
    for folder in (straight, stopped):
        folder.mkdir(parents=True)
    if attempt(name, straight, None):
        raise SystemExit(f"{name} failed undisturbed:\n" + (straight / "log").read_text()[-3000:])
    attempt(name, stopped, STOP)
    if name != "submitit" and ((stopped / "result").exists() or not STOP <= len(batches(stopped)) <= STOP + 1):
        raise SystemExit(f"{name} was not preempted:\n" + (stopped / "log").read_text()[-3000:])
    if name != "submitit" and attempt(name, stopped, None):  # submitit starts it again by itself
        raise SystemExit(f"{name} failed to resume:\n" + (stopped / "log").read_text()[-3000:])
    expected, result = (json.loads((folder / "result").read_text()) for folder in (straight, stopped))
    one, other = batches(straight), batches(stopped)
    after = range(STOP, max(one) + 1)
    made = {(n // variants.BATCHES, i): v for n, line in one.items() for i, v in line["noise"].items()}
    again = {(n // variants.BATCHES, i): v for n, line in other.items() if n >= STOP for i, v in line["noise"].items()}
    done = len((stopped / "batches").read_text().splitlines())
    return {
        "weights": expected["weights"] == result["weights"],
        "optimizer": expected["optimizer"] == result["optimizer"],
        "order": all(n in other and list(other[n]["noise"]) == list(one[n]["noise"]) for n in after),
        "augmentation": all(made.get(key) == value for key, value in again.items()),
        "random": all(n in other and other[n]["random"] == one[n]["random"] for n in after),
        "metric": metric_of(straight, STOP // variants.BATCHES) == metric_of(stopped, STOP // variants.BATCHES),
        "repeated": done - len(one),
        "lines": lines(name),
    }


def lines(name: str) -> int:
    functions = [getattr(variants, each) for each in ["train_" + name, *HELPERS.get(name, [])]]
    functions += [variants.NetworkTraining] if name == "submitit" else []
    return sum(line.endswith("# +") for one in functions for line in inspect.getsource(one).splitlines())


def main() -> None:
    chosen = sys.argv[1:] or list(ROWS)
    root = Path(tempfile.mkdtemp(prefix="compare-resume-"))
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    packages = ["torch", "lightning", "transformers", "accelerate", "torchdata", "torchmetrics", "submitit"]
    print(", ".join(f"{name} {version(name)}" for name in packages) + "\n")
    columns = ["weights", "optimizer", "order of samples", "augmentation", "random numbers (dropout)", "metric"]
    print("| | " + " | ".join([*columns, "batches done twice", "lines"]) + " |")
    print("| --- |" + " --- |" * (len(columns) + 2))
    try:
        for name in chosen:
            cells = ["equal" if v is True else "differ" if v is False else str(v) for v in compare(name, root).values()]
            print(f"| {ROWS[name]} | " + " | ".join(cells) + " |", flush=True)
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
