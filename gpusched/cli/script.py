"""Is the first word of the command a script, and how is it started? What exactly was submitted (hash, git commit)?

Only looks; the job itself is started by somebody else, much later perhaps.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpusched.cli.directives import HEAD
from gpusched.model.errors import UsageError

_HASHED = 8 << 20  # bytes; a larger file is data, not a script
_SCRIPTS = (".py", ".sh", ".bash", ".zsh", ".pl", ".rb", ".R", ".jl", ".lua", ".js")
_GIT_PATIENCE = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Script:
    path: str  # absolute
    head: bytes  # its first 32 KiB


def find_script(command: Sequence[str]) -> Script | None:
    """The script that is the first word of a command, if it is one: a plain file here, and no program on the PATH.

    A word with a slash is a file; a word without one is first looked for on the PATH, as a shell does it.
    """
    word = command[0] if command else ""
    if not word or (os.sep not in word and _on_path(word)):
        return None
    head = _head(word)
    return None if head is None else Script(os.path.abspath(word), head)


def _on_path(word: str) -> bool:
    """Whether a shell would find this program. (shutil.which does the same, and takes longer to import.)"""
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, word)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return True
    return False


def _head(path: str) -> bytes | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return file.read(HEAD)
    except (OSError, ValueError):
        return None


def runnable(script: Script, arguments: Sequence[str]) -> list[str]:
    """How to start a script: as it is if the system can, else through its `#!` line, else by its extension (or sh).

    Raises UsageError for a program that may not be executed.
    """
    shebang = script.head.startswith(b"#!")
    binary = b"\0" in script.head
    if os.access(script.path, os.X_OK) and (shebang or binary):
        return [script.path, *arguments]
    if binary:
        raise UsageError(f"{script.path} is not executable", f"allow it: chmod +x {script.path}")
    return [*_interpreter(script), script.path, *arguments]


def _interpreter(script: Script) -> list[str]:
    if script.head.startswith(b"#!"):
        line = script.head[2:].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
        if line:
            return line.split(None, 1)  # as the kernel does it: one argument at most
    match os.path.splitext(script.path)[1]:
        case ".py":
            return ["python" if _on_path("python") else "python3"]
        case ".bash":
            return ["bash"]
        case _:
            return ["sh"]


def source_of(command: Sequence[str], script: Script | None, cwd: str) -> dict[str, Any]:
    """What is recorded about the code: the script (or the first argument that looks like one), its hash, the commit."""
    path = script.path if script else _named_script(command, cwd)
    source: dict[str, Any] = {}
    if path is not None:
        source["script"] = path
        if (digest := _sha256(path)) is not None:
            source["script_sha256"] = digest
    return {**source, **_git(os.path.dirname(path) if path else cwd)}


def _named_script(command: Sequence[str], cwd: str) -> str | None:
    for word in command:
        if word.endswith(_SCRIPTS):
            path = os.path.normpath(os.path.join(cwd, word))
            if os.path.isfile(path):
                return path
    return None


def _sha256(path: str) -> str | None:
    from hashlib import sha256

    try:
        with open(path, "rb") as file:
            data = file.read(_HASHED + 1)
    except OSError:
        return None
    return sha256(data).hexdigest() if len(data) <= _HASHED else None


def _git(directory: str) -> dict[str, Any]:
    """Commit, and whether the work tree has changes. The commit is read from files: a submit must be quick."""
    found = _git_dir(directory)
    if found is None:
        return {}
    root, git_dir = found
    commit = _head_commit(git_dir)
    return {"git_commit": commit, "git_dirty": _dirty(root)} if commit else {}


def _git_dir(directory: str) -> tuple[str, str] | None:
    """(work tree, git directory) that a directory belongs to."""
    while True:
        path = os.path.join(directory, ".git")
        if os.path.isdir(path):
            return directory, path
        if text := _read(path):  # a worktree or submodule
            return directory, os.path.join(directory, text.removeprefix("gitdir:").strip())
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except (OSError, ValueError):
        return ""


def _head_commit(git_dir: str) -> str | None:
    head = _read(os.path.join(git_dir, "HEAD")).strip()
    if not head.startswith("ref: "):
        return head or None
    name = head.removeprefix("ref: ")
    common = os.path.join(git_dir, _read(os.path.join(git_dir, "commondir")).strip() or ".")
    for place in (git_dir, common):
        if text := _read(os.path.join(place, name)).strip():
            return text
    for line in _read(os.path.join(common, "packed-refs")).splitlines():
        if line.endswith(" " + name):
            return line.split(" ", 1)[0]
    return None


def _dirty(root: str) -> bool:
    """Whether tracked files differ from the commit. What git cannot tell in half a second counts as different."""
    import subprocess

    # No locks: this must not get in the way of a git command that the user runs. No file-system monitor: a repository
    # may name any program as one.
    command = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no"]
    try:
        answer = subprocess.run(
            command,
            cwd=root,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_GIT_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return answer.returncode != 0 or bool(answer.stdout.strip())
