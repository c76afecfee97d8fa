"""The run of the demo: starts everybody, kills a trainer and a relay, and judges how it went."""

from __future__ import annotations

import asyncio
import queue
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from asyncrl.demo.evaluation import Evaluator
from asyncrl.demo.roles import Crew, Place, RoleProcess, ThisMachine
from asyncrl.demo.verdict import DemoRecord, judge
from asyncrl.protocol.options import RunOptions
from asyncrl.run_task import RunTask
from asyncrl.warm_start import WarmStartOptions, cached_warm_start
from pccl.demo.bar import make_bar
from pccl.demo.processes import CoordinatorProcess

__all__ = ["DemoOptions", "run_demo"]

_RUN = "demo"
HERE = ThisMachine()
_LOOK_SECONDS = 0.2
# No step in so long: something is broken. Includes the start of ten processes that import torch.
_STALL_SECONDS = 300.0
# Of a validator, before the other one decides alone; and of the coordinator, before this gives up.
_SILENCE_SECONDS = 60.0
# For workers that were told the run's end, and for the last verdicts.
_END_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What `python -m asyncrl.demo` is asked for."""

    cheat: str = "oracle"
    """A name of asyncrl.cheats."""

    steps: int = 180
    workers: int = 3
    async_level: int = 2
    files_per_step: int = 4
    honest_files: int = 2
    """Of the cheater, before it begins."""

    evaluate_every: int = 25
    """Steps; 0: only at the ends."""

    held_out_draws: int = 4096
    """Of the held-out split: 4096 are 511 words."""

    out: Path = Path("runs/asyncrl-demo")
    warm_folder: Path = Path("runs/asyncrl")
    """Where the weights to begin with are kept; made there in half a minute if they are not."""

    draw_count: int = 16384
    warm_steps: int = WarmStartOptions.step_count

    def __post_init__(self) -> None:
        if self.steps < 3 or self.workers < 1 or self.files_per_step < 1:
            raise ValueError(f"expected 3 steps or more, a worker and a file a step, got {self}")


class DemoFailed(Exception):
    """It can't go on; the message says why."""


def run_demo(
    options: DemoOptions, console: Console, place: Callable[[str], Place] = lambda name: HERE
) -> int:
    """Run, judge, write demo.json and demo.png; 1 when anything was wrong.

    Args:
        place: see Crew. "observer" is where this process asks from.
    """
    from asyncrl.demo.report import show_verdict, write_report

    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    demo = Demo(options, console, place)
    try:
        demo.run()
    except DemoFailed as error:
        demo.record.faults.append(str(error))
    except KeyboardInterrupt:
        console.print("asyncrl demo: interrupted; all processes were ended.")
        return 130
    verdict = judge(demo.record)
    write_report(options.out, demo.record, verdict)
    show_verdict(verdict, options.out, console)
    return 1 if verdict.faults else 0


class Demo:
    """The processes of one run, and what was done to them."""

    def __init__(
        self, options: DemoOptions, console: Console, place: Callable[[str], Place]
    ) -> None:
        self.options = options
        self._place = place
        self.record = DemoRecord(cheat=options.cheat, steps=options.steps)
        self._console = console
        self._moved_at = self._answered_at = time.monotonic()
        self._last: dict[str, Any] = {}

    def run(self) -> None:
        options = self.options
        task = RunTask(step_count=options.steps, draw_count=options.draw_count)
        environment = task.environment()
        weights = cached_warm_start(
            options.warm_folder,
            environment,
            task.model,
            WarmStartOptions(step_count=options.warm_steps),
        )
        self.record.begun_at = time.time()
        with ExitStack() as stack:
            self._crew = Crew(options.out.resolve(), _RUN, weights.resolve(), self._place)
            stack.callback(self._crew.close)
            self._evaluator = Evaluator(task, options.held_out_draws)
            pccl_folder = self._crew.folder / "pccl"
            pccl_folder.mkdir()
            self._pccl = CoordinatorProcess(pccl_folder, runs=self._place("pccl").command)
            stack.callback(self._pccl.close)
            self._start(task)
            self.record.accuracy[0] = self._evaluator.measure(weights)
            bar = stack.enter_context(make_bar("steps", self._console))
            self._bar_task = bar.add_task("", total=options.steps, state="everybody starts")
            while not self._is_over():
                self._listen()
                self._watch()
                bar.update(self._bar_task, completed=self._step, state=self._state())
            self._finish()

    def _start(self, task: RunTask) -> None:
        crew, options = self._crew, self.options
        trainers, validators = ["trainer 1", "trainer 2"], ["validator 1", "validator 2"]
        origin, relays = crew.start_broadcast(trainers, 2)
        self._pccl.wait_until_ready()
        crew.start_coordinator(
            RunOptions(
                run=_RUN,
                trainers=tuple(crew.key(name).address for name in trainers),
                validators=tuple(crew.key(name).address for name in validators),
                quorum=2,
                async_level=options.async_level,
                files_per_step=options.files_per_step,
                validator_silence_seconds=_SILENCE_SECONDS,
                sources=(*relays, origin),
            ),
            task,
        )
        self._console.print(f"page: {crew.status_url}/", soft_wrap=True)
        for name in validators:
            crew.start_validator(name)
        names = [f"worker {number}" for number in range(1, options.workers + 1)]
        for name in names:
            crew.start_worker(name)
        crew.start_worker("cheater", options.cheat, options.honest_files)
        # Nobody can work before the first weights are there: all begin together.
        self._wait_for_stakes(options.workers + 1)
        self._trainers = [
            crew.start_trainer(name, self._pccl.address, members=2) for name in trainers
        ]
        self.record.names = {
            crew.key(name).address: name for name in [*names, "cheater", *trainers, *validators]
        }

    def _wait_for_stakes(self, count: int) -> None:
        found = 0
        while found < count:
            self._listen()
            with suppress(OSError):
                found = len(self._crew.status()["workers"])
            if time.monotonic() - self._moved_at > _STALL_SECONDS:
                raise DemoFailed(f"no {count} workers have registered in {_STALL_SECONDS:g} s")

    # --- what happens ---

    @property
    def _step(self) -> int:
        return int(self._last.get("step", 0))

    def _state(self) -> str:
        if not self._last:
            return "everybody starts"
        files, steps = self._last["files"], self.record.trainer_steps
        score = f"score {steps[max(steps)]['score']:.2f}  " if steps else ""
        return f"{score}accepted {files['accepted']}  refused {files['refused']}"

    def _listen(self) -> None:
        try:
            said = self._crew.said.get(timeout=_LOOK_SECONDS)
            while True:
                self._hear(said.process, said.what)
                said = self._crew.said.get_nowait()
        except queue.Empty:
            pass

    def _hear(self, process: RoleProcess, what: dict[str, Any] | None) -> None:
        if what is None:
            if not (process.was_killed or process.is_done or self._is_banned(process)):
                process.close()  # its last words may be on the way
                raise DemoFailed("\n".join([f"{process.name} ended by itself:", *process.errors]))
        elif "banned" in what:
            # "ADDRESS: banned: REASON", and the first validator's words are enough here.
            reason = str(what["banned"]).partition("banned: ")[2].partition("; ")[0]
            self._tell(f"{process.name} is banned: {reason}", "red")
            self.record.banned[process.name] = what["banned"]
        elif "joined" in what:
            self._tell(f"{process.name} is in", "green")
        elif process.name.startswith("trainer"):
            if "version" in what:
                self.record.add_step(process.name, what)
                self._moved_at = time.monotonic()
                if what["returned"]:
                    self._tell(f"back to the last good weights: {what['returned']}", "red")
            else:
                self.record.digests[process.name] = what["digest"]
        elif "fetched" in what:
            self.record.fetches.append({"by": process.name, **what})

    def _is_banned(self, process: RoleProcess) -> bool:
        return process.name in self.record.banned

    def _tell(self, text: str, color: str) -> None:
        self.record.events.append({"at": time.time(), "step": self._step, "text": text})
        self._console.print(f"step {self._step:>3}  [{color}]{text}[/]", soft_wrap=True)

    def _watch(self) -> None:
        if time.monotonic() - self._moved_at > _STALL_SECONDS:
            said = [f"{p.name}: {line}" for p in self._crew.processes for line in p.errors]
            raise DemoFailed("\n".join([f"no step in {_STALL_SECONDS:g} s", *said]))
        try:
            self._last = self._crew.status()
            self._answered_at = time.monotonic()
        except OSError as error:
            if time.monotonic() - self._answered_at > _SILENCE_SECONDS:
                raise DemoFailed(f"the coordinator does not answer: {error}") from None
        made = max(self.record.trainer_steps, default=0)
        if made >= self.options.steps // 3 and not self.record.trainer_killed_at:
            self.record.trainer_killed_at = made
            self._kill(self._trainers[0])
            name = self._trainers[0].name
            self._trainers[0] = self._crew.start_trainer(name, self._pccl.address, members=1)
        if made >= self.options.steps // 2 and not self.record.relay_killed_at:
            self.record.relay_killed_at = made
            self._kill(next(p for p in self._crew.processes if p.name == "relay 1"))
        every = self.options.evaluate_every
        wanted = made // every * every if every else 0
        if wanted and wanted not in self.record.accuracy:
            self._evaluate(wanted)

    def _kill(self, process: RoleProcess) -> None:
        process.was_killed = True
        self._tell(f"kill -9 {process.name}", "red")
        process.kill()

    def _evaluate(self, version: int) -> None:
        with self._place("observer").inside():
            path = asyncio.run(self._evaluator.fetch(self._crew, version))
        self.record.accuracy[version] = self._evaluator.measure(path)
        found = self.record.accuracy[version]
        self._tell(
            f"held-out words right: greedy {found['greedy']:.3f}, sampled {found['sampled']:.3f}",
            "cyan",
        )

    def _is_over(self) -> bool:
        return all(trainer.is_done for trainer in self._trainers)

    def _finish(self) -> None:
        """The last version's accuracy, and the last status once all files are judged."""
        if self.options.steps not in self.record.accuracy:
            self._evaluate(self.options.steps)
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            self._listen()
            with suppress(OSError):
                self._last = self._crew.status()
            working = [
                process
                for process in self._crew.processes
                if process.name.startswith(("worker", "cheater")) and process.is_running
            ]
            if not working and not self._last["files"]["pending"]:
                break
        self.record.status = self._last
        self.record.audit(self._crew.folder / "coordinator")
