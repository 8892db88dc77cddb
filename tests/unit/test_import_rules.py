"""Imports flow one way. This walks the syntax tree of every file of the package and holds the rules of the house.

Each rule has a small bad text below that it must find, so that a rule cannot rot into one that finds nothing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = ("gpusched.rundir", "gpusched.paths")

# Which parts of gpusched a part may import, besides itself and the bare package (for its version).
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "model": (),
    "policy": ("gpusched.model",),
    "engine": ("gpusched.model", "gpusched.policy"),
    "ports": ("gpusched.model",),
    "rundir": (),
    "paths": ("gpusched.model",),
    "supervisor": ("gpusched.rundir",),
    "checkpoint": ("gpusched.rundir",),
    "store": ("gpusched.model", "gpusched.ports"),
    "devices": ("gpusched.model", "gpusched.ports", "gpusched.rundir"),
    "failpoints": (),
    "launch": (
        "gpusched.model", "gpusched.ports", "gpusched.rundir", "gpusched.supervisor", "gpusched.failpoints",
    ),
    "api": ("gpusched.model", "gpusched.ports", "gpusched.rundir"),
    "simulator": ("gpusched.model", "gpusched.policy", "gpusched.engine", "gpusched.ports", "gpusched.store.memory"),
    "daemon": (
        "gpusched.model", "gpusched.policy", "gpusched.engine", "gpusched.ports", "gpusched.store", "gpusched.devices",
        "gpusched.launch", "gpusched.api", "gpusched.failpoints", "gpusched.simulator", *LEAVES,
    ),
    "client": ("gpusched.model", *LEAVES),
    "demo": ("gpusched.model", "gpusched.client", *LEAVES),
    "rehearse": ("gpusched.rundir", "gpusched.checkpoint"),
    "web": ("gpusched.model", "gpusched.client"),
    # Its local commands (daemon run, demo, doctor, simulate, …) import what they run inside the command.
    "__main__": ("gpusched.cli",),
    "cli": ("gpusched.model", "gpusched.client", *LEAVES),
}  # fmt: skip
LAZILY_ANYTHING = {"cli"}
ADAPTERS = (
    "gpusched.store.sqlite", "gpusched.store.memory", "gpusched.devices", "gpusched.launch.local",
    "gpusched.launch.systemd",
)  # fmt: skip
ADAPTERS_CHOSEN_IN = "gpusched/daemon/app.py"

PURE = {"model", "policy", "engine"}
IMPURE_MODULES = (
    "time", "random", "secrets", "uuid", "os", "posix", "pathlib", "io", "shutil", "tempfile", "glob", "subprocess",
    "multiprocessing", "threading", "_thread", "concurrent", "asyncio", "select", "selectors", "socket",
    "socketserver", "ssl", "http", "urllib", "sqlite3", "logging", "importlib", "fcntl", "mmap", "resource",
)  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}
WRITES_CODE = ("gpusched/model/evolve.py",)  # from the fields of our own classes only, once for each
CLOCK_CALLS = {"now", "utcnow", "today"}  # of datetime; `now` of ours is a value that is passed in, not called

# A module from outside, and the only places that may import it. None: nowhere at import time of gpusched.
HOMES: dict[str, tuple[str, ...]] = {
    "pynvml": ("gpusched/devices/nvml.py",),
    "sqlite3": ("gpusched/store/sqlite.py",),
    "click": ("gpusched/cli/",),
    "torch": ("gpusched/checkpoint/",),
    "lightning": ("gpusched/checkpoint/frameworks/",),
    "transformers": ("gpusched/checkpoint/frameworks/",),
    "accelerate": ("gpusched/checkpoint/frameworks/",),
    "matplotlib": ("gpusched/simulator/plot.py", "gpusched/simulator/timeline.py"),
}
ONLY_LAZILY = {"torch", "numpy", "torchvision", "lightning", "transformers", "accelerate", "matplotlib"}
# Files that are written on top of torch. They may import it first thing, and are themselves only imported lazily.
FRAMEWORKS = tuple(f"gpusched/checkpoint/frameworks/{name}.py" for name in ("lightning", "transformers", "accelerate"))
TORCH_FILES = (
    "gpusched/checkpoint/data/choosing.py",
    "gpusched/checkpoint/data/exact.py",
    "gpusched/checkpoint/data/keyed.py",
    "gpusched/checkpoint/data/orders.py",
    "gpusched/checkpoint/data/streams.py",
    "gpusched/checkpoint/ranks/resharding.py",
    *FRAMEWORKS,
)
TORCH_MODULES = tuple(path.removesuffix(".py").replace("/", ".") for path in TORCH_FILES)
STDLIB_ONLY = {*PURE, "ports", "rundir", "paths", "supervisor", "checkpoint", "store", "client"}
NOT_FOR_CLIENTS = ("asyncio", "aiohttp", "pydantic", "torch")
SIMULATING = re.compile(r"_*((is|in|if)_)?simulat(e|es|ed|ing|ion)_*")


def imports(tree: ast.AST, path: str) -> Iterator[tuple[ast.stmt, str, bool]]:
    """Every imported module with its full name, and whether that happens when the file itself is imported."""
    package = path.removesuffix(".py").removesuffix("/__init__").split("/")
    own = package if path.endswith("__init__.py") else package[:-1]
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    } | {inner for block in ast.walk(tree) if is_for_types_only(block) for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, node not in lazy
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, f"{module}.{alias.name}", node not in lazy


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def within(name: str, modules: tuple[str, ...] | set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def violations(path: str, source: str) -> list[str]:
    """What a file does that it must not; `path` is relative to the root of the repository."""
    tree = ast.parse(source, path)
    part = path.split("/")[1].removesuffix(".py")
    found = []
    if part != "__init__" and part not in MAY_IMPORT:
        found.append(f"{path}: {part!r} has no rule; say in MAY_IMPORT what it may import")
    for node, name, at_import in imports(tree, path):
        where = f"{path}:{node.lineno}: imports {name}"
        if within(name, ("gpusched",)):
            found += [f"{where}, {why}" for why in inside_rules(path, part, name, at_import)]
        else:
            found += [f"{where}, {why}" for why in outside_rules(path, part, name, at_import)]
    if part in PURE:
        calls = ((line, why) for line, why in impure_calls(tree) if path not in WRITES_CODE or why != "calls exec()")
        found += [f"{path}:{line}: {why}" for line, why in calls]
    found += [f"{path}:{line}: {why}" for line, why in simulating_tests(tree)]
    return found


def inside_rules(path: str, part: str, name: str, at_import: bool) -> Iterator[str]:
    if name in ("gpusched", "gpusched.__version__") or part == "__init__":
        if part == "__init__":
            yield "but `import gpusched` must stay cheap"
        return
    allowed = (f"gpusched.{part}", *MAY_IMPORT.get(part, ()))
    if not within(name, allowed) and (at_import or part not in LAZILY_ANYTHING):
        yield f"but {part} may only import {', '.join(allowed)}"
    if at_import and path not in TORCH_FILES and within(name, TORCH_MODULES):
        yield "which imports torch: import it inside the function that needs it"
    if part == "daemon" and path != ADAPTERS_CHOSEN_IN and within(name, ADAPTERS):
        yield f"but only {ADAPTERS_CHOSEN_IN} picks concrete adapters"


def outside_rules(path: str, part: str, name: str, at_import: bool) -> Iterator[str]:
    top = name.split(".")[0]
    homes = HOMES.get(top, (path,))
    if not any(path == home or (home.endswith("/") and path.startswith(home)) for home in homes):
        yield f"but {top} is only for {', '.join(homes)}"
    if top in ONLY_LAZILY and at_import and path not in TORCH_FILES:
        yield f"but {top} is never imported when gpusched is"
    if part in PURE and within(name, IMPURE_MODULES):
        yield f"but {part} knows no clock, chance, files, threads or sockets"
    if part in STDLIB_ONLY and top not in sys.stdlib_module_names and top not in ONLY_LAZILY:
        yield f"but {part} needs nothing but the standard library"
    if within(name, NOT_FOR_CLIENTS) and (part == "client" or (part == "cli" and at_import)):
        yield "but every command pays for what the client and the command line import"


def impure_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield node.lineno, f"calls {node.func.id}()"
        if isinstance(node.func, ast.Attribute) and node.func.attr in CLOCK_CALLS:
            yield node.lineno, f"asks a clock: {ast.unparse(node.func)}()"


def simulating_tests(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The simulator is another shell around the same engine, not a flag."""
    for node in ast.walk(tree):
        match node:
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) | ast.Match(subject=test):
                tests = [test]
            case ast.comprehension(ifs=ifs):
                tests = ifs
            case _:
                continue
        for inner in (inner for test in tests for inner in ast.walk(test)):
            name = inner.id if isinstance(inner, ast.Name) else inner.attr if isinstance(inner, ast.Attribute) else ""
            if SIMULATING.fullmatch(name):
                yield inner.lineno, f"decides by `{name}`; the simulator is another shell, not a flag"


def all_files() -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for file in (ROOT / "gpusched").rglob("*.py"))


def test_no_file_of_the_package_breaks_a_rule() -> None:
    files = all_files()
    assert len(files) > 20
    found = [line for path in files for line in violations(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert not found, "\n" + "\n".join(found)


BAD = [
    ("gpusched/model/x.py", "from gpusched.policy import fit", "model may only import"),
    ("gpusched/model/x.py", "from gpusched import ports", "model may only import"),
    ("gpusched/model/x.py", "from ..engine import engine", "model may only import"),
    ("gpusched/model/__init__.py", "from ..ports import Store", "model may only import"),
    ("gpusched/policy/x.py", "import gpusched.engine.engine", "policy may only import"),
    ("gpusched/engine/x.py", "from gpusched.ports import Store", "engine may only import"),
    ("gpusched/engine/x.py", "def f():\n from gpusched.daemon import loop", "engine may only import"),
    ("gpusched/ports.py", "from gpusched.store.memory import MemoryStore", "ports may only import"),
    ("gpusched/store/x.py", "from gpusched.engine.engine import Engine", "store may only import"),
    ("gpusched/devices/x.py", "from gpusched.daemon import clock", "devices may only import"),
    ("gpusched/launch/x.py", "from gpusched.store import sqlite", "launch may only import"),
    ("gpusched/api/x.py", "from gpusched.daemon.loop import Loop", "api may only import"),
    ("gpusched/rundir.py", "from gpusched.model.job import Job", "rundir may only import"),
    ("gpusched/supervisor/x.py", "from gpusched.model.job import Job", "supervisor may only import"),
    ("gpusched/supervisor/x.py", "import psutil", "nothing but the standard library"),
    ("gpusched/checkpoint/x.py", "from gpusched.client import Client", "checkpoint may only import"),
    ("gpusched/checkpoint/x.py", "import torch", "never imported when gpusched is"),
    ("gpusched/checkpoint/x.py", "import numpy as np", "never imported when gpusched is"),
    ("gpusched/checkpoint/x.py", "from gpusched.checkpoint.data.keyed import wrap", "which imports torch"),
    ("gpusched/checkpoint/__init__.py", "from .data import keyed", "which imports torch"),
    ("gpusched/client.py", "from gpusched.cli import main", "client may only import"),
    ("gpusched/client.py", "def f():\n import asyncio", "every command pays"),
    ("gpusched/client.py", "import requests", "nothing but the standard library"),
    ("gpusched/cli/x.py", "from gpusched.daemon.app import main", "cli may only import"),
    ("gpusched/cli/x.py", "import asyncio", "every command pays"),
    ("gpusched/cli/x.py", "from pydantic import BaseModel", "every command pays"),
    ("gpusched/cli/x.py", "from aiohttp.web import Request", "every command pays"),
    ("gpusched/cli/x.py", "def f():\n import torch", "only for gpusched/checkpoint/"),
    ("gpusched/web/x.py", "from gpusched.daemon import app", "web may only import"),
    ("gpusched/simulator/x.py", "from gpusched.store.sqlite import SqliteStore", "simulator may only import"),
    ("gpusched/daemon/x.py", "from gpusched.cli import main", "daemon may only import"),
    ("gpusched/daemon/x.py", "from gpusched.store.sqlite import SqliteStore", "picks concrete adapters"),
    ("gpusched/daemon/verbs/x.py", "from gpusched.devices.nvml import Nvml", "picks concrete adapters"),
    ("gpusched/daemon/x.py", "def f():\n from gpusched.launch import local", "picks concrete adapters"),
    ("gpusched/newpart/x.py", "", "has no rule"),
    ("gpusched/__init__.py", "from gpusched.client import Client", "must stay cheap"),
    *[
        (f"gpusched/{part}/x.py", f"import {module}", "knows no clock")
        for part in sorted(PURE)
        for module in ("time", "random", "os", "threading", "socket", "sqlite3", "logging", "os.path", "asyncio")
    ],
    ("gpusched/policy/x.py", "from os import environ", "knows no clock"),
    ("gpusched/policy/x.py", "from concurrent.futures import Future", "knows no clock"),
    ("gpusched/engine/x.py", "from datetime import datetime\nx = datetime.now()", "asks a clock"),
    ("gpusched/model/x.py", "import datetime\nx = datetime.date.today()", "asks a clock"),
    ("gpusched/model/x.py", "x = open('/etc/passwd')", "calls open()"),
    ("gpusched/model/x.py", "import numpy", "never imported when gpusched is"),
    ("gpusched/policy/x.py", "import pydantic", "nothing but the standard library"),
    ("gpusched/store/x.py", "import sqlite3", "only for gpusched/store/sqlite.py"),
    ("gpusched/daemon/x.py", "def f():\n import sqlite3", "only for gpusched/store/sqlite.py"),
    ("gpusched/devices/x.py", "import pynvml", "only for gpusched/devices/nvml.py"),
    ("gpusched/devices/nvml.py.py", "import pynvml", "only for gpusched/devices/nvml.py"),
    ("gpusched/daemon/x.py", "import torch.nn", "only for gpusched/checkpoint/"),
    ("gpusched/daemon/x.py", "import click", "only for gpusched/cli/"),
    ("gpusched/engine/x.py", "def f(simulate):\n if simulate: pass", "decides by `simulate`"),
    ("gpusched/daemon/x.py", "def f(self):\n return 1 if not self.simulating else 2", "decides by `simulating`"),
    ("gpusched/daemon/x.py", "while x.is_simulated and 1: pass", "decides by `is_simulated`"),
    ("gpusched/daemon/x.py", "y = [x for x in z if simulation]", "decides by `simulation`"),
    ("gpusched/daemon/x.py", "match simulated:\n case True: pass", "decides by `simulated`"),
]


@pytest.mark.parametrize(("path", "source", "why"), BAD)
def test_each_rule_finds_what_breaks_it(path: str, source: str, why: str) -> None:
    assert any(why in line for line in violations(path, source)), violations(path, source)


GOOD = [
    ("gpusched/model/x.py", "import hashlib, json, re, fnmatch, enum, collections, heapq, bisect, math"),
    ("gpusched/model/x.py", "from datetime import datetime\nx = datetime.fromtimestamp(0)"),
    ("gpusched/model/x.py", "from . import job\nfrom .job import Job"),
    ("gpusched/engine/x.py", "from gpusched import __version__\nfrom gpusched.policy.fit import fit"),
    ("gpusched/checkpoint/x.py", "def f():\n import torch, numpy"),
    ("gpusched/checkpoint/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import torch"),
    ("gpusched/checkpoint/x.py", "def f():\n from gpusched.checkpoint.data import keyed"),
    ("gpusched/checkpoint/data/keyed.py", "import torch"),
    ("gpusched/cli/x.py", "import click\ndef f():\n import asyncio\n from gpusched.daemon.app import main"),
    ("gpusched/daemon/app.py", "from gpusched.store.sqlite import SqliteStore\nfrom gpusched.devices import nvml"),
    ("gpusched/daemon/x.py", "from gpusched.launch.environ import job_environment\nimport asyncio, pydantic"),
    ("gpusched/store/sqlite.py", "import sqlite3, os, threading"),
    ("gpusched/daemon/x.py", "from x import SimulatedProbe\nprobe = SimulatedProbe() if devices else None"),
]


@pytest.mark.parametrize(("path", "source"), GOOD)
def test_what_is_allowed_is_let_through(path: str, source: str) -> None:
    assert violations(path, source) == []
