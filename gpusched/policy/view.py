"""What the policies see: the devices and who holds them (policy/holdings.py), what runs and what waits, in order.

It is kept up to date change by change. The engine is the only one that puts things in.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from gpusched.model.clock import Instant
from gpusched.model.device import Device
from gpusched.model.job import Attempt, AttemptKey, Job
from gpusched.model.policy import PolicyName
from gpusched.model.reservation import Reservation
from gpusched.model.rules import Rules
from gpusched.model.state import JobState, StopKind
from gpusched.policy.expected import time_left
from gpusched.policy.fairshare import Ledger
from gpusched.policy.holdings import Holdings
from gpusched.policy.predict import Durations
from gpusched.policy.rights import over_quota
from gpusched.policy.usage import Usage
from gpusched.policy.waiting import Bucket, Rank, Waiting, untold, waiting_since

_AT_ONCE = 1e-6  # seconds
_ENDLESS = float("inf")
_UNKILLABLE = 3  # kills after which nobody should wait for an attempt to leave


class View(Holdings):
    """Indexes over the engine's state. `rank` is the policy's: where a waiting job stands among its equals."""

    def __init__(self, rules: Rules, rank: Callable[[View, Job], Rank] | None = None) -> None:
        super().__init__(rules)
        self.jobs: dict[int, Job] = {}
        self.live: dict[int, Attempt] = {}  # job id → its live attempt
        self.leaving: dict[AttemptKey, Attempt] = {}  # ended, devices not yet seen free
        self.overdue: set[AttemptKey] = set()  # of these, the ones that should have left long ago
        self.stopping: set[int] = set()  # live jobs that have been asked to stop
        self.elastic: set[int] = set()  # live jobs that can go on with another number of devices
        self.fresh: set[int] = set()  # of these, the ones that start in this cycle and are not launched yet
        self.buckets: dict[Bucket, Waiting] = {}
        self.claimants: set[int] = set()  # waiting jobs with an earmark
        self.running: Counter[str] = Counter()  # live jobs that nobody has asked to stop, by QoS
        self.cpu_running = 0
        self.cpu_waiting = 0
        self.guessed = 0  # waiting jobs of which only predictions can say how long they run
        self.closing = False  # the service is emptying itself: nothing new starts
        self.due: float | None = None  # boot clock, while a cycle runs: the look that was asked for and is due now
        self.durations = Durations()
        self.ledger = Ledger(rules.policy.fair_share)
        self.in_use = Usage(rules.limits)
        self._rank = rank or _first_come
        self._backfills = rules.policy.name is PolicyName.BACKFILL
        self._array_live: Counter[int] = Counter()
        self._array_claims: Counter[int] = Counter()
        self._place_of: dict[int, tuple[Bucket, Rank, float]] = {}
        self.stood: dict[int, Rank] = {}  # the rank with which a job was waiting last: settles ties of those who run
        self._aging: list[tuple[float, int]] = []  # waiting jobs by when their patience ends; some have gone since
        self._aged = float("-inf")  # wall clock: whose patience ended by then is overdue

    # ---- what the engine puts in ----------------------------------------------------------------------------

    def put_device(self, device: Device) -> None:
        known = device.uuid in self.slots
        slot = self.take_in(device)
        if not known:
            for attempt in (*self.live.values(), *self.leaving.values()):
                self.hold(attempt, attempt.key, only=device.uuid)
            for job_id in (*self.claimants, *self.stopping):
                if device.uuid in _kept(self.jobs[job_id]):
                    slot.kept_for = job_id
            self.refresh(slot)
        self.in_use.put_device(device)

    def put_job(self, job: Job, eligible: bool) -> None:
        """Take in a new or changed job. `eligible`: it waits for nothing but devices."""
        job_id = job.id
        old, waited = self.jobs.get(job_id), self._place_of.get(job_id)
        self.jobs[job_id] = job
        if old is not None:
            if waited is not None or job_id in self.claimants:
                self._unqueue(old)
            if old.earmark or old.stop is not None:
                self._keep(old, None)
        if old is None or old.state is not job.state or old.spec is not job.spec:
            self._count_anew(old, job)
        if job.stop is not None and job.stop.keeps:
            self._keep(job, job_id)
        if eligible:
            if job.earmark:
                self.claimants.add(job_id)
                self._claim(job, +1)
                self._keep(job, job_id)
            else:
                self._queue(job)
        if waited is not None and not job.state.final and job_id not in self._place_of:  # not if it waits on, changed
            self.stood[job_id] = self._rank(self, job) if waited[0].overdue else waited[1]
        if self.in_use.active:
            self.in_use.put(job, self.live.get(job_id), job_id in self.claimants)

    def drop_job(self, job_id: int) -> None:
        """Forget a job that has ended, or that was put in for a forecast only."""
        job = self.jobs.pop(job_id, None)
        if job is None:
            return
        if not job.state.final:
            self._unqueue(job)
            self.ledger.leave(job.account)
            self.stood.pop(job_id, None)
            self.in_use.drop(job_id)
        if job.array is not None:
            for counter in (self._array_live, self._array_claims):
                if not counter[job.array.array_id]:
                    del counter[job.array.array_id]

    def put_attempt(self, attempt: Attempt) -> None:
        job_id, key = attempt.job_id, attempt.key
        old = present = self.live.get(job_id)
        if old is None or old.number != attempt.number:
            old = self.leaving.get(key)
        if attempt.outcome is None:
            self.live[job_id] = attempt
        elif present is not None and present.number == attempt.number:
            del self.live[job_id]
        if attempt.outcome is not None and not attempt.released:
            self.leaving[key] = attempt
        elif self.leaving:
            self.leaving.pop(key, None)
            self.overdue.discard(key)
        if self.in_use.active and (job := self.jobs.get(job_id)) is not None:
            self.in_use.put(job, self.live.get(job_id), job_id in self.claimants)
        if old is not None:
            if old.devices == attempt.devices and old.cleared == attempt.cleared and old.released == attempt.released:
                return  # it holds what it held
            for share in old.held:
                self.let_go(share.uuid, key)
        if not attempt.released:
            self.hold(attempt, key)

    def put_reservation(self, reservation: Reservation) -> None:
        """Take in a new or changed reservation; let go of one that is over."""
        if reservation.ended_at is None:
            self.reservations[reservation.name] = reservation
        else:
            self.reservations.pop(reservation.name, None)
        self.forget_pools()

    def age(self, now: Instant) -> None:
        """Jobs whose patience has come to its end go before the others of their level."""
        self._aged = now.wall + _AT_ONCE
        while self._aging and self._aging[0][0] <= self._aged:
            job_id = heappop(self._aging)[1]
            place, job = self._place_of.get(job_id), self.jobs.get(job_id)
            if place is None or job is None or place[0].overdue or self._patience_ends(job) > self._aged:
                continue
            self._unqueue(job)
            self._queue(job)

    def next_aging(self, now: Instant) -> float | None:
        """When (boot clock) the patience of one of those that wait comes to its end next."""
        while self._aging:
            ends, job_id = self._aging[0]
            place, job = self._place_of.get(job_id), self.jobs.get(job_id)
            if place is not None and job is not None and not place[0].overdue and self._patience_ends(job) == ends:
                return now.boot + ends - now.wall
            heappop(self._aging)
        return None

    def rank_anew(self, everybody: bool) -> None:
        """The policy's ranks have changed by something other than the jobs themselves: it has learned how long they
        run. everybody: the policy goes by what it has seen also where a run time was told."""
        places = self._place_of
        for bucket, waiting in self.buckets.items():
            moved = False
            for _, job_id in waiting.entries:
                job = self.jobs[job_id]
                if everybody or untold(job):
                    place = bucket, self._rank_in(bucket, job), self._length(job)
                    moved = moved or place != places[job_id]
                    places[job_id] = place
            if moved:
                waiting.entries = sorted([(places[job_id][1], job_id) for _, job_id in waiting.entries])
                waiting.lengths = sorted([(places[job_id][2], job_id) for _, job_id in waiting.lengths])

    # ---- what the policies ask ------------------------------------------------------------------------------

    def priority(self, job: Job) -> int:
        level = self.rules.qos.get(job.spec.qos)
        return level.priority if level else 0

    def order(self, job: Job) -> tuple[int, int, bool, Rank, int]:
        """Scheduling order: jobs over a quota and jobs that yielded last; then the level; then jobs past the policy's
        patience, the longest waiting first; then the policy's rank; then first come, first served (the id)."""
        place = self._place_of.get(job.id)
        if place is not None:
            return (self.standing(job), -self.priority(job), not place[0].overdue, place[1], job.id)
        return (self.standing(job), -self.priority(job), True, self._rank(self, job), job.id)

    def standing(self, job: Job) -> int:
        """What orders before the level: 0, 1 for jobs that yielded; of those over the quota of their account first the
        ones that run (2), then the ones that wait (4, 5)."""
        if not self.in_use.quotas or not over_quota(self, job):
            return int(job.yielding)
        return 2 if job.id in self.live else 4 + job.yielding

    def bucket(self, job: Job) -> Bucket:
        place = self._place_of.get(job.id)
        return place[0] if place is not None else self._bucket(job)

    def head(self, bucket: Bucket) -> Job:
        """The first waiting job of a bucket."""
        return self.jobs[self.buckets[bucket].entries[0][1]]

    def place(self, job: Job) -> int | None:
        """How many jobs of its bucket go before a waiting job; None if it does not wait for devices only."""
        place = self._place_of.get(job.id)
        if place is None:
            return None
        bucket, rank = place[:2]
        return bisect_left(self.buckets[bucket].entries, (rank, job.id))

    def queued(self, bucket: Bucket) -> Iterator[Job]:
        """The waiting jobs of a bucket in their order."""
        return (self.jobs[job_id] for _, job_id in self.buckets[bucket].entries)

    def waiting(self) -> Iterator[Job]:
        """All jobs that wait for devices only, in no particular order."""
        for waiting in self.buckets.values():
            for _, job_id in waiting.entries:
                yield self.jobs[job_id]
        for job_id in self.claimants:
            yield self.jobs[job_id]

    def array_full(self, job: Job, also: int = 0) -> bool:
        """As many other elements of the job's array run, or have devices promised, as its %limit allows.

        also: so many more of them that are about to.
        """
        array = job.array
        if array is None or not array.limit:
            return False
        others = self._array_live[array.array_id] + self._array_claims[array.array_id]
        return others + also - (job.id in self.claimants) >= array.limit

    def departing(self, job: Job) -> list[Attempt]:
        """Attempts that will leave their devices to `job` by themselves: asked to stop, or ended and about to be seen
        gone. Not those whose owner asked for a requeue and who come back before `job`."""
        stopping = []
        for job_id in sorted(self.stopping):
            other = self.jobs[job_id]
            if other.stop is None or other.stop.kills >= _UNKILLABLE or job_id not in self.live:
                continue
            if other.stop.kind is not StopKind.REQUEUE or self.order(job) < self.order(other):
                stopping.append(self.live[job_id])
        return [*stopping, *(a for key, a in self.leaving.items() if key not in self.overdue)]

    # ---- bookkeeping ----------------------------------------------------------------------------------------

    def _keep(self, job: Job, for_job: int | None) -> None:
        for uuid in _kept(job):
            slot = self.slots.get(uuid)
            if slot is not None and slot.kept_for in (None, job.id):
                slot.kept_for = for_job
                self.refresh(slot)

    def _bucket(self, job: Job) -> Bucket:
        limited = job.array.array_id if job.array and job.array.limit else 0
        spec, owner = job.spec, job.owner
        overdue = self.rules.policy.patience is not None and self._patience_ends(job) <= self._aged
        return Bucket(
            job.yielding, job.patient, overdue, spec.qos, job.account, owner.uid, spec.request, limited, owner.gid
        )

    def _queue(self, job: Job) -> None:
        bucket = self._bucket(job)
        rank = self._rank_in(bucket, job)
        waiting = self.buckets.get(bucket)
        if waiting is None:
            waiting = self.buckets[bucket] = Waiting()
        length = self._length(job) if self._backfills else _ENDLESS
        insort(waiting.entries, (rank, job.id))
        if self._backfills:
            insort(waiting.lengths, (length, job.id))
        self._place_of[job.id] = (bucket, rank, length)
        self.cpu_waiting += not job.spec.request.gpus
        self.guessed += untold(job)
        if self.rules.policy.patience is not None and not bucket.overdue:
            ends = self._patience_ends(job)
            if ends != _ENDLESS:
                heappush(self._aging, (ends, job.id))

    def _rank_in(self, bucket: Bucket, job: Job) -> Rank:
        """The policy's. Past patience who has waited longest goes first: else the overdue could starve each other."""
        return waiting_since(job) if bucket.overdue else self._rank(self, job)

    def _length(self, job: Job) -> float:
        """Seconds; of unknown length: endless."""
        seconds = time_left(self, job) if self._backfills else None
        return _ENDLESS if seconds is None else seconds

    def _patience_ends(self, job: Job) -> float:
        """Wall clock."""
        patience, since = self.rules.policy.patience, waiting_since(job)
        return _ENDLESS if patience is None or since is None else since + patience

    def _unqueue(self, job: Job) -> None:
        if job.id in self.claimants:
            self.claimants.discard(job.id)
            self._claim(job, -1)
        place = self._place_of.pop(job.id, None)
        if place is None:
            return
        bucket, rank, length = place
        self.cpu_waiting -= not bucket.request.gpus
        self.guessed -= untold(job)
        waiting = self.buckets[bucket]
        del waiting.entries[bisect_left(waiting.entries, (rank, job.id))]
        if self._backfills:
            del waiting.lengths[bisect_left(waiting.lengths, (length, job.id))]
        if not waiting.entries:
            del self.buckets[bucket]

    def _count_anew(self, old: Job | None, job: Job) -> None:
        """A job is new, or in another state. Accounts take part in fair share while they have jobs that wait or run."""
        if old is None or old.state.final is not job.state.final:
            if not job.state.final:
                self.ledger.enter(job.account)
            elif old is not None:
                self.ledger.leave(old.account)
                self.stood.pop(job.id, None)
        elif old.spec is job.spec and _counts_alike(old.state, job.state):
            return
        if old is not None and old.state.live:
            self._count(old, -1)
        if job.state.live:
            self._count(job, +1)

    def _count(self, job: Job, by: int) -> None:
        """A live job comes or goes."""
        if job.state is JobState.STOPPING:
            (self.stopping.add if by > 0 else self.stopping.discard)(job.id)
        else:
            self.running[job.spec.qos] += by
        if job.spec.request.gpus == 0:
            self.cpu_running += by
        if job.spec.request.gpus_max is not None:
            (self.elastic.add if by > 0 else self.elastic.discard)(job.id)
        if job.array is not None:
            self._array_live[job.array.array_id] += by

    def _claim(self, job: Job, by: int) -> None:
        if job.array is not None:
            self._array_claims[job.array.array_id] += by


def _kept(job: Job) -> tuple[str, ...]:
    """The devices that are kept for a job: promised while it waits, or with which an elastic one goes on."""
    return job.stop.keeps if job.stop is not None else job.earmark


def _counts_alike(one: JobState, other: JobState) -> bool:
    """Jobs in these states are counted as running, as stopping, or not at all."""
    if not (one.live and other.live):
        return one.live is other.live
    return (one is JobState.STOPPING) is (other is JobState.STOPPING)


def _first_come(view: View, job: Job) -> Rank:
    return 0
