"""Why a job waits: the reason is true, is a sentence, and says the same wherever it is asked for."""

from __future__ import annotations

import pytest
from builders import GIB, World, gpu
from reserving import reserve

from gpusched.model.rules import Partition, Rules
from gpusched.policy import explain
from gpusched.policy.explain import Word


def one_of_each() -> dict[Word, tuple[World, int]]:
    """A waiting job for every reason there is."""
    found: dict[Word, tuple[World, int]] = {}

    def case(word: Word, world: World, job: int) -> None:
        found[word] = (world, job)

    world = World(1)
    world.submit()
    case(Word.RESOURCES, world, world.submit())
    case(Word.HELD_USER, world, world.submit(hold=True))
    case(Word.DEPENDENCY, world, world.submit(after="afterok:1"))
    case(Word.BEGIN_TIME, world, world.submit(begin=world.now.wall + 5))
    case(Word.CRON, world, world.submit(cron="0 * * * *", next_run=world.now.wall + 60))
    world = World(1)
    world.submit()
    world.submit()
    case(Word.PRIORITY, world, world.submit())
    held = world.submit()
    world.hold(held, by="root")
    case(Word.HELD_ADMIN, world, held)
    world = World(1, rules=Rules(max_requeues=0))
    job = world.submit()
    world.never_starts(job, "fork: no memory")
    case(Word.HELD_SYSTEM, world, job)
    world = World(1)
    failed = world.submit()
    world.exits(failed, code=1)
    kept = world.submit(after=f"afterok:{failed}", cancel_on_bad_dependency=False, recalled=(world.job(failed),))
    case(Word.DEPENDENCY_NEVER, world, kept)
    world = World(2)
    case(Word.ARRAY_LIMIT, world, world.submitted(array="0-1%1").job_ids[1])
    world = World(1)
    world.submit(qos="low")
    case(Word.PREEMPTING, world, world.submit(qos="high"))
    world = World(1)
    world.fails(0)
    case(Word.DEVICE_UNAVAILABLE, world, world.submit())
    world = World(1)
    world.foreign(0, 9000)
    case(Word.FOREIGN_USE, world, world.submit())
    world = World(0, rules=Rules(cpu_jobs=1))
    world.submit(gpus=0)
    case(Word.CPU_JOBS, world, world.submit(gpus=0))
    world = World(1)
    reserve(world, "paper", devices="0", users="bob")
    case(Word.RESERVATION, world, world.submit())
    world = World(1)
    world.engine.view.closing = True
    case(Word.CLOSING, world, world.submit())
    return found


OF_LIMITS = {word for word in Word if word.startswith(("Assoc", "QOS", "Partition"))}  # test_policy_limits.py


@pytest.mark.parametrize("word", [w for w in Word if w is not Word.STARTING and w not in OF_LIMITS])
def test_every_reason_is_given_with_a_sentence_and_what_would_have_to_happen(word):
    world, job = one_of_each()[word]
    why = world.why(job)
    assert why.word is word
    assert len(why.text.split()) >= 1
    assert why.text[0].islower() or why.text[0].isdigit() or why.text[0] in "'"
    assert not why.text.endswith(".")
    assert why.next
    assert explain.reasons(world.engine.view, [world.job(job)], world.now)[job].word is word


def test_a_limit_of_the_partition_that_was_shortened_later_is_the_reason():
    world = World(1)
    job = world.submit(time_limit=900.0, hold=True)
    world.rules = Rules(partitions={"default": Partition("default", max_time=60.0)})
    world.crash()  # a restart with a new configuration
    world.release(job)
    assert world.why(job).word is Word.PARTITION_TIME
    world.update(job, time_limit=30.0)
    assert world.running() == {job}


def test_a_partition_that_is_gone_is_the_reason():
    world = World(1, rules=Rules(partitions={"default": Partition("default"), "old": Partition("old")}))
    job = world.submit(partition="old", hold=True)
    world.rules = Rules()
    world.crash()
    world.release(job)
    assert world.why(job).word is Word.DEVICE_UNAVAILABLE
    assert "'old' no longer exists" in world.why(job).text
    world.update(job, partition="default")
    assert world.running() == {job}


def test_the_reason_names_how_many_devices_are_wanted_and_free():
    world = World(3)
    world.submit(gpus=2)
    job = world.submit(gpus=3, gpu_mem_mib=20 * GIB)
    assert world.why(job).text == "needs 3 devices with 20G, 1 of 3 free"


def test_the_job_ahead_is_named_as_people_name_it():
    world = World(1)
    world.submit()
    array = world.submitted(array="4-5")
    job = world.submit()
    assert f"job {array.key}_[4-5] is ahead" in world.why(job).text


def test_ahead_lists_who_goes_first_in_order_and_why():
    world = World(1)
    world.submit(qos="high")
    normal, low, high = world.submit(), world.submit(qos="low"), world.submit(qos="high")
    ahead = explain.ahead(world.engine.view, world.job(low), world.now)
    assert [a.job_id for a in ahead] == [high, normal]
    assert ahead[0].text == "QoS high goes before low"
    assert explain.ahead(world.engine.view, world.job(high), world.now) == ()
    second = world.submit()
    assert [(a.job_id, a.text) for a in explain.ahead(world.engine.view, world.job(second), world.now)][1:] == [
        (normal, "submitted earlier")
    ]
    assert len(explain.ahead(world.engine.view, world.job(low), world.now, most=1)) == 1


def test_ahead_leaves_out_jobs_that_want_something_else():
    partitions = {"default": Partition("default", ("0",)), "other": Partition("other", ("1",))}
    world = World(2, rules=Rules(partitions=partitions, cpu_jobs=1))
    for wanted in ({}, {"partition": "other"}, {"gpus": 0}):
        world.submit(**wanted)
    world.submit(partition="other"), world.submit(gpus=0)
    job = world.submit()
    assert explain.ahead(world.engine.view, world.job(job), world.now) == ()
    cpu = world.submit(gpus=0)
    assert [a.job_id for a in explain.ahead(world.engine.view, world.job(cpu), world.now)] == [5]


def test_a_job_with_promised_devices_is_ahead_of_those_who_want_them_too():
    world = World(1)
    world.submit(qos="low")
    high, normal = world.submit(qos="high"), world.submit()
    assert [a.job_id for a in explain.ahead(world.engine.view, world.job(normal), world.now)] == [high]
    assert world.why(normal).word in (Word.PRIORITY, Word.RESOURCES)


def test_every_device_says_whether_the_job_could_have_it_now():
    world = World(gpu(0), gpu(1), gpu(2), gpu(3), gpu(4, "NVIDIA H100 80GB HBM3", 80), gpu(5), gpu(6))
    world.fails(1)
    world.foreign(2, 5 * GIB)
    holder = world.submit()
    leaver = world.submit()
    world.exits(leaver, clear=False)
    world.submit(qos="low")
    world.submit(qos="low", gpu_type="4090")
    waiting = world.submit(gpus=2, gpu_type="4090", qos="normal")
    verdicts = {d.index: d for d in explain.devices(world.engine.view, world.job(waiting), world.now)}
    held = world.where(holder)[0]
    assert verdicts[held].text == f"held by job {holder}"
    assert verdicts[1].text == "device 1 failed: it has fallen off the bus"
    assert verdicts[2].text == "5G in use outside gpusched"
    assert verdicts[3].text == f"job {leaver} has ended, but the device is not seen free of it yet"
    assert verdicts[4].text == "not what it asks for (NVIDIA H100 80GB HBM3, 80G)"
    assert {d.usable for d in verdicts.values()} == {False}
    other = world.submit(hold=True)
    kept = {d.index: d.text for d in explain.devices(world.engine.view, world.job(other), world.now)}
    (victim,) = world.asked_to_stop()
    assert kept[world.where(victim)[0]] == kept[3] == f"kept for job {waiting}"


def test_a_free_device_is_called_free():
    world = World(1)
    job = world.submit(hold=True)
    (verdict,) = explain.devices(world.engine.view, world.job(job), world.now)
    assert (verdict.usable, verdict.text) == (True, "free")


def test_every_running_job_says_whether_it_could_be_preempted():
    world = World(4)
    low, normal, leaving = world.submit(qos="low"), world.submit(), world.submit(qos="low")
    world.submit(gpus=0)  # has no device: nothing that anybody could wait for
    world.cancel(leaving)
    job = world.submit(gpus=4, hold=True)
    texts = {v.job_id: (v.preemptible, v.text) for v in explain.victims(world.engine.view, world.job(job), world.now)}
    assert texts == {
        low: (True, "QoS normal may preempt low"),
        normal: (False, "QoS normal may not preempt normal"),
        leaving: (False, "is leaving already: cancelled by ann"),
    }


def test_the_answer_to_a_submit_says_how_things_stand():
    world = World(2)
    assert world.submitted(gpus=2, qos="low").note == "starting on devices 0,1"
    assert world.submitted(gpus=0).note == "starting on no device (CPU only)"
    assert world.submitted(qos="high").note == "waiting (Preempting: job 1 saves and leaves its devices to it)"
