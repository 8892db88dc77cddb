import json
import os

import pytest

from gpusched.devices.faults import NO_DEVICE_FAULTS, DeviceFaults, Faults, FaultsFile, parse_faults


def test_a_device_is_named_by_index_uuid_or_star_and_the_closest_name_wins():
    faults = parse_faults(
        json.dumps({"devices": {"0": {"lost": True}, "SIM-1": {"foreign_mib": 7}, "*": {"fail": ["power_w"]}}}).encode()
    )
    assert faults.of(0, "SIM-0") == DeviceFaults(lost=True)
    assert faults.of(1, "SIM-1") == DeviceFaults(foreign_mib=7)
    assert faults.of(2, "SIM-2") == DeviceFaults(fail=("power_w",))


def test_an_empty_file_means_no_faults():
    assert parse_faults(b" \n") == Faults() and Faults().of(0, "x") is NO_DEVICE_FAULTS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting"),
        ("[]", "object"),
        ('{"device": {}}', "known: devices, error, hang_ms"),
        ('{"hang_ms": "1"}', "type int"),
        ('{"hang_ms": true}', "type int"),
        ('{"hang_ms": -1}', "negative"),
        ('{"devices": {"0": 1}}', "object"),
        ('{"devices": {"0": {"foreign_mib": -4}}}', "negative"),
        ('{"devices": {"0": {"fail": ["fan"]}}}', "'fan' is no reading; known: utilization"),
        ('{"devices": {"0": {"fail": [[]]}}}', "no reading"),
    ],
)
def test_a_bad_file_is_told_and_injects_nothing(tmp_path, text, said):
    path = tmp_path / "faults.json"
    path.write_text(text)
    faults, error = FaultsFile(path).current()
    assert faults == Faults() and said in error and str(path) in error


def test_the_file_is_read_again_when_it_changes_and_only_then(tmp_path):
    path = tmp_path / "faults.json"
    file = FaultsFile(path)
    assert file.current() == (Faults(), None)
    path.write_text('{"hang_ms": 5}')
    first, _ = file.current()
    assert first.hang_ms == 5 and file.current()[0] is first
    path.write_text('{"hang_ms": 77}')
    assert file.current()[0].hang_ms == 77
    path.write_text("nonsense")
    assert file.current()[1] is not None and file.current()[1] is not None
    path.unlink()
    assert file.current() == (Faults(), None)
    path.write_text('{"hang_ms": 5}')
    os.chmod(path, 0o600)
    assert file.current()[0].hang_ms == 5


def test_a_directory_or_a_huge_file_in_its_place_is_told(tmp_path):
    assert "cannot be used" in FaultsFile(tmp_path).current()[1]
    huge = tmp_path / "huge.json"
    huge.write_bytes(b" " * (2 << 20))
    assert "larger than 1 MiB" in FaultsFile(huge).current()[1]
