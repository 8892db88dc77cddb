"""Traces are read cell by cell: what is wrong is told with file, line and column, and nothing is dropped."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest

from gpusched.simulator.errors import SimulationError
from gpusched.simulator.traces import check_fits, read_trace
from gpusched.simulator.workload import Fleet, TraceJob, Workload

DATA = Path(__file__).parents[1] / "data" / "philly.csv"
HEAD = "job_id,user,vc,submit_s,gpus,duration_s,status"


def a_trace(folder: Path, *lines: str, head: str = HEAD, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def refused(path: Path, **options: object) -> SimulationError:
    with pytest.raises(SimulationError) as caught:
        read_trace(path, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 1
    return caught.value


def test_the_real_trace_in_the_repository_is_read() -> None:
    workload = read_trace(DATA)
    assert (workload.source, len(workload.jobs)) == ("philly.csv", 400)
    assert workload.jobs[0] == TraceJob("p31280", 26188.0, 1, 348.0)
    assert sum(job.gpus for job in workload.jobs) == 324 + 2 * 6 + 4 * 70


def test_a_packed_trace_gives_the_same_jobs_whatever_its_name(tmp_path: Path) -> None:
    for name in ("philly.csv.gz", "philly.csv"):
        packed = tmp_path / name
        packed.write_bytes(gzip.compress(DATA.read_bytes()))
        assert read_trace(packed).jobs == read_trace(DATA).jobs


def test_jobs_are_sorted_by_submission_and_stay_in_order_at_equal_times(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "a,,,20,1,5,", "b,,,10,1,5,", "c,,,20,1,5,", "d,,,10,1,5,")
    assert [job.id for job in read_trace(path).jobs] == ["b", "d", "a", "c"]
    assert [job.id for job in read_trace(path, all_at_zero=True).jobs] == ["a", "b", "c", "d"]
    assert {job.submit for job in read_trace(path, all_at_zero=True).jobs} == {0.0}
    assert [job.id for job in read_trace(path, max_jobs=2).jobs] == ["b", "a"]


def test_users_come_from_the_column_that_is_asked_for(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "a,ann,red,0,1,5,", "b,bob,red,0,1,5,")
    assert [job.user for job in read_trace(path).jobs] == ["", ""]
    assert [job.user for job in read_trace(path, "user").jobs] == ["ann", "bob"]
    assert [job.user for job in read_trace(path, "vc").jobs] == ["red", "red"]
    error = refused(DATA, users_from="user")
    assert "no job has anything in the column user" in error.message


def test_a_job_is_named_by_its_model_and_batch_size(tmp_path: Path) -> None:
    head = HEAD + ",model,batch_size"
    path = a_trace(tmp_path, "a,,,0,1,5,,vgg,32", "b,,,0,1,5,,vgg,", "c,,,0,1,5,,,32", head=head)
    assert [job.name for job in read_trace(path).jobs] == ["vgg-32", "vgg", ""]


def test_a_share_of_a_device_is_one_only_if_asked_for(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "a,,,0,1,5,,250", "b,,,0,1,5,,1000", "c,,,0,1,5,,", head=HEAD + ",gpu_milli")
    assert [job.gpu_mem_mib for job in read_trace(path).jobs] == [None, None, None]
    shares = read_trace(path, shared=True, memory_mib=40_000).jobs
    assert [job.gpu_mem_mib for job in shares] == [10_000, None, None]


@pytest.mark.parametrize("cell", ["5000", "1001", "0", "-1", "0.5", "250.5", "1e300"])
@pytest.mark.parametrize("shared", [False, True])
def test_more_or_less_of_a_device_than_there_can_be_is_refused(tmp_path: Path, cell: str, shared: bool) -> None:
    error = refused(a_trace(tmp_path, f"a,,,0,1,5,,{cell}", head=HEAD + ",gpu_milli"), shared=shared)
    assert f"line 2: gpu_milli is {cell!r} (job a)" in error.message
    assert error.hint == "expected: a whole number from 1 to 1000 (a whole device)"


def test_numbers_may_be_written_in_any_usual_way(tmp_path: Path) -> None:
    path = a_trace(tmp_path, '"a, b",,,1.5e3,2.0,.5,', " c ,,, 7 ,1,+3,")
    first, second = read_trace(path).jobs
    assert (second.id, second.submit, second.gpus, second.duration) == ("a, b", 1500.0, 2, 0.5)
    assert (first.id, first.submit, first.duration) == ("c", 7.0, 3.0)


def test_empty_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("\ufeff" + HEAD + "\r\na,,,0,1,5,\r\n\r\n", encoding="utf-8")
    assert len(read_trace(path).jobs) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a,,,0,1,-5,", "duration_s is '-5'"),
        ("a,,,0,1,,", "duration_s is empty"),
        ("a,,,0,1,nan,", "duration_s is 'nan'"),
        ("a,,,0,1,inf,", "duration_s is 'inf'"),
        ("a,,,0,1,1e300,", "duration_s is '1e300'"),
        ("a,,,0,1,1_000,", "duration_s is '1_000'"),
        ("a,,,0,1,soon,", "duration_s is 'soon'"),
        ("a,,,-1,1,5,", "submit_s is '-1'"),
        ("a,,,,1,5,", "submit_s is empty"),
        ("a,,,2017-10-01,1,5,", "submit_s is '2017-10-01'"),
        ("a,,,0,,5,", "gpus is empty"),
        ("a,,,0,-1,5,", "gpus is '-1'"),
        ("a,,,0,1.5,5,", "gpus is '1.5'"),
        ("a,,,0,0,5,", "gpus of job a is 0"),
        ("a,,,0,many,5,", "gpus is 'many'"),
        (",,,0,1,5,", "job_id is empty"),
        ("a,,,0,1,5", "6 cells, but the first line names 7 columns"),
        ("a,,,0,1,5,,9", "8 cells, but the first line names 7 columns"),
        ("x,,,0,1,5,", "job_id 'x' stands on line 2 already"),
        ("a,\x1b[31m,,0,1,5,", "user is '\\x1b[31m'"),
    ],
)  # fmt: skip
def test_a_bad_line_is_told_with_its_number(tmp_path: Path, line: str, told: str) -> None:
    error = refused(a_trace(tmp_path, "x,,,0,1,5,", line))
    assert f"x.csv, line 3: {told}" in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a,,,0,1,1e11,", "expected: seconds, 0 or more, at most 10,000,000,000"),
        ("a,,,0,2000000,5,", "expected: a whole number, 1 or more, at most 1,000,000"),
        ("a,,,0,1,-1,", "expected: seconds, 0 or more"),
    ],
)
def test_what_may_stand_there_is_told(tmp_path: Path, line: str, expected: str) -> None:
    assert refused(a_trace(tmp_path, line)).hint == expected


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [("batch_size", "big", "a number"), ("deadline_min", "10-x", "numbers such as"), ("gpu_milli", "?", "a number")],
)
def test_columns_that_nothing_uses_are_checked_too(tmp_path: Path, column: str, cell: str, expected: str) -> None:
    error = refused(a_trace(tmp_path, f"a,,,0,1,5,,{cell}", head=f"{HEAD},{column}"))
    assert f"line 2: {column} is {cell!r} (job a)" in error.message
    assert expected in error.hint


def test_unknown_and_missing_columns_are_named_with_the_known_ones(tmp_path: Path) -> None:
    error = refused(a_trace(tmp_path, "a,,,0,1,5,,7", head=HEAD + ",gpu_mili"))
    assert "line 1: unknown column 'gpu_mili'" in error.message
    assert "gpu_milli" in error.hint and "duration_s" in error.hint
    error = refused(a_trace(tmp_path, "a,0", head="job_id,submit_s"))
    assert "line 1: missing columns user, vc, gpus, duration_s, status" in error.message
    error = refused(a_trace(tmp_path, "a,,,0,1,5,,7", head=HEAD + ",user"))
    assert "'user' is named twice" in error.message


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    path = a_trace(tmp_path, ",5,1,0,,,a", head=",".join(reversed(HEAD.split(","))))
    assert read_trace(path).jobs == (TraceJob("a", 0.0, 1, 5.0),)


def test_a_torn_gzip_file_is_told_wherever_it_is_torn(tmp_path: Path) -> None:
    whole = gzip.compress(DATA.read_bytes())
    for length in (5, 30, len(whole) // 2, len(whole) - 4):
        path = tmp_path / "torn.csv.gz"
        path.write_bytes(whole[:length])
        assert "torn.csv.gz is torn: its gzip data ends in the middle" in refused(path).message


def test_damaged_gzip_data_never_passes_for_a_trace(tmp_path: Path) -> None:
    whole = gzip.compress(DATA.read_bytes(), mtime=0)
    path = tmp_path / "bad.csv.gz"
    chance = random.Random(4)
    for place in chance.sample(range(20, len(whole)), 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        assert "bad.csv.gz" in refused(path).message


def test_what_is_no_trace_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_text(HEAD)
    assert "is called .gz and is no gzip file" in refused(path).message
    path.write_bytes(b"")
    assert "x.csv.gz is empty" in refused(path).message
    path.write_bytes(gzip.compress(b""))
    assert "nothing stands on its first line" in refused(path).message
    assert "column names, but no jobs" in refused(a_trace(tmp_path)).message
    assert "there is no such trace" in refused(tmp_path / "none.csv").message
    assert "cannot be read: Is a directory" in refused(tmp_path).message
    binary = tmp_path / "picture.csv"
    binary.write_bytes(b"\x89PNG\xff\xfe")
    assert "is no text in UTF-8" in refused(binary).message
    binary.write_bytes(HEAD.encode() + b'\na,"b"c,,0,1,5,\n')
    assert "line 2: it cannot be read as csv" in refused(binary).message
    binary.write_bytes(HEAD.encode() + b'\na,,,0,1,5,\n"b,,,0,1,5,\n')
    assert "line 3: it cannot be read as csv" in refused(binary).message


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_marks_than_commas_are_told(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(DATA.read_text().replace(",", mark))
    assert f"line 1: the cells are separated by {mark!r}" in refused(path).message


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_may_come_through_a_pipe(packed: bool) -> None:
    """As in `gpusched simulate <(zcat …)`."""
    there, here = os.pipe()
    data = DATA.read_bytes()
    with os.fdopen(here, "wb") as writer:
        writer.write(gzip.compress(data) if packed else data)  # it fits into a pipe
    try:
        assert read_trace(f"/dev/fd/{there}").jobs == read_trace(DATA).jobs
    finally:
        os.close(there)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_trace_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = a_trace(tmp_path, "a,,,0,1,5,")
    path.chmod(0)
    assert "cannot be read: Permission denied" in refused(path).message


def test_a_job_larger_than_the_fleet_is_refused_by_name() -> None:
    jobs = tuple(TraceJob(f"j{gpus}", 0.0, gpus, 1.0) for gpus in (4, 16, 17, 20, 30, 40))
    with pytest.raises(SimulationError) as caught:
        check_fits(Workload("w.csv", jobs), Fleet(2, 8))
    assert caught.value.message == (
        "w.csv: jobs j17 needs 17, j20 needs 20, j30 needs 30 and 1 more; the fleet has 2 × 8 devices"
    )
    assert "--devices 5x8" in caught.value.hint
    assert check_fits(Workload("w.csv", jobs[:2]), Fleet(2, 8)).jobs == jobs[:2]


def test_a_share_larger_than_a_device_is_refused_by_name() -> None:
    job = TraceJob("big", 0.0, 1, 1.0, gpu_mem_mib=2048)
    with pytest.raises(SimulationError, match="job big needs 2G of each device; the devices have 1G"):
        check_fits(Workload("w", (job,)), Fleet(1, 1, 1024))
