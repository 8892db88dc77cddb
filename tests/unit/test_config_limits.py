"""The configuration's limits and quotas: what they give, and how a mistake is told."""

from __future__ import annotations

import grp
import os

import pytest

from gpusched.daemon.config import read_config
from gpusched.model.errors import UsageError
from gpusched.model.limits import LimitRules, Limits


def rules(text: str) -> LimitRules:
    return read_config(text, "c.toml").rules.limits


def told(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_config(text, "c.toml")
    return f"{caught.value.message} | {caught.value.hint}"


def test_without_sections_nothing_is_limited():
    assert rules("") == LimitRules()
    assert not rules("")


def test_a_named_user_has_what_its_section_says_and_else_what_everybody_has():
    found = rules(
        '[limits.user."*"]\nmax_devices = 2\nmax_time = "2:00:00"\nmax_jobs = 10\n'
        '[limits.user.ann]\nmax_devices = "unlimited"\nmax_jobs = 20\n'
    )
    assert found.user["*"] == Limits(max_devices=2.0, max_time=7200.0, max_jobs=10)
    assert found.user["ann"] == Limits(max_devices=None, max_time=7200.0, max_jobs=20)


def test_every_kind_can_be_limited_also_per_user_and_accounts_have_quotas():
    found = rules(
        '[limits.account.vision]\nmax_devices = 4.5\nusers = ["ann"]\n'
        "[limits.qos.high]\nmax_devices_per_user = 2\n"
        '[limits.partition.default]\nmax_running_per_user = 3\nmax_jobs_per_user = 4\nmax_job_devices = 5\n'
        '[quota.account]\nvision = {devices = 4}\n"*" = {devices = 0}\n'
    )
    assert found.account == {"vision": Limits(max_devices=4.5, users=("ann",))}
    assert found.qos["high"].per_user == Limits(max_devices=2)
    assert found.partition["default"].per_user == Limits(max_running=3, max_jobs=4)
    assert (found.quota_of("vision"), found.quota_of("others")) == (4.0, 0.0)


def test_groups_are_found_by_name_or_number():
    mine = grp.getgrgid(os.getgid()).gr_name
    assert rules(f"[limits.group.{mine}]\nmax_running = 1\n").gids == {os.getgid(): mine}
    assert rules('[limits.group."4711"]\nmax_running = 1\n').gids == {4711: "4711"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n[limits.user.a]\nmax_device = 1\n", "c.toml:3: unknown setting 'limits.user.a.max_device'; did you mean"),
        ("[limits.host.x]\nmax_jobs = 1\n", "c.toml:1: unknown setting 'limits.host' (known here: account, group"),
        ("[limits.user.a]\nmax_jobs = -1\n", "c.toml:2: 'limits.user.a.max_jobs' is -1"),
        ("[limits.user.a]\nmax_jobs = 1.5\n", "c.toml:2: 'limits.user.a.max_jobs' is 1.5"),
        ("[limits.user.a]\nmax_devices = 'four'\n", "c.toml:2: 'limits.user.a.max_devices' is 'four'"),
        ("[limits.user.a]\nmax_devices = true\n", "c.toml:2: 'limits.user.a.max_devices' is true: it must be a number"),
        ("[limits.user.a]\nmax_time = 7200\n", "c.toml:2: 'limits.user.a.max_time': write the time in quotes"),
        ("[limits.user.a]\nmax_jobs_per_user = 1\n", "c.toml:2: unknown setting 'limits.user.a.max_jobs_per_user'"),
        ("[limits.qos.hihg]\nmax_jobs = 1\n", "c.toml:1: limits.qos.hihg: unknown QoS 'hihg' | known: high, low"),
        ("[limits.partition.x]\nmax_jobs = 1\n", "c.toml:1: limits.partition.x: unknown partition 'x' | known: def"),
        ("\n[limits.group.nosuchgroup]\nmax_jobs = 1\n", "c.toml:2: limits.group.nosuchgroup: there is no such group"),
        ('\n[limits.group."*"]\nmax_jobs = 1\n', 'c.toml:2: limits.group.*: "*" is not a group'),
        ('\n[limits.account."*"]\nusers = []\n', "c.toml:3: limits.account.*: users belong to an account with a name"),
        ('[limits.qos.low]\nusers = ["a"]\n', "c.toml:2: unknown setting 'limits.qos.low.users'"),
        ("[quota.account.v]\n", "c.toml:1: 'quota.account.v.devices' is missing"),
        ("[quota.account.v]\ndevices = -1\n", "c.toml:2: 'quota.account.v.devices' is -1"),
        ("[quota.user.v]\ndevices = 1\n", "c.toml:1: unknown setting 'quota.user'"),
    ],
)
def test_mistakes_are_told_with_line_setting_and_what_is_allowed(text, message):
    assert message in told(text)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (LimitRules(user={"a": Limits(max_devices=-1)}), "limits.user.a: max_devices cannot be negative"),
        (LimitRules(user={"a": Limits(max_time=0)}), "limits.user.a: max_time must be more than nothing"),
        (LimitRules(user={"a": Limits(max_jobs_per_user=1)}), "limits.user.a: this is about one user"),
        (LimitRules(quota={"v": -1.0}), "quota.account.v: devices cannot be negative"),
    ],
)
def test_rules_from_elsewhere_than_a_file_are_checked_as_well(limits, message):
    with pytest.raises(UsageError, match=message):
        limits.check(("normal",), ("default",))
