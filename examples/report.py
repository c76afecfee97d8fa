"""What a training run shows (progress, a table) and leaves behind (metrics, summary, plot)."""

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)

FINAL_SHARE = 0.1  # of the steps: the final loss is their mean, as one step's loss jumps by 2 %
REPORTED_STEPS = 10  # lines instead of a bar where the output is no terminal


@dataclass(frozen=True)
class Result:
    """One backend's run, as rank 0 saw it."""

    backend: str
    losses: list[float]  # [steps] mean over ranks, nats per byte
    validation_loss: float
    tokens_per_second: float  # all ranks together
    step_seconds_median: float
    bytes_sent: int  # by rank 0
    bytes_are_counted: bool  # by the backend; else computed
    digest: str
    ranks_agreeing: int
    ranks: int

    @property
    def identical(self) -> bool:
        """Whether every rank ended with the same bytes."""
        return self.ranks_agreeing == self.ranks

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last steps."""
        return statistics.fmean(self.losses[-max(1, int(len(self.losses) * FINAL_SHARE)) :])


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


class TrainingProgress:
    """A bar on a terminal; ten lines elsewhere; nothing on ranks other than 0."""

    def __init__(self, backend: str, steps: int, *, enabled: bool) -> None:
        self._backend = backend
        self._steps = steps
        self._step = 0
        self._enabled = enabled
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("       [cyan]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self._bar.add_task(backend, total=steps, state="")

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, loss: float, tokens_per_second: float, sent: int) -> None:
        """Tell of one more step."""
        self._step += 1
        state = f"loss {loss:.3f}  {tokens_per_second:>7,.0f} tokens/s  sent {sent / 1e6:>7.1f} MB"
        if self._bar is not None:
            self._bar.update(self._task, advance=1, state=state)
        elif self._enabled and self._step % max(1, self._steps // REPORTED_STEPS) == 0:
            console.print(f"       {self._backend}  step {self._step:>5}/{self._steps}  {state}")


def show_results(results: list[Result], metrics: Metrics, folder: str) -> None:
    """Print the table and write what stays."""
    metrics.close()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backend", style="cyan")
    for name in ("steps", "loss", "held-out", "tokens/s", "step", "sent"):
        table.add_column(name, justify="right")
    table.add_column("identical")
    for result in results:
        about = "" if result.bytes_are_counted else "~"
        mark = "green" if result.identical else "bold red"
        table.add_row(
            result.backend,
            str(len(result.losses)),
            f"{result.final_loss:.4f}",
            f"{result.validation_loss:.4f}",
            f"{result.tokens_per_second:,.0f}",
            f"{result.step_seconds_median * 1e3:.1f} ms",
            f"{about}{result.bytes_sent / 1e6:,.0f} MB",
            f"[{mark}]{result.ranks_agreeing}/{result.ranks} ranks[/]",
        )
    console.print()
    console.print(table)
    console.print(
        "loss: nats per byte, mean of the last tenth. sent: by rank 0; ~ computed, not counted."
    )
    summary = [dataclasses.asdict(result) | {"final_loss": result.final_loss} for result in results]
    for row in summary:
        del row["losses"]  # in metrics.jsonl
    (Path(folder) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_losses(results, Path(folder) / "loss.png")
    console.print(f"[bold]report[/] {folder}/loss.png, metrics.jsonl, summary.json")


def plot_losses(results: list[Result], path: Path) -> None:
    """Draw the loss of each run; with two runs also how far apart they are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = ["#0b6e99", "#e07b39"]
    rows = 2 if len(results) == 2 else 1
    figure, axes = plt.subplots(
        rows, 1, figsize=(8, 3 + 2 * rows), sharex=True, squeeze=False, layout="constrained",
        height_ratios=[3, 1][:rows],
    )  # fmt: skip
    upper = axes[0][0]
    for index, result in enumerate(results):
        label = f"{result.backend}: held-out text {result.validation_loss:.3f}"
        upper.plot(
            result.losses,
            color=colors[index % 2],
            linewidth=[2.2, 1.0][index % 2],
            linestyle=["-", "--"][index % 2],
            label=label,
        )
    upper.set_ylabel("loss, nats per byte")
    upper.set_title(
        f"Byte Llama on {results[0].ranks} ranks: "
        f"loss {results[0].losses[0]:.2f} to {results[0].final_loss:.2f} "
        f"in {len(results[0].losses)} steps",
        loc="left",
    )
    upper.legend(frameon=False)
    if rows == 2:
        first, second = results
        lower = axes[1][0]
        difference = [abs(a - b) for a, b in zip(first.losses, second.losses, strict=True)]
        lower.plot(difference, color="#666666", linewidth=1)
        if max(difference) > 0:
            lower.set_yscale("log")
        lower.set_ylabel(f"|{first.backend} - {second.backend}|")
    axes[-1][0].set_xlabel("step")
    for row in axes:
        row[0].grid(alpha=0.25)
        row[0].spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
