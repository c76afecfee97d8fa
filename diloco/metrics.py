"""What a run shows while it goes on, and what it leaves for `diloco report`.

Every member writes a file of its own, RUN/member-ID.jsonl, one JSON object a line:

    start   at, member, parameters, settings
    inner   at, step, loss, tokens, seconds, learning_rate       a step of this member
    outer   at, round, step, members, contributors, tokens,      an outer step of all
            loss, bytes_sent, sync_seconds, seconds, utilisation, hash
    end     at, step                                             it left; no such line: it died

`at` is the machine's clock (seconds since 1970); a figure that is not finite is null.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

__all__ = ["Metrics", "OuterStep"]

_logger = logging.getLogger("diloco")

# Where the output is no terminal: a line instead of a bar, this often at most.
_LINE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class OuterStep:
    """What one outer step was, at this member.

    round: counts the run's outer steps, from 1. step: the run's inner steps after it.
    members, contributors: ids of those that were in, and of those whose work is in the result.
    tokens: of all contributors since the last outer step. bytes_sent: by this member.
    sync_seconds: in which this member did not compute. hash: of the outer parameters, momentum.
    """

    round: int
    step: int
    members: Sequence[str]
    contributors: Sequence[str]
    tokens: float
    bytes_sent: int
    sync_seconds: float
    hash: str = ""
    excluded: Mapping[str, str] | None = None


class _Sink(Protocol):
    def write(self, kind: str, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Takes a member's figures, and shows and writes them.

    Nothing here can end a run: where a file can't be written (a full disk, say) this is logged
    once, and that output ends.

    Args:
        folder: of the run; None writes no file.
        member: this member's id.
        steps: of the whole run, for the bar.
        progress: a bar on a terminal, a line now and then elsewhere.
        tensorboard: also write RUN/tensorboard/ID; needs the package.
        wandb: also to Weights & Biases, as a run of this project; needs the package.
    """

    def __init__(
        self,
        folder: Path | str | None,
        *,
        member: str = "0",
        steps: int = 0,
        progress: bool = False,
        tensorboard: bool = False,
        wandb: str = "",
    ) -> None:
        self._sinks: list[_Sink] = []
        if folder is not None:
            place = Path(folder)
            self._sinks.append(_JsonLines(place / f"member-{member}.jsonl"))
            if tensorboard:
                self._sinks.append(_TensorBoard(place / "tensorboard" / member))
        if wandb:
            self._sinks.append(_Wandb(wandb, member))
        if progress:
            self._sinks.append(_Progress(steps))
        self._member = member
        self._began = self._last = time.perf_counter()
        self._sync_seconds = 0.0
        self._round_loss: list[float] = []
        self._step = 0

    def start(self, *, parameters: int, settings: Mapping[str, Any]) -> None:
        """Say what the run is."""
        self._began = self._last = time.perf_counter()
        self._write(
            "start", {"member": self._member, "parameters": parameters, "settings": dict(settings)}
        )

    def inner(self, step: int, *, loss: float, tokens: int, learning_rate: float = 0.0) -> None:
        """A step of this member is done; its seconds are those since the last call of any kind.

        Args:
            step: of the run, after it.
            tokens: that this member trained on in it.
        """
        self._step = step
        self._round_loss.append(loss)
        row = {
            "step": step,
            "loss": loss,
            "tokens": tokens,
            "seconds": self._lap(),
            "learning_rate": learning_rate,
        }
        self._write("inner", row)

    def outer(self, done: OuterStep) -> None:
        """An outer step is done."""
        self._lap()
        self._sync_seconds += done.sync_seconds
        seconds = self._last - self._began
        losses = [loss for loss in self._round_loss if math.isfinite(loss)]
        self._round_loss = []
        row = asdict(done) | {
            "members": list(done.members),
            "contributors": list(done.contributors),
            "loss": sum(losses) / len(losses) if losses else math.nan,
            "seconds": seconds,
            "utilisation": 1 - self._sync_seconds / max(seconds, self._sync_seconds, 1e-9),
        }
        self._write("outer", row)

    def close(self) -> None:
        """This member leaves; idempotent."""
        if self._sinks:
            self._write("end", {"step": self._step})
        self._close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Whoever ends by an error has not left politely.
        self.close() if error is None else self._close()

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def _write(self, kind: str, row: Mapping[str, Any]) -> None:
        whole = {"kind": kind, "at": time.time(), **row}
        for sink in list(self._sinks):
            try:
                sink.write(kind, whole)
            except OSError as error:
                _logger.warning("%s ends: %s; the run goes on", type(sink).__name__[1:], error)
                self._sinks.remove(sink)
                _close(sink)

    def _close(self) -> None:
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            _close(sink)


def _close(sink: _Sink) -> None:
    with suppress(OSError):
        sink.close()


class _JsonLines:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)  # a line is whole, or it is the last one

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(_finite(row)) + "\n")

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        for name, value in _figures(kind, row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, project: str, member: str) -> None:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        self._run = wandb.init(project=project, name=member, group=project)

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        if kind == "start":
            self._run.config.update(row["settings"])
        figures = _figures(kind, row)
        if figures:
            self._run.log({**figures, "step": row["step"]})

    def close(self) -> None:
        self._run.finish()


class _Progress:
    """loss, tokens/s, utilisation and bytes of an outer step, at a glance."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("step"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            Remaining(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._steps = steps
        self._task = self._bar.add_task("", total=steps or None, state="")
        self._bar.start()
        self._loss, self._outer = math.nan, ""
        self._tokens, self._began, self._said_at = 0.0, time.perf_counter(), 0.0

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        if kind == "inner":
            self._loss = row["loss"]
        elif kind == "outer":
            self._tokens += row["tokens"]
            speed = self._tokens / max(time.perf_counter() - self._began, 1e-9)
            self._outer = (
                f"  {speed:,.0f} tokens/s  {row['utilisation']:.0%} computing  "
                f"{row['bytes_sent'] / 1e6:.2f} MB an outer step  {len(row['members'])} members"
            )
        if "step" not in row:
            return
        state = f"loss {self._loss:.3f}{self._outer}"
        self._bar.update(self._task, completed=row["step"], state=state)
        now = time.monotonic()
        is_due = kind == "end" or (kind == "outer" and now - self._said_at >= _LINE_SECONDS)
        if is_due and not self._console.is_terminal:
            self._said_at = now
            self._console.print(f"step {row['step']}/{self._steps or '?'}  {state}")

    def close(self) -> None:
        self._bar.stop()


def _figures(kind: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Those that make a curve over steps."""
    if kind not in ("inner", "outer"):
        return {}
    figures = {
        f"{kind}/{name}": float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and name not in ("at", "step")
    }
    if kind == "outer":
        figures["outer/members"] = len(row["members"])
    return figures


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(found) for name, found in value.items()}
    return value
