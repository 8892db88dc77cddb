"""Several processes as one job, started as torchrun would start them."""

import socket

from training_jobs import Job


class Gang(Job):
    """A job of `size` ranks; the whole gang has one job directory and writes one output."""

    def run(self, size, *arguments, stop_at=None):
        """The exit codes of an attempt on so many ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        where.update(MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo", RANK="0", LOCAL_RANK="0")
        where["GPUSCHED_AGREE"] = "always"  # a stop comes one safe point later, however quick or slow the machine is
        self.start(*arguments, stop_at=stop_at, **where)
        where.update(
            GPUSCHED_JOB_ID="1",
            GPUSCHED_ATTEMPT=str(self.attempt),
            GPUSCHED_JOB_DIR=str(self.directory),
            GPUSCHED_CHECKPOINT_DIR=str(self.checkpoints),
        )
        pids = [self.pid]
        for rank in range(1, size):
            mine = dict(where, RANK=str(rank), LOCAL_RANK=str(rank))
            output = self.folder / f"output-{self.attempt}"
            pids.append(self.zygote.start([*self.command, *arguments], mine, output))
        codes = []
        for self.pid in pids:
            codes.append(self.wait())
        return codes
