"""How long from LocalLauncher.start() to the job's exec, from the job's end to knowing it, and attempts per second.

Run by hand: python tests/bench/bench_start.py [attempts]. Prints medians; on a tmpfs, as a daemon would use.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gpusched.launch.local import LocalLauncher
from gpusched.model.job import AttemptKey
from gpusched.ports import LaunchOrder

TMPFS = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def pss_kib(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


async def main(attempts: int) -> None:
    with tempfile.TemporaryDirectory(dir=TMPFS) as name:
        root = Path(name)
        launcher = LocalLauncher(root / "control", root / "bell")
        await launcher.open()

        def order(number: int, *argv: str) -> LaunchOrder:
            key = AttemptKey(number, 1)
            env = {"PATH": "/usr/bin:/bin"}
            return LaunchOrder(key, argv, env, "/", str(root / f"{key}.out"), None, str(root / "jobs" / str(key)))

        to_exec, to_known = [], []
        for number in range(1, attempts + 1):
            begin = time.time()
            await launcher.start(order(number, "/bin/date", "+%s.%N"))
            await launcher.ended(AttemptKey(number, 1))
            known = time.time()
            ran = float((root / f"{number}-1.out").read_text())
            to_exec.append((ran - begin) * 1000)
            to_known.append((known - ran) * 1000)
        print(f"start() to the job's first action: median {statistics.median(to_exec):.1f} ms")
        print(f"the job's last action to ended():  median {statistics.median(to_known):.1f} ms")

        waiting = asyncio.Semaphore(2)

        async def one(number: int) -> None:
            async with waiting:
                await launcher.start(order(number, "/bin/true"))
                await launcher.ended(AttemptKey(number, 1))
                assert launcher.observe(AttemptKey(number, 1)).outcome is not None

        begin = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(10_000, 10_000 + attempts)))
        print(f"`true`, two at a time: {attempts / (time.perf_counter() - begin):.0f} attempts/s")

        many = [AttemptKey(number, 1) for number in range(20_000, 20_010)]
        for key in many:
            await launcher.start(order(key.job_id, "/bin/sleep", "600"))
        await asyncio.sleep(1)
        sizes = [pss_kib(launcher.observe(key).supervisor_pid) for key in many]
        print(f"a supervisor's memory (PSS, {len(many)} running): median {statistics.median(sizes) / 1024:.1f} MiB")
        for key in many:
            launcher.kill(key)
        await asyncio.gather(*(launcher.ended(key) for key in many))
        await launcher.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
