"""Train a small byte-level Llama with DistributedDataParallel, and prove that all ranks agree.

    python examples/train_ddp.py --processes 4 --steps 300 --compare gloo     # starts its own ranks
    torchrun --nproc-per-node 4 examples/train_ddp.py --steps 300             # the same file

What happens, in this order:

    1. join      the ranks find each other: init_process_group("pccl")
    2. text      rank 0 of each host gets the text, the others read it
    3. train     the loop that you know: forward, backward (DDP averages the gradients), AdamW
    4. validate  the loss on text that was held out
    5. prove     every rank hashes its parameters and optimizer state; all must be the same
    6. report    runs/train_ddp/: metrics.jsonl, summary.json, loss.png

With --compare, 3 to 5 run once per backend: same seed, same text, same processes.
"""
# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N806, N812 (tensor names end with their shape)

import argparse
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from corpus import TEXTS, Corpus, even_windows, load_corpus, sample_windows
from model import ByteLlama, ModelOptions
from proof import all_gather_digests, digest_of_state, flip_one_bit
from report import Metrics, Result, TrainingProgress, console, show_results
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pccl.launch import launch, run_rank

WARMUP_SHARE = (
    0.1  # of the steps: the learning rate rises linearly, then falls as a cosine to a tenth
)
VALIDATION_WINDOWS = 128


@dataclass(frozen=True)
class Options:
    """The command line; `--help` explains each."""

    processes: int
    backend: str
    compare: str | None
    steps: int
    batch: int
    learning_rate: float
    seed: int
    text: str
    output: str
    flip_rank: int | None
    fail_rank: int | None


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
    groups = [(options.backend, dist.group.WORLD)]
    if options.compare:
        again = " #2" if options.compare == options.backend else ""
        groups.append((options.compare + again, dist.new_group(backend=options.compare)))
    if rank == 0:
        names = ", then ".join(backend for backend, _ in groups)
        console.print(f"[bold]join[/]   {world_size} ranks over {names}")

    # 2. text
    corpus = load_text_once_per_host(options.text)
    if rank == 0:
        console.print(
            f"[bold]text[/]   {corpus.name}: {len(corpus.train):,} bytes to train on, "
            f"{len(corpus.held_out):,} held out, sha256 {corpus.digest[:12]}"
        )

    # 3. to 5. per backend, 6. report
    metrics = Metrics(options.output, enabled=rank == 0)
    results = []
    for backend, group in groups:
        results.append(train_and_prove(options, corpus, backend, group, metrics))
    if rank == 0:
        show_results(results, metrics, options.output)
    dist.barrier()  # nobody leaves, with whatever exit code, before rank 0 has reported
    dist.destroy_process_group()
    return 0 if all(result.identical for result in results) else 1


def train_and_prove(
    options: Options,
    corpus: Corpus,
    backend: str,
    group: dist.ProcessGroup | None,
    metrics: Metrics,
) -> Result:
    """Train one model from the seed on; the gradients travel over `group`."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(options.seed)
    model = ByteLlama(ModelOptions())
    ddp = DistributedDataParallel(model, process_group=group)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    context = model.options.context
    tokens_per_step = world_size * options.batch * context
    parameter_count = sum(parameter.numel() for parameter in model.parameters())
    if rank == 0:
        console.print(
            f"[bold]train[/]  {backend}: {parameter_count:,} parameters, {options.steps} steps "
            f"of {world_size} x {options.batch} x {context} bytes"
        )

    # 3. train: each rank draws its own windows, from a seed that no other rank has
    random = torch.Generator().manual_seed(options.seed * 1000 + rank)
    sent_before = counted_bytes_sent(group)
    losses: list[float] = []
    seconds: list[float] = []
    with TrainingProgress(backend, options.steps, enabled=rank == 0) as progress:
        for step in range(options.steps):
            began = time.perf_counter()
            windows = sample_windows(corpus.train, options.batch, context, random)  # [B, T + 1]
            for settings in optimizer.param_groups:
                settings["lr"] = options.learning_rate * learning_rate_factor(step, options.steps)
            loss = loss_of(ddp, windows)
            loss.backward()  # DDP averages the gradients of all ranks while it runs
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(mean_over_ranks(loss.detach(), group))
            seconds.append(time.perf_counter() - began)
            if step == options.steps // 2 and rank == options.fail_rank:
                raise RuntimeError(f"rank {rank} fails on purpose in step {step} (--fail-rank)")
            sent = bytes_sent(group, sent_before, parameter_count * 4, step + 1)
            metrics.write(backend, step, losses[-1], seconds[-1], tokens_per_step, sent.bytes)
            progress.advance(losses[-1], tokens_per_step * (step + 1) / sum(seconds), sent.bytes)

    # 4. validate: the same windows in every run, shared out among the ranks
    windows = even_windows(corpus.held_out, VALIDATION_WINDOWS, context)[rank::world_size]
    with torch.no_grad():
        validation_loss = mean_over_ranks(loss_of(model, windows), group)

    # 5. prove
    if rank == options.flip_rank:
        flip_one_bit(model)
    digests = all_gather_digests(digest_of_state(model, optimizer), group)
    agreeing = digests.count(digests[0])
    if rank == 0:
        style = "green" if agreeing == world_size else "bold red"
        console.print(
            f"[bold]prove[/]  sha256 of all parameters and optimizer state: {digests[0][:32]}...\n"
            f"       [{style}]{agreeing}/{world_size} ranks bit-identical[/]"
        )
        for other, digest in enumerate(digests):
            if digest != digests[0]:
                console.print(f"       [bold red]rank {other} has {digest[:32]}...[/]")
        console.print(
            "[bold]write[/] ", repr(model.write(b"\n\nCollective ", 120).decode("latin1"))
        )
    return Result(
        backend=backend,
        losses=losses,
        validation_loss=validation_loss,
        tokens_per_second=tokens_per_step * options.steps / sum(seconds),
        step_seconds_median=statistics.median(seconds),
        bytes_sent=sent.bytes,
        bytes_are_counted=sent.counted,
        digest=digests[0],
        ranks_agreeing=agreeing,
        ranks=world_size,
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
    warmup = max(1, int(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def mean_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> float:
    total = value.clone()
    dist.all_reduce(total, group=group)
    return float(total) / dist.get_world_size()


@dataclass(frozen=True)
class BytesSent:
    """What this rank has sent since training began."""

    bytes: int
    counted: bool  # by the backend; else computed


def counted_bytes_sent(group: object) -> int | None:
    """Return what the backend counted (all its connections), or None when it does not count."""
    read = getattr(group, "statistics", None)
    if read is None:
        return None
    counters = read()
    return int(counters["bytes_sent_tcp"]) + int(counters["bytes_sent_memory"])


def bytes_sent(group: object, before: int | None, gradient_bytes: int, steps: int) -> BytesSent:
    """Count where the backend counts; else assume a ring, 2 (P - 1) / P * gradient bytes a step."""
    now = counted_bytes_sent(group)
    if now is not None and before is not None:
        return BytesSent(now - before, counted=True)
    world_size = dist.get_world_size()
    return BytesSent(2 * (world_size - 1) * gradient_bytes // world_size * steps, counted=False)


def parse_options() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=int, default=4, help="ranks to start on this machine (4)")
    add("--backend", default="pccl", help="torch.distributed backend (pccl)")
    add("--compare", help="train again, over this backend, and show both")
    add("--steps", type=int, default=300, help="optimizer steps (300)")
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
