"""Train a small byte-level Llama with DistributedDataParallel, and prove that all ranks agree.

    python examples/train_ddp.py --processes 4 --steps 200             # starts its own ranks
    torchrun --nproc-per-node 4 examples/train_ddp.py --steps 200      # the same file

What happens, in this order:

    1. join      the ranks find each other: init_process_group("pccl")
    2. text      rank 0 of each host gets the text, the others read it
    3. train     the loop that you know: forward, backward (DDP averages the gradients), AdamW
    4. validate  the loss on text that was held out
    5. prove     every rank hashes its parameters and optimizer state; all must be the same
    6. report    a table, and runs/train_ddp/: metrics.jsonl, summary.json, loss.png

Two models are trained, one over pccl and one over gloo (--compare none: only the first). They have
the same seed, text and processes, and take their steps in turn: pccl, gloo; gloo, pccl; and so on.
Whatever else the machine does thus hits both alike, and their times can be compared.
"""
# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N806, N812 (tensor names end with their shape)

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from corpus import TEXTS, Corpus, even_windows, load_corpus, sample_windows
from model import ByteLlama, ModelOptions
from proof import all_gather_digests, digest_of_state, flip_one_bit
from report import Metrics, Progress, Result, console, show_results
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pccl.bench.traffic import bytes_sent
from pccl.launch import launch, run_rank

WARMUP_SHARE = 0.1  # of the steps: the learning rate rises linearly, then falls to a tenth
VALIDATION_WINDOWS = 128
SAMPLE_PROMPT = b"\n\nCollective "
SAMPLE_BYTES = 80


@dataclass(frozen=True)
class Options:
    """The command line; `--help` explains each."""

    processes: int
    backend: str
    compare: str
    steps: int
    batch: int
    learning_rate: float
    seed: int
    text: str
    output: str
    flip_rank: int | None
    fail_rank: int | None


@dataclass
class Arm:
    """One backend with its own model; all arms begin alike and see the same text."""

    name: str
    group: dist.ProcessGroup | None
    model: ByteLlama
    ddp: DistributedDataParallel
    optimizer: torch.optim.Optimizer
    random: torch.Generator  # draws this rank's windows
    sent: int = 0  # bytes, by this rank, in all steps so far
    sent_is_counted: bool = True  # by the backend; else computed
    losses: list[float] = field(default_factory=list)  # [steps]
    seconds: list[float] = field(default_factory=list)  # [steps]


def main() -> int:
    options = parse_options()
    if "RANK" not in os.environ:
        return launch(
            [sys.executable, *sys.argv], options.processes, environment={"OMP_NUM_THREADS": "1"}
        )
    run_rank(lambda: run(options))


def run(options: Options) -> int:
    """One rank's life. Returns the exit code: 0, or 1 when the ranks do not agree to the bit."""
    torch.set_num_threads(1)

    # 1. join
    dist.init_process_group(options.backend)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    arms = make_arms(options)
    names = " and over ".join(arm.name for arm in arms)
    say(f"[bold]join[/]   {world_size} ranks, over {names}")

    # 2. text
    corpus = load_text_once_per_host(options.text)
    say(
        f"[bold]text[/]   {corpus.name}: {len(corpus.train):,} bytes to train on, "
        f"{len(corpus.held_out):,} held out, sha256 {corpus.digest[:12]}"
    )

    # 3. to 6.
    train(options, corpus, arms)
    if rank == options.flip_rank:
        flip_one_bit(arms[0].model)
    results = [validate_and_prove(options, corpus, arm) for arm in arms]
    if rank == 0:
        show_results(results, options.output)
    dist.barrier()  # nobody leaves, with whatever exit code, before rank 0 has reported
    dist.destroy_process_group()
    return 0 if all(result.identical for result in results) else 1


def make_arms(options: Options) -> list[Arm]:
    """Return one arm per backend, from the same seed."""
    groups = {options.backend: dist.group.WORLD}
    if options.compare != "none":
        again = " #2" if options.compare == options.backend else ""
        groups[options.compare + again] = dist.new_group(backend=options.compare)
    arms = []
    for name, group in groups.items():
        torch.manual_seed(options.seed)
        model = ByteLlama(ModelOptions())
        ddp = DistributedDataParallel(model, process_group=group)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
        )
        # Each rank draws its own windows, from a seed that no other rank has.
        random = torch.Generator().manual_seed(options.seed * 1000 + dist.get_rank())
        arms.append(Arm(name, group, model, ddp, optimizer, random))
    return arms


def train(options: Options, corpus: Corpus, arms: list[Arm]) -> None:
    """Step all arms in turn, and tell of it."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    context = arms[0].model.options.context
    tokens = world_size * options.batch * context
    say(
        f"[bold]train[/]  a Llama over bytes: {parameter_count(arms[0]):,} parameters, "
        f"{options.steps} steps of {world_size} x {options.batch} x {context} bytes"
    )
    if len(arms) > 1:
        first, second = (arm.name for arm in arms)
        say(
            f"       in turn, step by step: {first}, {second}; {second}, {first}; ... "
            "same seed, same text"
        )
    metrics = Metrics(options.output, enabled=rank == 0)
    names = [arm.name for arm in arms]
    with Progress(names, options.steps, enabled=rank == 0) as progress:
        for step in range(options.steps):
            if step == options.steps // 2 and rank == options.fail_rank:
                raise RuntimeError(f"rank {rank} fails on purpose in step {step} (--fail-rank)")
            for arm in arms[:: -1 if step % 2 else 1]:
                train_step(options, corpus, arm, step)
            for arm in arms:
                speed = tokens * (step + 1) / sum(arm.seconds)
                metrics.write(arm.name, step, arm.losses[-1], arm.seconds[-1], tokens, arm.sent)
                progress.advance(arm.name, arm.losses[-1], speed, arm.sent, arm.sent_is_counted)
    metrics.close()


def train_step(options: Options, corpus: Corpus, arm: Arm, step: int) -> None:
    sent_before = bytes_sent(arm.group)
    began = time.perf_counter()
    context = arm.model.options.context
    windows = sample_windows(corpus.train, options.batch, context, arm.random)  # [B, T + 1]
    for settings in arm.optimizer.param_groups:
        settings["lr"] = options.learning_rate * learning_rate_factor(step, options.steps)
    loss = loss_of(arm.ddp, windows)
    loss.backward()  # DDP averages the gradients of all ranks while it runs
    torch.nn.utils.clip_grad_norm_(arm.model.parameters(), 1.0)
    arm.optimizer.step()
    arm.optimizer.zero_grad()
    arm.losses.append(mean_over_ranks(float(loss.detach()), arm.group))
    arm.seconds.append(time.perf_counter() - began)
    sent = bytes_sent(arm.group)
    if sent is not None and sent_before is not None:
        arm.sent += sent.total - sent_before.total
    else:  # a ring sends 2 (P - 1) / P of the gradient's bytes
        world_size = dist.get_world_size()
        arm.sent += 2 * (world_size - 1) * parameter_count(arm) * 4 // world_size
        arm.sent_is_counted = False


def validate_and_prove(options: Options, corpus: Corpus, arm: Arm) -> Result:
    """Return what came out, and what every rank has."""
    world_size, context = dist.get_world_size(), arm.model.options.context
    # The same windows in every run, shared out among the ranks.
    windows = even_windows(corpus.held_out, VALIDATION_WINDOWS, context)
    with torch.no_grad():
        loss = float(loss_of(arm.model, windows[dist.get_rank() :: world_size]))
    return Result(
        backend=arm.name,
        losses=arm.losses,
        seconds=arm.seconds,
        tokens_per_step=world_size * options.batch * context,
        validation_loss=mean_over_ranks(loss, arm.group),
        bytes_sent_per_rank=round(mean_over_ranks(arm.sent, arm.group)),
        bytes_are_counted=arm.sent_is_counted,
        digests=all_gather_digests(digest_of_state(arm.model, arm.optimizer), arm.group),
        sample=arm.model.write(SAMPLE_PROMPT, SAMPLE_BYTES) if dist.get_rank() == 0 else b"",
    )


def load_text_once_per_host(text: str) -> Corpus:
    """Let one rank per host download; the others find its result; all must have the same."""
    first_on_host = os.environ.get("LOCAL_RANK", "0") == "0"
    if first_on_host:
        corpus = load_corpus(text)
    dist.barrier()
    if not first_on_host:
        corpus = load_corpus(text, may_download=False)
    if len(set(all_gather_digests(bytes.fromhex(corpus.digest), None))) > 1:
        raise RuntimeError("the hosts have different texts; name one with --text devil")
    return corpus


def loss_of(model: torch.nn.Module, windows: Tensor) -> Tensor:
    """Return the mean loss, nats per byte, of predicting each next byte of [B, T + 1]."""
    logits_BTV = model(windows[:, :-1])
    return F.cross_entropy(logits_BTV.flatten(0, 1), windows[:, 1:].flatten())


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak: a linear rise, then half a cosine down to a tenth."""
    warmup = max(1, int(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def mean_over_ranks(value: float, group: dist.ProcessGroup | None) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total, group=group)
    return float(total) / dist.get_world_size()


def parameter_count(arm: Arm) -> int:
    return sum(parameter.numel() for parameter in arm.model.parameters())


def say(text: str) -> None:
    """Print, on rank 0 only."""
    if dist.get_rank() == 0:
        console.print(text)


def parse_options() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=int, default=4, help="ranks to start on this machine (4)")
    add("--backend", default="pccl", help="torch.distributed backend (pccl)")
    add("--compare", default="gloo", help="the second backend, or none (gloo)")
    add("--steps", type=int, default=200, help="optimizer steps of each backend (200)")
    add("--batch", type=int, default=8, help="sequences per rank and step (8)")
    add("--learning-rate", type=float, default=6e-3, help="peak learning rate (6e-3)")
    add("--seed", type=int, default=0, help="for the weights and the windows drawn (0)")
    add("--text", choices=TEXTS, default="auto", help="gcide (40 MB), devil (380 KB) or auto")
    add("--output", default="runs/train_ddp", help="folder for metrics and plot (runs/train_ddp)")
    add("--flip-rank", type=int, help="flip one bit of this rank's weights: the proof must fail")
    add("--fail-rank", type=int, help="this rank raises half way: the run must end with its error")
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
