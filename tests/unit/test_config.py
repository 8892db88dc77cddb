"""The configuration file: what it gives, and how a mistake is told."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from gpusched.daemon.config import Config, load_config, read_config
from gpusched.daemon.config_errors import find_lines
from gpusched.model.errors import UsageError
from gpusched.model.policy import COST_PRESETS, FairShare, Placement, PolicyName, PolicyRules, PreemptCost, Weights
from gpusched.model.rules import Partition, PreemptMode, Qos, Rules

EXAMPLE = Path(__file__).parents[2] / "docs" / "config.example.toml"


def told(text: str) -> str:
    """What a mistake is answered with: message and hint."""
    with pytest.raises(UsageError) as caught:
        read_config(text, "c.toml")
    return f"{caught.value.message} | {caught.value.hint}"


def test_no_file_an_absent_file_and_an_empty_file_give_the_defaults(tmp_path: Path) -> None:
    assert load_config(None) == load_config(tmp_path / "absent.toml") == read_config("", "c.toml") == Config()
    assert Config().rules == Rules.default(os.cpu_count() or 1)
    with pytest.raises(UsageError, match="there is no configuration file"):
        load_config(tmp_path / "absent.toml", must_exist=True)


def test_the_example_is_the_defaults_written_out() -> None:
    assert load_config(EXAMPLE) == Config()
    assert load_config(EXAMPLE).source == str(EXAMPLE)


def test_the_examples_in_the_comments_of_the_example_are_valid_too() -> None:
    text = EXAMPLE.read_text(encoding="utf-8").replace("#: ", "")
    config = read_config(text, "c.toml")
    assert config.rules.qos["urgent"] == Qos("urgent", 5000, ("low", "normal", "high"))
    assert config.rules.partitions["short"] == Partition("short", ("0", "1"), 14400.0, 3600.0)
    assert (config.output_max_mib, config.rules.cpu_jobs) == (10240, 8)


def test_the_example_names_every_setting() -> None:
    text = EXAMPLE.read_text(encoding="utf-8").replace("#: ", "")
    named = {key[-1] for key in find_lines(text)}
    assert {f.name.removesuffix("_mib") for f in dataclasses.fields(Config)} - {"rules", "source"} <= named
    assert {f.name.removesuffix("_mib") for f in dataclasses.fields(Rules)} - {"partitions", "limits"} <= named
    assert {f.name for cls in (Qos, Partition) for f in dataclasses.fields(cls)} - {"name"} <= named


def test_the_example_names_every_setting_of_the_policy() -> None:
    lines = find_lines(EXAMPLE.read_text(encoding="utf-8"))
    other = {"cost": "preempt_cost", "half_life_days": "half_life", "entry_hours": "entry"}
    for section, cls in (("",), PolicyRules), (("weights",), Weights), (("fair_share",), FairShare):
        where = ("policy", *filter(None, section))
        names = {f.name for f in dataclasses.fields(cls)} - {"tick_starts", "calm"}  # which only simulations choose
        assert {(*where, other.get(name, name)) for name in names} <= lines.keys()


def test_the_policy_can_be_set() -> None:
    rules = read_config(
        '[policy]\nname = "las"\nplacement = "pack"\npatience = "unlimited"\nbackfill_depth = 7\ntick = 30\n'
        'hold = "2m"\nmin_run = "5m"\nlas_limits = ["30m", "2h", "1d"]\nlas_slices = false\nrunning_first = false\n'
        'between_accounts = false\npreempt_cost = "helios"\nmigrate = true\n'
        "weights = {age = 1, age_days = 2.5, fair_share = 3, size = 0, nice = 5}\n"
        '[policy.fair_share]\nhalf_life = "unlimited"\ndamping = 2\ndefault_share = 0.5\nentry = 0\n'
        'shares = {vision = 3, "ann@lab" = 0.25}\n',
        "c.toml",
    ).rules
    assert rules.policy == PolicyRules(
        name=PolicyName.LAS,
        placement=Placement.PACK,
        patience=None,
        hold=120.0,
        backfill_depth=7,
        tick=30.0,
        min_run=300.0,
        las_limits=(1800.0, 7200.0, 86400.0),
        las_slices=False,
        running_first=False,
        between_accounts=False,
        cost=COST_PRESETS["helios"],
        migrate=True,
        weights=Weights(1.0, 2.5, 3.0, 0.0, 5.0),
        fair_share=FairShare(0.0, 2.0, 0.5, (("ann@lab", 0.25), ("vision", 3.0)), 0.0),
    )
    assert read_config('policy.preempt_cost = "90s"', "c.toml").rules.policy.cost == PreemptCost(90.0, 90.0, 90.0)
    assert read_config("policy.preempt_cost = 45", "c.toml").rules.policy.cost == PreemptCost(45.0, 45.0, 45.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[policy]\nname = "x"', ("c.toml:2: 'policy.name' is 'x'; allowed: 'fifo', 'backfill', 'fit-first'",)),
        ('[policy]\nplacement = "near"', ("c.toml:2: ", "allowed: 'prefer', 'pack' or 'count'")),
        ("[policy]\nnmae = 3", ("c.toml:2: unknown setting 'policy.nmae'; did you mean 'name'?", "las_limits")),
        ("[policy]\npatience = 14", ("c.toml:2: 'policy.patience': write the time in quotes",)),
        ("policy.tick = -1", ("c.toml:1: 'policy.tick' is -1: it must be at least 0",)),
        ('policy.turn = "20s"', ("c.toml:1: 'policy.turn' is '20s': it must be at least 1m",)),
        ('policy.tick = "2d"', ("c.toml:1: 'policy.tick' is '2d': it must be at most 1d",)),
        ("policy.backfill_depth = 1.5", ("c.toml:1: 'policy.backfill_depth' is 1.5: it must be a whole number",)),
        ("policy.backfill_depth = true", ("'policy.backfill_depth' is true: it must be a whole number",)),
        ('policy.migrate = "yes"', ("c.toml:1: 'policy.migrate' is 'yes': it must be true or false",)),
        ('policy.las_limits = "1h"', ("c.toml:1: 'policy.las_limits': '1h' is not a list of times on one device",)),
        ("policy.las_limits = []", ("is not a list of times on one device",)),
        ('policy.las_limits = ["2h", "1h"]', ("2h, 1h must be more than 0 and ascending",)),
        ('policy.las_limits = ["0s", "1h"]', ("must be more than 0 and ascending",)),
        ('policy.las_limits = ["long"]', ("interval 'long' cannot be read; write for example 60s",)),
        ('policy.preempt_cost = "gavel"', ('neither a time such as "60s" nor "lucid" or "helios"',)),
        ("policy.preempt_cost = -5", ("c.toml:1: 'policy.preempt_cost'",)),
        ("[policy.weights]\nage = -1", ("c.toml:2: 'policy.weights.age' is -1: it must be at least 0",)),
        ("[policy.weights]\nage_days = 0", ("c.toml:2: 'policy.weights.age_days' is 0: it must be more than 0",)),
        ("[policy.weights]\nqos = 1", ("unknown setting 'policy.weights.qos' (known here: age, age_days, fair",)),
        ("[policy.fair_share]\nhalf_life = 7", ("c.toml:2: 'policy.fair_share.half_life': write the time in quotes",)),
        ("[policy.fair_share.shares]\na = 1\nb = 0", ("c.toml:3: 'policy.fair_share.shares.b' is 0: it must be more",)),
        ('[policy.fair_share.shares]\n" " = 1', ("c.toml:2: ", "' ' is no account")),
        ("policy = 3", ("c.toml:1: 'policy' is a section",)),
    ],
)
def test_a_mistake_in_the_policy_is_told_with_its_line(text: str, expected: tuple[str, ...]) -> None:
    answer = told(text)
    assert all(part in answer for part in expected), answer


def test_a_section_changes_only_what_it_names() -> None:
    rules = read_config('[qos.low]\nmode = "cancel"\ngrace = "2m"\n', "c.toml").rules
    assert rules.qos["low"] == Qos("low", 0, (), PreemptMode.CANCEL, 120.0)
    assert {name: level for name, level in rules.qos.items() if name != "low"} == {
        name: level for name, level in Rules().qos.items() if name != "low"
    }


def test_everything_can_be_set() -> None:
    config = read_config(
        'devices = "sim:4x24G"\nnvml_library = "/lib/x.so"\nsample_interval = 0.5\ndefault_qos = "mine"\n'
        'default_partition = "fast"\ncpu_jobs = 0\nforeign_floor = 0\nmax_requeues = 1\nmax_unasked_requeues = 2\n'
        'bypass_limit = 3\nmax_array = 4\nhistory_days = 0\ncheckpoint_days = 0.5\noutput_max = "2G"\n'
        'log_level = "debug"\nqos.mine = {priority = 7, preempts = ["low"], grace = 5}\n'
        '[partition."fast"]\ndevices = ["*H100*"]\nmax_time = "1-0"\ndefault_time = "unlimited"\n'
        "[client]\nautostart = false\n",
        "c.toml",
    )
    assert config == Config(
        devices="sim:4x24G",
        nvml_library="/lib/x.so",
        sample_interval=0.5,
        rules=Rules(
            qos={**Rules().qos, "mine": Qos("mine", 7, ("low",), grace=5.0)},
            partitions={**Rules().partitions, "fast": Partition("fast", ("*H100*",), 86400.0, None)},
            default_qos="mine",
            default_partition="fast",
            cpu_jobs=0,
            foreign_floor_mib=0,
            max_requeues=1,
            max_unasked_requeues=2,
            bypass_limit=3,
            max_array=4,
        ),
        history_days=0.0,
        checkpoint_days=0.5,
        output_max_mib=2048,
        log_level="debug",
        autostart=False,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nquos = 1", ("c.toml:2: unknown setting 'quos'; did you mean 'qos'?", "known here: bypass_limit")),
        ("[qos.high]\n\ngrce = 3", ("c.toml:3: unknown setting 'qos.high.grce'", "known here: grace, mode, pre")),
        ("[client]\nx = 1", ("c.toml:2: unknown setting 'client.x' (known here: autostart)",)),
        ('[qos.high]\npreempts = ["low", "nope"]', ("c.toml:2: QoS 'high' preempts the unknown QoS 'nope'", "normal")),
        ('[qos.high]\npreempts = ["low", "low"]', ("c.toml:2: 'qos.high.preempts': low is there twice",)),
        ('x = "\n', ("c.toml:1: ",)),
        ('\n[qos.low]\ngrace = 1\npreempts = ["high"]', ("c.toml:4: ", "in a circle: low → high → low")),
        ('[qos.low]\npreempts = ["low"]', ("c.toml:2: ", "in a circle: low → low")),
        ('[qos.x]\npriority = 1\nmode = "stop"', ("c.toml:3: 'qos.x.mode' is 'stop'; allowed: 'requeue' or 'cancel'",)),
        ("[qos.x]\n", ("c.toml:1: QoS 'x' needs a priority",)),
        ("[qos.High]\npriority = 1", ("c.toml:1: QoS 'High' differs from 'high' only in case",)),
        ('[qos."a b"]\npriority = 1', ("c.toml:1: 'qos.a b': 'a b' is no name",)),
        ("[qos]\nlow = 3", ("c.toml:2: 'qos.low' is a section",)),
        ("qos = 3", ("c.toml:1: 'qos' is a section",)),
        ("devices = 3", ("c.toml:1: 'devices' is 3: it must be text in quotes",)),
        ('devices = "cuda"', ("c.toml:1: ", 'neither "nvml" nor simulated devices')),
        ('sample_interval = "often"', ("c.toml:1: 'sample_interval': interval 'often' cannot be read; write for",)),
        ("sample_interval = 0", ("c.toml:1: 'sample_interval' is 0: it must be at least 0.1",)),
        ("sample_interval = true", ("c.toml:1: 'sample_interval' is true: it must be a number",)),
        ('default_qos = "vip"', ("c.toml:1: unknown QoS 'vip' | known: high, low, normal",)),
        ('default_partition = "big"', ("c.toml:1: unknown partition 'big' | known: default",)),
        ("[partition.a]\nmax_time = 90", ("c.toml:2: 'partition.a.max_time': write the time in quotes",)),
        ('[partition.a]\nmax_time = "1h"\ndefault_time = "2h"', ("c.toml:3: partition 'a': default_time is longer",)),
        ("[partition.a]\ndevices = []", ("c.toml:2: 'partition.a.devices' is empty",)),
        ('[partition.a]\ndevices = "0"', ("c.toml:2: ", "is not a list of texts")),
        ("[partition.a]\ndevices = [0]", ("c.toml:2: ", "is not a list of texts")),
        ("foreign_floor = 256", ("c.toml:1: 'foreign_floor': write the size in quotes with its unit",)),
        ("foreign_floor = true", ("c.toml:1: 'foreign_floor': write the size in quotes with its unit",)),
        ("output_max = []", ("c.toml:1: 'output_max': write the size in quotes with its unit",)),
        ('output_max = "2"', ("c.toml:1: ", "has no unit; 2G or 2M?")),
        ('log_level = "loud"', ("c.toml:1: 'log_level' is 'loud'; allowed: 'debug', 'info', 'warning' or 'error'",)),
        ("cpu_jobs = -1", ("c.toml:1: 'cpu_jobs' is -1: it must be at least 0",)),
        ("max_array = 1\nmax_array = 2", ("c.toml:2: this setting or section is there twice",)),
        ("[qos.a]\npriority = 1\n[qos.a]\npriority = 2", ("c.toml:3: this setting or section is there twice",)),
        ("\n\ndevices = nvml", ("c.toml:3: Invalid value | text needs quotes",)),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_is_allowed(text: str, expected: tuple[str, ...]) -> None:
    answer = told(text)
    assert all(part in answer for part in expected), answer


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    answer = told('\nhistory_days = -1\nmax_array = "x"\n[client]\nfoo = 1')
    assert [line.split(":")[1] for line in answer.splitlines()] == ["2", "3", "5"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "c.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            load_config(path)


@pytest.mark.parametrize(
    ("patterns", "holds"),
    [
        (("*",), True),
        (("3",), True),
        (("13",), False),
        (("GPU-ab*",), True),
        (("GPU-abc",), True),
        (("*h100*",), True),
        (("NVIDIA A100*", "2"), False),
        (("1",), False),  # an index, not a part of the name
    ],
)
def test_a_partition_holds_devices_by_index_uuid_and_name(patterns: tuple[str, ...], holds: bool) -> None:
    assert Partition("p", patterns).holds(3, "GPU-abc", "NVIDIA H100 1") is holds


def test_the_time_limit_of_a_job_that_names_none_is_the_partitions() -> None:
    assert Partition("p", max_time=100.0, default_time=50.0).time_limit(None) == 50.0
    assert Partition("p", max_time=100.0).time_limit(None) == 100.0
    assert Partition("p", max_time=100.0).time_limit(200.0) == 200.0


def test_longer_circles_of_preemption_are_found() -> None:
    levels = {"a": Qos("a", 1, ("b",)), "b": Qos("b", 2, ("c",)), "c": Qos("c", 3, ("a",))}
    with pytest.raises(UsageError, match="a → b → c → a"):
        Rules(qos=levels, default_qos="a").check()
