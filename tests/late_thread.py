"""A rank that ends while a thread of gloo still puts down a collective's tensors, for test_ranks.py."""

import os
import sys
import threading
import time
import weakref

import torch
import torch.distributed as dist

from gpusched.checkpoint.ranks.talk import own_groups

LONG = 0.1  # seconds of work for the thread that lets go last


def main():
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    (group,) = own_groups(dist, 1)
    late = threading.Event()

    def let_go():
        if threading.current_thread() is not threading.main_thread():
            late.set()
            end = time.monotonic() + LONG
            while time.monotonic() < end:
                pass

    for _ in range(1000):  # until one is put down by the thread and not by us
        message = torch.zeros(1)
        weakref.finalize(message, let_go).atexit = False
        work = dist.all_reduce(message, group=group, async_op=True)
        del message, work
        if late.wait(0.01):
            break
    print("late" if late.is_set() else "never late", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main()
    sys.exit(7)
