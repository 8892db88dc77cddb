"""Counting devices out to those who want them: kinds that overlap, parts of devices, and what young jobs hold."""

from __future__ import annotations

from builders import GIB, World, gpu

from gpusched.model.job import Request
from gpusched.policy.allotment import Allotment

ANY, A100, H100 = Request(gpus=1), Request(gpus=1, gpu_type="a100"), Request(gpus=1, gpu_type="h100")


def two_kinds() -> Allotment:
    return Allotment(World(gpu(0, "A100"), gpu(1, "H100")).engine.view, [ANY, A100, H100])


def test_who_could_use_any_device_gets_none_when_each_kind_has_been_granted():
    allotment = two_kinds()
    assert [allotment.grant(request) for request in (A100, H100, ANY)] == [True, True, False]


def test_who_could_use_any_device_leaves_one_of_two_kinds_but_not_both():
    allotment = two_kinds()
    assert [allotment.grant(request) for request in (ANY, H100, A100)] == [True, True, False]


def test_it_is_not_spent_while_there_are_devices_of_one_kind():
    allotment = two_kinds()
    assert allotment.grant(A100)
    assert not allotment.spent
    alone = Allotment(World(1).engine.view, [ANY])
    assert alone.grant(ANY)
    assert alone.spent


def test_what_a_young_job_holds_can_be_reserved_once_and_what_others_hold_never():
    allotment = Allotment(World(2).engine.view, [ANY])
    allotment.force(ANY, young=True)
    allotment.force(ANY)
    assert not allotment.grant(ANY)
    assert [allotment.reserve(ANY), allotment.reserve(ANY)] == [True, False]


def test_who_shares_a_device_needs_its_part_of_the_memory():
    half = Request(gpus=1, shared=True, gpu_mem_mib=12 * GIB)
    allotment = Allotment(World(1).engine.view, [half])
    assert [allotment.grant(half) for _ in range(3)] == [True, True, False]
