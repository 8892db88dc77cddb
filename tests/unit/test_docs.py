"""The documentation says what the code does: every command, option, link, setting, route and field in it is real."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from markdown import Page

from gpusched.api.reservation import ReservationBody
from gpusched.api.submission import SourceBody, Submission
from gpusched.cli.directives import read_directives
from gpusched.cli.gpu_query import FACTS
from gpusched.cli.main import ALIASES, COMMANDS, cli
from gpusched.cli.settings import settings
from gpusched.daemon import config
from gpusched.daemon.config_limits import AccountLimits, AccountQuota, SharedLimits
from gpusched.daemon.config_policy import FairShareSection, PolicySection, WeightsSection
from gpusched.daemon.routes import ROUTES
from gpusched.daemon.verbs.reservations import reservation_view
from gpusched.daemon.views import JOB_FIELDS, device_view
from gpusched.devices.faults import parse_faults
from gpusched.launch.environ import job_environment
from gpusched.model.device import Device
from gpusched.model.errors import GpuschedError
from gpusched.model.job import ArrayElement, Job, JobSpec, Owner, Request, Share
from gpusched.model.reservation import Reservation
from gpusched.model.rules import Rules, default_qos
from gpusched.model.state import JobState, StopKind, diagram
from gpusched.policy.explain import Word
from gpusched.policy.holdings import Slot
from gpusched.policy.view import View

ROOT = Path(__file__).parents[2]
PAGES = [
    Page(path, path.read_text(encoding="utf-8"))
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
]
BY_NAME = {page.path.name: page for page in PAGES}
CALLS = [(page.path.name, call) for page in PAGES for call in page.commands("gpusched")]
# Options of other programs that the text talks about.
OTHERS = {"--no-deps", "--user", "--unix-socket", "--lr", "--epochs", "--slow-ms", "--nodes", "--mem", "--mail-type"}
OTHERS |= {"--data", "--out", "--nproc-per-node"}  # of reference jobs and torchrun
OTHERS |= {"--gpuz"}  # stands for a mistake


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    yield
    settings.reset()


def command_of(words: list[str]) -> click.Command:
    """The command that these words call, parsed as the real one parses them and not run. Raises what it raises."""
    command: click.Command = cli
    context = cli.make_context("gpusched", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            break
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)
    return command


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "words"), CALLS, ids=[f"{page}: gpusched {' '.join(w)}" for page, w in CALLS])
def test_every_command_in_the_docs_is_understood(page: str, words: list[str]) -> None:
    try:
        command_of(words)
    except click.exceptions.Exit as ended:  # --help
        assert ended.exit_code == 0
    except (click.UsageError, GpuschedError) as error:
        pytest.fail(f"{page}: gpusched {' '.join(words)}: {error}")


def test_an_unknown_option_in_a_page_would_be_found() -> None:
    page = Page(Path("x.md"), "```console\n$ A=1 gpusched submit --gpuz 2 -- true | cat\n1\n```\n")
    (words,) = page.commands("gpusched")
    assert words == ["submit", "--gpuz", "2", "--", "true"]
    with pytest.raises(click.UsageError):
        command_of(words)


def test_the_pages_call_many_commands() -> None:
    assert len(CALLS) > 60  # else the pages are not read as they are written


def test_every_command_is_in_the_docs() -> None:
    called = {words[0] for _, words in CALLS if words}
    named = {span for page in PAGES for span in page.spans()}
    for name in (*COMMANDS, "q"):
        assert name in called | named, f"gpusched {name} is nowhere in the docs"
    assert set(ALIASES) >= {"q"}


def test_every_option_that_a_sentence_names_exists() -> None:
    known = {"--help", "--version"}
    for command in all_commands():
        known |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for page in PAGES:
        for span in page.spans():
            for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
                honoured = page.path.name == "submit.md" and name == "--gpus-per-node"  # of #SBATCH lines
                assert name in known | OTHERS or honoured, f"{page.path.name}: {span}"


def all_commands() -> Iterator[click.Command]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield command
        yield from getattr(command, "commands", {}).values()


def test_the_submit_page_has_every_option() -> None:
    submit = cli.get_command(click.Context(cli), "submit")
    assert submit is not None
    shown = set(re.findall(r"--[a-z][\w-]*", " ".join(BY_NAME["submit.md"].section("Options").spans())))
    for option in submit.params:
        if isinstance(option, click.Option) and not str(option.name).startswith("set_"):  # those are everybody's
            assert shown.intersection(option.opts), f"submit.md does not tell of {option.opts}"


def test_scripts_in_the_docs_carry_options_that_exist() -> None:
    scripts = [body for page in PAGES for body in page.fenced("bash") if re.search("^#GPUSCHED", body, re.MULTILINE)]
    assert scripts
    for body in scripts:
        assert read_directives(body.encode(), "script").values


def test_every_field_of_the_gpu_query_is_in_the_docs() -> None:
    assert set(FACTS) <= set(BY_NAME["gpus.md"].section("In nvidia-smi's words").spans())


def test_the_exit_codes_are_those_of_the_errors() -> None:
    listed = {row[0] for row in BY_NAME["exit-codes.md"].section("Of `gpusched` commands").rows()}
    assert {str(error.exit_code) for error in GpuschedError.__subclasses__()} <= listed


# ---- code of other kinds --------------------------------------------------------------------------------------------


def test_python_in_the_docs_is_python() -> None:
    for page in PAGES:
        for body in page.fenced("python"):
            ast.parse(body, page.path.name)


def test_shell_scripts_in_the_docs_are_shell_scripts() -> None:
    for page in PAGES:
        for body in page.fenced("sh", "bash"):
            subprocess.run(["bash", "-n"], input=body, text=True, check=True, timeout=30)


def test_json_in_the_docs_is_json_and_faults_are_faults() -> None:
    for page in PAGES:
        for body in page.fenced("json"):
            json.loads(body)
    (faults,) = BY_NAME["gpus.md"].fenced("json")
    assert parse_faults(faults.encode()).of(0, "").lost


# ---- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_every_link_leads_somewhere(page: Page) -> None:
    for link in page.links():
        if re.match("https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), f"{page.path.name}: {link}"
        if anchor:
            assert anchor in Page(target, target.read_text(encoding="utf-8")).anchors(), f"{page.path.name}: {link}"


def test_every_page_can_be_reached_from_the_index() -> None:
    linked = set(BY_NAME["index.md"].links())
    shown = {link for page in PAGES for link in page.links()}
    for path in (ROOT / "docs").iterdir():
        if path.suffix == ".png":
            assert path.name in shown, f"no page shows {path.name}"
        else:
            assert path.name in linked | {"index.md"}, f"docs/index.md does not lead to {path.name}"


# ---- configuration and environment ----------------------------------------------------------------------------------


SECTIONS = ("qos", "partition", "policy", "limits", "quota", "client")


def test_the_table_of_settings_is_complete_and_true() -> None:
    expected = {name for name in config._File.model_fields if name not in SECTIONS}
    expected |= {f"limits.KIND.NAME.{name}" for name in SharedLimits.model_fields}
    expected |= {f"limits.account.NAME.{n}" for n in AccountLimits.model_fields.keys() - SharedLimits.model_fields}
    expected |= {f"quota.account.NAME.{name}" for name in AccountQuota.model_fields}
    expected |= {f"qos.NAME.{name}" for name in config._Qos.model_fields}
    expected |= {f"partition.NAME.{name}" for name in config._Partition.model_fields}
    expected |= {f"client.{name}" for name in config._Client.model_fields}
    expected |= {f"policy.{name}" for name in PolicySection.model_fields if name not in ("weights", "fair_share")}
    expected |= {f"policy.weights.{name}" for name in WeightsSection.model_fields}
    expected |= {f"policy.fair_share.{name}" for name in FairShareSection.model_fields}
    assert set(BY_NAME["daemon.md"].section("Configuration").first_cells()) == expected


def test_configurations_in_the_docs_can_be_read() -> None:
    bodies = [body for page in PAGES for body in page.fenced("toml")]
    assert bodies
    for body in bodies:
        config.read_config(body, "docs")


def test_the_levels_in_the_docs_are_the_default_ones() -> None:
    rows = BY_NAME["queue-and-why.md"].section("Levels of service").rows()[1:]
    said = {row[0]: (int(row[1]), row[2].replace("–", ""), row[3]) for row in rows}
    assert said == {
        name: (level.priority, ", ".join(level.preempts), f"{level.grace:.0f} s")
        for name, level in default_qos().items()
    }


def test_the_variables_a_job_sees_are_all_told() -> None:
    element = ArrayElement(42, 3, 4, 0, 3, 1, 0)
    spec = JobSpec(("x",), "/", request=Request(2, 1024, shared=True, gpus_max=4), time_limit=60.0)
    job = Job(42, Owner(1, 1, "a"), spec, JobState.STARTING, 0.0, array=element)
    seen = job_environment(
        job, 1, [(0, "a"), (1, "b")], {}, job_dir="/", checkpoint_dir="/", master_port=1, resume=True, started_at=0.0,
        submit_dir="/", grace=60.0,
    )
    page = BY_NAME["submit.md"]
    told = {name for span in page.spans() for name in re.findall(r"[A-Z_]{4,}", span)}
    short = {"GPUSCHED_ARRAY" + name for name in told if name.startswith("_TASK_")}
    assert set(seen) <= told | short


# ---- states, reasons, the API ---------------------------------------------------------------------------------------


def test_states_and_reasons_are_the_real_ones() -> None:
    page = BY_NAME["queue-and-why.md"]
    assert {row[0]: row[1] for row in page.section("States").rows()[1:]} == {str(s): s.code for s in JobState}
    assert set(page.section("Reasons").first_cells()) == {str(word) for word in Word}


def test_the_state_diagram_is_drawn_from_the_table_of_legal_moves() -> None:
    assert [body.strip() for body in BY_NAME["architecture.md"].fenced("mermaid")] == [diagram()]


def test_every_package_has_its_place_in_the_house() -> None:
    source = ROOT / "gpusched"
    packages = {f"gpusched/{path.parent.name}" for path in source.glob("*/__init__.py")}
    modules = {f"gpusched/{path.name}" for path in source.glob("*.py") if not path.name.startswith("__")}
    assert set(BY_NAME["architecture.md"].section("The house").first_cells()) == packages | modules


def test_the_api_page_has_every_route_and_no_other() -> None:
    said = {row[0] for row in BY_NAME["api.md"].section("Routes").rows()[1:]}
    assert said == {f"{method} {path.replace('{job}', 'KEY')}" for method, path in ROUTES}


def test_the_api_page_has_every_field_of_a_job_and_of_a_device() -> None:
    api = BY_NAME["api.md"]
    assert set(api.section("JOB").first_cells()) == set(JOB_FIELDS)
    shown = device_view(Slot(Device("GPU-1", 0, "x", 1024), Share("GPU-1")), None, View(Rules.default()), [], {})
    assert set(api.section("DEVICE").first_cells()) == set(shown)
    causes = {str(kind) for kind in StopKind}
    assert causes <= set(api.section("JOB").spans())


def test_the_api_page_has_every_field_of_a_reservation() -> None:
    api = BY_NAME["api.md"]
    made = Reservation("x", (), 0.0, 1.0, 1.0)
    assert set(api.section("RESERVATION").first_cells()) == set(reservation_view(made, View(Rules.default())))
    (row,) = [row for row in api.section("Routes").rows() if row[0] == "POST /v1/reservations"]
    assert set(re.findall(r'"(\w+)"(?:,|:|\}| or)', row[1])) >= set(ReservationBody.model_fields)


def test_the_api_page_has_every_field_of_a_submission() -> None:
    page = BY_NAME["api.md"].section("A submission")
    assert set(page.first_cells()) == set(Submission.model_fields)
    assert set(SourceBody.model_fields) <= set(page.spans())


def test_the_api_page_has_every_error() -> None:
    text = BY_NAME["api.md"].section("Errors").text
    for error in GpuschedError.__subclasses__():
        assert f"`{error.code}` {error.http_status}" in text
