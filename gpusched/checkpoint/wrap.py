"""checkpoint-exec: makes a program resumable under gpusched that knows nothing of gpusched, as far as that can be had.

It runs the program as its child and speaks with the scheduler in its place. On a request to stop:

    1. --save CMD runs, which lets the program write its state; without one the program gets the signal, and has the
       grace time to write its state and to leave
    2. the files of --files, and what CMD has put into $GPUSCHED_SAVE_DIR, are copied into the checkpoint directory:
       flushed, checksummed, published by a rename; the one before stays as well
    3. only then that is acknowledged (`saved`), the program is ended if it still runs, and the exit code is 85

On the next start the files are put back, --restore CMD runs, and then the program (or --restart CMD in its place).
Outside gpusched, without GPUSCHED_CHECKPOINT_DIR, the program is simply run. Its exit code, or the signal that ended
it, is passed on. Must not save inside a signal handler: signals are blocked, and taken when there is time for them.
"""

import argparse
import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Dict, List, NoReturn, Optional, Sequence, Set, Tuple

from gpusched import rundir
from gpusched.checkpoint import bundle
from gpusched.checkpoint.disk import files
from gpusched.checkpoint.disk.lock import Lock
from gpusched.checkpoint.errors import CheckpointError, say
from gpusched.checkpoint.mailbox import Mailbox, Request

ENV_SAVE_DIR = "GPUSCHED_SAVE_DIR"  # for the commands: where to put the state, or where it is
ENV_PROGRAM = "GPUSCHED_PROGRAM_PID"  # for --save: the program's process
FORWARDED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_TAKEN = frozenset((signal.SIGCHLD, signal.SIGTERM, *FORWARDED))
_LOOK = 0.1  # seconds between two looks at the request
_FROM_TERMINAL = 128  # si_code of a Ctrl-C, which the program has had itself
_RESERVE = 2.0  # seconds of a deadline that are kept for leaving
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True)
class Plan:
    """What to run and how to save it. Times in seconds. `saved_codes`: how the program ends once it has saved."""

    command: Tuple[str, ...]
    save: str = ""
    restore: str = ""
    restart: str = ""
    files: Tuple[str, ...] = ()
    every: Optional[float] = None
    signal: int = signal.SIGTERM
    saved_codes: Tuple[int, ...] = (rundir.EXIT_SAVED,)
    grace: float = 30.0
    keep: int = 2


def run(plan: Plan) -> int:
    """Run the program to its end or to a stop, and return the exit code; a signal that ended it ends us, too.

    Raises CheckpointError for a saved state that cannot be used, OSError if the program cannot be started.
    """
    directory = os.environ.get(rundir.ENV_CHECKPOINT_DIR)
    if not directory:
        os.execvp(plan.command[0], list(plan.command))
    files.make_directory(directory)
    lock = Lock(directory, say)
    lock.take()
    try:
        code = _Wrapper(plan, directory).run()
    finally:
        lock.release()
    if code < 0:
        _die_by(-code)
    return code


class _Wrapper:
    def __init__(self, plan: Plan, directory: str) -> None:
        self._plan, self._directory = plan, directory
        self._mail = Mailbox.from_environment()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        self._program: Optional["subprocess.Popen[bytes]"] = None
        self._made: Optional[files.Draft] = None  # the folder in which --restore finds what --save has made
        self._saves = bool(plan.save or plan.files)
        self._next_save = float("inf")
        self._asked = 0  # SIGTERMs

    def run(self) -> int:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # so that what the program starts can be ended with it
        try:
            self._program = self._start()
            self._plan_next_save()
            self._mail.announce()
            return self._watch(self._program)
        finally:
            self._mail.withdraw()
            if self._made is not None:
                self._made.discard()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    # the beginning

    def _start(self) -> "subprocess.Popen[bytes]":
        found = bundle.newest(self._directory, say) if self._saves else None
        if found is None:
            return self._popen(list(self._plan.command))
        count = bundle.restore(found)
        say("resuming from %s%s" % (found.name, " (%d files put back)" % count if count else ""))
        self._made = files.Draft(self._directory)  # hidden, and cleared away by the next attempt if we are killed
        folder = self._made.folder
        bundle.unpack_made(found, folder)
        if self._plan.restore:
            code = self._run_command(self._plan.restore, folder, float("inf"))
            if code != 0:
                raise CheckpointError(
                    "The restore command failed with exit code %d." % code,
                    "The saved state is untouched in %s; correct the command and requeue the job." % found.path,
                )
        if self._plan.restart:
            return self._popen(["/bin/sh", "-c", self._plan.restart], {ENV_SAVE_DIR: folder})
        return self._popen(list(self._plan.command), {ENV_SAVE_DIR: folder})

    def _popen(self, argv: List[str], more: Optional[Dict[str, str]] = None) -> "subprocess.Popen[bytes]":
        mask = self._mask

        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        return subprocess.Popen(argv, env=dict(os.environ, **(more or {})), preexec_fn=prepare)

    # while it runs

    def _watch(self, program: "subprocess.Popen[bytes]") -> int:
        while program.poll() is None:
            self._take_signals(program, _LOOK)
            request = self._wish()
            if request is not None and request.stop and program.poll() is None:
                return self._stop(program, request)
            if request is not None:
                self._mail.close(request)
                self._save_beside(program, request)
            elif time.monotonic() >= self._next_save:
                self._save_beside(program, None)
        if program.returncode == rundir.EXIT_SAVED and self._plan.files:  # unasked: the next start continues from here
            self._save(program, float("inf"), running=False)
        return program.returncode

    def _take_signals(self, program: "subprocess.Popen[bytes]", seconds: float) -> None:
        info = signal.sigtimedwait(_TAKEN, seconds)
        while info is not None:
            if info.si_signo == signal.SIGTERM:
                self._asked += 1
            elif info.si_signo in FORWARDED and info.si_code != _FROM_TERMINAL and program.poll() is None:
                os.kill(program.pid, info.si_signo)
            info = signal.sigtimedwait(_TAKEN, 0)

    def _wish(self) -> Optional[Request]:
        return Request(True, "SIGTERM") if self._asked else self._mail.poll()

    def _plan_next_save(self) -> None:
        if self._plan.every and self._saves:
            self._next_save = time.monotonic() + self._plan.every

    def _save_beside(self, program: "subprocess.Popen[bytes]", request: Optional[Request]) -> None:
        """Save while the program goes on."""
        if not self._saves:
            say("asked to save and go on, which needs --save or --files; the program goes on unsaved")
        else:
            until = time.monotonic() + self._plan.grace
            if request is not None:
                until = min(until, request.until)
            self._save(program, until, running=True)
        self._plan_next_save()

    def _save(self, program: "subprocess.Popen[bytes]", until: float, running: bool) -> bool:
        """Save and acknowledge. False, with a sentence, if it cannot be done; what was saved before stays."""
        began = time.monotonic()
        made: Optional[files.Draft] = None
        try:
            if self._plan.save:
                made = files.Draft(self._directory)
                code = self._run_command(self._plan.save, made.folder, until, program)
                if code != 0:
                    say("NOT saved: the save command failed with exit code %d" % code)
                    return False
            still_until = until if running and made is None else None
            found = bundle.save(self._directory, self._plan.files, made.folder if made is not None else "", still_until)
        except (CheckpointError, OSError) as error:
            say("NOT saved: %s" % error)
            return False
        finally:
            if made is not None:
                made.discard()
        self._mail.acknowledge(found.path, found.step)
        say("saved %s in %.2f s" % (found.name, time.monotonic() - began))
        self._tidy()
        return True

    def _tidy(self) -> None:
        try:
            files.prune(self._directory, self._plan.keep)
        except OSError as error:
            say("cannot delete old saved states in %s (%s)" % (self._directory, error.strerror))

    def _run_command(
        self, command: str, folder: str, until: float, program: "Optional[subprocess.Popen[bytes]]" = None
    ) -> int:
        """Run a command of the user's in a shell; killed at `until`, which counts as failed."""
        more = {ENV_SAVE_DIR: folder}
        if program is not None:
            more[ENV_PROGRAM] = str(program.pid)
        process = self._popen(["/bin/sh", "-c", command], more)
        while process.poll() is None:
            if time.monotonic() > until:
                say("the command took too long and is killed: %s" % command)
                kill_tree(process.pid)
                process.wait()
                return 124
            time.sleep(0.01)
        return process.returncode

    # the end

    def _stop(self, program: "subprocess.Popen[bytes]", request: Request) -> int:
        """The exit code after a request to stop. See the top of this file for the order."""
        until = time.monotonic() + self._plan.grace
        until = min(until, request.until - min(_RESERVE, request.seconds_left() / 4))
        self._mail.close(request)
        if self._plan.save:
            saved = self._save(program, until, running=True)
            if program.poll() == 0:
                return 0  # it was done by itself in the meantime
            self._end(program, until)
            return rundir.EXIT_SAVED if saved else 1
        self._end(program, until)
        code = program.returncode
        if code == 0 and 0 not in self._plan.saved_codes:
            return 0  # it was done
        if code == -signal.SIGKILL:
            say("NOT saved: the program did not leave within %.0f s of %s" % (self._plan.grace, self._name()))
            return 1
        if self._plan.files:
            return rundir.EXIT_SAVED if self._save(program, until, running=False) else 1
        return rundir.EXIT_SAVED if code in self._plan.saved_codes else code

    def _name(self) -> str:
        return signal.Signals(self._plan.signal).name

    def _end(self, program: "subprocess.Popen[bytes]", until: float) -> None:
        """Signal the program and wait for its end, at most until then or a second SIGTERM to us; then kill it all."""
        if program.poll() is None:
            os.kill(program.pid, self._plan.signal)
            os.kill(program.pid, signal.SIGCONT)
        asked = self._asked
        while program.poll() is None and time.monotonic() < until and self._asked == asked:
            self._take_signals(program, 0.02)
        kill_tree(os.getpid(), but=os.getpid())
        program.wait()
        _reap()


def kill_tree(top: int, but: int = 0) -> None:
    """SIGKILL for a process and everything below it; repeated, since there may be new ones, until none is left."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        pids = [pid for pid in _below(top) | {top} if pid != but]
        living = [pid for pid in pids if _state(pid) not in ("", "Z", "X")]
        if not living:
            return
        for pid in living:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)


def _reap() -> None:
    """Take in the orphans that became our children; the program itself has been waited for."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _below(top: int) -> Set[int]:
    children: Dict[int, List[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(name))
    found: Set[int] = set()
    level = [top]
    while level:
        level = [child for pid in level for child in children.get(pid, []) if child not in found]
        found.update(level)
    return found


def _stat(pid: int) -> List[str]:
    """State and parent of a process; [] if there is none."""
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str:
    return (_stat(pid) or [""])[0]


def _die_by(number: int) -> NoReturn:
    """End by the signal that ended the program, so that whoever waits for us sees what happened; no core of ours."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    time.sleep(1.0)
    os._exit(128 + number)


# the command line without click, for environments that have nothing but Python 3.9


def seconds(text: str) -> float:
    """Seconds in `90`, `30s`, `10m`, `2h` or `1d`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError("%r is no time; write for example 30s, 10m or 2h" % text)
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def signal_number(text: str) -> int:
    """The number of TERM, SIGUSR1 or 10. Raises ValueError."""
    if text.isdigit() and int(text) in set(signal.Signals):
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else "SIG" + text.upper()
    if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
        raise ValueError("%r is no signal that a program can act on; write for example TERM or USR1" % text)
    return int(signal.Signals[name])


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """`python -m gpusched.checkpoint.wrap`: the same options as `gpusched checkpoint-exec`, which explains them."""
    parser = argparse.ArgumentParser("python -m gpusched.checkpoint.wrap", description=(__doc__ or "").split("\n")[0])
    for name in ("save", "restore", "restart"):
        parser.add_argument("--" + name, default="", metavar="CMD")
    parser.add_argument("--files", action="append", default=[], metavar="PATH")
    parser.add_argument("--every", type=seconds, metavar="TIME")
    parser.add_argument("--signal", type=signal_number, default=int(signal.SIGTERM), metavar="SIG")
    parser.add_argument("--saved-code", type=int, action="append", default=[], metavar="CODE")
    parser.add_argument("--grace", type=seconds, default=30.0, metavar="TIME")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = vars(parser.parse_args(arguments))
    command = options["command"][1:] if options["command"][:1] == ["--"] else options["command"]
    if not command:
        parser.error("no command to run")
    codes = tuple(options.pop("saved_code")) or (rundir.EXIT_SAVED,)
    plan = Plan(**dict(options, command=tuple(command), files=tuple(options["files"]), saved_codes=codes))
    try:
        return run(plan)
    except CheckpointError as error:
        say(str(error))
        return 1
    except OSError as error:
        say("cannot run %s: %s" % (command[0], error.strerror or error))
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main())
