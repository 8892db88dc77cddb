"""A Hugging Face Trainer script with everything that is easy to forget, for test_frameworks_resume.py.

A tiny GPT-2 built from a configuration, with dropout; samples that draw from python, numpy and torch, and a collator
that draws, in loader workers; warm-up and cosine schedule, gradient accumulation, averaged log lines, evaluations.
"""

import argparse
import json
import random
import warnings

import numpy
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from gpusched.checkpoint import digest
from gpusched.checkpoint.frameworks.transformers import preemptible

warnings.filterwarnings("ignore")
SPEEDS = ("runtime", "per_second", "flos")


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 44

    def __getitem__(self, index):
        shift = random.randrange(4) + numpy.random.randint(4) + int(torch.randint(4, ()))
        tokens = [(index * 3 + place + shift) % 32 for place in range(12)]
        return {"input_ids": tokens, "labels": tokens, "index": index}


class Fixed(Augmented):
    def __getitem__(self, index):
        tokens = [(index * 5 + place) % 32 for place in range(12)]
        return {"input_ids": tokens, "labels": tokens, "index": index}


class Stream(torch.utils.data.IterableDataset):
    """Without a length."""

    def __iter__(self):
        data = Augmented()
        return (data[index] for index in range(len(data)))


def collate(samples):
    """Masks labels at random, like collators for language models do."""
    tokens = torch.tensor([one["input_ids"] for one in samples])
    labels = torch.where(torch.rand(tokens.shape) < 0.2, -100, tokens)
    return {"input_ids": tokens, "labels": labels, "index": torch.tensor([one["index"] for one in samples])}


class Model(GPT2LMHeadModel):
    seen = []

    def forward(self, index=None, **inputs):
        if self.training:
            self.seen.append(index.tolist())
        return super().forward(**inputs)


class Noisy(TrainerCallback):
    """Draws from the global generators between steps and at the beginning of an epoch."""

    def on_epoch_begin(self, *args, **kwargs):
        random.random()

    def on_step_end(self, *args, **kwargs):
        torch.rand(())
        numpy.random.rand()


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--evaluate", default="steps")
    parser.add_argument("--iterable", action="store_true")
    return parser.parse_args()


def main():
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = Model(config)
    options = TrainingArguments(
        args.out + ".checkpoints", per_device_train_batch_size=8, num_train_epochs=3, learning_rate=0.01, use_cpu=True,
        lr_scheduler_type="cosine", warmup_steps=3, logging_steps=4, eval_strategy=args.evaluate, eval_steps=5,
        dataloader_num_workers=args.workers, gradient_accumulation_steps=args.accumulate, save_strategy="no",
        max_steps=15 if args.iterable else -1, report_to=[], disable_tqdm=True, remove_unused_columns=False, seed=5,
        label_names=["labels"],
    )  # fmt: skip
    data = Stream() if args.iterable else Augmented()
    trainer = Trainer(
        model, options, train_dataset=data, eval_dataset=Fixed(), data_collator=collate, callbacks=[Noisy()]
    )
    outcome = trainer.train(resume_from_checkpoint=preemptible(trainer))
    history = [
        {key: value for key, value in line.items() if not key.endswith(SPEEDS)} for line in trainer.state.log_history
    ]
    result = {"model": digest(model), "optimizer": digest(trainer.optimizer.optimizer), "history": history}
    result.update(scheduler=digest(trainer.lr_scheduler), steps=outcome.global_step, loss=outcome.training_loss)
    result["following"] = [random.random(), float(torch.rand(())), numpy.random.rand()]
    with open(args.out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
