#!/usr/bin/env python3
"""Save and load models in every usual way, as small lessons that run: what is in the file, and what is safe to open.

    python save_load.py
    gpusched submit save_load.py

First a net is trained, resumably. Then each lesson is a step of the same run: stopped between two lessons, the next
attempt goes on with the next one. All these files are *weights*. To continue a training one needs the optimizer, the
position, random numbers and more: that is what the run's checkpoint has, and none of these files.
"""

import argparse
import json
import os
import sys
import tempfile

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("save_load.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest, load_weights


class Net(nn.Module):
    """A body and a head, to be saved together and apart."""

    def __init__(self, classes=2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.body(x))


class Bomb:
    """What an attacker may put into a file: opening it with pickle calls any function. This one only makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def state_dict(model, path):
    """The usual way: names and tensors. The reader needs the class and makes an object of it first."""
    torch.save(model.state_dict(), path)
    fresh = Net()
    fresh.load_state_dict(torch.load(path, weights_only=True))
    return "%d tensors; %s" % (len(fresh.state_dict()), same(model, fresh))


def whole_module(model, path):
    """The whole object: a pickle that names its class, runs code when opened, and breaks when that class moves."""
    torch.save(model, path)
    told = refusal(lambda: torch.load(path, weights_only=True))
    known = [Net, nn.Sequential, nn.Linear, nn.ReLU, set]  # what we allow this one file to contain
    with torch.serialization.safe_globals(known):
        fresh = torch.load(path, weights_only=True)
    return "%s; with its classes allowed by name: %s" % (told, same(model, fresh))


def safe_loading(model, path):
    """weights_only=True (the default since torch 2.6) makes tensors and plain values only, whatever the file says."""
    marker = path + ".executed"
    torch.save({"weights": model.state_dict(), "surprise": Bomb(marker)}, path)
    told = refusal(lambda: torch.load(path, weights_only=True))
    return "%s; its code was %s" % (told, "EXECUTED" if os.path.exists(marker) else "not executed")


def map_location(model, path):
    """A file remembers the device of each tensor; map_location says where to put it here, in both directions."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for saved in devices:
        for here in devices:
            torch.save(Net().to(saved).state_dict() if saved != "cpu" else model.state_dict(), path)
            found = torch.load(path, map_location=here, weights_only=True)
            assert all(one.device.type == here for one in found.values()), (saved, here)
    shapes = torch.load(path, map_location="meta", weights_only=True)  # not even read: names and shapes only
    pairs = ", ".join("%s to %s" % (saved, here) for saved in devices for here in devices)
    return "%s; to meta (no memory): head.weight is %s" % (pairs, tuple(shapes["head.weight"].shape))


def one_layer(model, path):
    """Every module has a state_dict of its own, with names that start at that module."""
    torch.save(model.body[2].state_dict(), path)
    fresh = Net()
    fresh.body[2].load_state_dict(torch.load(path, weights_only=True))
    layer, head = same(model.body[2], fresh.body[2]), same(model.head, fresh.head)
    return "%s; that layer: %s, the head: %s" % (", ".join(model.body[2].state_dict()), layer, head)


def strictness(model, path):
    """strict=True wants the same names; strict=False forgives missing and unexpected ones, but never a shape."""
    torch.save(dict(model.state_dict(), note=torch.zeros(1)), path)
    found, other = torch.load(path, weights_only=True), Net(classes=5)
    strict = refusal(lambda: Net().load_state_dict(found))
    shape = refusal(lambda: other.load_state_dict(found, strict=False))
    left = other.load_state_dict({name: one for name, one in found.items() if "head" not in name}, strict=False)
    text = "an extra name: %s; another shape, even not strict: %s; without the head: missing %s, unexpected %s"
    return text % (strict, shape, left.missing_keys, left.unexpected_keys)


def prefixes(model, path):
    """DataParallel, DDP and torch.compile wrap the model and prefix its names: load_weights takes that off."""
    torch.save(nn.DataParallel(model).state_dict(), path)
    plain = refusal(lambda: Net().load_state_dict(torch.load(path, weights_only=True)))
    fresh = Net()
    load_weights(fresh, path)
    return "plainly: %s; by load_weights: %s" % (plain, same(model, fresh))


LESSONS = [state_dict, whole_module, safe_loading, map_location, one_layer, strictness, prefixes]


def same(one, other):
    return "the same weights" if digest(one) == digest(other) else "other weights"


def refusal(attempt):
    """That it was refused, and by what kind of error."""
    try:
        attempt()
    except Exception as error:
        return "refused (%s)" % type(error).__name__
    return "ACCEPTED"


def parse_arguments():
    parser = argparse.ArgumentParser(description="Save and load models in every usual way, and see what happens.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--folder", help="where to write the files of the lessons (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write what was learned and the digest of the weights to this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    points = torch.randn(args.samples, 2, generator=torch.Generator().manual_seed(args.seed))
    data = torch.utils.data.TensorDataset(points, (points.norm(dim=1) > 1.2).long())  # inside or outside of a circle
    loader = torch.utils.data.DataLoader(data, 50, shuffle=True)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    run = Run(model=model, optimizer=optimizer)
    curve, learned = run.values.setdefault("curve", []), run.values.setdefault("learned", {})
    for epoch in run.epochs(args.epochs):
        for inputs, wanted in run.batches(loader):
            loss = nn.functional.cross_entropy(model(inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
            run.step(loss=curve[-1])
        print("epoch %d/%d  loss %.4f" % (epoch + 1, args.epochs, curve[-1]), flush=True)

    os.makedirs(args.folder or ".", exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for _ in run.epochs(1):  # another phase of the same run, whose batches are the lessons
            for lesson in run.batches(LESSONS):
                learned[lesson.__name__] = lesson(model, os.path.join(args.folder or temporary, lesson.__name__))
                print("%s: %s\n    %s" % (lesson.__name__, lesson.__doc__, learned[lesson.__name__]), flush=True)
                run.step()

    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"steps": run.steps, "curve": curve, "learned": learned, "weights": digest(model)}, file)


if __name__ == "__main__":
    main()
