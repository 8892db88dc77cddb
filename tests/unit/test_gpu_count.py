"""How many GPUs: one number, a range, or a list of numbers; and what is refused with a sentence."""

import pytest

from gpusched.api.submission import read_submission, read_update, to_spec
from gpusched.model.errors import UsageError
from gpusched.model.gpu_count import GpuCount, elastic_count, parse_count
from gpusched.model.job import Request
from gpusched.model.rules import Rules


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("2", GpuCount(2), "2"),
        ("0", GpuCount(0), "0"),
        ("2-8", GpuCount(2, 8), "2-8"),
        (" 2-8 ", GpuCount(2, 8), "2-8"),
        ("2-2", GpuCount(2), "2"),
        ("1,2,4,8", GpuCount(1, 8, (1, 2, 4, 8)), "1,2,4,8"),
        ("4,2,1,2", GpuCount(1, 4, (1, 2, 4)), "1,2,4"),
        ("2-8:2", GpuCount(2, 8, (2, 4, 6, 8)), "2,4,6,8"),
        ("1,2-4", GpuCount(1, 4), "1-4"),
        ("3,3", GpuCount(3), "3"),
    ],
)
def test_a_count_is_a_number_a_range_or_a_list(text, count, shown):
    assert parse_count(text) == count
    assert str(count) == shown


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("8-2", "runs backwards", "did you mean 2-8?"),
        ("0-2", "either with GPUs or without", "write --gpus 1-2"),
        ("0,1", "either with GPUs or without", "write --gpus 1, or"),
        ("2-", "the range '2-' has no end", "2-8"),
        ("-8", "the range '-8' has no beginning", "2-8"),
        ("a-b", "'a-b' is no number of GPUs", "2-8"),
        ("2-8-9", "'2-8-9' in --gpus cannot be read", "2-8"),
        ("1,,2", "'' in --gpus cannot be read", "1,2,4,8"),
        ("2-8:0", "step of 0", "2-8"),
        ("2-9999", "more than one job can have", "at most 4096"),
        ("2-99999999", "no number of GPUs", "2-8"),
        ("", "no number of GPUs", "2-8"),
    ],
)
def test_what_is_no_count_is_refused_with_what_to_write(text, said, hint):
    with pytest.raises(UsageError) as error:
        parse_count(text)
    assert said in error.value.message and hint in error.value.hint


def test_a_request_takes_the_most_that_there_is():
    assert [Request(2, gpus_max=8).within(n) for n in (0, 1, 2, 5, 8, 9)] == [0, 0, 2, 5, 8, 8]
    assert [Request(1, gpus_max=8, gpu_counts=(1, 2, 4, 8)).within(n) for n in (0, 1, 3, 7, 20)] == [0, 1, 2, 4, 8]
    assert [Request(2).within(n) for n in (1, 2, 9)] == [0, 2, 2]
    assert (Request(2).most, Request(2, gpus_max=8).most) == (2, 8)
    assert (Request(2).elastic, Request(2, gpus_max=8).elastic) == (False, True)
    assert Request(2, gpus_max=8).counts_text == "2-8"


def submission(**fields):
    return to_spec(read_submission({"command": ["x"], "cwd": "/", **fields}), Rules.default())[0].request


def test_a_program_submits_an_elastic_job_by_its_least_and_most():
    assert submission(gpus=2, gpus_max=8) == Request(2, gpus_max=8)
    assert submission(gpus=2, gpus_max=2) == Request(2)
    assert submission(gpus=1, gpus_max=4, gpu_counts=[1, 2, 4]) == Request(1, gpus_max=4, gpu_counts=(1, 2, 4))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpus": 8, "gpus_max": 2}, "at least 8 and at most 2"),
        ({"gpus": 0, "gpus_max": 2}, "either with GPUs or without"),
        ({"gpus": 1, "gpus_max": 4, "gpu_counts": [2, 4]}, "go from 2 to 4, and it asks for 1 to 4"),
        ({"gpus": 2, "gpu_counts": [2, 4]}, "without a most"),
        ({"gpus": 1, "gpus_max": 5000}, "gpus_max"),
        ({"gpus": 1, "gpus_max": 4, "gpu_counts": ["1"]}, "gpu_counts"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, said):
    with pytest.raises(UsageError) as error:
        submission(**fields)
    assert said in error.value.message


def test_an_update_names_only_what_changes():
    assert read_update({"gpus": 2, "gpus_max": 4, "gpu_counts": []}) == {"gpus": 2, "gpus_max": 4, "gpu_counts": ()}
    assert elastic_count(2, 0, ()) == GpuCount(2)
