#!/usr/bin/env python3
"""Adapt a GPT-2 with peft and save only what is trained: LoRA, IA3, prefix tuning and what else peft offers.

    python finetune_lora.py --method lora
    gpusched submit finetune_lora.py --method prefix

A tiny GPT-2 from a configuration, nothing is downloaded. Its own weights never change, so they need not be saved: they
are built again from the seed (with a real model: loaded again from its file). What is registered is a ParameterDict of
the parameters that require gradients, so the checkpoint holds these, their optimizer state, and no more. That is safer
than peft's own adapter file, which for P-tuning leaves out the encoder that is trained, and so does not resume it.
"""

import argparse
import json
import sys
import warnings

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("finetune_lora.py needs PyTorch: pip install 'gpusched[torch]'")
try:
    import peft
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    sys.exit("finetune_lora.py needs peft and transformers: pip install 'gpusched[frameworks]'")

from gpusched.checkpoint import Run, digest

TEXT = """the cat sat on the mat. the dog sat on the log. the frog sat on the rock. the hen sat in the pen.
the bee sat on the tree. the fox sat in the box. the ant sat on the plant. the bear sat on the chair.
the goat sat in the boat. the mouse sat in the house. the snail sat on the pail. the bug sat on the rug.
"""
ALPHABET = sorted(set(TEXT))
LAYERS, WIDTH, CONTEXT = 2, 48, 24


def configured(method):
    """peft's configuration of a method."""
    task = "CAUSAL_LM"
    linear = ["c_attn", "c_proj", "c_fc"]  # GPT-2's layers, by the ends of their names
    choices = {
        "lora": lambda: peft.LoraConfig(
            task_type=task, r=4, lora_alpha=32, lora_dropout=0.05, target_modules=linear, fan_in_fan_out=True
        ),
        "ia3": lambda: peft.IA3Config(
            task_type=task, target_modules=linear, feedforward_modules=["c_fc"], fan_in_fan_out=True
        ),
        "prefix": lambda: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=16),
        "prompt": lambda: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=16),
        "p-tuning": lambda: peft.PromptEncoderConfig(
            task_type=task, num_virtual_tokens=16, encoder_hidden_size=64, encoder_reparameterization_type="MLP"
        ),
    }
    return choices[method]()


def parse_arguments():
    parser = argparse.ArgumentParser(description="Adapt a tiny GPT-2 with peft; checkpoints hold what is trained only.")
    parser.add_argument("--method", choices=["lora", "ia3", "prefix", "prompt", "p-tuning"], default="lora")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", help="write loss curve, sizes and the digest of what is trained to this file")
    return parser.parse_args()


def size_of(tensors):
    return sum(one.numel() * one.element_size() for one in tensors)


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about what peft calls
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    windows = torch.tensor([ALPHABET.index(letter) for letter in TEXT]).unfold(0, CONTEXT, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(windows), args.batch, shuffle=True)
    config = GPT2Config(
        vocab_size=len(ALPHABET), n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=4,
        bos_token_id=0, eos_token_id=0, initializer_range=0.15,
    )  # fmt: skip
    base = GPT2LMHeadModel(config)
    whole, unchanged = size_of(base.parameters()), digest(base)
    model = peft.get_peft_model(base, configured(args.method)).to(device)
    trained = {name.replace(".", "/"): one for name, one in model.named_parameters() if one.requires_grad}
    parameters = nn.ParameterDict(trained)  # the same parameters under names of its own; "." may not be in them
    optimizer = torch.optim.AdamW(trained.values(), lr=args.lr, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=args.epochs * len(loader))

    run = Run(model=parameters, optimizer=optimizer, scheduler=scheduler)
    curve = run.values.setdefault("curve", [])
    for epoch in run.epochs(args.epochs):
        model.train()
        for (window,) in run.batches(loader):
            window = window.to(device)
            guess = model(input_ids=window[:, :-1]).logits[:, 1 - CONTEXT :]  # prompts have put letters before them
            loss = nn.functional.cross_entropy(guess.flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            curve.append(loss.item())
            run.step(loss=curve[-1])
        print("epoch %d/%d  step %d  loss %.4f" % (epoch + 1, args.epochs, run.steps, curve[-1]), flush=True)

    moments = [value for state in optimizer.state.values() for value in state.values()]
    sizes = {"trained": size_of(trained.values()), "saved": size_of(trained.values()) + size_of(moments)}
    kib = tuple(size / 1024 for size in (sizes["trained"], sizes["saved"], whole, 3 * whole))
    print("%s trains %.1f KiB; a checkpoint holds %.1f KiB of tensors with AdamW's moments;" % (args.method, *kib[:2]))
    print("the whole model is %.1f KiB, and training all of it would save %.1f KiB" % kib[2:], flush=True)
    if args.out:
        result = dict(sizes, whole=whole, steps=run.steps, curve=curve, weights=digest(parameters), base=unchanged)
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
