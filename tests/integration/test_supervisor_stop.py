"""Asks: who gets the signal, what the job reads, and that nothing is ever asked twice. And kill: nobody escapes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attempts import FIRST, Place, a_place, alive, until

from gpusched import rundir
from gpusched.launch.local import LocalLauncher
from gpusched.model.actions import Asked
from gpusched.model.state import OutcomeKind
from gpusched.supervisor import tree
from gpusched.supervisor.asks import Asks

# Counts the signals it gets, until told to leave.
COUNTING = """
trap 'echo TERM' TERM; trap 'echo USR2' USR2
echo ready
while [ ! -e $HERE/go ]; do sleep 0.02; done
exit 85
"""
# Fifty processes that leave by all the usual ways (double fork, new session, deaf to signals) and tell their pids.
ESCAPING = """
import os, signal, sys, time
for _ in range(50):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
                signal.signal(number, signal.SIG_IGN)
            os.closerange(3, 100)
            with open(os.environ["HERE"] + "/pids", "a") as file:
                file.write(f"{os.getpid()}\\n")
            if sys.argv[1] == "exec":
                os.execve("/bin/sleep", ["/bin/sleep", "600"], {})
            time.sleep(600)
        os._exit(0)
while len(open(os.environ["HERE"] + "/pids").readlines()) < 50:
    time.sleep(0.01)
print("ready", flush=True)
if sys.argv[2] == "stay":
    time.sleep(600)
sys.exit(9)
"""


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as place:
        yield place


def ask(place: Place, what: Asked = Asked.STOP, **more: Any) -> None:
    usual: dict[str, Any] = {"cause": "preempted for job 7", "deadline": None, "signal": int(signal.SIGTERM)}
    place.launcher.ask(FIRST, what, **{**usual, **more})


def request(place: Place) -> dict[str, Any]:
    return rundir.read_json(str(place.job_dir() / rundir.REQUEST)) or {}


def handled(place: Place) -> int:
    return (rundir.read_json(str(place.control() / rundir.SIGNALLED)) or {}).get("seq", 0)


async def counting(place: Place) -> None:
    await place.shell(COUNTING)
    await until(lambda: "ready" in place.output())


async def signals_at_the_end(place: Place) -> list[str]:
    place.file("go").touch()
    assert (await place.outcome()).code == 85
    return [line for line in place.output().splitlines() if line in ("TERM", "USR2")]


# ---- stop -----------------------------------------------------------------------------------------------------


async def test_a_stop_is_a_request_and_then_a_signal(place: Place) -> None:
    await counting(place)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    ask(place, deadline=now + 100)
    await until(lambda: "TERM" in place.output())
    seen = request(place)
    assert (seen["ask"], seen["seq"], seen["cause"]) == ("stop", 1, "preempted for job 7")
    assert seen["deadline"] == now + 100 and 0 < seen["seconds_left"] <= 100
    assert await signals_at_the_end(place) == ["TERM"]


async def test_the_signal_goes_to_the_main_process_only(place: Place) -> None:
    worker = "trap 'echo shot >> $HERE/worker; exit' TERM; while :; do echo beat >> $HERE/worker; sleep 0.02; done"
    place.file("worker.sh").write_text(worker)
    await place.shell(f"bash $HERE/worker.sh & {COUNTING}")
    await until(lambda: "ready" in place.output() and place.file("worker").exists())
    ask(place)
    await until(lambda: "TERM" in place.output())
    beats = len(place.file("worker").read_text().split())
    await until(lambda: len(place.file("worker").read_text().split()) > beats + 2, "the worker's life goes on")
    assert "shot" not in place.file("worker").read_text()
    assert await signals_at_the_end(place) == ["TERM"]


async def test_a_job_that_watches_gets_the_request_and_no_signal(place: Place) -> None:
    await place.shell(f"echo '{{\"pid\": '$$'}}' > $JOB/watching; {COUNTING}")
    await until(lambda: place.launcher.observe(FIRST).watching)
    ask(place)
    await until(lambda: request(place).get("ask") == "stop" and handled(place) == 1)
    assert await signals_at_the_end(place) == []


async def test_watching_takes_effect_at_once_even_if_the_daemon_has_not_heard_of_it(place: Place) -> None:
    await place.shell(f"echo '{{\"pid\": '$$'}}' > $JOB/watching; {COUNTING}")
    await until(lambda: "ready" in place.output())
    ask(place)
    await until(lambda: handled(place) == 1)
    assert await signals_at_the_end(place) == []


@pytest.mark.parametrize("pid", [1, "our own", 2**22 + 5, 0, -1, "x", None, True])
async def test_a_watcher_that_is_no_process_of_the_job_is_not_believed(place: Place, pid: object) -> None:
    pid = os.getpid() if pid == "our own" else pid
    place.job_dir().mkdir(parents=True)
    (place.job_dir() / rundir.WATCHING).write_text(json.dumps({"pid": pid}))
    await counting(place)
    ask(place)
    await until(lambda: "TERM" in place.output())
    assert not place.launcher.observe(FIRST).watching
    assert await signals_at_the_end(place) == ["TERM"]


async def test_a_watcher_that_has_died_no_longer_watches(place: Place) -> None:
    await place.shell(f'sleep 600 & W=$!; echo "{{\\"pid\\": $W}}" > $JOB/watching; echo $W > $HERE/w; {COUNTING}')
    await until(lambda: place.launcher.observe(FIRST).watching)
    os.kill(int(place.file("w").read_text()), signal.SIGKILL)
    await until(lambda: not place.launcher.observe(FIRST).watching)
    ask(place)
    await until(lambda: "TERM" in place.output())
    assert await signals_at_the_end(place) == ["TERM"]


async def test_the_same_ask_from_a_restarted_daemon_signals_once(place: Place) -> None:
    await counting(place)
    ask(place, deadline=1e9)
    await until(lambda: "TERM" in place.output())
    await place.launcher.close()
    for _ in range(3):
        place.launcher = LocalLauncher(place.root / "control", place.root / "bell")
        ask(place, deadline=1e9)
        ask(place, deadline=1e9)
    ask(place, Asked.STOP, signal=int(signal.SIGUSR2), deadline=1e9)  # a fence: this one is new
    await until(lambda: "USR2" in place.output())
    assert handled(place) == 2
    assert await signals_at_the_end(place) == ["TERM", "USR2"]


def test_an_ask_that_was_carried_out_is_not_taken_again_from_a_rewritten_file(tmp_path: Path) -> None:
    asks = Asks(str(tmp_path))
    assert asks.next() is None
    stop = {"seq": 1, "what": "stop", "cause": "x", "deadline": None, "signal": 15}
    rundir.write_json(str(tmp_path / rundir.ASK), stop)
    assert asks.next() == stop
    asks.carried_out(stop, 15)
    rundir.write_json(str(tmp_path / rundir.ASK), stop)  # a new file with the old content
    assert asks.next() is None
    rundir.write_json(str(tmp_path / rundir.ASK), {**stop, "seq": 2})
    assert asks.next() == {**stop, "seq": 2} and asks.done == 1
    assert asks.next() is not None, "it waits until it is carried out"


async def test_a_new_cause_rewrites_the_request_without_a_second_signal(place: Place) -> None:
    await counting(place)
    ask(place)
    await until(lambda: "TERM" in place.output())
    ask(place, cause="cancelled by alice", deadline=5.0)
    await until(lambda: request(place).get("cause") == "cancelled by alice")
    assert request(place)["seconds_left"] == 0.0
    await until(lambda: handled(place) == 2)
    assert await signals_at_the_end(place) == ["TERM"]


async def test_a_stop_before_the_start_is_not_lost(place: Place) -> None:
    ask(place)
    await place.shell("sleep 600")
    outcome = await place.outcome()
    assert (outcome.kind, outcome.signal, outcome.killed) == (OutcomeKind.SIGNALLED, signal.SIGTERM, False)


async def test_a_stop_at_any_moment_of_the_start_is_not_lost(place: Place) -> None:
    for number in range(1, 41):
        key = FIRST._replace(job_id=number)
        starting = asyncio.ensure_future(place.start("sleep", "600", key=key))
        await asyncio.sleep((number % 20) / 2000)
        place.launcher.ask(key, Asked.STOP, cause="x", deadline=None, signal=int(signal.SIGTERM))
        await starting
        outcome = await place.outcome(key)
        assert (outcome.kind, outcome.signal) == (OutcomeKind.SIGNALLED, signal.SIGTERM)


async def test_a_kill_before_the_start_is_not_lost(place: Place) -> None:
    place.launcher.kill(FIRST)
    await place.shell("sleep 600")
    assert (await place.outcome()).killed


async def test_a_stopped_process_is_woken_to_hear_the_signal(place: Place) -> None:
    await counting(place)
    pid = await place.pid()
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: (found := tree.stat(pid)) is not None and found.state == "T")
    ask(place)
    await until(lambda: "TERM" in place.output())
    assert await signals_at_the_end(place) == ["TERM"]


async def test_signal_zero_means_only_the_request(place: Place) -> None:
    await counting(place)
    ask(place, signal=0)
    await until(lambda: handled(place) == 1 and request(place).get("ask") == "stop")
    assert await signals_at_the_end(place) == []


# ---- save -----------------------------------------------------------------------------------------------------


async def test_save_is_only_a_request_and_can_be_meant_again(place: Place) -> None:
    await counting(place)
    for seq in (1, 2, 3):
        ask(place, Asked.SAVE, cause="asked by alice")
        await until(lambda seq=seq: request(place).get("seq") == seq and handled(place) == seq)
        assert request(place)["ask"] == "save"
    assert await signals_at_the_end(place) == []


async def test_a_save_does_not_take_back_a_stop_that_nobody_has_heard(place: Place) -> None:
    ask(place)
    ask(place, Asked.SAVE)
    await place.shell("sleep 600")
    assert (await place.outcome()).signal == signal.SIGTERM


async def test_asks_to_an_attempt_whose_job_directory_is_gone_still_signal(place: Place) -> None:
    await place.shell(f"rm -r $JOB; {COUNTING}")
    await until(lambda: "ready" in place.output())
    ask(place)
    await until(lambda: "TERM" in place.output())
    assert await signals_at_the_end(place) == ["TERM"]


# ---- kill and sweep -------------------------------------------------------------------------------------------


def escaped(place: Place) -> list[int]:
    pids = [int(line) for line in place.file("pids").read_text().split()]
    assert len(pids) == 50
    return [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("how", ["fork", "exec"])
async def test_kill_finds_fifty_escapees(place: Place, how: str) -> None:
    await place.start("python3", "-c", ESCAPING, how, "stay")
    await until(lambda: "ready" in place.output())
    assert len(escaped(place)) == 50
    place.launcher.kill(FIRST)
    outcome = await place.outcome()
    assert (outcome.signal, outcome.killed) == (signal.SIGKILL, True)
    assert escaped(place) == []


async def test_what_the_main_process_leaves_behind_is_killed_and_its_code_is_kept(place: Place) -> None:
    await place.start("python3", "-c", ESCAPING, "exec", "leave")
    outcome = await place.outcome()
    assert (outcome.kind, outcome.code, outcome.killed) == (OutcomeKind.EXITED, 9, False)
    assert escaped(place) == []


async def test_what_is_left_behind_may_tidy_up(place: Place) -> None:
    helper = "trap 'echo tidy; exit' TERM; echo up; while :; do sleep 0.02; done"
    await place.shell(f"setsid bash -c \"{helper}\" & while ! grep -q up $HERE/1-1.out; do sleep 0.02; done; exit 3")
    assert (await place.outcome()).code == 3
    assert "tidy" in place.output().splitlines()


async def test_kill_reaches_stopped_processes(place: Place) -> None:
    await place.shell("sleep 600 & echo ready; kill -STOP $! $$; sleep 600")
    pid = await place.pid()
    await until(lambda: (found := tree.stat(pid)) is not None and found.state == "T")
    place.launcher.kill(FIRST)
    assert (await place.outcome()).killed


async def test_kill_during_the_sweep_does_not_change_the_code(place: Place) -> None:
    deaf = "trap '' TERM; touch $HERE/deaf; while :; do sleep 0.05; done"
    await place.shell(f"bash -c \"{deaf}\" & while [ ! -e $HERE/deaf ]; do sleep 0.02; done; exit 11")
    await until(lambda: place.file("deaf").exists())
    pid = await place.pid()
    await until(lambda: not alive(pid))
    place.launcher.kill(FIRST)
    outcome = await place.outcome()
    assert (outcome.code, outcome.killed) == (11, False)


async def test_orphans_are_reaped_while_the_job_runs(place: Place) -> None:
    await place.shell(
        "for i in $(seq 30); do (bash -c 'sleep 0.01; echo gone' &); done; "
        "while [ $(grep -c gone $HERE/1-1.out) -lt 30 ]; do sleep 0.02; done; echo ready; exec sleep 600"
    )
    await until(lambda: "ready" in place.output())
    supervisor = place.launcher.observe(FIRST).supervisor_pid
    assert supervisor is not None

    def children() -> list[str]:
        seen = [tree.stat(int(name)) for name in os.listdir("/proc") if name.isdigit()]
        return [found.state for found in seen if found is not None and found.parent == supervisor]

    await until(lambda: len(children()) == 1)
    assert children() != ["Z"]


async def test_no_supervisor_stays_behind_as_a_zombie(place: Place) -> None:
    keys = [FIRST._replace(job_id=number) for number in range(1, 11)]
    for key in keys:
        await place.shell("exit 1", key=key)
    pids = []
    for key in keys:
        await place.outcome(key)
        pids.append(place.launcher.observe(key).supervisor_pid)
    await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
