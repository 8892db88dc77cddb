#!/usr/bin/env python3
"""Live with the memory there is: watch the peak, survive an out-of-memory with smaller pieces, or end with a sentence.

    python memory.py --limit-mib 2
    gpusched submit memory.py --limit-mib 2000

Every step trains on --batch samples. They go through the model in pieces whose gradients add up; if a piece does not
fit, it is halved and the step starts over, so the result is that of the whole batch. The size that fits is kept in
run.values: a resumed run does not try again what has failed. On a GPU the peak is torch.cuda.max_memory_allocated()
and --limit-mib caps the process for real. On a CPU, where the kernel would simply kill it, the limit is SIMULATED: the
job counts the bytes that are kept for the backward pass and raises torch.OutOfMemoryError itself.
"""

import argparse
import contextlib
import json
import sys

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("memory.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest

MIB = 1024 * 1024
FEATURES = 32


class OnCPU:
    """Counts what autograd keeps for the backward pass, and plays a device that has no more than the limit."""

    def __init__(self, limit, model):
        self.limit, self.peak, self.held = limit, 0, {}
        self.weights = {one.untyped_storage().data_ptr() for one in model.parameters()}  # these are there anyway

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.held[storage.data_ptr()] = storage.nbytes()
        now = sum(self.held.values())
        if self.limit and now > self.limit:
            raise torch.OutOfMemoryError("simulated: more than %g MiB kept for backward" % (self.limit / MIB))
        self.peak = max(self.peak, now)
        return tensor

    def watch(self):
        self.held = {}
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)

    def release(self):
        pass


class OnGPU:
    """The allocator's own numbers, and its own limit."""

    def __init__(self, limit, device):
        if limit:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)

    @property
    def peak(self):
        return torch.cuda.max_memory_allocated()

    def watch(self):
        return contextlib.nullcontext()

    def release(self):
        torch.cuda.empty_cache()  # blocks of the size that failed are of no use to smaller pieces


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train within a limit of memory, in pieces as large as fit.")
    parser.add_argument("--limit-mib", type=float, default=2, help="memory to use at most; 0: all there is (default 2)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=256, help="samples of one step, in as many pieces as needed")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write peak, piece size, loss curve and digest of the weights to this file")
    return parser.parse_args()


def add_gradients(model, inputs, wanted, size, meter):
    """The gradients and the loss of a whole batch, `size` samples at a time."""
    total = 0.0
    for piece, targets in zip(inputs.split(size), wanted.split(size)):
        with meter.watch():
            loss = nn.functional.mse_loss(model(piece), targets, reduction="sum") / len(inputs)
            loss.backward()
        total += loss.item()
    return total


def train_step(run, model, optimizer, inputs, wanted, meter):
    """One step, in smaller pieces until they fit. Ends the job if not even a single sample does."""
    while True:
        optimizer.zero_grad()  # also what a piece that did fit has left
        try:
            loss = add_gradients(model, inputs, wanted, run.values["piece"], meter)
            break
        except torch.OutOfMemoryError as error:
            why, size = str(error).splitlines()[0], run.values["piece"]
        # only here, outside `except`, are the tensors of the failed attempt gone
        meter.release()
        if size == 1:
            sys.exit("memory.py: not even one sample fits into the memory (%s). Use a smaller --hidden." % why)
        run.values["piece"] = size // 2
        run.values["out_of_memory"].append({"step": run.steps + 1, "piece": size})
        print("out of memory in step %d with pieces of %d (%s): trying %d" % (run.steps + 1, size, why, size // 2))
    optimizer.step()
    return loss


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    limit = int(args.limit_mib * MIB)

    inputs = torch.randn(args.samples, FEATURES, generator=torch.Generator().manual_seed(args.seed))
    targets = (inputs[:, :1] * inputs[:, 1:2]).sin() + inputs[:, 2:3]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), args.batch, shuffle=True)
    wide = args.hidden
    model = nn.Sequential(  # LayerNorm, not BatchNorm: its result does not depend on the size of the pieces
        nn.Linear(FEATURES, wide), nn.LayerNorm(wide), nn.GELU(), nn.Dropout(0.05),
        nn.Linear(wide, wide), nn.LayerNorm(wide), nn.GELU(), nn.Linear(wide, 1),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    meter = OnGPU(limit, device) if device.type == "cuda" else OnCPU(limit, model)

    run = Run(model=model, optimizer=optimizer)
    curve = run.values.setdefault("curve", [])
    run.values.update(piece=args.batch, out_of_memory=[], peak=0)
    for epoch in run.epochs(args.epochs):
        model.train()
        for samples, wanted in run.batches(loader):
            curve.append(train_step(run, model, optimizer, samples.to(device), wanted.to(device), meter))
            run.values["peak"] = max(run.values["peak"], meter.peak)
            run.step(loss=curve[-1], peak_mib=run.values["peak"] / MIB)
        numbers = (epoch + 1, args.epochs, curve[-1], run.values["piece"], run.values["peak"] / MIB)
        print("epoch %d/%d  loss %.4f  pieces of %d  peak %.1f MiB" % numbers, flush=True)

    print("final loss %.4f  weights sha256 %s" % (curve[-1], digest(model)[:16]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(dict(run.values, steps=run.steps, weights=digest(model)), file)


if __name__ == "__main__":
    main()
