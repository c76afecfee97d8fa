"""The processes of a demo, by role, and the files that they are told of."""

from __future__ import annotations

import dataclasses
import json
import queue
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asyncrl.protocol.keys import Key
from asyncrl.protocol.options import RunOptions
from asyncrl.run_task import RunAddress, RunTask
from pccl.demo.processes import DemoProcess

__all__ = ["Crew", "Place", "RoleProcess", "RoleSaid", "ThisMachine"]

# Until a server has said where it is, on a machine that starts ten processes at once.
_START_SECONDS = 60.0
_ASK_SECONDS = 5.0


class Place(Protocol):
    """Where roles run: this machine, or a host that the caller has made."""

    @property
    def addr(self) -> str:
        """IP address that its servers listen on."""

    def command(self, args: Sequence[str]) -> list[str]:
        """`args`, so that they run there."""

    def inside(self) -> AbstractContextManager[object]:
        """Meanwhile this thread's new sockets belong there."""


class ThisMachine:
    """All roles at once; nobody else reaches them."""

    addr = "127.0.0.1"

    def command(self, args: Sequence[str]) -> list[str]:
        return list(args)

    def inside(self) -> AbstractContextManager[object]:
        return nullcontext()


@dataclass(frozen=True)
class RoleSaid:
    """A line of a process: what it says; None: it has ended."""

    process: RoleProcess
    what: dict[str, Any] | None


class RoleProcess(DemoProcess):
    """Its lines of JSON go to `said`, and those that are "name value" to `told`."""

    def __init__(
        self, name: str, command: Sequence[str], said: queue.SimpleQueue[RoleSaid]
    ) -> None:
        self.name = name
        self.told: dict[str, str] = {}
        self.was_killed = False
        self.is_done = False
        self._said = said
        self._is_serving = threading.Event()
        environment = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        super().__init__(command, environment)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{") and line.endswith("}\n"):
                what = json.loads(line)
                self.is_done = self.is_done or "done" in what
                self._said.put(RoleSaid(self, what))
                continue
            name, _, value = line.rstrip("\n").partition(" ")
            self.told[name] = value
            if name == "serving":
                self._is_serving.set()
        self._is_serving.set()
        self._said.put(RoleSaid(self, None))

    def url(self) -> str:
        """Where it serves.

        Raises:
            OSError: it does not start; the message holds what it said.
        """
        self._is_serving.wait(_START_SECONDS)
        if "serving" not in self.told:
            self.close()
            raise OSError("\n".join([f"{self.name} does not start:", *self.errors]))
        return self.told["serving"]


class Crew:
    """Starts every role with what it needs; all files are in `folder`.

    Args:
        place: where the process of that name runs. All trainers and the membership's coordinator,
            "pccl", share one: they use its loopback, and the origin's folder.
    """

    def __init__(
        self, folder: Path, run: str, weights: Path, place: Callable[[str], Place]
    ) -> None:
        self.folder = folder
        self.place = place
        self.run = run
        self.weights = weights
        self.said: queue.SimpleQueue[RoleSaid] = queue.SimpleQueue()
        self.processes: list[RoleProcess] = []
        self.origin_folder = folder / "origin"
        self.run_file = folder / "run.json"
        self.status_url = ""
        for name in ("keys", "origin"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def key(self, name: str) -> Key:
        return Key.load_or_create(self._key_file(name))

    def _key_file(self, name: str) -> Path:
        return self.folder / "keys" / f"{name}.pem"

    def start(self, name: str, module: str, *options: object) -> RoleProcess:
        command = [sys.executable, "-m", module, *map(str, options)]
        process = RoleProcess(name, self.place(name).command(command), self.said)
        self.processes.append(process)
        return process

    def start_broadcast(self, trainers: Sequence[str], relay_count: int) -> tuple[str, list[str]]:
        """The origin's address and the relays'."""
        signers = [word for trainer in trainers for word in ("--signer", self.key(trainer).address)]
        module = "asyncrl.broadcast"
        serve = ["origin", "--folder", self.origin_folder, *self._listen("origin")]
        origin = self.start("origin", module, *serve)
        upstream = ["--origin", origin.url(), "--run", self.run, "--keep", 12]
        relays = [
            self.start(
                f"relay {number}",
                *(module, "relay", "--folder", self.folder / f"relay-{number}"),
                *(*upstream, *signers, *self._listen(f"relay {number}")),
            )
            for number in range(1, relay_count + 1)
        ]
        return origin.url(), [relay.url() for relay in relays]

    def start_coordinator(self, options: RunOptions, task: RunTask) -> None:
        """Its page is at `status_url` then, and `run_file` says where it is."""
        file = self.folder / "options.json"
        fields = {**dataclasses.asdict(options), "task": task.to_fields()}
        file.write_text(json.dumps(fields, indent=1))
        coordinator = self.start(
            "coordinator",
            *("asyncrl.protocol", "coordinator", file),
            *("--folder", self.folder / "coordinator", *self._listen("coordinator")),
        )
        self.status_url = coordinator.url()
        address = coordinator.told["coordinator"]
        RunAddress(self.status_url, self.run, address).save(self.run_file)

    def _listen(self, name: str) -> list[object]:
        return ["--host", self.place(name).addr]

    def start_trainer(self, name: str, pccl_address: str, members: int) -> RoleProcess:
        return self.start(
            name,
            *("asyncrl.train", "--run", self.run_file, "--key", self._key_file(name), "--local"),
            *("--pccl", pccl_address, "--weights", self.weights, "--origin", self.origin_folder),
            *("--members", members, "--members-end", 2),
            *("--checkpoint", self.folder / f"{name}.checkpoint"),
        )

    def start_validator(self, name: str) -> RoleProcess:
        return self.start(name, "asyncrl.validate", *self._places(name))

    def start_worker(self, name: str, cheat: str = "", honest_files: int = 0) -> RoleProcess:
        how = ["--cheat", cheat, "--honest-files", honest_files]
        return self.start(name, "asyncrl.worker", *self._places(name), *how)

    def _places(self, name: str) -> list[object]:
        places = ["--run", self.run_file, "--key", self._key_file(name)]
        return [*places, "--folder", self.folder / name]

    def status(self) -> dict[str, Any]:
        """What the coordinator shows to everybody.

        Raises:
            OSError: it does not answer.
        """
        url = f"{self.status_url}/status.json"
        with (
            self.place("observer").inside(),
            urllib.request.urlopen(url, timeout=_ASK_SECONDS) as answer,
        ):
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def close(self) -> None:
        """End all processes, those first that are asked by others last."""
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            process.close()
