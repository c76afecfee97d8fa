"""What a run shows while it goes on, and what it leaves for `diloco report`.

Every member writes a file of its own, RUN/member-NAME.jsonl, one JSON object a line:

    start   at, member, process, parameters, settings
    inner   at, step, loss, tokens, seconds, learning_rate     a step of this member
    outer   at, all fields of SyncInfo, seconds, utilization   a merge of all members
    result  at, whatever was found at the end                  a loss on held-out data, say
    end     at, step                                           it left; no such line: it died

`at` is the machine's clock (seconds since 1970); a figure that is not finite is null.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from diloco.info import SyncInfo
from diloco.optimizer import DiLoCo

__all__ = ["Metrics"]

_logger = logging.getLogger("diloco")

# Where the output is no terminal: a line instead of a bar, this often at most.
_LINE_SECONDS = 10.0


class _Sink(Protocol):
    def write(self, kind: str, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Watches a run, and shows and writes its figures.

        with DiLoCo(comm, model, optimizer) as run, Metrics(run, "runs/mine") as metrics:
            ...
            metrics.log(loss=loss)  # before optimizer.step()

    Nothing here can end a run: where a file can't be written (a full disk, say) this is logged
    once, and that output ends.

    Args:
        run: the DiLoCo to watch.
        folder: of the run; None writes no file.
        steps: of the whole run, for the bar.
        progress: a bar on a terminal, a line now and then elsewhere.
        tensorboard: also write FOLDER/tensorboard/NAME; needs the package.
        wandb: also to Weights & Biases, as a run of this project; needs the package.
    """

    def __init__(
        self,
        run: DiLoCo,
        folder: Path | str | None,
        *,
        steps: int = 0,
        progress: bool = False,
        tensorboard: bool = False,
        wandb: str = "",
    ) -> None:
        self._run = run
        name = run.members.name.replace(" ", "-")
        self._sinks: list[_Sink] = []
        if folder is not None:
            place = Path(folder)
            self._sinks.append(_JsonLines(place / f"member-{name}.jsonl"))
            if tensorboard:
                self._sinks.append(_TensorBoard(place / "tensorboard" / name))
        if wandb:
            self._sinks.append(_Wandb(wandb, name))
        if progress:
            self._sinks.append(_Progress(steps))
        self._losses: list[float] = []
        self._began = self._last = time.perf_counter()
        self._compute_seconds = self._sync_seconds = 0.0
        run.on_sync.append(self._synced)
        self._hook = run.optimizer.register_step_pre_hook(self._stepping)
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        settings = dataclasses.asdict(run.settings)
        start = {"member": run.members.name, "process": os.getpid()}
        self._write("start", {**start, "parameters": parameters, "settings": settings})

    def log(self, *, loss: float | Tensor) -> None:
        """Take the loss of the step that is being made; of several, as with accumulated gradients,
        the mean. It goes to the run as well: DiLoCo.log() need not be called."""
        self._losses.append(float(loss.detach() if isinstance(loss, Tensor) else loss))
        self._run.log(loss=self._losses[-1])

    def result(self, **figures: float) -> None:
        """Take what was found at the end; the same names on all members."""
        self._write("result", figures)

    def _stepping(self, *_: Any) -> None:
        now = time.perf_counter()
        row = {
            "step": self._run.step + 1,
            "loss": sum(self._losses) / len(self._losses) if self._losses else math.nan,
            "tokens": self._run.progress.step_so_far().tokens,
            "seconds": now - self._last,
            "learning_rate": float(self._run.optimizer.param_groups[0]["lr"]),
        }
        self._losses, self._last = [], now
        self._write("inner", row)

    def _synced(self, info: SyncInfo) -> None:
        self._compute_seconds += info.own_compute_seconds
        self._sync_seconds += info.own_sync_seconds
        whole = self._compute_seconds + self._sync_seconds
        row = dataclasses.asdict(info) | {
            "seconds": time.perf_counter() - self._began,
            "utilization": self._compute_seconds / whole if whole else 1.0,
        }
        self._write("outer", row)

    def close(self) -> None:
        """This member leaves; idempotent."""
        if self._sinks:
            self._write("end", {"step": self._run.step})
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
        self._hook.remove()
        with suppress(ValueError):
            self._run.on_sync.remove(self._synced)
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
        import wandb  # type: ignore[import-not-found, import-untyped, unused-ignore]

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
    """loss, tokens/s, utilization and bytes of an outer step, at a glance."""

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
        self._began, self._said_at = time.perf_counter(), 0.0

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        if kind == "inner":
            self._loss = row["loss"]
        elif kind == "outer":
            speed = row["total_tokens"] / max(time.perf_counter() - self._began, 1e-9)
            self._outer = (
                f"  {speed:,.0f} tokens/s  {row['utilization']:.0%} computing  "
                f"{row['own_bytes_sent'] / 1e6:.2f} MB an outer step  {len(row['members'])} members"
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
