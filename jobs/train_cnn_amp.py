#!/usr/bin/env python3
"""Train a conv net in mixed precision, with all that has a state of its own: scaler, EMA, augmentation, workers.

    python train_cnn_amp.py --epochs 8
    gpusched submit train_cnn_amp.py --epochs 8 --workers 2
    python train_cnn_amp.py --data digits            # real scans, with scikit-learn

On a GPU autocast computes in float16 and the GradScaler keeps small gradients from vanishing; on a CPU it is bfloat16,
where the scaler is not needed but does the same work. Each step adds up the gradients of --accumulate micro batches;
run.micro_step() says that one is complete, so a stop need not wait for the others. The augmentation draws from Python,
NumPy and torch, in as many workers as you like: a stopped run ends with the same bits, with 0 workers or 4.
"""

import argparse
import json
import random
import sys

try:
    import numpy
    import torch
    from torch import nn
except ImportError:
    sys.exit("train_cnn_amp.py needs PyTorch and NumPy: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest

FONT = ["111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
        "111100111001111", "111100111101111", "111001010010010", "111101111101111", "111101111001111"]  # fmt: skip


def glyphs(count, seed):
    """Ten digits, drawn with 3 x 5 points somewhere on 8 x 8, in noise."""
    generator = torch.Generator().manual_seed(seed)
    font = torch.tensor([[float(point) for point in glyph] for glyph in FONT]).view(10, 5, 3)
    images, labels = 0.25 * torch.randn(count, 8, 8, generator=generator), torch.arange(count) % 10
    corners = torch.randint(0, 4, (count, 2), generator=generator).tolist()
    for image, label, (top, left) in zip(images, labels, corners):
        image[top : top + 5, left : left + 3] += font[label]
    return images, labels


def scans(count, seed):
    """Handwritten digits of 8 x 8 points from scikit-learn, which brings 1797 of them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("--data digits needs scikit-learn: pip install scikit-learn; or use --data glyphs")
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.tensor(found.images, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]


class Augmented(torch.utils.data.Dataset):
    """Each look at an image moves it, changes its brightness and adds noise: three libraries' random numbers."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        shift = (random.randint(-1, 1), random.randint(-1, 1))
        image = torch.roll(self.images[index], shift, dims=(0, 1)) * numpy.random.uniform(0.8, 1.2)
        return (image + 0.1 * torch.randn(8, 8)).unsqueeze(0).float(), self.labels[index]


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a conv net in mixed precision; it can be stopped anywhere.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32, help="size of a micro batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro batches of one optimizer step")
    parser.add_argument("--workers", type=int, default=0, help="processes that load and augment data")
    parser.add_argument("--data", choices=["glyphs", "digits"], default="glyphs")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write accuracy, loss curve and digests of the weights to this file")
    return parser.parse_args()


def accuracy(run, model, images, labels):
    """The share of right answers. It asks at every batch whether to stop; after a stop it starts again."""
    model.eval()
    right = 0
    with torch.no_grad():
        for part, wanted in zip(images.split(64), labels.split(64)):
            right += int((model(part).argmax(1) == wanted).sum())
            run.check()
    return right / len(labels)


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    numpy.random.seed(args.seed)
    random.seed(args.seed)
    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    half = torch.float16 if device.type == "cuda" else torch.bfloat16

    images, labels = (scans if args.data == "digits" else glyphs)(args.samples, args.seed)
    held_out = max(1, len(images) // 5)
    loader = torch.utils.data.DataLoader(
        Augmented(images[held_out:], labels[held_out:]), args.batch, shuffle=True, num_workers=args.workers
    )
    unseen = images[:held_out].unsqueeze(1).to(device), labels[:held_out].to(device)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(32 * 4 * 4, 10),
    ).to(device)  # fmt: skip
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.95))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    steps = -(-len(loader) // args.accumulate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * steps)
    scaler = torch.amp.GradScaler(device.type, growth_interval=20)

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, ema=ema)
    curve, scores = run.values.setdefault("curve", []), run.values.setdefault("accuracy", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        for points, wanted in run.batches(loader):
            with torch.autocast(device.type, half):
                loss = nn.functional.cross_entropy(model(points.to(device)), wanted.to(device))
            scaler.scale(loss / args.accumulate).backward()
            curve.append(loss.item())
            if (run.batch + 1) % args.accumulate and run.batch + 1 < len(loader):
                run.micro_step()  # a safe point in the middle of a step: the gradients are saved with the rest
                continue
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()
            ema.update_parameters(model)
            run.step(loss=curve[-1])
        scores.append(accuracy(run, ema, *unseen))
        print("epoch %d/%d  loss %.4f  accuracy %.3f" % (epoch + 1, args.epochs, curve[-1], scores[-1]), flush=True)

    result = {"steps": run.steps, "accuracy": scores, "scale": scaler.get_scale(), "curve": curve}
    result.update(weights=digest(model), ema=digest(ema))
    print("accuracy %.3f  weights sha256 %s" % (scores[-1], result["weights"][:16]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
