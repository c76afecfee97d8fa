"""What a training run shows (progress, a table) and leaves behind (metrics, summary, plot)."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from pccl.bench.result import Spread, spread

console = Console(highlight=False, soft_wrap=True)

FINAL_SHARE = 0.1  # of the steps: the final loss is their mean, as one step's loss jumps by 2 %
REPORTED_STEPS = 10  # lines instead of a bar where the output is no terminal
SHOWN_DIGITS = 16  # of a sha256 in hex


@dataclass(frozen=True)
class Result:
    """One backend's run, as rank 0 saw it."""

    backend: str
    losses: list[float]  # [steps] mean over ranks, nats per byte
    seconds: list[float]  # [steps]
    tokens_per_step: int  # of all ranks together
    validation_loss: float
    bytes_sent_per_rank: int  # mean over ranks, all steps
    bytes_are_counted: bool  # by the backend; else computed
    digests: list[str]  # [ranks] sha256 of parameters and optimizer state
    sample: bytes  # what the model writes

    @property
    def ranks_agreeing(self) -> int:
        """How many ranks ended with the bytes of rank 0."""
        return self.digests.count(self.digests[0])

    @property
    def identical(self) -> bool:
        """Whether every rank ended with the same bytes."""
        return self.ranks_agreeing == len(self.digests)

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last steps."""
        return statistics.fmean(self.losses[-max(1, int(len(self.losses) * FINAL_SHARE)) :])

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together, over all steps."""
        return self.tokens_per_step * len(self.seconds) / sum(self.seconds)

    def to_dict(self) -> dict[str, object]:
        """Return what summary.json says; single steps are in metrics.jsonl."""
        return {
            "backend": self.backend,
            "steps": len(self.losses),
            "final_loss": self.final_loss,
            "validation_loss": self.validation_loss,
            "tokens_per_second": self.tokens_per_second,
            "step_seconds_median": statistics.median(self.seconds),
            "bytes_sent_per_rank": self.bytes_sent_per_rank,
            "bytes_are_counted": self.bytes_are_counted,
            "sha256": self.digests[0],
            "ranks": len(self.digests),
            "ranks_agreeing": self.ranks_agreeing,
            "sample": self.sample.decode("latin1"),
        }


class Metrics:
    """metrics.jsonl, one line per step; does nothing on ranks other than 0."""

    def __init__(self, folder: str, *, enabled: bool) -> None:
        self._file = None
        if enabled:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = (Path(folder) / "metrics.jsonl").open("w")

    def write(
        self, backend: str, step: int, loss: float, seconds: float, tokens: int, sent: int
    ) -> None:
        """Append one step."""
        if self._file is not None:
            row = {
                "backend": backend,
                "step": step,
                "loss": loss,
                "step_seconds": seconds,
                "tokens": tokens,
                "bytes_sent": sent,
            }
            print(json.dumps(row), file=self._file, flush=True)

    def close(self) -> None:
        """End the file; idempotent."""
        if self._file is not None:
            self._file.close()


class Progress:
    """A bar for each backend on a terminal; ten lines elsewhere; nothing on ranks other than 0."""

    def __init__(self, backends: Sequence[str], steps: int, *, enabled: bool) -> None:
        self._width = max(len(backend) for backend in backends)
        self._steps = steps
        self._done = dict.fromkeys(backends, 0)
        self._enabled = enabled
        self._bars: Bars | None = None
        if enabled and console.is_terminal:
            self._bars = Bars(
                TextColumn("      [cyan]{task.description}"),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            self._tasks = {
                backend: self._bars.add_task(f"{backend:<{self._width}}", total=steps, state="")
                for backend in backends
            }

    def __enter__(self) -> "Progress":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def advance(
        self, backend: str, loss: float, tokens_per_second: float, sent: int, sent_is_counted: bool
    ) -> None:
        """Tell of one more step."""
        self._done[backend] += 1
        step = self._done[backend]
        about = " " if sent_is_counted else "~"
        sent_text = f"{about}{sent / 1e6:.0f} MB"
        state = f"loss {loss:.3f}  {tokens_per_second:>6,.0f} tokens/s  sent {sent_text:>8}"
        if self._bars is not None:
            self._bars.update(self._tasks[backend], advance=1, state=state)
        elif self._enabled and step % max(1, self._steps // REPORTED_STEPS) == 0:
            console.print(f"       {backend:<{self._width}}  {step:>4}/{self._steps}  {state}")


def show_results(results: Sequence[Result], folder: str) -> None:
    """Print samples, table, ratio and, in the last line, the proof; write what stays."""
    width = max(len(result.backend) for result in results)
    for index, result in enumerate(results):
        head = "[bold]write[/]  " if index == 0 else " " * 7
        text = " ".join(result.sample.decode("latin1").split())
        # No markup: the model may well write a square bracket.
        console.print(f"{head}[cyan]{result.backend:<{width}}[/]  ", end="")
        console.print(text, markup=False, style="dim")
    console.print(_table(results))
    if len(results) == 2:
        first, second = results
        ratio = step_ratio(first, second)
        console.print(
            f"{first.backend} takes a step [bold]{ratio.p50:.2f}x[/] as fast as {second.backend} "
            f"({ratio.p10:.2f} to {ratio.p90:.2f}: the middle 80 % of {len(first.losses)} pairs)"
        )
    if any(not result.bytes_are_counted for result in results):
        console.print("~ computed: this backend does not count what it sends")
    summary = [result.to_dict() for result in results]
    (Path(folder) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_losses(results, Path(folder) / "loss.png")
    console.print(f"report in {folder}: loss.png, summary.json, metrics.jsonl\n")
    _show_proof(results, width)


def step_ratio(first: Result, second: Result) -> Spread:
    """Return how many times faster the first takes a step, paired step by step."""
    return spread([slow / fast for fast, slow in zip(first.seconds, second.seconds, strict=True)])


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backend", style="cyan", no_wrap=True)
    for name in ("loss", "held-out", "tokens/s", "time of a step", "sent by a rank"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        about = "" if result.bytes_are_counted else "~"
        table.add_row(
            result.backend,
            f"{result.final_loss:.4f}",
            f"{result.validation_loss:.4f}",
            f"{result.tokens_per_second:,.0f}",
            f"{statistics.median(result.seconds) * 1e3:.1f} ms",
            f"{about}{result.bytes_sent_per_rank / 1e6:,.1f} MB",
        )
    return table


def _show_proof(results: Sequence[Result], width: int) -> None:
    for index, result in enumerate(results):
        head = "[bold]prove[/]  " if index == 0 else " " * 7
        digest = f"{result.digests[0][:SHOWN_DIGITS]}..."
        console.print(
            f"{head}[cyan]{result.backend:<{width}}[/]  sha256 of parameters and optimizer state: "
            f"{digest}"
        )
        for rank, digest in enumerate(result.digests):
            if digest != result.digests[0]:
                console.print(f"       [bold red]rank {rank} has {digest[:SHOWN_DIGITS]}...[/]")
    verdicts = []
    for result in results:
        style = "bold green" if result.identical else "bold red"
        agreeing = f"{result.ranks_agreeing}/{len(result.digests)} ranks bit-identical"
        verdicts.append(f"[{style}]{agreeing}[/] over {result.backend}")
    console.print(", ".join(verdicts))


def plot_losses(results: Sequence[Result], path: Path) -> None:
    """Draw the loss over steps and over the time that the steps took."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for index, result in enumerate(results):
        color = ("#0b6e99", "#e07b39")[index % 2]
        width, dashes = ((2.6, "-"), (1.4, (0, (3, 2))))[index % 2]
        smooth = _smoothed(result.losses)
        ends, elapsed = [], 0.0
        for seconds in result.seconds:
            elapsed += seconds
            ends.append(elapsed)
        labels = (f"held-out loss {result.validation_loss:.3f}", f"{ends[-1]:.1f} s")
        for axis, x, label in zip(axes, (range(1, len(smooth) + 1), ends), labels, strict=True):
            style: dict[str, Any] = {"color": color, "linewidth": width, "linestyle": dashes}
            axis.plot(x, result.losses, color=color, linewidth=0.7, alpha=0.25)
            axis.plot(x, smooth, label=f"{result.backend}: {label}", **style)
        axes[1].plot(ends[-1], smooth[-1], "o", color=color, markersize=6)
    first = results[0]
    figure.suptitle(
        f"A byte Llama on {len(first.digests)} ranks: {len(first.losses)} steps, "
        f"loss {first.losses[0]:.2f} to {first.final_loss:.2f}",
        x=0.01, ha="left", fontsize=13, fontweight="bold",
    )  # fmt: skip
    axes[0].set_ylabel("training loss, nats per byte")
    axes[0].set_xlabel("step")
    axes[1].set_xlabel("seconds spent in its steps")
    axes[0].set_title("step by step: the same training", loc="left", fontsize=10, color="#555555")
    axes[1].set_title("and the time it took", loc="left", fontsize=10, color="#555555")
    for axis in axes:
        axis.legend(frameon=False)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(left=0)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean around each value, over a twentieth of all, symmetric at the ends too."""
    reach = max(1, len(values) // 40)
    found = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        found.append(statistics.fmean(values[index - near : index + near + 1]))
    return found
