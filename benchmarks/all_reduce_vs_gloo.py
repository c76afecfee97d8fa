"""all_reduce and barrier, pccl against gloo: 2 and 4 ranks here, over TCP and over memory.

    python benchmarks/all_reduce_vs_gloo.py            all of it, about 5 minutes on 2 cores
    python benchmarks/all_reduce_vs_gloo.py --quick    to 1 MB, in less time: does it run?

Each part is one `pccl bench --compare gloo`, through torch: both backends in the same processes,
repetition by repetition in turn. Writes all_reduce_vs_gloo.json, .md and .png to
benchmarks/results/.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, TRANSPORTS, head, pccl_bench, ratio_text, write

SIZES = "4,4K,64K,1M,4M,16M,64M,256M"
SIZES_QUICK = "4,64K,1M"
PROCESSES = (2, 4)
# Enough for p10 and p90 to mean something; 256 MB over gloo takes most of a second on 2 cores.
REPETITIONS = "15"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="sizes to 1 MB, 5 repetitions")
    parser.add_argument("--backend", default="pccl", help="gloo measures the noise (pccl)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    arguments = ["--collective", "all_reduce,barrier", "--placement", "in_place"]
    arguments += ["--backend", options.backend, "--compare", "gloo"]
    arguments += ["--sizes", SIZES_QUICK if options.quick else SIZES]
    arguments += ["--repetitions", "5" if options.quick else REPETITIONS]
    arguments += ["--seconds", "0.1" if options.quick else "1"]
    parts: dict[str, dict[str, Any]] = {}
    for processes in PROCESSES:
        # The transport is pccl's.
        for transport in TRANSPORTS if options.backend == "pccl" else ("tcp",):
            name = f"{processes} ranks, {transport}"
            print(f"--- {name}", flush=True)
            place = ["--processes", str(processes), "--transport", transport]
            parts[name] = pccl_bench([*arguments, *place])
    name = "all_reduce_vs_gloo" if options.backend == "pccl" else f"{options.backend}_vs_gloo"
    options.results.mkdir(parents=True, exist_ok=True)
    plot(parts, options.backend, options.results / f"{name}.png")
    markdown = report(parts, options.backend, f"{name}.png")
    write(options.results, name, {"parts": parts}, markdown)
    return 0


def report(parts: dict[str, dict[str, Any]], backend: str, picture: str) -> list[str]:
    """Return the lines of all tables: an overview of ratios, then one table per part."""
    machine = next(iter(parts.values()))["machine"]
    lines = head(f"all_reduce and barrier: {backend} against gloo", machine)
    lines += [
        "Float32, sum, in place, through torch.distributed. Both backends in the same processes,",
        "repetition by repetition in turn, the order swapped each time. A time is the slowest",
        "rank's for one call, the median of the repetitions. Times faster: time of the second /",
        "time of the first in the same repetition, median (p10 .. p90).",
        "",
        f"![times faster than gloo, over size]({picture})",
        "",
        "| size | " + " | ".join(parts) + " |",
        "| ---: |" + " ---: |" * len(parts),
    ]
    for rows in zip(*(part["rows"] for part in parts.values()), strict=True):
        ratios = " | ".join(ratio_text(row["ratios"][placement_of(row)]) for row in rows)
        lines.append(f"| {size_text(rows[0])} | {ratios} |")
    for name, part in parts.items():
        load = part["machine"]["load_average"][0]
        lines += ["", f"## {name}", "", f"Load before it: {load:.1f}.", ""]
        first, second = part["rows"][0]["backends"]
        lines += [f"| size | {first} | {second} | {first} busbw | {second} busbw | times faster |"]
        lines += ["| ---: |" + " ---: |" * 5]
        lines += [part_line(row) for row in part["rows"]]
    return lines


def part_line(row: dict[str, Any]) -> str:
    placement = placement_of(row)
    measured = [placements[placement] for placements in row["backends"].values()]
    times = [time_text(statistics.median(one["seconds"])) for one in measured]
    speeds = [speed_text(one["bus_bandwidth"]) if row["bytes"] else "" for one in measured]
    cells = [size_text(row), *times, *speeds, ratio_text(row["ratios"][placement])]
    return "| " + " | ".join(cells) + " |"


def placement_of(row: dict[str, Any]) -> str:
    """A barrier has no place; torch.distributed's all_reduce is in place."""
    return "in_place" if row["bytes"] else "out_of_place"


def time_text(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def speed_text(gigabytes: float) -> str:
    """Return GB/s with a unit that fits; 10^9 bytes are one GB here."""
    value, unit = gigabytes * 1e6, "KB/s"
    for larger in ("MB/s", "GB/s"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def size_text(row: dict[str, Any]) -> str:
    count = int(row["bytes"])
    if count == 0:
        return "barrier"
    for unit, factor in (("MB", 2**20), ("KB", 2**10)):
        if count >= factor:
            return f"{count // factor} {unit}"
    return f"{count} B"


def plot(parts: dict[str, dict[str, Any]], backend: str, path: Path) -> None:
    """Draw how many times faster, over the size, a line per part."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    colors = {"tcp": "#0b6e99", "memory": "#2a9d5c"}
    for index, (name, part) in enumerate(parts.items()):
        rows = [row for row in part["rows"] if row["bytes"]]
        ratios = [row["ratios"]["in_place"] for row in rows]
        sizes = [row["bytes"] for row in rows]
        color = colors[part["options"]["transport"]]
        style = "-" if part["world_size"] == max(PROCESSES) else "--"
        middle = [ratio["p50"] for ratio in ratios]
        # Beside each other, so that their spreads can be told apart.
        x = [size * 2 ** ((index - 1.5) / 6) for size in sizes]
        low = [ratio["p50"] - ratio["p10"] for ratio in ratios]
        high = [ratio["p90"] - ratio["p50"] for ratio in ratios]
        axis.errorbar(x, middle, [low, high], None, style, color=color, marker="o", markersize=4,
            elinewidth=1, capsize=2, label=name)  # fmt: skip
    axis.axhline(1, color="#e07b39", linewidth=1.2, label="gloo")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _position: f"{value:g}x")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(sizes, [size_text(row) for row in rows])
    axis.set_xlabel("size of the tensor")
    axis.set_ylabel("times faster than gloo")
    machine = parts[name]["machine"]
    axis.set_title(
        f"{machine['processor']}, {machine['cores']} cores; median, bars from p10 to p90 of pairs",
        loc="left", fontsize=9, color="#555555",
    )  # fmt: skip
    figure.suptitle(
        f"all_reduce through torch: {backend} against gloo",
        x=0.01, ha="left", fontsize=13, fontweight="bold",
    )  # fmt: skip
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
