"""Groups of devices as the driver tells them, and a driver that does not, fails or hangs when it is asked."""

from __future__ import annotations

import pytest
from device_processes import until

from gpusched.devices.worker import NvmlProbe
from gpusched.model.device import Health

pytest_plugins = ["device_fixtures"]


@pytest.fixture
async def probe(nvml_machine):
    made = NvmlProbe(nvml_machine.library, deadline=30)
    yield made
    await made.close()


def of(sample):
    assert sample.error is None
    return [device.group for device in sample.devices]


async def test_devices_with_nvlink_between_them_are_a_group_from_the_first_sample_on(nvml_machine, probe):
    nvml_machine.set(count__all=4, uuid__2="GPU-c", uuid__3="GPU-d", node__all=0)
    nvml_machine.set(nvlink__0="left", nvlink__1="right", nvlink__2="left", nvlink__3="right")
    assert of(await probe.sample()) == ["nvlink:0", "nvlink:1", "nvlink:0", "nvlink:1"]
    assert [d.group for d in (await probe.read(["GPU-d"])).devices] == ["nvlink:1"]


async def test_without_nvlink_the_numa_nodes_are_the_groups(nvml_machine, probe):
    nvml_machine.set(node__0=0, node__1=1)
    assert of(await probe.sample()) == ["numa:0", "numa:1"]


async def test_calls_that_are_not_supported_leave_the_groups_empty_and_the_readings_whole(nvml_machine, probe):
    nvml_machine.set(ret__nvmlDeviceGetP2PStatus__all=3, ret__nvmlDeviceGetTopologyCommonAncestor__all=3)
    nvml_machine.set(pci__0=None, pci__1=None)  # so that the kernel cannot be asked about them either
    sample = await probe.sample()
    assert of(sample) == ["", ""]
    assert all(device.health is Health.OK for device in sample.devices)


async def test_an_old_driver_without_the_calls_is_read_all_the_same(old_nvml_machine):
    probe = NvmlProbe(old_nvml_machine.library, deadline=30)
    assert len(of(await probe.sample())) == 2
    await probe.close()


async def test_it_is_asked_once_and_again_only_for_a_device_that_is_new(nvml_machine, probe):
    nvml_machine.set(node__0=0, node__1=0)
    assert of(await probe.sample()) == ["numa:0", "numa:0"]
    nvml_machine.set(node__1=1)
    assert of(await probe.sample()) == ["numa:0", "numa:0"]
    nvml_machine.set(count__all=3, uuid__2="GPU-c", node__2=1)
    assert of(await probe.sample()) == ["numa:0", "numa:1", "numa:1"]


@pytest.mark.parametrize("trouble", ["crash", "hang"])
async def test_a_driver_that_dies_or_hangs_of_the_question_is_not_asked_it_again(nvml_machine, trouble):
    probe = NvmlProbe(nvml_machine.library, deadline=30)
    nvml_machine.set(ret__nvmlDeviceGetUUID__all=15)
    await probe.sample()  # it has started; no device has told who it is
    nvml_machine.set(ret__nvmlDeviceGetUUID__all=None)
    probe._deadline = 2.0
    nvml_machine.set(**{f"{trouble}__nvmlDeviceGetP2PStatus__all": 1 if trouble == "crash" else 600_000})
    sample = await probe.sample()
    assert of(sample) == ["", ""]
    assert all(device.health is Health.OK for device in sample.devices)
    probe._deadline = 30.0
    again = await until(probe.sample, lambda answer: answer.error is None)
    assert of(again) == ["", ""]
    await probe.close()
