#!/usr/bin/env python3
"""A job that ignores every request to stop: what gpusched does with such a one at the end of its grace period.

    gpusched submit stubborn.py --seconds 600

It ignores SIGTERM and SIGINT and never looks at its job directory, and so does a child that it starts. Both must be
gone when the grace period is over. Standard library only.
"""

import argparse
import os
import signal
import subprocess
import sys
import time


def ignore(number, frame):
    os.write(1, b"signal %d ignored\n" % number)  # print() may not be interrupted by another print()


def main():
    parser = argparse.ArgumentParser(description="Ignore every request to stop.")
    parser.add_argument("--seconds", type=float, default=600.0, help="end by itself after this time (default 600)")
    parser.add_argument("--no-child", action="store_true", help="do not start a child that is as stubborn")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ignore)
    if not args.no_child:
        command = [sys.executable, os.path.abspath(__file__), "--no-child", "--seconds", str(args.seconds)]
        child = subprocess.Popen(command, start_new_session=True)  # in a session of its own, to be hard to find
        print("started a child, pid %d" % child.pid, flush=True)
    print("working, pid %d" % os.getpid(), flush=True)
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        time.sleep(min(0.5, max(0.0, end - time.monotonic())))
    print("done", flush=True)


if __name__ == "__main__":
    main()
