"""The run of `pccl demo`: starts members, kills them and the coordinator, and shows it live."""

from __future__ import annotations

import queue
import random
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pccl.demo.bar import make_bar
from pccl.demo.processes import CoordinatorProcess, MemberProcess, Said, find_example
from pccl.demo.verdict import Event, Record, Verdict, judge

__all__ = ["Demo", "DemoOptions", "run_demo"]

# Kills come so many steps after everybody is in again.
_QUIET_STEPS = (5, 30)
# So many of them come while somebody is still on the way in.
_HASTY_SHARE = 0.25
# Nobody does a step: something is broken. Starting Python with torch takes seconds, so members
# that are on their way in don't count against it.
_STALL_SECONDS = 90.0
_LOOK_SECONDS = 0.05
# About a step: with `kill_every` a kill comes at any moment of one.
_MOMENT_SECONDS = 0.15
# What the throughput that is shown is a mean of.
_SPEED_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What `pccl demo` is asked for."""

    members: int = 4
    kills: int = 20
    steps: int = 200
    """At least so many; it goes on until the last kill is survived."""

    seed: int = 0
    """Of the model, and of who is killed when."""

    out: Path = Path("runs/demo")
    coordinator_share: float = 0.25
    """Of the kills are the coordinator's."""

    kill_every: int = 0
    """Steps from kill to kill, whoever is still on the way in; 0: some after all are in again."""

    program: Path | None = None
    """Of a member; None: examples/demo_member.py."""

    def __post_init__(self) -> None:
        if self.members < 3:
            raise ValueError(f"members: expected 3 or more, so that two survive; {self.members}")
        if self.kills < 0 or self.steps < 1:
            raise ValueError(f"expected 0 or more kills and 1 or more steps, got {self}")


class DemoFailed(Exception):
    """It can't go on; the message says why."""


def run_demo(options: DemoOptions, console: Console) -> int:
    """Train, kill, judge; write demo.json and demo.png; return 1 when anything was wrong."""
    from pccl.demo.report import show_verdict, write_report

    options.out.mkdir(parents=True, exist_ok=True)
    demo = Demo(options, console)
    failure = ""
    try:
        demo.run()
    except DemoFailed as error:
        failure = str(error)
    except KeyboardInterrupt:
        console.print("pccl demo: interrupted; all processes were ended.")
        return 130
    verdict = demo.judge(failure)
    write_report(options.out, asdict(options), verdict, demo.records(), demo.events)
    show_verdict(verdict, options.out, console)
    return 1 if verdict.faults else 0


class Demo:
    """The processes of one run, what they said, and what was done to them."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self.options = options
        self.events: list[Event] = []
        self._console = console
        self._random = random.Random(options.seed)
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._members: list[MemberProcess] = []  # all that ever were, in the order of their start
        self._folder = Path()
        coordinator_kills = round(options.kills * options.coordinator_share)
        self._victims = ["coordinator"] * coordinator_kills
        self._victims += ["member"] * (options.kills - coordinator_kills)
        self._random.shuffle(self._victims)
        self._kill_step = 0  # not before
        self._is_hasty = False
        self._is_coordinator_away = False
        self._is_ending = False
        self._last: dict[str, Any] = {"step": 0, "loss": 0.0, "members": 0}
        self._done_at: deque[tuple[float, int]] = deque()  # of the last steps, with their tokens
        self._heard_at = 0.0

    # --- what is left of it ---

    def records(self) -> list[Record]:
        return [
            Record(m.number, m.member_id, m.was_killed, m.steps, m.digest) for m in self._members
        ]

    def judge(self, failure: str) -> Verdict:
        verdict = judge(self.records(), self.events)
        faults = [failure] if failure else []
        kills = verdict.member_kills + verdict.coordinator_kills
        if kills < self.options.kills:
            faults.append(f"{kills} of {self.options.kills} kills were done")
        return replace(verdict, faults=[*faults, *verdict.faults])

    # --- the run ---

    def run(self) -> None:
        with ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="pccl-demo-"))
            )
            self._coordinator = CoordinatorProcess(self._folder)
            stack.callback(self._close)
            self._coordinator.wait_until_ready()
            self._address = self._coordinator.address
            self._console.print(f"status page: http://127.0.0.1:{self._coordinator.status_port}/")
            bar = stack.enter_context(make_bar("kills", self._console))
            self._task = bar.add_task("", total=self.options.kills, state="members start")
            for _ in range(self.options.members):
                self._start_member(begin_with=self.options.members)
            self._plan_kill()
            self._heard_at = time.monotonic()
            while not self._is_over():
                self._listen()
                self._watch()
                self._act()
                bar.update(self._task, completed=self._kills, state=self._state())

    def _close(self) -> None:
        processes = [*self._members, self._coordinator]
        for process in processes:
            process.terminate()
        for process in processes:
            process.close()

    def _state(self) -> str:
        if not self._last["step"]:
            return "members start"
        last = self._last
        return (
            f"step {last['step']:>4}{self._loss()}  members {len(self._inside())}  "
            f"{self._tokens_per_second():>6,.0f} tokens/s"
        )

    def _tokens_per_second(self) -> float:
        if len(self._done_at) < 2:
            return 0.0
        seconds = self._done_at[-1][0] - self._done_at[0][0]
        return sum(tokens for _, tokens in list(self._done_at)[1:]) / max(seconds, 1e-9)

    def _start_member(self, begin_with: int = 1) -> None:
        options = ["--members", str(begin_with), "--seed", str(self.options.seed)]
        options += ["--end", str(self._folder / "end")]
        number = len(self._members) + 1
        program = self.options.program or find_example("demo_member.py")
        self._members.append(MemberProcess(number, program, self._address, options, self._said))

    def _alive(self) -> list[MemberProcess]:
        return [member for member in self._members if not member.was_killed]

    def _inside(self) -> list[MemberProcess]:
        """Those that have done a step."""
        return [member for member in self._alive() if member.steps]

    @property
    def _kills(self) -> int:
        return self.options.kills - len(self._victims)

    def _tell(self, kind: str, text: str, member: MemberProcess | None = None) -> None:
        step = self._last["step"]
        number, member_id = (member.number, member.member_id) if member else (0, "")
        self.events.append(Event(time.monotonic(), kind, number, member_id, step))
        color = "red" if kind.endswith("killed") else "green"
        self._console.print(f"step {step:>5}{self._loss()}  [{color}]{text}[/]")

    def _loss(self) -> str:
        return "" if self.options.program else f"  loss {self._last['loss']:.3f}"

    # --- what members say ---

    def _listen(self) -> None:
        try:
            said = self._said.get(timeout=_LOOK_SECONDS)
            while True:
                self._hear(said.member, said.what)
                said = self._said.get_nowait()
        except queue.Empty:
            pass

    def _hear(self, member: MemberProcess, what: dict[str, Any] | None) -> None:
        if what is None:
            if not member.was_killed and not member.digest:
                member.close()  # its last words may be on the way
                code = member.process.returncode
                head = f"member {member.number} ended by itself, exit status {code}:"
                raise DemoFailed("\n".join([head, *member.errors]))
        elif "joined" in what:
            member.member_id = what["joined"]
        elif "done" in what:
            member.digest = what["digest"]
        else:
            is_new = not member.steps
            member.steps.append(what)
            self._heard_at = time.monotonic()
            if what["step"] > self._last["step"]:
                self._last = what
                contributors = max(len(names) for names in what["contributors"])
                self._done_at.append((what["at"], what["tokens"] * contributors))
                if len(self._done_at) > _SPEED_STEPS:
                    self._done_at.popleft()
            if is_new:
                self._tell("member in", f"member {member.number} is in", member)
                if not self._is_hasty:
                    self._wait_some_steps()

    # --- what is done to them ---

    def _watch(self) -> None:
        coordinator = self._coordinator
        if self._is_coordinator_away and coordinator.is_ready:
            self._is_coordinator_away = False
            self._tell("coordinator back", "the coordinator is back")
        if not coordinator.is_running:
            raise DemoFailed("\n".join(["the coordinator ended by itself:", *coordinator.errors]))
        if time.monotonic() - self._heard_at > _STALL_SECONDS:
            said = [f"member {m.number}: {line}" for m in self._alive() for line in m.errors]
            raise DemoFailed("\n".join([f"no step in {_STALL_SECONDS:g} s", *said]))

    def _plan_kill(self) -> None:
        if self.options.kill_every:
            self._is_hasty = True
            self._kill_step = max(self._kill_step, self._last["step"]) + self.options.kill_every
            return
        self._is_hasty = self._random.random() < _HASTY_SHARE
        self._wait_some_steps()

    def _wait_some_steps(self) -> None:
        self._kill_step = self._last["step"] + self._random.randint(*_QUIET_STEPS)

    def _act(self) -> None:
        inside = self._inside()
        is_whole = len(inside) == self.options.members and not self._is_coordinator_away
        if self._is_ending or self._last["step"] < self._kill_step:
            return
        if not self._victims:
            if is_whole and self._last["step"] >= self.options.steps:
                (self._folder / "end").touch()
                self._is_ending = True
            return
        # Two have to stay, so that the state of the run does; a coordinator has to be there to die.
        victim = self._victims[-1]
        is_possible = len(inside) >= 3 if victim == "member" else not self._is_coordinator_away
        if not is_possible or not (is_whole or self._is_hasty):
            return
        self._victims.pop()
        if self.options.kill_every:
            time.sleep(self._random.uniform(0, _MOMENT_SECONDS))
        if victim == "member":
            self._kill_member(self._random.choice(inside))
        else:
            self._kill_coordinator()
        self._plan_kill()

    def _kill_member(self, member: MemberProcess) -> None:
        member.was_killed = True
        self._tell("member killed", f"kill -9 member {member.number}", member)
        member.kill()
        self._start_member()

    def _kill_coordinator(self) -> None:
        self._tell("coordinator killed", "kill -9 the coordinator")
        self._coordinator.kill()
        self._coordinator.close()
        self._coordinator = CoordinatorProcess(self._folder, self._coordinator)
        self._is_coordinator_away = True

    def _is_over(self) -> bool:
        return self._is_ending and all(member.digest for member in self._alive())
