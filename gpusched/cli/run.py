"""`gpusched run CMD…`: a job in the foreground. It waits, streams the output, and ends with the job's own code.

The job does not depend on this process: if it dies or loses the daemon, the job goes on.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from gpusched.cli.connect import connect
from gpusched.cli.follow import Tail
from gpusched.cli.options import how_params, submit_params
from gpusched.cli.output import Json, print_json
from gpusched.cli.settings import say, settings
from gpusched.cli.submit import confirmations, existing_output, one_output, prepare, sentence
from gpusched.cli.text import device_ids, escape, leaving, where
from gpusched.cli.wait import FINAL, Alive, Patience, wait_for, waiting_text
from gpusched.client import Client

_STEP = 0.2  # seconds between two looks at the output while nothing happens
INTERRUPTED = 130


@click.command(
    params=[*submit_params(), *(param for param in how_params() if param.name in ("dry_run", "quiet"))],
    context_settings={"allow_interspersed_args": False},
    epilog="Ctrl-C asks whether to cancel the job (without a terminal it cancels). If the connection is lost the job "
    "goes on: find it with `gpusched queue --me` and `gpusched logs -f JOB`.",
)
@click.argument("words", metavar="CMD...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, words: tuple[str, ...], **options: Any) -> None:
    """Run a command in the foreground.

    It waits for a GPU, shows the output and exits with the command's own code: 128+signal if a signal ended it, 124
    after its time limit, 130 if it was cancelled.
    """
    with connect() as client:
        body, values = prepare(client, ctx, words)
        one_output(body, "use: gpusched submit")
        quiet = bool(values.get("quiet"))
        begin = existing_output(body)
        answer = client.submit(body, dry_run=bool(values.get("dry_run")))
        if not quiet and not settings.json:
            say("\n  ".join([sentence(answer, body), *confirmations(body)]))
        if answer.get("dry_run"):
            if settings.json:
                print_json(answer)
            return
        key = str(answer["job"])
        if settings.json:
            jobs, code = wait_for(client, [key])
            print_json(jobs[0])
            ctx.exit(code)
        ctx.exit(Foreground(client, key, begin, quiet=quiet, cancels=True).follow())


class Foreground:
    """One job as it is followed to its end, across attempts and preemptions.

    begin: where in an output file that existed before the job its own part starts.
    cancels: Ctrl-C is meant for the job; otherwise it only ends the watching.
    only: one of the job's files (`output` or `error_output`) to standard output, instead of both to where they belong.
    """

    def __init__(
        self, client: Client, key: str, begin: int = 0, quiet: bool = False, cancels: bool = False, only: str = ""
    ) -> None:
        self.client = client
        self.key = key
        self.quiet = quiet
        self.cancels = cancels
        self.cancelled = False
        self.pressed = self.answered = 0  # how often Ctrl-C was pressed, and how many of these were dealt with
        self.tails = {only or "output": Tail(sys.stdout.buffer, begin)}
        if not only:
            self.tails["error_output"] = Tail(sys.stderr.buffer)
        self.alive = Alive()
        self.patience = Patience(self.alive, f"the job goes on; find it with: gpusched logs -f {key}")
        self.told = ""

    def follow(self) -> int:
        """Until the job has ended, or the watching has. Returns the exit code."""
        sys.stdout.flush()
        while True:
            # Ctrl-C can strike anywhere, also while the one before is being answered: everything is inside the try.
            try:
                if self.pressed > self.answered:
                    code = self._interrupted()
                    if code is not None:
                        return code
                return self._until_end()
            except KeyboardInterrupt:
                self.pressed += 1

    def _until_end(self) -> int:
        while (code := self._look()) is None:
            pass
        self.alive.wipe()
        return code

    def _look(self) -> int | None:
        """Copy what is new. Returns the job's exit code once it has ended and everything is copied."""
        job = self.patience.call(lambda: self.client.wait(self.key, _STEP))
        if job is not None and job.get("attempt"):
            for name, tail in self.tails.items():
                if name != "error_output" or job.get(name) != job.get("output"):
                    tail.switch(job.get(name))
        over = job is not None and job["state"] in FINAL
        if job is not None and not over:
            self._tell(job)
        self.alive.wipe()
        copied = False
        for tail in self.tails.values():
            copied |= tail.copy()
        if job is None:
            return None
        if over:
            self._tell(job)
            return int(job.get("exit_status") or 0)
        if not copied and not self.quiet and (job["state"] == "PENDING" or self._silent()):
            self.alive.show(waiting_text(job))
        return None

    def _tell(self, job: Json) -> None:
        """Say on standard error what has changed since the last look."""
        line = _news(job, self._shown(job.get("exit_text")))
        if line == self.told or self.quiet:
            return
        self.told = line
        if line:
            self.alive.wipe()
            if not all(tail.at_line_start for tail in self.tails.values()):
                say("")
            say(f"gpusched: {line}")

    def _shown(self, text: str | None) -> bool:
        """Whether the output ends with these words: the supervisor writes there why a job could not be started."""
        return bool(text) and any(str(text).encode() in tail.last for tail in self.tails.values())

    def _silent(self) -> bool:
        """The job has written nothing yet."""
        return not any(tail.place for tail in self.tails.values())

    def _interrupted(self) -> int | None:
        """Ctrl-C was pressed. Returns the exit code if the watching ends here.

        Where there is nobody to ask, and when it is pressed again during the question, it means: cancel.
        """
        self.alive.wipe()
        if not self.cancels or self.cancelled:
            if not self.quiet:
                say(f"\ngpusched: no longer watching job {self.key}; see: gpusched show {self.key}")
            return INTERRUPTED
        again = self.pressed - self.answered > 1
        asks = sys.stdin.isatty() and sys.stderr.isatty() and not again
        answer = self._ask() if asks else "y"
        if answer == "d":
            say(f"gpusched: job {self.key} goes on; see: gpusched logs -f {self.key}")
            return INTERRUPTED
        if answer == "y":
            result = self.client.cancel([self.key])[0]
            self.cancelled = True
            if not self.quiet:
                say(f"\ngpusched: {escape(result.get('text') or 'cancelled')}")
        self.answered = self.pressed
        return None

    def _ask(self) -> str:
        """y, n or d; the end of the input means y."""
        while True:
            question = f"\ncancel job {self.key}? [y]es, [n]o, [d]etach (it goes on without me): "
            print(question, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                return "y"
            if (letter := line.strip().lower()[:1]) in ("y", "n", "d"):
                return letter


def _news(job: Json, known: bool) -> str:
    """How things stand, in a line that only changes when something happens. known: why it failed was shown already."""
    name, state = f"job {job['job']}", job["state"]
    ids = device_ids(job)
    on = f" on GPU {ids}" if ids else ""
    if state == "PENDING":
        again = " again" if job.get("attempt") else ""
        return f"{name} waits{again} {where(job)}"
    if state in ("STARTING", "RUNNING"):
        attempt = job.get("attempt") or 1
        return f"{name} started{on}" if attempt == 1 else f"{name} goes on{on} (attempt {attempt})"
    if state == "STOPPING":
        return f"{name} is {leaving(job).split(',')[0]}"
    said = f": {escape(job['exit_text'])}" if job.get("exit_text") and not known else ""
    return "" if state == "COMPLETED" else f"{name} {state}{said}"
