"""All-reduce between far hosts with uneven links (wanlab, root), against the bound and gloo.

    python benchmarks/wan.py --shape even --hosts 4 --rate 100 --rtt 0.05 [--loss 0.1%]
    python benchmarks/wan.py --shape access --hosts 8      hosts with unlike up- and downlinks
    python benchmarks/wan.py --shape pairs --hosts 8       pairs with unlike links between them
    python benchmarks/wan.py --shape clouds    8 regions of three clouds (examples/clouds.json)
    python benchmarks/wan.py --shape even --slow-at 3      from that call on one link has a fifth

Shapes for `pccl bench --lab`, which takes any network: pccl/bench/lab.py measures for both. The
bound is what no schedule that sends partial sums exceeds: the smallest cut, and all uplinks (or
downlinks) over 2 (n - 1).
"""

import argparse
import importlib
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, head, write

from pccl.bench.lab import LabJob, lab_table, network_of, run_lab
from pccl.bench.machine import describe_machine

# A two-hundredth of what was measured in January 2022 (iperf3, 64 connections; throughput.csv and
# latency.csv of Skyplane, NSDI 2023), and of what the clouds let a machine send and receive.
CLOUDS = Path(__file__).resolve().parents[1] / "examples" / "clouds.json"
# Mbit/s up and down, for hosts on unlike access lines.
ACCESS_UP = (100, 50, 20, 10, 10, 9.4, 5, 3)
ACCESS_DOWN = (100, 50, 20, 10, 10, 9.4, 10, 10)


def spec_of(options: argparse.Namespace) -> dict[str, Any]:
    """The network, as wanlab describes one."""
    if options.shape == "clouds":
        clouds: dict[str, Any] = json.loads(CLOUDS.read_text())
        return clouds
    names = [f"h{host}" for host in range(options.hosts)]
    caps: list[dict[str, str]] = [{} for _ in names]
    links = {}
    draw = random.Random(options.seed)
    for host, _ in enumerate(names):
        if options.shape == "even":
            caps[host] = {"up": f"{options.rate}mbit", "down": f"{options.rate}mbit"}
        if options.shape == "access":
            up, down = (options.scale * lines[host % 8] for lines in (ACCESS_UP, ACCESS_DOWN))
            caps[host] = {"up": f"{up}mbit", "down": f"{down}mbit"}
    for a, b in itertools.combinations(names, 2):
        link = {"rtt": f"{options.rtt * 1e3}ms", "loss": options.loss}
        if options.shape == "pairs":
            # Between 0.3 and 1.2 times the rate, and round trips as between regions.
            link["rate"] = f"{options.rate * draw.uniform(0.3, 1.2)}mbit"
            link["rtt"] = f"{draw.uniform(12, 238)}ms"
        links[f"{a} <-> {b}"] = link
    return {"hosts": dict(zip(names, caps, strict=True)), "links": links}


def slowed(spec: dict[str, Any]) -> dict[str, Any]:
    """The same where the link between the first two hosts has a fifth."""
    link = spec["links"]["h0 <-> h1"]
    whole = link.get("rate") or spec["hosts"]["h0"]["up"]
    rate = f"{float(whole.removesuffix('mbit')) / 5}mbit"
    return {**spec, "links": {**spec["links"], "h0 <-> h1": {**link, "rate": rate}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("even", "access", "pairs", "clouds"), default="even")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100, help="Mbit/s")
    parser.add_argument("--scale", type=float, default=1, help="of the access lines")
    parser.add_argument("--rtt", type=float, default=0.05, help="seconds")
    parser.add_argument("--loss", default="0%")
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--calls", type=int, default=6)
    parser.add_argument("--sockets", type=int, default=0, help="0: as measured")
    parser.add_argument("--congestion-control", default="", help="of the hosts' kernels")
    parser.add_argument("--graph", default="", help="over whose edges alone bytes move")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow-at", type=int, default=-1, help="call before which a link slows")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=["auto", "auto:fixed", "ring", "gloo"],
        help="algorithm, or gloo; @4: sockets; :fixed: deterministic; +int8: in that codec",
    )
    parser.add_argument("--name", default="", help="of the result files; empty: none")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.slow_at >= 0 and options.shape == "clouds":
        parser.error("--slow-at is for shapes whose hosts are h0, h1, ...")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
    wide_area = importlib.import_module("wide_area")
    if wide_area.REASON:
        raise SystemExit(f"benchmarks/wan.py: {wide_area.REASON}")
    job = LabJob(
        sizes=(str(options.bytes),),
        ways=tuple(options.ways),
        calls=options.calls,
        sockets=options.sockets,
        congestion_control=options.congestion_control,
        graph=options.graph,
        slow_at=options.slow_at,
    )
    spec = spec_of(options)
    after = slowed(spec) if options.slow_at >= 0 else spec
    found = run_lab(
        spec,
        job,
        wide_area.WANLAB,
        seed=options.seed,
        on_slow=lambda lab: lab.link("h0", "h1", rate=after["links"]["h0 <-> h1"]["rate"]),
    )
    machine = describe_machine()
    size = f"{options.bytes >> 20} MiB" if options.bytes >> 20 else f"{options.bytes} bytes"
    lines = head(f"All-reduce of {size}, {len(spec['hosts'])} hosts", machine)
    networks = [network_of(described, wide_area.WANLAB) for described in (spec, after)]
    lines += lab_table(found, *networks)
    if options.name:
        write(options.results, options.name, {"machine": machine, **found}, lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
