"""Fixtures for tests of devices: real processes and the NVML double. Use: `pytest_plugins = ["device_fixtures"]`."""

import pytest
from device_processes import Processes
from nvml_double.machine import NvmlMachine, build


@pytest.fixture
def processes():
    started = Processes()
    yield started
    started.end_all()


def _double(tmp_path_factory, *defines):
    library = build(tmp_path_factory.mktemp("nvml-double"), *defines)
    if library is None:
        pytest.skip("no C compiler (gcc or cc) to build the NVML double with")
    return library


@pytest.fixture(scope="session")
def nvml_double(tmp_path_factory):
    return _double(tmp_path_factory)


@pytest.fixture(scope="session")
def old_nvml_double(tmp_path_factory):
    return _double(tmp_path_factory, "-DOLD_DRIVER")


@pytest.fixture
def nvml_machine(tmp_path, nvml_double):
    return NvmlMachine(tmp_path / "nvml", nvml_double)


@pytest.fixture
def old_nvml_machine(tmp_path, old_nvml_double):
    return NvmlMachine(tmp_path / "old-nvml", old_nvml_double)
