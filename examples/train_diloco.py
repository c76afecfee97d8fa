"""Train a small Llama with DiLoCo: members talk once in many steps, come and die as they like.

diloco launch --members 4 examples/train_diloco.py      # here, and prints how others come in
diloco report runs/train_diloco
"""
# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N806, N812 (tensor names end with their shape)

import argparse
import sys

import torch
import torch.nn.functional as F
from corpus import even_windows, load_corpus
from model import ByteLlama, ModelOptions
from torch import Tensor
from torch.utils.data import DataLoader

import diloco
import pccl
from diloco.metrics import Metrics
from diloco.sampler import RoundSampler, rounds
from diloco.schedule import RunSchedule, cosine


def loss_of(model: torch.nn.Module, windows: Tensor) -> Tensor:
    """The mean loss, nats per byte, of predicting each next byte of [B, T + 1]."""
    logits_BTV = model(windows[:, :-1])
    return F.cross_entropy(logits_BTV.flatten(0, 1), windows[:, 1:].flatten())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=int, default=600, help="inner steps of the run")
    add("--members", type=int, default=1, help="it ends only where so many are in")
    add("--sync-every", type=int, default=20, help="inner steps between two outer ones")
    add("--warmup", type=int, default=60, help="first steps, with averaged gradients")
    add("--batch", type=int, default=8, help="sequences a member and step")
    add("--channels", type=int, default=128, help="width of the model")
    add("--codec", default="none", help="for what members send: int8, int4, ...")
    add("--text", default="devil", help="gcide (40 MB), devil (380 KB) or auto")
    add("--out", default="runs/train_diloco", help="folder for metrics")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()

    torch.manual_seed(0)  # the first member's parameters are everybody's
    torch.set_num_threads(1)
    corpus = load_corpus(options.text)
    shape = ModelOptions(channels=options.channels, hidden=options.channels * 11 // 4)
    model = ByteLlama(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    windows = corpus.train.unfold(0, shape.context + 1, shape.context)  # [samples, T + 1]
    sampler = RoundSampler(len(windows), batch=options.batch)
    data: DataLoader[Tensor] = DataLoader(windows, batch_sampler=sampler)  # type: ignore[arg-type]

    with (
        pccl.join() as comm,  # whom PCCL_RUN names
        diloco.DiLoCo(
            comm, model, optimizer, sync_every=options.sync_every, codec=options.codec,
            warmup_sync_steps=options.warmup, sampler=sampler,
        ) as run,
        Metrics(run, options.out, steps=options.steps, progress=not options.quiet) as metrics,
    ):  # fmt: skip
        RunSchedule(optimizer, cosine(options.steps, options.warmup), lambda: run.step)
        for batch in rounds(data):
            loss = loss_of(model, batch.long())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            metrics.log(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
            members = len(run.info.members) if run.info else 0  # of the last outer step
            if run.step >= options.steps and members >= options.members:
                break
        with torch.no_grad():
            held_out = even_windows(corpus.held_out, 64, shape.context)
            metrics.result(held_out=float(loss_of(model, held_out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
