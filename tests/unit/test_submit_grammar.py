"""The options of a submit as the command line and a script's first lines say them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.cli.directives import HEAD, read_directives
from gpusched.cli.options import gpu_glob, how_params, parse_env, parse_gpus, submit_params
from gpusched.model.errors import UsageError
from gpusched.model.gpu_count import GpuCount

# Slurm's letters with Slurm's meaning; -g and -f are ours, because sbatch leaves them free.
SLURM = {
    "-J": "--job-name", "-G": "--gpus", "-q": "--qos", "-p": "--partition", "-A": "--account", "-t": "--time",
    "-b": "--begin", "-d": "--dependency", "-a": "--array", "-D": "--chdir", "-o": "--output", "-e": "--error",
    "-H": "--hold", "-W": "--wait", "-Q": "--quiet",
}  # fmt: skip


def test_a_short_letter_means_what_it_means_in_slurm():
    for param in (*submit_params(), *how_params()):
        for letter in (name for name in param.opts if len(name) == 2):
            assert letter in ("-g", "-f") or SLURM[letter] in param.opts, letter


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("2", (GpuCount(2), None)),
        ("0", (GpuCount(0), None)),
        ("h100:2", (GpuCount(2), "*h100*")),
        ("NVIDIA H*:1", (GpuCount(1), "NVIDIA H*")),
        ("gpu:2", (GpuCount(2), None)),
        ("gpu:h100:2", (GpuCount(2), "*h100*")),
        ("gpu", (GpuCount(1), None)),
        ("h100:2-8", (GpuCount(2, 8), "*h100*")),
        ("h100:2-8:2", (GpuCount(2, 8, (2, 4, 6, 8)), "*h100*")),
        ("gpu:4090:1,2,4", (GpuCount(1, 4, (1, 2, 4)), "*4090*")),
    ],
)
def test_a_number_of_gpus_may_name_their_type(text, parsed):
    assert parse_gpus(text) == parsed


@pytest.mark.parametrize("text", ["", "two", "-1", "2:h100", "h100:", "1.5", "9999999", "gpu:a-b"])
def test_what_is_no_number_of_gpus_is_refused(text):
    with pytest.raises(UsageError, match="no number of GPUs"):
        parse_gpus(text)


def test_a_type_is_looked_for_anywhere_in_the_name():
    assert (gpu_glob("a100"), gpu_glob("*A100?")) == ("*a100*", "*A100?")


def test_a_variable_may_contain_equals_signs():
    assert parse_env("A=b=c") == ("A", "b=c")
    assert parse_env("A=") == ("A", "")
    assert parse_env("A") == ("A", None)
    with pytest.raises(UsageError):
        parse_env("=b")


def read(text):
    return read_directives(text.encode(), "job.sh")


def test_only_leading_comment_lines_count():
    head = "#!/bin/sh\n\n# about\n#GPUSCHED -g 2\n  #  GPUSCHED -q high\n\necho\n#GPUSCHED -p late\n"
    assert read(head).values == {"gpus": (GpuCount(2), None), "qos": "high"}


def test_later_lines_win_and_repeatable_options_collect():
    given = read("#GPUSCHED -q low --env A=1 --after 1\n#GPUSCHED -q high --env B=2 --after 2\n")
    assert given.values == {"qos": "high", "env": (("A", "1"), ("B", "2")), "after": ("1", "2")}


def test_the_text_is_literal_but_quotes_group_words():
    values = read("#GPUSCHED --comment 'two words' -o $HOME/*.out # a remark\n").values
    assert values == {"comment": "two words", "output": "$HOME/*.out"}


def test_what_only_looks_like_a_directive_is_none():
    assert read("#GPUSCHEDULER -g 2\n#NOTGPUSCHED -g 2\n# see #GPUSCHED -g 2\n").values == {}


def test_a_program_is_no_script_and_a_long_head_is_cut():
    assert read_directives(b"#GPUSCHED -g 2\n\x7fELF\0", "prog").values == {}
    assert read("#" + "x" * HEAD + "\n#GPUSCHED -g 2\n").values == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--gpsu 2", "job.sh:2: no such option: --gpsu"),
        ("--gpus two", "job.sh:2: 'two' is no number"),
        ("--gpus", "job.sh:2: "),
        ("--qos 'high", "job.sh:2: no closing quotation"),
        ("--gpus 2 python", "job.sh:2: "),
    ],
)
def test_an_error_names_file_and_line(line, sentence):
    with pytest.raises(UsageError) as caught:
        read(f"#!/bin/sh\n#GPUSCHED {line}\n")
    assert caught.value.message.startswith(sentence)


@pytest.mark.parametrize(
    ("line", "values", "ignored"),
    [
        ("-J a -t 1:00:00 -o x", {"name": "a", "time_limit": 3600.0, "output": "x"}, []),
        ("--gpus-per-node=4", {"gpus": (GpuCount(4), None)}, []),
        ("--gres=gpu:a100:2,tmp:10G", {"gpus": (GpuCount(2), "*a100*")}, []),
        ("--gres=craynetwork:1", {}, ["--gres=craynetwork:1"]),
        ("-N 2 -n4 --mem=8G --exclusive -c 8", {}, ["-N 2", "-n4", "--mem=8G", "--exclusive", "-c 8"]),
        ("--no-requeue -H --signal=B:USR1@60", {"requeue": False, "hold": True, "signal": (10, 60.0)}, []),
        ("--mail-type END,FAIL word", {}, ["--mail-type END,FAIL", "word"]),
    ],
)
def test_of_slurms_lines_the_shared_part_is_honoured(line, values, ignored):
    given = read(f"#SBATCH {line}\n")
    assert given.values == values
    assert given.ignored == [f"job.sh:1: {word}" for word in ignored]


@given(st.text(max_size=200))
def test_no_script_makes_the_reader_fail_otherwise(text):
    try:
        read_directives(("#SBATCH " + text).encode("utf-8", "replace"), "job.sh")
    except UsageError as error:
        assert error.message.startswith("job.sh:")
