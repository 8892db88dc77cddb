"""Re-derives from the jobs and attempts alone what the indexes say, and what must always hold. For tests: slow."""

from __future__ import annotations

from collections import Counter

from gpusched.engine.dependencies import Met, evaluate
from gpusched.engine.engine import Engine
from gpusched.engine.folding import MOST_SPANS
from gpusched.engine.following import facts, keys_of, likes
from gpusched.engine.names import unfinished_name
from gpusched.engine.turn import eligible
from gpusched.model.clock import Instant
from gpusched.model.evolve import evolve
from gpusched.model.job import Attempt, Job, Share
from gpusched.model.limits import WHOLE, Scope
from gpusched.model.state import LIVE, JobState
from gpusched.policy.explain import reason
from gpusched.policy.priority import charged


def check(engine: Engine, now: Instant) -> None:
    """Raises AssertionError naming what is wrong."""
    _live_jobs_have_one_attempt(engine)
    _devices_are_not_over_allocated(engine)
    _holders_match_attempts(engine)
    _gangs_are_whole(engine)
    _queues_match_jobs(engine, now)
    _indexes_match_jobs(engine)
    _every_element_is_in_one_place(engine)
    _accounts_are_charged_for_what_runs(engine)
    _nobody_missed_a_dependency(engine)
    _limits_count_what_is_used(engine)
    _every_waiting_job_has_a_reason(engine, now)


def _live_jobs_have_one_attempt(engine: Engine) -> None:
    view = engine.view
    for job in engine.state.jobs.values():
        attempt = view.live.get(job.id)
        assert (job.state in LIVE) == (attempt is not None), f"job {job.key} is {job.state}, its attempt: {attempt}"
        if attempt is not None:
            assert attempt.number == job.attempt, f"job {job.key}: attempt {attempt.number} lives, not {job.attempt}"
        assert (job.state is JobState.STOPPING) == (job.stop is not None), f"job {job.key}: {job.state}, {job.stop}"
    cpu = sum(1 for j in engine.state.jobs.values() if j.state in LIVE and j.spec.request.gpus == 0)
    assert view.cpu_running == cpu, f"{view.cpu_running} CPU jobs counted, {cpu} run"


def _holding(engine: Engine) -> list[Attempt]:
    return [*engine.view.live.values(), *engine.view.leaving.values()]


def _devices_are_not_over_allocated(engine: Engine) -> None:
    for uuid, slot in engine.view.slots.items():
        shares = [s for a in _holding(engine) for s in a.held if s.uuid == uuid]
        whole = [s for s in shares if s.mem_mib is None]
        assert not whole or len(shares) == 1, f"device {uuid} has two owners: {slot.holders}"
        used = sum(s.mem_mib or 0 for s in shares)
        known = slot.device.total_mib > 0  # a failed device may not even tell how large it is
        assert not known or used <= slot.device.total_mib, f"device {uuid}: {used} MiB of {slot.device.total_mib}"


def _holders_match_attempts(engine: Engine) -> None:
    for uuid, slot in engine.view.slots.items():
        expected = {a.key: s.mem_mib for a in _holding(engine) for s in a.held if s.uuid == uuid}
        assert slot.holders == expected, f"device {uuid}: {slot.holders}, but the attempts say {expected}"


def _accounts_are_charged_for_what_runs(engine: Engine) -> None:
    ledger = engine.view.ledger
    expected = {attempt.job_id: charged(attempt) for attempt in engine.view.live.values()}
    assert ledger.running() == expected, f"charged: {ledger.running()}, but there run {expected}"
    jobs = Counter(job.account for job in engine.state.jobs.values() if not job.state.final)
    assert ledger.unfinished() == jobs, f"accounts with jobs: {ledger.unfinished()}, but there are {jobs}"


def _gangs_are_whole(engine: Engine) -> None:
    for attempt in engine.view.live.values():
        job = engine.state.jobs[attempt.job_id]
        gang = len(attempt.devices)
        request = job.spec.request
        assert gang == request.within(gang), f"job {job.key} has {gang} devices of {request.counts_text}"
        assert len(set(attempt.uuids)) == gang, f"job {job.key} holds a device twice"


def _queues_match_jobs(engine: Engine, now: Instant) -> None:
    view = engine.view
    queued = [job_id for waiting in view.buckets.values() for _, job_id in waiting.entries]
    assert len(queued) == len(set(queued)), "a job waits in two places"
    waiting = set(queued) | view.claimants
    expected = {j.id for j in engine.state.jobs.values() if eligible(engine.view, j, now)}
    overdue = {i for i in expected - waiting if i in engine.state.waiting_for_time}
    assert waiting == expected - overdue, f"waiting: {waiting}, but should be {expected}"
    for bucket, line in view.buckets.items():
        assert line.entries == sorted(line.entries) and line.entries, f"bucket {bucket} is out of order: {line}"
    for uuid, slot in view.slots.items():
        able = slot.device.usable and slot.device.foreign_mib <= view.rules.foreign_floor_mib
        is_open = able and not slot.holders and slot.kept_for is None
        assert (slot.able, slot.open, slot.guarded) == (able, is_open, False), f"device {uuid} is miscounted: {slot}"
    for pool in {id(pool): pool for slot in view.slots.values() for pool in slot.pools}.values():
        able_in = pool.able_in_groups(lambda uuid: view.slots[uuid].able)
        assert (pool.able_in, pool.able) == (able_in, sum(able_in)), f"able devices: {pool.able_in}, not {able_in}"
    stopping = {job.id for job in engine.state.jobs.values() if job.state is JobState.STOPPING}
    assert view.stopping == stopping, f"leaving: {view.stopping}, but should be {stopping}"
    assert view.open_devices == sum(slot.open for slot in view.slots.values()), "open devices are miscounted"
    for uuid, slot in view.slots.items():
        if slot.kept_for is not None:
            whose = view.jobs[slot.kept_for]
            kept = whose.stop.keeps if whose.stop is not None else whose.earmark
            claims = slot.kept_for in view.claimants or slot.kept_for in view.stopping
            assert claims, f"device {uuid} is kept for {slot.kept_for}, who claims nothing"
            assert uuid in kept, f"device {uuid} is kept for {slot.kept_for} in vain"
    claiming = {j.id for j in engine.state.jobs.values() if j.earmark}
    assert claiming == view.claimants, f"jobs with promised devices: {claiming}, claimants: {view.claimants}"
    assert view.overdue <= view.leaving.keys(), f"overdue, but not leaving: {view.overdue - view.leaving.keys()}"


def _indexes_match_jobs(engine: Engine) -> None:
    state, view = engine.state, engine.view
    names: dict[tuple[int, str], list[int]] = {}
    live, claims = Counter[int](), Counter[int]()
    for job in sorted(state.jobs.values(), key=lambda j: j.id):
        if job.array is not None:
            live[job.array.array_id] += job.state in LIVE
            claims[job.array.array_id] += job.id in view.claimants
        if (name := unfinished_name(job)) is not None:
            names.setdefault(name, []).append(job.id)
        assert (job.id in state.ended) == job.state.final, f"job {job.key} is {job.state}, ended: {state.ended}"
    assert state.names.known in (None, names), f"names: {state.names.known}, but should be {names}"
    assert +view._array_live == +live and +view._array_claims == +claims, "elements of arrays are miscounted"


def _every_element_is_in_one_place(engine: Engine) -> None:
    """In a row of its own, folded into an earlier one, or ended and let go."""
    state = engine.state
    arrays: dict[int, list[Job]] = {}
    for job in sorted(state.jobs.values(), key=lambda j: j.id):
        if job.array is not None:
            arrays.setdefault(job.array.array_id, []).append(job)
        if job.folded:
            where = f"row {job.key}"
            assert job.state is JobState.PENDING or job.state.final, f"{where} is {job.state}"
            assert not job.attempt and not job.earmark and not job.yielding, f"{where} has run or is promised devices"
            assert len(job.folded) <= MOST_SPANS, f"{where} is a list of {len(job.folded)} ranges"
            offsets = [span.offset for span in job.elements]
            assert offsets == sorted(offsets), f"{where} is out of order: {job.folded}"
    for array_id, rows in arrays.items():
        array = state.arrays.known[array_id]
        held = [offset for row in rows for span in row.elements for offset in range(span.offset, span.end)]
        assert len(held) == len(set(held)), f"array {array_id}: an element is in two places: {sorted(held)}"
        first = rows[0].array
        count = first.count if first is not None else 0
        assert len(held) + array.let_go == count, (
            f"array {array_id}: {len(held)} elements and {array.let_go} that were let go of {count}"
        )
        assert array.rows == {row.array.index: row.id for row in rows if row.array is not None}, f"array {array_id}"
        assert array.folded == {row.id for row in rows if row.folded}, f"array {array_id}: {array.folded}"
        open_rows = [row for row in rows if not row.state.final]
        assert array.unfinished == sum(row.size for row in open_rows), f"array {array_id}: {array}"
        assert array.unstarted == sum(row.size for row in open_rows if row.started_at is None), f"{array_id}: {array}"
        done = sum(row.size for row in rows if row.state is JobState.COMPLETED)
        failed = sum(row.size for row in rows if row.state.final) - done
        assert array.completed >= done and array.failed >= failed, f"array {array_id}: {array}"
        assert array.completed + array.failed - done - failed == array.let_go, f"array {array_id}: {array}"
    empty = {array_id for array_id, array in state.arrays.known.items() if not array.rows}
    assert state.arrays.known.keys() - empty == arrays.keys(), f"arrays {state.arrays.known}, not {arrays.keys()}"
    assert all(not state.arrays.known[array_id].unfinished for array_id in empty), f"arrays without rows: {empty}"


def _limits_count_what_is_used(engine: Engine) -> None:
    view, rules = engine.view, engine.state.rules.limits
    jobs, running, held, accounts = Counter[Scope](), Counter[Scope](), Counter[Scope](), Counter[str]()
    for job in engine.state.jobs.values():
        attempt, claims = view.live.get(job.id), job.id in view.claimants
        shares = attempt.devices if attempt else tuple(map(Share, job.earmark)) if claims else ()
        request = job.spec.request
        mib = request.gpu_mem_mib if request.shared else None
        keeps = job.stop.keeps if job.stop is not None else ()
        parts = max(sum(view.in_use.part(share.uuid, mib) for share in shares), len(keeps) * WHOLE)
        for scope, _ in rules.scopes(job):
            jobs[scope] += 0 if job.state.final else job.size
            running[scope] += attempt is not None or claims
            held[scope] += parts
        accounts[job.account] += parts if rules.quota_of(job.account) is not None else 0
    for tally in view.in_use.tallies.values():
        counted, scope = (tally.jobs, tally.running, tally.parts), tally.scope
        true = (jobs[scope], running[scope], held[scope])
        assert counted == true, f"{scope}: counted {counted} (jobs, running, parts), but it is {true}"
    for name, account in view.in_use.accounts.items():
        assert account.parts == accounts[name], f"account {name}: {account}, but it holds {accounts[name]}"
        assert (account.parts > account.quota) == (name in view.in_use.exceeding), f"account {name}: {account}"
    assert {scope for scope, many in jobs.items() if many} <= view.in_use.tallies.keys(), "a scope is not counted"


def _nobody_missed_a_dependency(engine: Engine) -> None:
    state = engine.state
    waiting: dict[str, set[int]] = {}
    one_by_one: dict[int, set[int]] = {}
    for job in state.jobs.values():
        if job.state is not JobState.PENDING or job.dependency_met:
            continue
        assert job.spec.dependency is not None, f"job {job.key} waits for a dependency that it does not have"
        met = evaluate(state, job)
        assert met is not Met.YES, f"job {job.key}: {job.spec.dependency} is met, and nobody told it"
        assert (met is Met.NEVER) == job.dependency_failed, f"job {job.key}: {job.spec.dependency} is {met}"
        if job.folded:  # the first of them waits for nothing that the others do not wait for
            alone = evaluate(state, evolve(job, folded=()))
            assert alone is met, f"job {job.key}: {job.spec.dependency} is {met} for all, {alone} for the first"
        for key in keys_of(job):
            waiting.setdefault(key, set()).add(job.id)
        for array_id in likes(job):
            one_by_one.setdefault(array_id, set()).add(job.id)
    assert state.likes == one_by_one, f"followed element by element: {state.likes}, but should be {one_by_one}"
    assert state.dependents == waiting, f"followed: {state.dependents}, but should be {waiting}"
    assert state.told == {key: facts(state, key) for key in waiting}, f"told: {state.told}"


def _every_waiting_job_has_a_reason(engine: Engine, now: Instant) -> None:
    for job in engine.state.jobs.values():
        if job.state is JobState.PENDING:
            why = reason(engine.view, job, now)
            assert why.text and why.next, f"job {job.key} waits without a reason"
