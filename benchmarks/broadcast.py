"""Weights from an origin over two relays to four clients between far hosts (wanlab, root).

    python benchmarks/broadcast.py --name broadcast

Every host has an access line of its own. A round is: everybody waits, the origin publishes, relays
and clients fetch at the same time, until the last client has ended, with the whole file. The bound
is what the relays' uplinks carry: clients * bytes / (relays * rate); after a kill, what is left by
the other. Bytes are those of the file; headers of TCP, IP and HTTP (4 %) count against us.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import RESULTS, head, write

from asyncrl.broadcast.store import Publisher
from asyncrl.protocol.keys import Key
from pccl.bench.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
MBIT = 1e6 / 8
PORT = 7800
RUN = "benchmark"
DEADLINE_SECONDS = 300.0


@dataclass
class Round:
    """What one round found."""

    name: str
    seconds: float = 0.0
    bound: float = 0.0
    killed_at: float = 0.0
    wrong: int = 0
    """Chunks that clients got wrong, and repaired."""

    late_ms: float = 0.0
    """How much later than due the lab delivered one packet in a hundred, because of the load."""

    clients: list[float] = field(default_factory=list)


class Place:
    """Hosts of one round and what runs in them."""

    def __init__(self, lab: Any, options: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        rate = f"{options.rate}mbit"
        names = ["origin", "relay0", "relay1", *(f"client{i}" for i in range(options.clients))]
        self.hosts = {name: lab.add_host(name, up=rate, down=rate) for name in names}
        for index, name in enumerate(names):
            for other in names[:index]:
                lab.link(self.hosts[name], self.hosts[other], rtt=f"{options.rtt}ms")

    def url(self, name: str) -> str:
        return f"http://{self.hosts[name].addr}:{PORT}"

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        return self.run(name, sys.executable, "-m", "asyncrl.broadcast", *arguments)

    def run(self, name: str, *command: str) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = self.hosts[name].popen(
            list(command),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._processes.append(process)
        return process

    def serve(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start an origin or a relay, and wait until it listens."""
        host = self.hosts[name].addr
        process = self.start(
            *(name, *arguments, "--folder", str(self.folder / name)),
            *("--host", host, "--port", str(PORT)),
        )
        assert process.stdout is not None
        if "serving" not in process.stdout.readline():
            raise SystemExit(f"benchmarks/broadcast.py: {name} does not serve")
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def held_bytes(folder: Path) -> int:
    """Bytes of chunks that have come to a client, or of the file that it made of them."""
    whole = sum(path.stat().st_size for path in folder.glob("*.weights"))
    try:
        with os.scandir(folder / "parts" / "v" / "1" / "chunks") as found:
            return whole + sum(entry.stat().st_size for entry in found if entry.name.isdecimal())
    except FileNotFoundError:
        return whole


def one_round(name: str, options: argparse.Namespace, lab: Any, data: bytes) -> Round:
    """A round in which "nothing" happens, a relay is "killed", or "corrupt"."""
    key = Key.generate()
    trust = ("--signer", key.address, "--run", RUN)
    rate = options.rate * MBIT
    found = Round(name, bound=options.clients * len(data) / (2 * rate))
    with tempfile.TemporaryDirectory() as folder:
        place = Place(lab, options, Path(folder))
        try:
            place.serve("origin", "origin")
            relays = [
                place.serve(
                    *(relay, "relay", "--origin", place.url("origin"), *trust),
                    *("--sibling", place.url(sibling)),
                )
                for relay, sibling in (("relay0", "relay1"), ("relay1", "relay0"))
            ]
            finished: queue.Queue[tuple[float, str]] = queue.Queue()
            for index in range(options.clients):
                client = place.start(
                    *(f"client{index}", "fetch", place.url("relay0"), place.url("relay1"), *trust),
                    *("--folder", str(Path(folder) / f"client{index}"), "--wait", "300"),
                    *(("--backup", place.url("origin")) if options.backup else ()),
                )
                threading.Thread(target=wait_for, args=(client, finished), daemon=True).start()
            for index in range(options.clients):
                while not (Path(folder) / f"client{index}" / "parts" / "v").is_dir():
                    time.sleep(0.05)
            time.sleep(1.0)  # they have asked, and wait for a version
            begun = time.perf_counter()
            Publisher(Path(folder) / "origin", key, RUN).publish(data, 1)
            if name == "killed":
                kill_halfway(relays[0], Path(folder), options, len(data), found, begun)
            elif name == "corrupt":
                corrupt(Path(folder) / "relay0")
            for _ in range(options.clients):
                at, text = finished.get(timeout=DEADLINE_SECONDS)
                if not text:
                    raise SystemExit(f"benchmarks/broadcast.py: {name}: a client failed")
                told = json.loads(text)
                whole = hashlib.sha256(Path(told["path"]).read_bytes()).digest()
                assert whole == hashlib.sha256(data).digest(), "wrong bytes"
                found.clients.append(at - begun)
                found.wrong += sum(len(source["wrong"]) for source in told["sources"])
            found.seconds = max(found.clients)
        finally:
            place.close()
    return found


def published_round(options: argparse.Namespace, lab: Any, data: bytes) -> Round:
    """The published package in the same places, as it is, but that its relays look for a new
    version every second, not every 30, and that each process has a /tmp of its own."""
    rate = options.rate * MBIT
    found = Round("nothing, published package", bound=options.clients * len(data) / (2 * rate))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        place = Place(lab, options, Path(folder))
        for name in ("origin", "relay0", "relay1"):
            (Path(folder) / name).mkdir()
            # Its clients measure a relay by this file, and nothing makes it.
            (Path(folder) / name / "data1.bin").write_bytes(data[:100_000])
        weights = Path(folder) / "weights"
        weights.write_bytes(data)
        publish = (
            "import sys, time\nfrom shardcast.origin_server import OriginServer\n"
            "origin = OriginServer(sys.argv[1], int(sys.argv[2]))\n"
            "sys.stdin.readline()\norigin.broadcast(sys.argv[3])\ntime.sleep(1000)"
        )
        binaries = options.published
        try:
            origin = place.run(
                "origin", f"{binaries}/python", "-c", publish, "origin", str(PORT), "weights"
            )
            for name in ("relay0", "relay1"):
                script = (
                    f"mount -t tmpfs tmpfs /tmp; exec {binaries}/shardcast-middle --port {PORT} "
                    f"--data-dir {name} --upstream {place.url('origin')} --check-interval 1"
                )
                place.run(name, "unshare", "-m", "sh", "-c", script)
            time.sleep(5.0)
            finished: queue.Queue[tuple[float, str]] = queue.Queue()
            begun = time.perf_counter()
            assert origin.stdin is not None
            origin.stdin.write("\n")
            origin.stdin.flush()
            # A client that asks before hangs for ever.
            listed = [Path(folder) / name / "distribution.txt" for name in ("relay0", "relay1")]
            while not all(path.exists() and path.stat().st_size for path in listed):
                time.sleep(0.05)
            servers = f"{place.url('relay0')},{place.url('relay1')}"
            for index in range(options.clients):
                file = f"{folder}/client{index}"
                # It ends when there is no version yet; then it is started again.
                script = (
                    f"mount -t tmpfs tmpfs /tmp; until {binaries}/shardcast-client --servers "
                    f"{servers} --version v1 --output-file {file} --output-dir {file}.d >&2 "
                    f"&& test -s {file}; do sleep 0.5; done; echo {file}"
                )
                client = place.run(f"client{index}", "unshare", "-m", "sh", "-c", script)
                threading.Thread(target=wait_for, args=(client, finished), daemon=True).start()
            with contextlib.suppress(queue.Empty):
                while len(found.clients) < options.clients:
                    left = begun + DEADLINE_SECONDS - time.perf_counter()
                    at, text = finished.get(timeout=max(0.0, left))
                    assert Path(text.strip()).read_bytes() == data, "wrong bytes"
                    found.clients.append(at - begun)
            found.seconds = max(found.clients, default=0.0)
        finally:
            place.close()
    return found


def wait_for(client: subprocess.Popen[str], finished: "queue.Queue[tuple[float, str]]") -> None:
    """Until it says where the file is; how long its interpreter takes to end is not counted."""
    assert client.stdout is not None
    text = client.stdout.readline()
    finished.put((time.perf_counter(), text))


def kill_halfway(
    relay: subprocess.Popen[str],
    folder: Path,
    options: argparse.Namespace,
    size: int,
    found: Round,
    begun: float,
) -> None:
    """kill -9 when the clients have half; the bound is of what is left then."""
    wanted = options.clients * size

    def held() -> int:
        return sum(held_bytes(folder / f"client{index}") for index in range(options.clients))

    while held() < wanted / 2:
        time.sleep(0.02)
    relay.kill()
    found.killed_at = time.perf_counter() - begun
    uplinks = 2 if options.backup else 1  # the other relay's, and the origin's
    left = wanted - held()
    found.bound = found.killed_at + left / (uplinks * options.rate * MBIT)


def corrupt(folder: Path) -> None:
    """Flip a bit in two chunks of a relay, as soon as it has any."""
    chunks = folder / "parts" / "v" / "1" / "chunks"
    flipped: set[str] = set()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(flipped) < 2 and time.monotonic() < deadline:
        names = [path.name for path in chunks.glob("[0-9]*")] if chunks.is_dir() else []
        for name in names:
            if name not in flipped and len(flipped) < 2:
                content = bytearray((chunks / name).read_bytes())
                content[1000] ^= 1
                (chunks / name).write_bytes(content)
                flipped.add(name)
        time.sleep(0.001)


def report(rounds: list[Round], options: argparse.Namespace) -> list[str]:
    lines = [
        f"{options.bytes / 1e6:.0f} MB, {options.clients} clients, 2 relays, every host with "
        f"{options.rate} Mbit/s up and down, {options.rtt} ms round trip"
        + ("; clients may ask the origin while a relay is down." if options.backup else "."),
        "",
        "| what happens to a relay | all clients done, s | bound, s | of the bound | beyond it, s "
        "| chunks repaired | lab late (p99), ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in rounds:
        what = found.name + (f" at {found.killed_at:.1f} s" if found.killed_at else "")
        if len(found.clients) < options.clients:
            done = f"{len(found.clients)} of {options.clients} in {DEADLINE_SECONDS:.0f} s"
            lines.append(f"| {what} | {done} | {found.bound:.1f} | | | | {found.late_ms:.1f} |")
            continue
        lines.append(
            f"| {what} | {found.seconds:.1f} | {found.bound:.1f} | "
            f"{100 * found.bound / found.seconds:.0f} % | {found.seconds - found.bound:.1f} | "
            f"{found.wrong} | {found.late_ms:.1f} |"
        )
    return [*lines, "", "Every client's file had the right SHA-256 in every round."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=200_000_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100, help="Mbit/s")
    parser.add_argument("--rtt", type=float, default=20, help="milliseconds")
    parser.add_argument("--backup", action="store_true", help="the origin helps while one is down")
    parser.add_argument("--rounds", nargs="*", default=["nothing", "killed", "corrupt"])
    parser.add_argument("--published", default="", help="bin/ with shardcast 0.3.2, not in /tmp")
    parser.add_argument("--name", default="", help="of the result files; empty: none")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    wide_area = importlib.import_module("wide_area")
    if wide_area.REASON:
        raise SystemExit(f"benchmarks/broadcast.py: {wide_area.REASON}")
    data = random.Random(1).randbytes(options.bytes)
    rounds = []
    for name in options.rounds:
        with wide_area.WANLAB.Lab(seed=1) as lab:
            rounds.append(one_round(name, options, lab, data))
            rounds[-1].late_ms = lab.stats()["daemon"]["late_p99_us"] / 1000
            print(rounds[-1], flush=True)
    if options.published:
        with wide_area.WANLAB.Lab(seed=1) as lab:
            rounds.append(published_round(options, lab, data))
            rounds[-1].late_ms = lab.stats()["daemon"]["late_p99_us"] / 1000
            print(rounds[-1], flush=True)
    machine = describe_machine()
    lines = head("Broadcast of weights", machine) + report(rounds, options)
    document = {"machine": machine, "rounds": [vars(found) for found in rounds]}
    if options.name:
        write(options.results, options.name, document, lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
