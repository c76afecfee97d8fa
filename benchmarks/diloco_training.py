"""DiLoCo beside DDP and a member alone, over real links: loss, bytes, seconds (wanlab, root).

    python benchmarks/diloco_training.py --steps 900 --warmup 225 --seeds 3 \\
        --lrs 3e-3 6e-3 12e-3                                                            quality
    python benchmarks/diloco_training.py --rates 10 50 200 0 --rtt 0.1 --steps 100 \\
        --warmup 0 --arms ddp h25 h100 h100_int8                                         speed

Each run is one process a host of the lab, and every arm gets the same tokens from each seed: the
examples' model on windows of the same text, AdamW, cosine. All arms but "alone" and "ddp" begin
with --warmup steps of averaged gradients, which is DDP; "scratch" begins with none. Every learning
rate is tried with the first seed, the others get each arm's best. Bytes are those that the lab
carried, of all members together, headers and resent ones included. Loss is held out, in nats a
byte. A rate of 0 is a link without a limit. "kill" loses a member at 40 % and gets a fresh one at
60 %.
"""
# mypy: disable-error-code="no-untyped-call"

import argparse
import contextlib
import hashlib
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, head, write

import pccl
from diloco.settings import Settings
from diloco.variants import (
    async_local_sgd,
    decoupled,
    delayed,
    eager,
    gossip,
    local_sgd,
    noloco,
    sparse_loco,
    streaming,
    synchronous,
)
from pccl.bench.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 128  # bytes of a sequence
HELD_OUT = 128  # windows
DEADLINE_SECONDS = 3600.0
# Settings by arm; None: no outer step at all.
ARMS: dict[str, Settings | None] = {
    "alone": None,
    "ddp": None,
    "h10": synchronous(10),
    "h25": synchronous(25),
    "h50": synchronous(50),
    "h100": synchronous(100),
    "h25_int8": synchronous(25, codec="int8"),
    "h25_int4": synchronous(25, codec="int4"),
    "h100_int8": synchronous(100, codec="int8"),
    "h25_local": local_sgd(25),
    "h25_delayed": delayed(25),
    "h25_eager": eager(25),
    "h25_streaming": streaming(24, fragments=2, delay_steps=5),
    "h25_noloco": noloco(25),
    "h25_gossip": gossip(25),
    "h25_sparse": sparse_loco(25),
    "h25_async": async_local_sgd(25),
    "h24_decoupled": decoupled(24),
    "h25_kill": synchronous(25),
    "h25_scratch": synchronous(25),
}


# --- a member -------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> None:
    import torch

    sys.path.append(str(ROOT / "examples"))
    corpus_module, model_module = (importlib.import_module(name) for name in ("corpus", "model"))
    from diloco.schedule import RunSchedule, cosine

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    corpus = corpus_module.load_corpus("devil")
    shape = model_module.ModelOptions(channels=options.channels, hidden=options.channels * 11 // 4)
    model = model_module.ByteLlama(shape)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.1
    )
    draw = torch.Generator().manual_seed(1000 * options.seed + options.member)
    losses: list[float] = []
    with contextlib.ExitStack() as stack:
        module, run = enter(stack, options, model, optimizer)
        # Members that merge when they are ready have no step in common.
        step = (lambda: run.step) if run and not is_loose(options.arm) else (lambda: len(losses))
        RunSchedule(optimizer, cosine(options.steps, max(options.steps // 20, 1)), step)
        begin = time.perf_counter()
        while step() < options.steps:
            windows = corpus_module.sample_windows(corpus.train, options.batch, CONTEXT, draw)
            loss = loss_of(module, windows)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            losses.append(loss.item())
            optimizer.step()
            if options.member == 0:
                Path(options.folder, "step").write_text(str(step()))
        if run and run.round_step:
            run.sync()  # what was not merged yet
        seconds = time.perf_counter() - begin
    with torch.no_grad():
        held_out = corpus_module.even_windows(corpus.held_out, HELD_OUT, CONTEXT)
        found = float(loss_of(model, held_out))
    digest = hash_of(model) if run is None else run.info.hash  # theirs is that of theta
    part = Path(options.folder, f"part-{options.member}-{os.getpid()}.json")
    report = {"loss": found, "seconds": seconds, "losses": losses, "hash": digest}
    part.write_text(json.dumps(report))


def is_loose(arm: str) -> bool:
    """Whether members may end with other bytes than each other."""
    settings = ARMS[arm]
    return settings is not None and settings.method in ("gossip", "asynchronous")


def hash_of(model: Any) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def loss_of(module: Any, windows: Any) -> Any:
    import torch.nn.functional as functional

    logits = module(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def enter(
    stack: contextlib.ExitStack, options: argparse.Namespace, model: Any, optimizer: Any
) -> tuple[Any, Any]:
    """What to call for the logits, and the DiLoCo, if this arm has one."""
    import diloco

    address = os.environ["WANLAB_ADDR"]
    config = pccl.Config(
        shared_memory=False, bind=address, insecure=not options.address, timeout_seconds=300,
        connect_timeout_seconds=300, hosts=(address,),
    )  # fmt: skip
    place = f"file://{options.folder}/rendezvous"
    if options.arm == "alone":
        return model, None
    if options.arm == "ddp":
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        dist.init_process_group(
            "pccl", init_method=place, rank=options.member, world_size=options.members,
            pg_options=config,
        )  # fmt: skip
        stack.callback(dist.destroy_process_group)
        return DistributedDataParallel(model), None
    comm: Any
    if options.address:
        wait_for_step(options.folder, options.join_at)
        comm = pccl.join(options.address, world_size_min=options.wait_for, config=config)
    else:
        comm = pccl.init(place, rank=options.member, world_size=options.members, config=config)
    stack.enter_context(comm)
    settings = ARMS[options.arm]
    assert settings is not None
    warmup = 0 if options.arm.endswith("_scratch") else options.warmup
    run = diloco.DiLoCo(
        comm, model, optimizer, settings, warmup_sync_steps=warmup, seed=options.seed
    )
    return model, stack.enter_context(run)


def wait_for_step(folder: str, step: int, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Until the first member has done so many steps."""
    path = Path(folder, "step")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while step and (not path.exists() or int(path.read_text() or 0) < step):
        if time.monotonic() > deadline or not goes_on():
            raise SystemExit(f"diloco_training.py: step {step} did not come")
        time.sleep(0.02)


# --- one run in the lab ---------------------------------------------------------------------------


class Trial:
    """One arm with one seed and learning rate over links of one rate."""

    def __init__(
        self, lab: Any, options: argparse.Namespace, folder: str, arguments: list[str]
    ) -> None:
        self.options, self.folder, self.arguments = options, folder, arguments
        limits = {"up": f"{options.rate}mbit", "down": f"{options.rate}mbit"}
        count = options.members + 1  # the last one is the coordinator's
        self.hosts = [
            lab.add_host(f"h{number}", **(limits if options.rate else {}))
            for number in range(count)
        ]
        for first, second in itertools.combinations(self.hosts, 2):
            lab.link(first, second, rtt=f"{options.rtt * 1e3}ms")
        self.is_elastic = options.arm.endswith("_kill")
        self.processes: dict[int, Any] = {}

    def start(self, member: int, *more: str) -> None:
        words = [sys.executable, __file__, *self.arguments, "--member", str(member), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.processes[member] = self.hosts[member].popen(words, env=environment)

    def run(self) -> list[dict[str, Any]]:
        """Until all members have ended; what they report."""
        with contextlib.ExitStack() as stack:
            address = self.coordinate(stack) if self.is_elastic else ""
            for member in range(1 if self.options.arm == "alone" else self.options.members):
                self.start(member, "--address", address, "--wait-for", str(self.options.members))
            if self.is_elastic:
                victim = self.options.members - 1
                killed, joins = (int(share * self.options.steps) for share in (0.4, 0.6))
                wait_for_step(self.folder, killed, lambda: self.processes[0].poll() is None)
                self.processes[victim].kill()
                # It starts now, so that it is ready in time.
                words = ("--address", address, "--wait-for", "1", "--join-at", str(joins))
                self.start(victim, *words)
            deadline = time.monotonic() + DEADLINE_SECONDS
            for member, process in self.processes.items():
                if process.wait(max(deadline - time.monotonic(), 1)):
                    raise SystemExit(f"diloco_training.py: member {member} failed; see above")
        return [json.loads(path.read_text()) for path in sorted(Path(self.folder).glob("part-*"))]

    def coordinate(self, stack: contextlib.ExitStack) -> str:
        host = self.hosts[-1]
        command = [
            *(sys.executable, "-m", "pccl", "coordinator", "--bind", host.addr, "--no-status"),
            *("--database", f"{self.folder}/coordinator.db", "--listen", "0", "--port", "0"),
        ]
        process = host.popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
        )
        stack.callback(process.kill)
        return str(process.stdout.readline()).strip()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One trial; the figures of its members together."""
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    wide_area = importlib.import_module("wide_area")
    if wide_area.REASON:
        raise SystemExit(f"benchmarks/diloco_training.py: {wide_area.REASON}")
    names = ("arm", "lr", "seed", "steps", "warmup", "members", "batch", "channels")
    arguments = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    with tempfile.TemporaryDirectory() as folder, wide_area.WANLAB.Lab(seed=options.seed) as lab:
        trial = Trial(lab, options, folder, [*arguments, "--folder", folder])
        parts = trial.run()
        carried = sum(pair["bytes"] for pair in lab.stats()["pairs"].values())
    if not is_loose(options.arm) and len({part["hash"] for part in parts}) > 1:
        raise SystemExit(f"diloco_training.py: {options.arm}: members end with other bytes")
    seconds = max(part["seconds"] for part in parts)
    members = len(parts) if options.arm == "alone" else options.members
    return {
        "arm": options.arm, "lr": options.lr, "seed": options.seed, "rate": options.rate,
        "loss": statistics.mean(part["loss"] for part in parts), "bytes": carried,
        "seconds": seconds,
        "tokens_per_second": members * options.batch * CONTEXT * options.steps / seconds,
        "losses": [round(loss, 3) for loss in parts[0]["losses"]],
    }  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------


def best_rate(found: list[dict[str, Any]], arm: str) -> float:
    """The learning rate of an arm that had the least loss with the first seed."""
    first = [one for one in found if one["arm"] == arm and one["seed"] == 0]
    return float(min(first, key=lambda one: one["loss"])["lr"])


def quality(found: list[dict[str, Any]], warm_share: float) -> list[str]:
    """Each arm at its best learning rate, beside ddp with the same seeds.

    warm_share: of the steps, those with averaged gradients that nearly every arm begins with.
    """
    best = {}
    for arm in dict.fromkeys(one["arm"] for one in found):
        lr = best_rate(found, arm)
        best[arm] = [one for one in found if (one["arm"], one["lr"]) == (arm, lr)]
    lines = [
        "| arm | learning rate | seeds | held-out loss, mean (least .. largest) | against ddp "
        "| MB carried | of ddp's | behind the warm start | tokens/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, ones in best.items():
        loss, sent = mean(ones, "loss"), mean(ones, "bytes")
        losses = [one["loss"] for one in ones]
        beside = [one for one in best.get("ddp", []) if one["seed"] in {o["seed"] for o in ones}]
        against = ["", "", ""]
        if beside:
            share = sent / mean(beside, "bytes")
            against = [f"{100 * (loss / mean(beside, 'loss') - 1):+.1f} %", f"{share:.4f}", ""]
            if ARMS[arm] is not None and not arm.endswith("_scratch"):
                against[2] = f"{(share - warm_share) / (1 - warm_share):.4f}"
        lines.append(
            f"| {arm} | {ones[0]['lr']:g} | {len(ones)} | {loss:.4f} ({min(losses):.4f} .. "
            f"{max(losses):.4f}) | {against[0]} | {sent / 1e6:.1f} | {against[1]} | {against[2]} "
            f"| {mean(ones, 'tokens_per_second'):.0f} |"
        )
    return lines


def speed(found: list[dict[str, Any]]) -> list[str]:
    """Tokens a second by rate of the links, as a share of those without a limit."""
    rates = sorted({one["rate"] for one in found}, key=lambda rate: rate or 1e9)
    names = [f"{rate:g} Mbit/s" if rate else "no limit, tokens/s" for rate in rates]
    lines = ["| arm | " + " | ".join(names) + " |", "|---|" + "---|" * len(rates)]
    for arm in dict.fromkeys(one["arm"] for one in found):
        ones = [one for one in found if one["arm"] == arm]
        by_rate = {
            rate: mean([one for one in ones if one["rate"] == rate], "tokens_per_second")
            for rate in rates
        }
        cells = [
            f"{100 * value / by_rate[0]:.1f} %" if rate and 0 in by_rate else f"{value:.0f}"
            for rate, value in by_rate.items()
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def partial(options: argparse.Namespace) -> Path:
    """Where trials are kept until all are done: the next call with the same settings goes on."""
    names = ("steps", "warmup", "members", "batch", "channels", "rtt")
    settings = "-".join(str(getattr(options, name)) for name in names)
    return Path(tempfile.gettempdir(), f"diloco-training-{options.name}-{settings}.json")


def kept(options: argparse.Namespace) -> list[dict[str, Any]]:
    path = partial(options)
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def mean(ones: list[dict[str, Any]], name: str) -> float:
    return float(statistics.mean(one[name] for one in ones))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--lrs", nargs="+", type=float, default=[6e-3])
    add("--seeds", type=int, default=1)
    add("--rates", nargs="+", type=float, default=[0.0], help="Mbit/s; 0: no limit")
    add("--rtt", type=float, default=0.0, help="seconds")
    add("--steps", type=int, default=400)
    add("--warmup", type=int, default=100)
    add("--members", type=int, default=4)
    add("--batch", type=int, default=8, help="sequences a member and step")
    add("--channels", type=int, default=64, help="width of the model")
    add("--name", default="", help="of the result files; empty: none")
    add("--results", type=Path, default=RESULTS)
    for name in ("arm", "folder", "address"):
        add(f"--{name}", default="", help=argparse.SUPPRESS)
    for name, kind in (("lr", float), ("seed", int), ("member", int), ("wait-for", int)):
        add(f"--{name}", type=kind, default=-1, help=argparse.SUPPRESS)
    add("--join-at", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        train(options)
        return 0
    found = kept(options) if options.name else []
    for seed, arm, lr, rate in itertools.product(
        range(options.seeds), options.arms, options.lrs, options.rates
    ):
        more = {"arm": arm, "lr": lr, "seed": seed, "rate": rate}
        if any(more.items() <= one.items() for one in found):
            continue
        if seed > 0 and lr != best_rate(found, arm):
            continue
        one = measure(argparse.Namespace(**{**vars(options), **more}))
        found.append(one)
        print(
            f"{arm} lr {lr:g} seed {seed} rate {rate:g}: loss {one['loss']:.4f}, "
            f"{one['bytes'] / 1e6:.1f} MB, {one['seconds']:.1f} s",
            flush=True,
        )
        if options.name:
            partial(options).write_text(json.dumps(found))
    machine = describe_machine()
    lines = head(f"DiLoCo, {options.members} members, {options.steps} steps", machine)
    is_quality = len(options.rates) == 1
    warm_share = options.warmup / options.steps
    lines += quality(found, warm_share) if is_quality else speed(found)
    if options.name:
        write(options.results, options.name, {"machine": machine, "trials": found}, lines)
        partial(options).unlink(missing_ok=True)
    else:
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
