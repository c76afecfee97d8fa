"""DDP in a codec: does training end where it ends in float32? Several seeds, the same tokens.

    python benchmarks/codec_training.py                        3 seeds, 300 steps, 4 ranks: 15 min
    python benchmarks/codec_training.py --steps 20 --seeds 1   does it run?

The examples' model is trained from each seed four times on the same windows of the same text:
gradients in float32, in int8 (pccl.hooks.int8), in int4 (a group with Config(codec="int4")) and in
int4 with error feedback (pccl.hooks.int4_error_feedback). After each run all ranks compare the
sha256 of parameters and optimizer state. Held-out loss, so that a difference is one of learning.

Writes codec_training.md and .json to benchmarks/results/.
"""
# mypy: disable-error-code="no-untyped-call"

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, collect, head, write

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ARMS = ("float32", "int8", "int4", "int4, error feedback")
BATCH = 4
LENGTH = 128
RATE = 6e-3
WINDOWS = 256  # of the held-out text
TAIL = 20  # steps whose mean training loss is told


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return run_rank(options)
    arguments = ["--seeds", str(options.seeds), "--steps", str(options.steps)]
    document = collect(arguments, options.processes, "memory")
    lines = head("DDP in a codec: held-out loss", document["machine"])
    write(options.results, "codec_training", document, lines + report(document, options))
    return 0


def run_rank(options: argparse.Namespace) -> int:
    """One rank's life: every seed, every arm."""
    import torch
    import torch.distributed as dist

    from pccl.bench.machine import describe_machine

    sys.path.append(str(EXAMPLES))
    torch.set_num_threads(1)
    dist.init_process_group("pccl")
    runs = []
    for seed in range(options.seeds):
        for arm in ARMS:
            runs.append({"seed": seed, "arm": arm, **train(arm, seed, options.steps)})
            if dist.get_rank() == 0:
                print(runs[-1]["seed"], arm, f"{runs[-1]['held_out']:.4f}", flush=True)
    if dist.get_rank() == 0:
        document = {"machine": describe_machine(), "runs": runs}
        Path(options.part).write_text(json.dumps(document))
    dist.barrier()
    dist.destroy_process_group()
    return 0


def train(arm: str, seed: int, steps: int) -> dict[str, float]:
    """Train one model; return its losses, and what this rank sent in one step."""
    import torch
    import torch.distributed as dist
    from corpus import even_windows, load_corpus, sample_windows
    from model import ByteLlama, ModelOptions
    from proof import all_gather_digests, digest_of_state
    from torch.nn.parallel import DistributedDataParallel
    from train_ddp import learning_rate_factor, loss_of, mean_over_ranks

    import pccl
    from pccl.bench.traffic import bytes_sent

    corpus = load_corpus("devil", may_download=False)
    torch.manual_seed(seed)
    group = dist.new_group(pg_options=pccl.Config(codec="int4" if arm == "int4" else ""))
    ddp = DistributedDataParallel(ByteLlama(ModelOptions(context=LENGTH)), process_group=group)
    hooks: dict[str, Callable[[], None]] = {
        "int8": lambda: ddp.register_comm_hook(group, pccl.hooks.int8),
        "int4, error feedback": lambda: ddp.register_comm_hook(
            pccl.hooks.ErrorFeedback(ddp, group=group), pccl.hooks.int4_error_feedback
        ),
    }
    hooks.get(arm, lambda: None)()
    optimizer = torch.optim.AdamW(ddp.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    random = torch.Generator().manual_seed(seed * 1000 + dist.get_rank())
    losses, sent = [], 0
    for step in range(steps):
        for settings in optimizer.param_groups:
            settings["lr"] = RATE * learning_rate_factor(step, steps)
        before = bytes_sent(group)
        loss = loss_of(ddp, sample_windows(corpus.train, BATCH, LENGTH, random))
        loss.backward()
        after = bytes_sent(group)
        assert before is not None
        assert after is not None
        sent = after.total - before.total
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    digests = set(all_gather_digests(digest_of_state(ddp.module, optimizer), group))
    if len(digests) > 1:
        raise RuntimeError(f"{arm}, seed {seed}: the ranks hold different bytes")
    windows = even_windows(corpus.held_out, WINDOWS, LENGTH)[
        dist.get_rank() :: dist.get_world_size()
    ]
    with torch.no_grad():
        held_out = mean_over_ranks(float(loss_of(ddp.module, windows)), None)
    trained = mean_over_ranks(statistics.mean(losses[-TAIL:]), None)
    dist.destroy_process_group(group)
    return {"held_out": held_out, "trained": trained, "bytes_per_step": sent}


def report(document: dict[str, Any], options: argparse.Namespace) -> list[str]:
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for run in document["runs"]:
        runs[run["arm"]].append(run)
    tokens = options.steps * options.processes * BATCH * LENGTH
    lines = [
        f"{options.processes} ranks, {options.steps} steps, {tokens:,} bytes of text, seeds 0 to "
        f"{options.seeds - 1}. Nats a byte, mean and standard deviation over the seeds. "
        "Difference: to float32 of the same seed. Sent: KB by rank 0 in the last step.",
        "",
        "| gradients in | held-out loss | difference | training loss, last 20 steps | sent |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for arm, found in runs.items():
        paired = [
            run["held_out"] - base["held_out"]
            for run, base in zip(found, runs["float32"], strict=True)
        ]
        cells = [shown([run["held_out"] for run in found]), shown(paired, "+"),
                 shown([run["trained"] for run in found])]  # fmt: skip
        lines.append(f"| {arm} | {' | '.join(cells)} | {found[0]['bytes_per_step'] / 1000:.0f} |")
    return lines


def shown(sample: list[float], sign: str = "") -> str:
    spread = statistics.stdev(sample) if len(sample) > 1 else 0.0
    return f"{statistics.mean(sample):{sign}.4f} ± {spread:.4f}"


if __name__ == "__main__":
    sys.exit(main())
