#!/usr/bin/env python3
"""Fine-tune: load a pre-trained net partly, train a new head on it, unfreeze its last block midway.

    python finetune.py
    gpusched submit finetune.py --epochs 8

Pre-trained on ten digits (the first run makes that file, in a second or two), fine-tuned on eight letters of which
there are few samples. The rules it follows:

- The new head has another shape, so only the body is loaded; what was left out is said, never guessed.
- A frozen block gets no gradients *and* stays in eval(): otherwise its BatchNorm statistics drift although nothing
  "trains" there. model.train() switches all of them on, so freezing comes after it, in every epoch.
- The optimizer knows all groups from the start, each with its own learning rate. A frozen parameter has no gradient and
  is passed over; unfreezing then needs no new group, and a resumed run finds the groups that were saved.
- What is frozen follows from the epoch alone, so a run that resumes knows it too.
"""

import argparse
import json
import os
import sys

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("finetune.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest, load_weights

DIGITS = ["111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
          "111100111001111", "111100111101111", "111001010010010", "111101111101111", "111101111001111"]  # fmt: skip
LETTERS = ["010101111101101", "111100100100111", "111100110100111", "111100110100100", "101101111101101",
           "100100100100111", "111010010010010", "101101101101111"]  # fmt: skip # A C E F H L T U


def drawn(glyphs, count, seed):
    """Glyphs of 3 x 5 points somewhere on 8 x 8, in noise."""
    generator = torch.Generator().manual_seed(seed)
    font = torch.tensor([[float(point) for point in glyph] for glyph in glyphs]).view(-1, 5, 3)
    images, labels = 0.2 * torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % len(glyphs)
    corners = torch.randint(0, 4, (count, 2), generator=generator).tolist()
    for image, label, (top, left) in zip(images, labels, corners):
        image[0, top : top + 5, left : left + 3] += font[label]
    return torch.utils.data.TensorDataset(images, labels)


class Net(nn.Module):
    """Two blocks that see, and a head that names."""

    def __init__(self, classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(512, classes))

    def forward(self, images):
        return self.head(self.last(self.first(images)))

    def set_mode(self, frozen):
        """Training mode, but for the blocks that are frozen."""
        self.train()
        for block in (self.first, self.last):
            block.requires_grad_(block not in frozen)
            if block in frozen:
                block.eval()


def loss_of(model, images, labels):
    return nn.functional.cross_entropy(model(images), labels)


def accuracy(model, data):
    model.eval()
    images, labels = data.tensors
    device = next(model.parameters()).device
    with torch.no_grad():
        return (model(images.to(device)).argmax(1).cpu() == labels).float().mean().item()


def pretrain(path, args, device):
    """Make the pre-trained file: an ordinary loop of a second or two, which starts again if it is interrupted."""
    torch.manual_seed(args.seed)
    model, data = Net(len(DIGITS)).to(device), drawn(DIGITS, args.pretrain_samples, args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    model.train()
    for _ in range(2):
        for images, labels in torch.utils.data.DataLoader(data, 64, shuffle=True):
            optimizer.zero_grad()
            loss_of(model, images.to(device), labels.to(device)).backward()
            optimizer.step()
    torch.save(model.state_dict(), path + ".tmp")
    os.replace(path + ".tmp", path)  # whole or not there
    print("pre-trained on digits: accuracy %.3f, saved as %s" % (accuracy(model, data), path), flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Fine-tune a pre-trained net: new head, frozen blocks, unfreezing.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--unfreeze", type=int, help="epoch from which the last block trains too (default: half way)")
    parser.add_argument("--samples", type=int, default=480, help="letters to learn from")
    parser.add_argument("--pretrain-samples", type=int, default=4000, help="digits to pre-train on")
    parser.add_argument("--pretrained", help="file to start from; made if missing (default: next to the checkpoints)")
    parser.add_argument("--lr", type=float, default=0.01, help="of the head; the body gets a tenth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write accuracy, loss curve and the digest of the weights to this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    folder = os.environ.get("GPUSCHED_CHECKPOINT_DIR", "finetune.state")
    pretrained = args.pretrained or os.path.join(folder, "pretrained.pt")
    if not os.path.exists(pretrained):
        os.makedirs(os.path.dirname(pretrained) or ".", exist_ok=True)
        pretrain(pretrained, args, device)

    torch.manual_seed(args.seed + 1)  # the same numbers from here on, whether this attempt has pre-trained or not
    model = Net(len(LETTERS)).to(device)
    load_weights(model, pretrained, partial=True, skip=["head."])  # says what it has loaded and what not
    statistics = digest(dict(model.first.named_buffers()))
    optimizer = torch.optim.AdamW([
        {"params": model.head.parameters(), "lr": args.lr},
        {"params": model.last.parameters(), "lr": args.lr / 10},
    ])  # fmt: skip # the first block stays as it is
    data, unseen = drawn(LETTERS, args.samples, args.seed + 2), drawn(LETTERS, 400, args.seed + 3)
    loader = torch.utils.data.DataLoader(data, 16, shuffle=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    unfreeze = args.epochs // 2 if args.unfreeze is None else args.unfreeze

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler)
    curve, scores = run.values.setdefault("curve", []), run.values.setdefault("accuracy", [])
    for epoch in run.epochs(args.epochs):
        model.set_mode([model.first, model.last] if epoch < unfreeze else [model.first])
        for images, labels in run.batches(loader):
            loss = loss_of(model, images.to(device), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            curve.append(loss.item())
            run.step(loss=curve[-1])
        scores.append(accuracy(model, unseen))
        part = "head" if epoch < unfreeze else "head and last block"
        print("epoch %d/%d  %s  loss %.4f  accuracy %.3f" % (epoch + 1, args.epochs, part, curve[-1], scores[-1]))

    result = {"steps": run.steps, "accuracy": scores, "curve": curve, "weights": digest(model)}
    result["frozen statistics untouched"] = digest(dict(model.first.named_buffers())) == statistics
    print("accuracy %.3f  weights sha256 %s" % (scores[-1], result["weights"][:16]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
