#!/usr/bin/env python3
"""Train a character-level GPT on a sonnet until it knows it by heart. Stopped or not: the same loss curve, every digit.

    python tiny_gpt.py --epochs 20
    gpusched submit tiny_gpt.py --epochs 20

Causal self-attention with dropout, warm-up and cosine decay, gradient clipping, weight decay for matrices only: the
usual recipe, small enough for a CPU. It ends by writing on from "Shall I".
"""

import argparse
import json
import math
import sys

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    sys.exit("tiny_gpt.py needs PyTorch: pip install 'gpusched[torch]'")

from gpusched.checkpoint import Run, digest

TEXT = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd;
But thy eternal summer shall not fade,
Nor lose possession of that fair thou ow'st;
Nor shall death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st:
So long as men can breathe or eyes can see,
So long lives this, and this gives life to thee.
"""
ALPHABET = sorted(set(TEXT))


class Block(nn.Module):
    """Attention, then a small network, each added to what came in."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.inputs(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        chance = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, dropout_p=chance, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).reshape(batch, length, width))
        return x + functional.dropout(self.network(self.before_network(x)), self.dropout, self.training)


class GPT(nn.Module):
    def __init__(self, context, width, heads, layers, dropout):
        super().__init__()
        self.context = context
        self.letters, self.places = nn.Embedding(len(ALPHABET), width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads, dropout) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET), bias=False)

    def forward(self, letters):
        places = torch.arange(letters.shape[1], device=letters.device)
        return self.head(self.norm(self.blocks(self.letters(letters) + self.places(places))))

    @torch.no_grad()
    def write(self, beginning, count):
        """The text that follows, always taking the likeliest letter."""
        self.eval()
        letters = encoded(beginning).to(self.head.weight.device)
        for _ in range(count):
            following = self(letters[None, -self.context :])[0, -1].argmax()
            letters = torch.cat([letters, following[None]])
        return "".join(ALPHABET[number] for number in letters.tolist())


def encoded(text):
    return torch.tensor([ALPHABET.index(letter) for letter in text])


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a tiny GPT; its loss curve does not know of preemptions.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=32, help="letters that it sees at once")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write the loss curve, a sample and the digest of the weights to this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    windows = encoded(TEXT).unfold(0, args.context + 1, 1)  # at every letter one begins
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(windows), args.batch, shuffle=True)
    model = GPT(args.context, args.width, heads=4, layers=args.layers, dropout=0.1).to(device)
    matrices = [one for one in model.parameters() if one.dim() > 1]
    others = [one for one in model.parameters() if one.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    last, warm = args.epochs * len(loader), 20
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * step / last))
    )

    run = Run(model=model, optimizer=optimizer, scheduler=scheduler)
    curve = run.values.setdefault("curve", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        for (window,) in run.batches(loader):
            window = window.to(device)
            guess = model(window[:, :-1])
            loss = functional.cross_entropy(guess.flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            curve.append(loss.item())
            run.step(loss=curve[-1])
        print("epoch %d/%d  step %d  loss %.4f" % (epoch + 1, args.epochs, run.steps, curve[-1]), flush=True)

    sample = model.write("Shall I", 80)
    print(sample + "\nweights sha256 " + digest(model)[:16], flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"steps": run.steps, "curve": curve, "sample": sample, "weights": digest(model)}, file)


if __name__ == "__main__":
    main()
