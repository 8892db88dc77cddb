"""Starts training scripts as processes of their own without paying for the import of torch each time.

It imports torch once, and the modules named on its command line, and forks for every line of JSON on its stdin:
{"argv": [...], "env": {...}, "output": path}.
It answers each with a line {"pid": …} and, when that process has ended, {"pid": …, "code": …} (negative: a signal).
Used by the tests of exact resume; see training_jobs.py for its client.
"""

import gc
import importlib
import json
import os
import runpy
import sys
import threading

import numpy  # noqa: F401 - loaded for the children
import torch
import torch._dynamo  # the first optimizer would import it: a second in every child
import torch.utils.data


def become(order):
    """In the child: look like `python script args…`; whatever the script raises ends the interpreter as usual."""
    os.setsid()
    os.environ.update(order["env"])
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = order["argv"]
    sys.path.insert(0, os.path.dirname(order["argv"][0]))
    runpy.run_path(order["argv"][0], run_name="__main__")


def report(pid, lock):
    _, status = os.waitpid(pid, 0)
    with lock:
        print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # what was imported is not looked through, and copied by that, when a child ends: a second each
    lock = threading.Lock()
    while True:
        line = sys.stdin.readline()
        if not line:
            return None
        with lock:  # no other thread may hold it while we fork
            pid = os.fork()
        if pid == 0:
            return json.loads(line)
        with lock:
            print(json.dumps({"pid": pid}), flush=True)
        threading.Thread(target=report, args=(pid, lock), daemon=True).start()


if __name__ == "__main__":
    order = main()
    if order is not None:
        become(order)
