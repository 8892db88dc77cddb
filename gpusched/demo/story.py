"""The story of the demo, in acts.

1. `train` (QoS low) starts on one GPU; its twin (the same script, seed and data) runs undisturbed on another.
2. A third of the way, `urgent` (QoS high) arrives. No GPU is free: `train` is asked to save and leave.
3. `urgent` runs on exactly the GPU that `train` has left; `train` waits, then goes on from its checkpoint.
4. The weights and the loss curve of `train` are compared with its twin's, bit for bit.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from gpusched.demo.curves import Pause, Point, points_of
from gpusched.demo.reference_jobs import reference_job
from gpusched.demo.scene import Curve, Scene, Verdict
from gpusched.demo.screen import Screen
from gpusched.demo.stage import Stage
from gpusched.model.errors import Refused

DEADLINE = 180.0  # seconds for everything; a loaded machine is slow, not broken
LOOK = 0.2
PREEMPT_AT = 1 / 3  # of the training
_TOLD = ("started", "stopping", "saved", "requeued", "completed", "failed", "preempting", "lost", "killed")


class Story:
    def __init__(self, stage: Stage, screen: Screen, *, fast: bool) -> None:
        self._stage = stage
        self._screen = screen
        self._epochs = 6 if fast else 12
        self._pace_ms = 15 if fast else 25
        self._deadline = time.monotonic() + DEADLINE
        self._names: dict[str, str] = {}  # job key → name
        self._told: dict[str, int] = {}  # job key → story lines told

    def play(self) -> int:
        """Play all acts. Returns 0 if both runs ended with the same bits."""
        devices = self._stage.device_count()
        gpus = f"{devices} {self._stage.kind} GPU{'' if devices == 1 else 's'}"
        self._screen.tell(f"a daemon of its own runs with {gpus}, in {self._stage.directory}")
        train = self._submit("train", "low", self._training("train", 7, self._epochs))
        # with a single device the twin waits behind `train`; it must not preempt it
        twin = self._submit("twin", "high" if devices > 1 else "low", self._training("twin", 7, self._epochs))
        self._screen.tell("both load PyTorch now, which takes some seconds")
        self._until(lambda jobs: _share(jobs[train]) >= PREEMPT_AT, "train gets going")
        self._screen.tell("NOW SOMEBODY NEEDS A GPU MORE URGENTLY", "ask")
        urgent = self._submit("urgent", "high", self._training("urgent", 9, max(2, self._epochs // 4)))
        self._until(lambda jobs: jobs[train]["attempt"] > 1, "train resumes")
        self._until(lambda jobs: all(job["ended_at"] for job in jobs.values()), "all jobs end")
        return self._compare(train, twin, urgent)

    def _training(self, name: str, seed: int, epochs: int) -> list[str]:
        script = str(reference_job("train_mlp.py"))
        return [
            sys.executable, script, "--epochs", str(epochs), "--seed", str(seed), "--slow-ms", str(self._pace_ms),
            "--out", f"{name}.json",
        ]

    def _submit(self, name: str, qos: str, command: list[str]) -> str:
        key = self._stage.submit(name, qos, command)
        self._names[key] = name
        self._screen.tell(f"#{key} {name}: submitted with QoS {qos}", "submitted")
        return key

    # ---- watching -------------------------------------------------------------------------------------------

    def _until(self, done: Any, what: str) -> None:
        """Show how things stand until `done(jobs by key)`. Raises Refused if a job fails or the time is up."""
        takeovers = self._stage.takeovers
        while True:
            jobs = self._look()
            if self._stage.takeovers != takeovers:
                takeovers = self._stage.takeovers
                self._screen.tell("the daemon was killed; a new one took over, and no job has noticed")
            failed = [job for job in jobs.values() if job["ended_at"] and job["state"] != "COMPLETED"]
            if failed:
                raise Refused(f"{failed[0]['name']} ended as {failed[0]['state']}: {failed[0]['exit_text']}",
                              self._output_tail(failed[0]["name"]))
            if done(jobs):
                return
            if time.monotonic() > self._deadline:
                raise Refused(f"gave up waiting until {what}", "is the machine very busy? look at it with: top")
            time.sleep(LOOK)

    def _look(self) -> dict[str, dict[str, Any]]:
        jobs = {key: self._stage.ask(lambda client, key=key: client.job(key)) for key in self._names}  # type: ignore[misc]
        for key, job in jobs.items():
            for line in job["story"][self._told.get(key, 0) :]:
                if line["kind"] in _TOLD:
                    said = "done" if line["kind"] == "completed" else _shorter(line["text"])
                    self._screen.tell(f"#{key} {job['name']}: {said}", line["kind"])
            self._told[key] = len(job["story"])
        devices = self._stage.ask(lambda client: client.devices())["devices"]
        curves = []
        for key, name in self._names.items():
            if name != "urgent":
                points = points_of(self._stage.state / "jobs" / key)
                curves.append(Curve(f"loss of #{key} {name}", points, _pauses(jobs[key]["story"], points)))
        title = f"gpusched demo: {self._stage.kind} GPUs, real training"
        self._screen.show(Scene(title, time.time(), devices, list(jobs.values()), curves))
        return jobs

    def _output_tail(self, name: str) -> str:
        try:
            return "\n  ".join((self._stage.directory / f"{name}.out").read_text().splitlines()[-8:])
        except OSError:
            return "it wrote no output"

    # ---- the end --------------------------------------------------------------------------------------------

    def _compare(self, train: str, twin: str, urgent: str) -> int:
        resumed = self._stage.ask(lambda client: client.job(train))
        urgently = self._stage.ask(lambda client: client.job(urgent))
        mine = _result(self._stage.directory / "train.json")
        undisturbed = _result(self._stage.directory / "twin.json")
        same = mine["weights"] == undisturbed["weights"] and mine["curve"] == undisturbed["curve"]
        step, attempts = (resumed["saved"] or {}).get("step"), resumed["attempt"]
        lines = [
            ("urgent", f"had its GPU {urgently['waited']:.1f} s after it was submitted"),
            ("train", f"was stopped at step {step} of {mine['steps']} and ran in {attempts} attempts"),
            ("", f"weights: sha256 {mine['weights'][:40]}…"),
            ("twin", "was never disturbed"),
            ("", f"weights: sha256 {undisturbed['weights'][:40]}…"),
        ]
        text = f"weights and all {len(mine['curve'])} losses are the same, bit for bit: nothing was lost"
        if not same:
            text = "THEY DIFFER: resuming was not exact. Please report it with what `gpusched demo --keep` leaves"
        self._screen.conclude(Verdict(same, text, lines))
        return 0 if same else 1


def _pauses(story: list[dict[str, Any]], points: list[Point]) -> list[Pause]:
    """From each time the job had saved and left to the first loss that it reported after that."""
    begins = [line["at"] for line in story if line["kind"] == "requeued"]
    return [Pause(begin, next((at for at, _ in points if at > begin), None)) for begin in begins]


def _share(job: dict[str, Any]) -> float:
    """How much of its training a job has done, 0 to 1."""
    progress = job["progress"] or {}
    return float(progress.get("step") or 0) / float(progress.get("total") or 1e9)


def _shorter(text: str) -> str:
    """Without the long path of the checkpoint, and without the step that the line before has told."""
    head, _, tail = text.partition(": /")
    return (head if tail else text).partition(" and will go on from its checkpoint")[0]


def _result(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
