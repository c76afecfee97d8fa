"""all_reduce and barrier, pccl against gloo: 2 and 4 ranks here, over TCP and over memory.

    python benchmarks/all_reduce_vs_gloo.py            all of it, about 5 minutes on 2 cores
    python benchmarks/all_reduce_vs_gloo.py --quick    fewer sizes and less time: does it run?

Each part is one `pccl bench --compare gloo`: both backends in the same processes, repetition by
repetition in turn. Written to benchmarks/results/: one JSON file and one picture per part, then
all_reduce_vs_gloo.md and .png with all of it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PLACEMENT = "in_place"  # torch.distributed's own way for all_reduce
TRANSPORTS = ("tcp", "memory")
PROCESSES = (2, 4)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="sizes to 1 MB, 50 ms each")
    parser.add_argument("--backend", default="pccl")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    limits = ["--max", "1M", "--factor", "64", "--seconds", "0.05"] if options.quick else []
    limits = limits or ["--max", "256M", "--factor", "4", "--seconds", "0.5"]
    parts: dict[str, dict[str, Any]] = {}
    barriers: dict[str, dict[str, Any]] = {}
    for processes in PROCESSES:
        for transport in TRANSPORTS:
            name = f"{processes} ranks, {transport}"
            common = ["--backend", options.backend, "--compare", "gloo"]
            common += ["--processes", str(processes), "--transport", transport]
            stem = f"all_reduce_{processes}_{transport}"
            parts[name] = bench([*common, *limits], options.results / stem)
            stem = f"barrier_{processes}_{transport}"
            barriers[name] = bench(
                [*common, "--collective", "barrier", "--seconds", "0.5"],
                options.results / stem,
                plot=False,
            )
    text = markdown(parts, barriers)
    (options.results / "all_reduce_vs_gloo.md").write_text(text)
    plot(parts, options.results / "all_reduce_vs_gloo.png")
    print(text)
    return 0


def bench(arguments: list[str], stem: Path, *, plot: bool = True) -> dict[str, Any]:
    """Run one `pccl bench`, shown as it goes; return its JSON document.

    Raises:
        CalledProcessError: a result was wrong, or a rank failed.
    """
    files = ["--json", f"{stem}.json"] + (["--plot", f"{stem}.png"] if plot else [])
    subprocess.run([sys.executable, "-m", "pccl", "bench", *arguments, *files], check=True)
    print()
    document: dict[str, Any] = json.loads(Path(f"{stem}.json").read_text())
    return document


def markdown(parts: dict[str, dict[str, Any]], barriers: dict[str, dict[str, Any]]) -> str:
    """Return the table of all parts: a line per size, a column per part."""
    first = next(iter(parts.values()))
    machine = first["machine"]
    names = list(parts)
    lines = [
        f"# all_reduce: {first['options']['backend']} against gloo",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, load "
        f"{machine['load_average'][0]:.1f} at the start; torch {machine['torch']}, "
        f"pccl {machine['pccl']}; {machine['time']}.",
        "",
        "Float32, sum, in place. Median time of pccl in microseconds, and how many times faster "
        "than gloo: median (p10..p90) of paired repetitions.",
        "",
        "| size | " + " | ".join(names) + " |",
        "| ---: |" + " ---: |" * len(names),
    ]
    for index, row in enumerate(first["rows"]):
        cells = [cell(parts[name]["rows"][index], PLACEMENT) for name in names]
        lines.append(f"| {size_text(row['bytes'])} | " + " | ".join(cells) + " |")
    cells = [cell(barriers[name]["rows"][0], "out_of_place") for name in names]
    lines.append("| barrier | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any], placement: str) -> str:
    measured = next(iter(row["backends"].values()))[placement]
    seconds = sorted(measured["seconds"])[len(measured["seconds"]) // 2]
    ratio = row["ratios"][placement]
    return (
        f"{seconds * 1e6:,.0f} us, **{ratio['p50']:.2f}x** ({ratio['p10']:.2f}..{ratio['p90']:.2f})"
    )


def size_text(count: int) -> str:
    for unit, factor in (("MB", 2**20), ("KB", 2**10)):
        if count >= factor:
            return f"{count // factor} {unit}"
    return f"{count} B"


def plot(parts: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw how many times faster, over the size, a line per part."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    colors = {"tcp": "#0b6e99", "memory": "#2a9d5c"}
    for name, document in parts.items():
        rows = document["rows"]
        transport = document["options"]["transport"]
        sizes = [row["bytes"] for row in rows]
        ratios = [row["ratios"][PLACEMENT] for row in rows]
        style = "-" if document["world_size"] == max(PROCESSES) else "--"
        color = colors[transport]
        axis.plot(
            sizes,
            [ratio["p50"] for ratio in ratios],
            style,
            color=color,
            marker="o",
            markersize=4,
            label=name,
        )
        low, high = [ratio["p10"] for ratio in ratios], [ratio["p90"] for ratio in ratios]
        axis.fill_between(sizes, low, high, color=color, alpha=0.1, linewidth=0)
    axis.axhline(1, color="#e07b39", linewidth=1.2)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _position: f"{value:g}x")
    axis.set_xticks(sizes, [size_text(size) for size in sizes], rotation=30)
    axis.tick_params(axis="x", which="minor", bottom=False)
    axis.set_xlabel("size of the tensor")
    first = next(iter(parts.values()))
    axis.set_ylabel("times faster than gloo")
    axis.set_title(
        f"all_reduce: {first['options']['backend']} against gloo, median and p10..p90",
        loc="left",
        fontweight="bold",
    )
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
