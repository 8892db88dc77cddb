"""What is simulated and what comes out: a workload of jobs, a fleet of devices, and how each job fared.

Times are seconds since the start of the workload.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpusched.model.evolve import swift


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a trace or of a history. `duration`: seconds on all its devices, without waiting and restarts."""

    id: str
    submit: float
    gpus: int
    duration: float
    user: str = ""
    account: str = ""  # virtual cluster or queue
    name: str = ""  # what predictions compare by: a model, a script
    gpu_mem_mib: int | None = None  # only with a share of a device's memory


@dataclass(frozen=True, slots=True)
class Workload:
    source: str  # what messages and reports call it
    jobs: tuple[TraceJob, ...]  # in the order of submission


@dataclass(frozen=True, slots=True)
class Fleet:
    """`nodes` machines of `per_node` equal devices each; `memory_mib` of each device."""

    nodes: int
    per_node: int
    memory_mib: int = 80 * 1024

    @property
    def devices(self) -> int:
        return self.nodes * self.per_node


@swift
@dataclass(frozen=True, slots=True)
class Fate:
    """How one job fared. held: device-seconds that its attempts held devices; lost: of these, spent on being moved."""

    job: TraceJob
    started: float  # for the first time
    ended: float
    preemptions: int
    held: float
    lost: float


@dataclass(frozen=True, slots=True)
class Span:
    """One device in the hands of one attempt, for the timeline."""

    device: int
    job: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one policy. `unfinished` is empty in every run that may be called a result."""

    policy: str
    fleet: Fleet
    fates: tuple[Fate, ...]
    unfinished: tuple[TraceJob, ...]
    spans: tuple[Span, ...]  # only if a timeline was asked for
    events: int  # handled by the engine
    cpu_s: float  # processor time of the run
