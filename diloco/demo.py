"""`diloco demo`: trains here with DiLoCo while members are killed and fresh ones join; the report.

It knows of the run what the members' files say, as `diloco report` does.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from diloco.launch import LocalRun, MemberProcess, python_command
from diloco.report import make_report, read_run, show_report
from pccl.demo.bar import make_bar
from pccl.demo.processes import find_example

__all__ = ["DemoOptions", "run_demo"]

_LOOK_SECONDS = 0.2
# Nobody finishes a round: something is broken. Starting Python with torch takes seconds, more on a
# machine that does much else.
_STALL_SECONDS = 300.0
# Kills are spread over this part of the run, so that whoever comes instead still trains.
_KILLS_FROM, _KILLS_TO = 0.25, 0.6
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What `diloco demo` is asked for."""

    members: int = 4
    kills: int = 2
    """By kill -9, of members; for each a fresh one joins."""

    steps: int = 400
    sync_every: int = 20
    warmup: int = 60
    codec: str = "none"
    seed: int = 0
    """Of who is killed."""

    out: Path = Path("runs/diloco_demo")
    arguments: tuple[str, ...] = ()
    """More of examples/train_diloco.py."""

    def __post_init__(self) -> None:
        if self.members < 2 or (self.kills and self.members < 3):
            raise ValueError("members: expected 2 or more, 3 or more where some are killed")
        if self.kills < 0 or self.steps < 1:
            raise ValueError(f"expected 0 or more kills and 1 or more steps, got {self}")


class DemoFailed(Exception):
    """It can't go on; the message says why."""


def run_demo(options: DemoOptions, console: Console) -> int:
    """Train, kill, report; the exit code, 1 when anything was wrong."""
    for old in options.out.glob("member-*.jsonl"):
        old.unlink()
    faults = []
    try:
        with LocalRun("demo", _LOOPBACK) as run:
            demo = _Demo(options, console, run)
            demo.train()
            faults = demo.faults()
    except (DemoFailed, OSError) as error:
        faults = [str(error)]
    except KeyboardInterrupt:
        console.print("diloco demo: interrupted; all processes were ended.")
        return 130
    try:
        report = make_report(read_run(options.out))
    except ValueError as error:
        console.print(Text("\n".join([*faults, str(error)]), style="red"), soft_wrap=True)
        return 1
    report = replace(report, faults=[*faults, *report.faults])
    if report.merges:
        from diloco.report_plot import plot_report

        plot_report(report, options.out / "report.png")
    show_report(report, options.out, console)
    return int(bool(report.faults) or not report.merges)


class _Demo:
    """The members of one run, what their files say, and what is done to them."""

    def __init__(self, options: DemoOptions, console: Console, run: LocalRun) -> None:
        self.options = options
        self._console = console
        self._run = run
        self._random = random.Random(options.seed)
        first, last = (int(options.steps * part) for part in (_KILLS_FROM, _KILLS_TO))
        gap = (last - first) / max(1, options.kills - 1)
        self._kill_steps = [int(first + number * gap) for number in range(options.kills)]
        self._files = _Files(options.out)
        self._last: dict[str, Any] = {}  # the newest outer step that anybody wrote
        self._heard_at = time.monotonic()
        self._fresh: set[int] = set()  # processes that were started after a kill, not seen yet

    def train(self) -> None:
        console = self._console
        console.print(f"status page: http://127.0.0.1:{self._run.coordinator.status_port}/")
        for _ in range(self.options.members):
            self._start(self.options.members)
        with make_bar("step", self._console) as bar:
            task = bar.add_task("", total=self.options.steps, state="members start")
            while self._run.alive:
                time.sleep(_LOOK_SECONDS)
                self._listen()
                self._watch()
                self._act()
                if self._last:
                    bar.update(task, completed=self._last["step"], state=self._state())

    def faults(self) -> list[str]:
        """What was wrong with the processes themselves."""
        self._listen()
        found = [
            member.last_words()
            for member in self._run.members
            if not member.was_killed and not member.is_done
        ]
        if self._kill_steps:
            found.append(f"{len(self._kill_steps)} of {self.options.kills} kills were not done")
        found += [f"process {process} started, and never joined" for process in self._fresh]
        return found

    def _start(self, wait_for: int) -> MemberProcess:
        options = self.options
        command = [
            str(find_example("train_diloco.py")),
            "--steps",
            str(options.steps),
            "--sync-every",
            str(options.sync_every),
        ]
        command += ["--warmup", str(options.warmup), "--codec", options.codec]
        # Whoever was killed last is replaced before the end.
        command += ["--members", str(options.members)]
        command += ["--out", str(options.out), "--quiet", *options.arguments]
        return self._run.start(python_command(command), wait_for=wait_for)

    def _listen(self) -> None:
        for process, row in self._files.read():
            if row["kind"] != "outer":
                continue
            self._heard_at = time.monotonic()
            if process in self._fresh:
                self._fresh.discard(process)
                self._tell(f"[green]member {row['own']} has joined[/]")
            if row["step"] > self._last.get("step", 0):
                self._last = row

    def _watch(self) -> None:
        if not self._run.coordinator.is_running:
            raise DemoFailed("\n".join(["the coordinator ended:", *self._run.coordinator.errors]))
        for member in self._run.members:
            if not (member.is_running or member.is_done or member.was_killed):
                raise DemoFailed(member.last_words())
        if time.monotonic() - self._heard_at > _STALL_SECONDS:
            said = [line for member in self._run.alive for line in member.errors]
            raise DemoFailed("\n".join([f"no outer step in {_STALL_SECONDS:g} s", *said]))

    def _act(self) -> None:
        if not self._kill_steps or self._last.get("step", 0) < self._kill_steps[0]:
            return
        names = self._files.names
        inside = [m for m in self._run.alive if names.get(m.process.pid) in self._last["members"]]
        if len(inside) < 3:  # two have to stay, so that the state of the run does
            return
        self._kill_steps.pop(0)
        victim = self._random.choice(inside)
        victim.was_killed = True
        victim.kill()
        name = names[victim.process.pid]
        self._tell(f"[red]kill -9 member {name}[/], a fresh one starts")
        self._fresh.add(self._start(1).process.pid)

    def _tell(self, text: str) -> None:
        self._console.print(f"step {self._last.get('step', 0):>5}  {text}")

    def _state(self) -> str:
        row = self._last
        losses = [loss for loss in row["losses"].values() if loss is not None]
        loss = f"loss {sum(losses) / len(losses):.3f}  " if losses else ""
        speed = row["total_tokens"] / max(row["seconds"], 1e-9)
        return (
            f"{loss}{speed:,.0f} tokens/s  {row['utilization']:.0%} computing  "
            f"{row['own_bytes_sent'] / 1e6:.1f} MB an outer step  {len(row['members'])} members"
        )


class _Files:
    """What members write, line by line as it comes."""

    def __init__(self, folder: Path) -> None:
        self.names: dict[int, str] = {}  # process -> member
        self._folder = folder
        self._places: dict[Path, int] = {}
        self._processes: dict[Path, int] = {}

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """The lines that are new, with the process that wrote each."""
        found = []
        for path in sorted(self._folder.glob("member-*.jsonl")):
            with path.open() as file:
                file.seek(self._places.get(path, 0))
                text = file.read()
            whole = text[: text.rfind("\n") + 1]
            self._places[path] = self._places.get(path, 0) + len(whole.encode())
            for line in whole.splitlines():
                row = json.loads(line)
                if row["kind"] == "start":
                    self._processes[path] = row["process"]
                    self.names[row["process"]] = row["member"]
                found.append((self._processes[path], row))
        return found
