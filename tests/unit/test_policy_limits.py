"""Hard limits in small worlds: who waits because of which, what is refused, and what else obeys them."""

from __future__ import annotations

import pytest
from builders import GIB, Gpu, World, gpu

from gpusched.model.errors import Refused, UsageError
from gpusched.model.limits import LimitRules, Limits
from gpusched.model.policy import PolicyName, PolicyRules
from gpusched.model.rules import Partition, Rules
from gpusched.policy.explain import Word
from gpusched.policy.limits import headroom

EACH_USER = {"*": Limits(max_devices=2)}


def limited_world(*gpus: int | Gpu, policy: PolicyName = PolicyName.BACKFILL, **limits: object) -> World:
    """A world with these limits: `user={"*": Limits(…)}` and so on."""
    return World(*gpus, rules=Rules(limits=LimitRules(**limits), policy=PolicyRules(name=policy)))  # type: ignore[arg-type]


def restart_with(world: World, **limits: object) -> None:
    world.rules = Rules(limits=LimitRules(**limits)).check()  # type: ignore[arg-type]
    world.crash()


@pytest.mark.parametrize("policy", list(PolicyName))
def test_nobody_has_more_devices_at_once_than_allowed_under_any_policy(policy):
    world = limited_world(8, user=EACH_USER, policy=policy)
    mine = [world.submit() for _ in range(4)]
    his = [world.submit(by="bob") for _ in range(3)]
    assert world.running() == {*mine[:2], *his[:2]}
    world.exits(mine[0])
    assert world.running() == {*mine[1:3], *his[:2]}


@pytest.mark.parametrize("policy", list(PolicyName))
def test_a_job_at_its_limit_blocks_nobody_behind_it_and_is_not_counted_as_passed(policy):
    world = limited_world(4, user={"ann": Limits(max_devices=2)}, policy=policy)
    first, waits = world.submit(gpus=2), world.submit(gpus=2)
    for _ in range(2):
        world.submit(by="bob")
    assert world.job(waits).bypassed == 0
    assert len(world.running()) == 3
    assert world.why(waits).word is Word.ASSOC_DEVICES
    world.exits(first)
    assert world.where(waits)


def test_the_reason_says_what_is_used_by_whom_and_who_can_change_it():
    world = limited_world(4, user=EACH_USER)
    world.submit()
    world.submit()
    why = world.why(world.submit())
    assert why.text == "user ann uses 2 of at most 2 devices (jobs 1, 2); it needs 1"
    assert why.next == (
        'one of these jobs ends, or an administrator raises max_devices of [limits.user."*"] in the configuration'
    )


def test_sharing_jobs_count_by_their_part_of_a_device():
    world = limited_world(2, user={"ann": Limits(max_devices=0.75)})
    jobs = [world.submit(shared=True, gpu_mem_mib=6 * GIB) for _ in range(4)]
    assert world.running() == set(jobs[:3])
    assert "uses 0.75 of at most 0.75 devices" in world.why(jobs[3]).text
    assert "it needs 0.25" in world.why(jobs[3]).text


def test_three_thirds_are_one_device():
    world = limited_world(2, user={"ann": Limits(max_devices=1)})
    jobs = [world.submit(shared=True, gpu_mem_mib=8 * GIB) for _ in range(4)]
    assert world.running() == set(jobs[:3])


def reasons_of_limits() -> dict[Word, tuple[World, int]]:
    found: dict[Word, tuple[World, int]] = {}

    def case(word: Word, limits: dict[str, dict[str, Limits]], *, running: int = 1, by: str = "ann", **job: object):
        """`running` jobs of one device run; then comes the one whose reason is asked for, while the limit is new."""
        world = World(4)
        for _ in range(running):
            world.submit()
        waiting = world.submit(by=by, hold=True, **job)
        restart_with(world, **limits)
        world.release(waiting, by=by)
        found[word] = world, waiting

    one, gang = Limits(max_running=1), {"gpus": 2}
    case(Word.ASSOC_DEVICES, {"user": {"*": Limits(max_devices=2)}}, **gang)
    case(Word.USER_RUNNING, {"user": {"ann": one}})
    case(Word.ASSOC_RUNNING, {"account": {"ann": one}})
    case(Word.ASSOC_JOB_DEVICES, {"user": {"*": Limits(max_job_devices=1)}}, **gang)
    case(Word.ASSOC_TIME, {"account": {"*": Limits(max_time=60.0)}}, time_limit=61.0)
    case(Word.QOS_DEVICES, {"qos": {"normal": Limits(max_devices=2)}}, **gang)
    case(Word.QOS_USER_DEVICES, {"qos": {"normal": Limits(max_devices_per_user=2)}}, **gang)
    case(Word.QOS_RUNNING, {"qos": {"normal": one}}, by="bob")
    case(Word.QOS_USER_RUNNING, {"qos": {"normal": Limits(max_running_per_user=1)}})
    case(Word.QOS_JOB_DEVICES, {"qos": {"normal": Limits(max_job_devices=1)}}, **gang)
    case(Word.QOS_TIME, {"qos": {"normal": Limits(max_time=60.0)}}, time_limit=61.0)
    case(Word.PARTITION_DEVICES, {"partition": {"default": Limits(max_devices=2)}}, **gang)
    case(Word.PARTITION_RUNNING, {"partition": {"default": one}}, by="bob")
    case(Word.PARTITION_TIME, {"partition": {"default": Limits(max_time=60.0)}}, time_limit=61.0)
    return found


def test_every_reason_of_a_limit_is_given_with_a_sentence_and_what_would_have_to_happen():
    cases = reasons_of_limits()
    assert set(cases) == {word for word in Word if word.startswith(("Assoc", "QOS", "Partition"))}
    for word, (world, job) in cases.items():
        why = world.why(job)
        assert why.word is word, (word, why)
        assert len(why.text.split()) > 4 and not why.text.endswith(".")
        assert "an administrator raises max_" in why.next


def test_a_group_is_limited_by_the_primary_group_and_per_user():
    rules = {"group": {"lab": Limits(max_devices=3, max_running_per_user=1)}, "gids": {1001: "lab"}}
    world = limited_world(4, **rules)
    mine = [world.submit(), world.submit()]
    his = [world.submit(by="bob"), world.submit(by="bob")]
    assert world.running() == {mine[0], *his}
    assert world.why(mine[1]).word is Word.USER_RUNNING
    assert "ann in group lab runs 1 of at most 1 job" in world.why(mine[1]).text


def test_accounts_are_limited_together_whoever_submits():
    world = limited_world(4, account={"vision": Limits(max_devices=2)})
    world.submit(account="vision")
    world.submit(by="bob", account="vision")
    third = world.submit(by="bob", account="vision")
    assert world.why(third).word is Word.ASSOC_DEVICES
    assert "account vision uses 2 of at most 2 devices (jobs 1, 2)" in world.why(third).text
    assert world.where(world.submit(by="bob"))


# ---- refused at the door ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "job", "said"),
    [
        (Limits(max_devices=2), {"gpus": 3}, "it asks for 3 devices, and user ann may use at most 2 at once"),
        (Limits(max_job_devices=2), {"gpus": 3}, "it asks for 3 devices, and a job of user ann may have at most 2"),
        (Limits(max_running=0), {}, "user ann may run no jobs at all"),
        (Limits(max_time=60.0), {"time_limit": 90.0}, "a job with a time limit of 1:30 is too long"),
        (Limits(max_devices=0.2), {"shared": True, "gpu_mem_mib": 6 * GIB}, "it asks for 0.25 devices"),
    ],
)
def test_what_could_never_run_is_refused_by_the_name_of_the_limit_and_its_number(limits, job, said):
    world = limited_world(4, user={"ann": limits})
    with pytest.raises(UsageError, match=said) as refused:
        world.submit(**job)
    names = ("max_devices", "max_job_devices", "max_running", "max_time")
    assert [name for name in names if f"({name}" in refused.value.message] == [
        name for name in names if getattr(limits, name) is not None
    ]
    assert "[limits.user.ann]" in refused.value.hint
    with pytest.raises(UsageError, match=said):
        world.preview(**job)
    world.submit(by="bob", **job)


def test_one_job_too_many_is_refused_and_elements_of_arrays_count_each():
    world = limited_world(1, user={"*": Limits(max_jobs=3)})
    world.submit()
    world.submit(hold=True)
    with pytest.raises(Refused, match=r"user ann has 2 of at most 3 waiting and running jobs .*this array has 2 el"):
        world.submit(array="0-1")
    world.submit(array="0-0")
    with pytest.raises(Refused, match="this is one more"):
        world.submit()
    world.submit(by="bob")
    world.exits(1)
    world.submit()


def test_a_job_without_a_time_limit_gets_the_shortest_that_its_limits_allow():
    world = limited_world(1, user={"*": Limits(max_time=600.0)}, qos={"normal": Limits(max_time=300.0)})
    assert world.job(world.submit()).spec.time_limit == 300.0
    assert world.job(world.submit(qos="low")).spec.time_limit == 600.0
    assert world.job(world.submit(time_limit=60.0)).spec.time_limit == 60.0


# ---- update, requeue, cron, a new configuration ---------------------------------------------------------------------


def test_an_update_obeys_the_same_limits():
    partitions = {"default": Partition("default"), "short": Partition("short")}
    limits = LimitRules(
        user={"*": Limits(max_job_devices=2)},
        partition={"short": Limits(max_time=60.0)},
        qos={"low": Limits(max_jobs=1)},
    )
    world = World(4, rules=Rules(limits=limits, partitions=partitions))
    world.submit(qos="low")
    waits = world.submit(hold=True, time_limit=90.0)
    with pytest.raises(UsageError, match="a job of user ann may have at most 2"):
        world.update(waits, gpus=3)
    with pytest.raises(UsageError, match="partition short may ask for at most 1:00"):
        world.update(waits, partition="short")
    with pytest.raises(Refused, match="QoS low has 1 of at most 1"):
        world.update(waits, qos="low")
    world.update(waits, gpus=2, comment="fits")


def test_a_running_job_cannot_be_moved_to_a_level_that_is_full():
    world = limited_world(4, qos={"high": Limits(max_devices_per_user=2)})
    world.submit(gpus=2, qos="high")
    job = world.submit()
    with pytest.raises(Refused, match="cannot change there while it runs: ann in QoS high uses 2 of at most 2"):
        world.update(job, qos="high")
    world.update(job, qos="low")


def test_a_requeued_job_counts_again_and_may_be_one_too_many():
    world = limited_world(1, user={"*": Limits(max_jobs=1)})
    job = world.submit()
    world.exits(job)
    other = world.submit()
    with pytest.raises(Refused, match="user ann has 1 of at most 1 waiting and running jobs"):
        world.requeue(job)
    world.requeue(other)  # it is in the queue already


def test_a_cron_job_leaves_out_the_run_that_is_too_much():
    world = limited_world(1, user={"*": Limits(max_jobs=2)})
    template = world.submit(cron="0 * * * *", next_run=world.now.wall + 60)
    running = world.submit(by="ann")
    world.passes(60)
    world.cron_fires(template)
    assert "left out: user ann has 2 of at most 2" in world.story(template)[-1]
    world.exits(running)
    world.passes(3600)
    world.cron_fires(template)
    assert len(world.running()) == 1


def test_a_new_limit_kills_nothing_and_lets_nothing_more_start():
    world = World(4)
    running = [world.submit(gpus=2), world.submit()]
    waits = world.submit(gpus=2)
    restart_with(world, user={"*": Limits(max_devices=1)})
    assert world.running() == set(running)
    assert world.killed() == world.asked_to_stop() == []
    assert "uses 3 of at most 1 device" in world.why(waits).text
    world.update(running[0], comment="still mine")
    world.exits(running[0])
    world.exits(running[1])
    assert not world.running()
    world.update(waits, gpus=1)
    assert world.running() == {waits}


def test_a_job_that_is_longer_than_a_new_limit_keeps_nobody_of_its_bucket_waiting():
    world = World(2)
    long = world.submit(time_limit=900.0, hold=True)
    short = world.submit(time_limit=30.0, hold=True)
    restart_with(world, user={"*": Limits(max_time=60.0)})
    world.release(long)
    world.release(short)
    assert world.running() == {short}
    world.update(long, time_limit=60.0)
    assert world.running() == {long, short}


# ---- promises -------------------------------------------------------------------------------------------------------


def test_promised_devices_count_so_that_the_promise_can_be_kept():
    world = limited_world(2, user={"ann": Limits(max_devices=1)})
    victims = [world.submit(by="bob", qos="low") for _ in range(2)]
    first, second = world.submit(qos="high"), world.submit(qos="high")
    assert world.asked_to_stop() == [victims[1]]
    assert world.why(first).word is Word.PREEMPTING
    assert world.why(second).word is Word.ASSOC_DEVICES
    world.exits(victims[1], code=85, saved_step=1)
    assert world.where(first) == (1,)


def test_a_promise_is_withdrawn_when_a_new_configuration_forbids_it():
    world = World(2)
    world.submit()
    victim = world.submit(by="bob", qos="low")
    world.started(victim)
    job = world.submit(qos="high")
    assert world.why(job).word is Word.PREEMPTING
    restart_with(world, user={"ann": Limits(max_devices=1)})
    assert world.why(job).word is Word.ASSOC_DEVICES
    assert "chosen anew: user ann uses 1 of at most 1 device (job 1)" in world.story(job)[-1]


def test_headroom_is_what_a_job_that_takes_what_it_can_get_may_take():
    world = limited_world(8, user={"ann": Limits(max_devices=6.5)}, qos={"normal": Limits(max_job_devices=5)})
    job = world.submit(gpus=2)
    assert headroom(world.engine.view, world.job(job)) == 5
    world.submit(gpus=3)
    assert headroom(world.engine.view, world.job(job)) == 3
    assert headroom(World(1).engine.view, world.job(job)) is None


def test_an_account_that_names_its_users_takes_jobs_of_nobody_else():
    world = limited_world(1, account={"vision": Limits(users=("bob",))})
    with pytest.raises(UsageError, match="account vision is not for user ann, but for bob") as refused:
        world.submit(account="vision")
    assert "adds ann to users of [limits.account.vision]" in refused.value.hint
    world.submit(by="bob", account="vision")
    world.submit()


def test_a_job_without_a_time_limit_waits_where_every_job_must_have_one():
    world = World(1)
    job = world.submit(hold=True)
    restart_with(world, user={"ann": Limits(max_time=60.0)})
    world.release(job)
    why = world.why(job)
    assert (why.word, world.running()) == (Word.ASSOC_TIME, set())
    assert why.text.startswith("it has no time limit")


def test_what_is_just_allowed_is_allowed():
    world = limited_world(4, user={"ann": Limits(max_job_devices=2, max_devices=2, max_running=1, max_time=60.0)})
    assert world.where(world.submit(gpus=2, time_limit=60.0)) == (0, 1)


def test_a_job_that_has_been_promised_devices_does_not_stand_in_its_own_way():
    world = limited_world(1, user={"ann": Limits(max_running=1, max_devices=1)})
    low = world.submit(by="bob", qos="low")
    high = world.submit(qos="high")
    assert world.why(high).word is Word.PREEMPTING
    world.exits(low, code=85)
    assert world.running() == {high}
    assert "replanned" not in world.kinds(high)


def test_what_a_sharing_job_needs_is_its_part_of_the_smallest_device_that_it_could_get():
    world = limited_world(gpu(0, gib=24), gpu(1, gib=48), user={"ann": Limits(max_devices=1)})
    jobs = [world.submit(shared=True, gpu_mem_mib=gib * GIB) for gib in (12, 18)]
    assert world.running() == {jobs[0]}
    assert "it needs 0.75" in world.why(jobs[1]).text
