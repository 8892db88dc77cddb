"""Reading a script's source: what follows run.step() in the body of its loop, and is not run again after a stop."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

_SAYING = {
    "print", "log", "info", "debug", "warning", "write", "set_postfix", "set_description", "update", "add_scalar",
}  # fmt: skip
_POINTS = ("step", "micro_step", "check")


def after_step(at: Sequence[tuple[str, int, str]]) -> tuple[str, int, str] | None:
    """(file, line, text) of the first statement after the safe point that could matter, in the innermost loop.

    `at`: (file, line, function) of the frames at the safe point, innermost first. None if there is no such statement,
    or the source cannot be read.
    """
    for file, line, _function in at:
        loop = _loop_around(file, line)
        if loop is None:
            continue
        for statement in _following(loop.body, line):
            if not _only_says(statement):
                return file, statement.lineno, ast.unparse(statement).splitlines()[0]
        return None
    return None


def _loop_around(file: str, line: int) -> ast.For | ast.While | ast.AsyncFor | None:
    """The innermost loop that holds this line, not looking out of the function that the line is in."""
    try:
        with open(file, encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return None
    found: ast.For | ast.While | ast.AsyncFor | None = None
    for node in _inwards(tree, line):
        if isinstance(node, ast.For | ast.While | ast.AsyncFor):
            found = node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found = None
    return found


def _inwards(node: ast.AST, line: int) -> Iterator[ast.AST]:
    """The nodes that hold this line, from the outermost to the innermost."""
    for child in ast.iter_child_nodes(node):
        if getattr(child, "lineno", line + 1) <= line <= (getattr(child, "end_lineno", None) or 0):
            yield child
            yield from _inwards(child, line)
            return


def _following(body: Sequence[ast.stmt], line: int) -> Iterator[ast.stmt]:
    """Statements that run after this line and before the body ends: of inner blocks first."""
    holding = [n for n, one in enumerate(body) if one.lineno <= line <= (one.end_lineno or one.lineno)]
    if holding:
        number = _with_safe_point(body, holding)
        for name in ("body", "orelse", "finalbody"):
            yield from _following(getattr(body[number], name, []), line)
        yield from body[number + 1 :]


def _with_safe_point(body: Sequence[ast.stmt], holding: Sequence[int]) -> int:
    """Which of several statements in one line (`opt.step(); run.step()`) is the safe point: a run's, or the last."""
    for number in holding if len(holding) > 1 else ():
        statement = body[number]
        call = statement.value if isinstance(statement, ast.Expr) else None
        called = call.func if isinstance(call, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in _POINTS:
            owner = called.value
            if (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")) == "run":
                return number
    return holding[-1]


def _only_says(statement: ast.stmt) -> bool:
    """Prints, logs and the like, which change nothing."""
    if isinstance(statement, ast.Pass | ast.Continue):
        return True
    if isinstance(statement, ast.If):
        return all(map(_only_says, [*statement.body, *statement.orelse]))
    if not isinstance(statement, ast.Expr):
        return False
    if isinstance(statement.value, ast.Constant):
        return True
    if not isinstance(statement.value, ast.Call):
        return False
    function = statement.value.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value if isinstance(function, ast.Attribute) else None
    on_run = isinstance(owner, ast.Name) and owner.id == "run" and name in ("check", "log")
    return on_run or (name in _SAYING and not (name == "update" and not _looks_like_a_bar(owner)))


def _looks_like_a_bar(owner: ast.expr | None) -> bool:
    """`bar.update(1)` of a progress bar, unlike `metric.update(…)`."""
    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
    return any(part in name.lower() for part in ("bar", "tqdm", "progress"))
