"""Codecs: the error of an average over bits, and speed over size, on one core.

    python benchmarks/quantization.py                 both, about a minute
    python benchmarks/quantization.py --error         the error only
    python benchmarks/quantization.py --speed         the speed only, best pinned (taskset)
    python benchmarks/quantization.py --codecs int8 int4 --name piquant   these beside pi-quant

Error: the relative L2 error of an average over 8 members. One-shot: seven members encode once, the
owner adds in float32, encodes the average, all decode. Tree: of each pair one encodes and the other
adds, three levels. Ring: each of seven hops encodes. On gradients and pseudo-gradients of the
examples' model, and on normal and Student-t values of which half is common to the members.

Speed: of float32 processed, segment by segment of 128 Ki elements, through Python. The owner reads
seven contributions, each from its own memory, and encodes the average in the same pass
(pccl.codecs.combine). memcpy is numpy's, of the same segments, between the others in the same
rounds. Seconds are those of the thread's processor time, so that a busy machine costs memory
bandwidth only.

Beside them pi-quant, where it is installed (pip install pypiquant==4.1.0): the error with one scale
a contribution, the speed with one a segment, as its user would call it; its owner reads the same
contribution seven times, from the cache.

Writes quantization.md, .json and .png to benchmarks/results/; no picture of some codecs only.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import RESULTS, head, write
from gradients import Vectors, real_gradients, real_pseudo_gradients
from piquant_codec import PIQUANT
from piquant_codec import decode as piquant_decode
from piquant_codec import encode as piquant_encode

from pccl import _core, codecs
from pccl.bench.machine import describe_machine
from pccl.bench.result import spread

MEMBERS = 8
CODECS = ("bf16", "fp16", "int8", "int8:stochastic", "int6", "int4", "int4:mse_clip",
          "int4:hadamard", "int4:stochastic", "fp8_e4m3", "fp8_e5m2")  # fmt: skip
SPARSE = ("topk:512", "topk_2bit:512", "topk_2bit:64")
KINDS = ("gradient", "pseudo-gradient", "normal", "Student-t")
SIZES = (1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)  # elements
SEGMENT = 1 << 17  # elements: 512 KiB
RECEIVED_BYTES = 64 << 20  # twice the last cache of a common server, for each codec
FLOAT32 = _core.DATA_TYPES["float32"]
Floats = npt.NDArray[np.float32]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--error", action="store_true", help="only the error")
    parser.add_argument("--speed", action="store_true", help="only the speed")
    parser.add_argument("--rounds", type=int, default=9, help="of each speed; the median counts")
    parser.add_argument("--megabytes", type=int, default=256, help="largest size of the speed")
    every = (*CODECS, *SPARSE)
    parser.add_argument("--codecs", nargs="+", choices=every, default=list(every))
    parser.add_argument("--name", default="quantization", help="of the files that are written")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    document: dict[str, Any] = {
        "machine": describe_machine(), "simd": _core.simd_target(), "error": {}, "speed": {}
    }  # fmt: skip
    if not options.speed:
        document["error"] = measure_errors((*options.codecs, *PIQUANT))
    if not options.error:
        sizes = [size for size in SIZES if 4 * size <= options.megabytes << 20]
        dense = [codec for codec in options.codecs if codec not in SPARSE]
        document["speed"] = {
            str(size): measure_speed(size, options.rounds, dense) for size in sizes
        }
    lines = head("Codecs: error and speed", document["machine"])
    write(options.results, options.name, document, lines + report(document))
    if document["error"] and document["speed"] and options.codecs == list(every):
        plot(document, options.results / f"{options.name}.png")
    return 0


# --- error ---


def measure_errors(names: Sequence[str]) -> dict[str, Any]:
    """Return codec -> kind -> {"bits", "one-shot", "tree", "ring"}."""
    random = np.random.default_rng(1)
    values: dict[str, Vectors] = {
        "gradient": real_gradients(MEMBERS),
        "pseudo-gradient": real_pseudo_gradients(MEMBERS),
        "normal": half_common(lambda: random.standard_normal(1 << 18)),
        "Student-t": half_common(lambda: random.standard_t(3, 1 << 18)),
    }
    errors: dict[str, Any] = {}
    for codec in names:
        print(f"error of {codec} ...", flush=True)
        count = 1 << 18
        errors[codec] = {"bits": bits_of(codec, count)}
        for kind, vectors in values.items():
            exact = np.mean([vector.astype(np.float64) for vector in vectors], axis=0)
            errors[codec][kind] = {
                name: float(np.linalg.norm(way(vectors, codec) - exact) / np.linalg.norm(exact))
                for name, way in (("one-shot", one_shot), ("tree", tree), ("ring", ring))
            }
    return errors


def bits_of(codec: str, count: int) -> float:
    if codec in PIQUANT:
        return 8 * piquant_encode(codec, np.zeros(count, np.float32)).codes.size / count
    return 8 * (codecs.encoded_bytes(codec, count) - 8) / count


def half_common(draw: Callable[[], npt.NDArray[np.float64]]) -> Vectors:
    common = draw()
    return [(np.sqrt(0.5) * (common + draw())).astype(np.float32) for _ in range(MEMBERS)]


def again(values: Floats, codec: str, step: int, divisor: float = 1) -> Floats:
    """There and back."""
    target = np.zeros_like(values)
    exchange(values, codec, step, target, divisor)
    return target


def exchange(values: Floats, codec: str, step: int, sums: Floats, divisor: float = 1) -> None:
    """Encode, and add what is decoded to `sums`."""
    if codec in PIQUANT:
        average = (values / np.float32(divisor)).astype(np.float32)
        piquant_decode(piquant_encode(codec, average), sums, add=True)
    else:
        wire = codecs.encode(values, codec, divisor=divisor, step=step)
        codecs.decode(wire, sums, add=True)


def one_shot(vectors: Vectors, codec: str) -> Floats:
    sums = vectors[0].copy()  # the owner's own
    for member, vector in enumerate(vectors[1:]):
        exchange(vector, codec, member, sums)
    return again(sums, codec, 100, divisor=len(vectors))


def tree(vectors: Vectors, codec: str) -> Floats:
    level, step = list(vectors), 0
    while len(level) > 1:
        step += 10
        sent = [again(vector, codec, step + i) for i, vector in enumerate(level[1::2])]
        level = [kept + right for kept, right in zip(level[::2], sent, strict=True)]
    return again(level[0], codec, 100, divisor=len(vectors))


def ring(vectors: Vectors, codec: str) -> Floats:
    sums = vectors[0]
    for hop, vector in enumerate(vectors[1:]):
        sums = again(sums, codec, hop) + vector
    return again(sums, codec, 100, divisor=len(vectors))


# --- speed ---


def measure_speed(elements: int, rounds: int, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return name -> {"encode", "decode", "add", "owner"} in GB/s (10^9) of float32."""
    print(f"speed at {4 * elements >> 10} KiB ...", flush=True)
    random = np.random.default_rng(2)
    values = random.standard_normal(elements, np.float32)
    target = np.zeros_like(values)
    segments = [(begin, min(SEGMENT, elements - begin)) for begin in range(0, elements, SEGMENT)]
    arms: dict[tuple[str, str], Callable[[], None]] = {
        ("memcpy", "copy"): lambda: copy(values, target, segments)
    }
    for codec in names:
        arms.update(arms_of(codec, values, target, segments))
    for codec in PIQUANT:
        arms.update(arms_of_piquant(codec, values, target, segments))
    calls = max(1, (1 << 22) // elements)
    seconds: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, call in arms.items():
            call()  # warms up
            begin = time.thread_time()
            for _ in range(calls):
                call()
            seconds[arm].append((time.thread_time() - begin) / calls)
    speeds: dict[str, dict[str, float]] = {}
    for (name, what), sample in seconds.items():
        speeds.setdefault(name, {})[what] = 4e-9 * elements / spread(sample).p50
    return speeds


def copy(source: Floats, target: Floats, segments: list[tuple[int, int]]) -> None:
    for begin, count in segments:
        np.copyto(target[begin : begin + count], source[begin : begin + count])


def arms_of(
    codec: str, values: Floats, target: Floats, segments: list[tuple[int, int]]
) -> dict[tuple[str, str], Callable[[], None]]:
    source, sink = values.ctypes.data, target.ctypes.data
    wires = [_core.encode(codec, (source + 4 * begin, count), FLOAT32) for begin, count in segments]
    # Contributions of the others, each in memory of its own, until no cache holds them all.
    distinct = wires[: max(1, RECEIVED_BYTES // ((MEMBERS - 1) * len(wires[0])))]
    received = [[bytes(bytearray(wire)) for _ in range(MEMBERS - 1)] for wire in distinct]

    def encode() -> None:
        for begin, count in segments:
            _core.encode(codec, (source + 4 * begin, count), FLOAT32)

    def decode() -> None:
        for (begin, count), wire in zip(segments, wires, strict=True):
            _core.decode(codec, wire, (sink + 4 * begin, count), FLOAT32)

    def add() -> None:
        for (begin, count), wire in zip(segments, wires, strict=True):
            _core.decode(codec, wire, (sink + 4 * begin, count), FLOAT32, adds=True)

    def owner() -> None:
        """Its own values, seven contributions on the wire, and the average encoded."""
        for index, (begin, count) in enumerate(segments):
            own = (source + 4 * begin, count)
            others = received[index % len(received)]
            _core.combine(codec, own, FLOAT32, others, divisor=MEMBERS)

    return {(codec, "encode"): encode, (codec, "decode"): decode, (codec, "add"): add,
            (codec, "owner"): owner}  # fmt: skip


def arms_of_piquant(
    codec: str, values: Floats, target: Floats, segments: list[tuple[int, int]]
) -> dict[tuple[str, str], Callable[[], None]]:
    pieces = [values[begin : begin + count] for begin, count in segments]
    targets = [target[begin : begin + count] for begin, count in segments]
    wires = [piquant_encode(codec, piece) for piece in pieces]
    sums = np.empty(SEGMENT, np.float32)

    def encode() -> None:
        for piece, wire in zip(pieces, wires, strict=True):
            piquant_encode(codec, piece, wire.codes)

    def decode(add: bool = False) -> None:
        for wire, into in zip(wires, targets, strict=True):
            piquant_decode(wire, into, add=add)

    def owner() -> None:
        for piece, wire in zip(pieces, wires, strict=True):
            part = sums[: piece.size]
            np.copyto(part, piece)
            for _ in range(MEMBERS - 1):
                piquant_decode(wire, part, add=True)
            part /= MEMBERS
            piquant_encode(codec, part)

    return {(codec, "encode"): encode, (codec, "decode"): decode,
            (codec, "add"): lambda: decode(add=True), (codec, "owner"): owner}  # fmt: skip


# --- what people see ---


def report(document: dict[str, Any]) -> list[str]:
    lines = []
    if document["error"]:
        lines += [
            f"Relative L2 error x 1000 of an average over {MEMBERS}: one-shot / tree / ring.",
            "",
            "| codec | bits | " + " | ".join(KINDS) + " |",
            "| :--- | ---: |" + " ---: |" * len(KINDS),
        ]
        for codec, found in document["error"].items():
            cells = [" / ".join(f"{1000 * e:.3g}" for e in found[kind].values()) for kind in KINDS]
            lines.append(f"| {codec} | {found['bits']:.2f} | " + " | ".join(cells) + " |")
        lines.append("")
    for size, speeds in document["speed"].items():
        memcpy = speeds["memcpy"]["copy"]
        lines += [
            f"GB/s of float32, {4 * int(size) >> 10} KiB, one thread, {document['simd']}; memcpy "
            f"{memcpy:.1f}. owner: own values, {MEMBERS - 1} contributions, the average encoded.",
            "",
            "| codec | encode | / memcpy | decode | decode and add | / memcpy | owner |",
            "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for codec, row in speeds.items():
            if codec == "memcpy":
                continue
            lines.append(
                f"| {codec} | {row['encode']:.1f} | {row['encode'] / memcpy:.2f} | "
                f"{row['decode']:.1f} | {row['add']:.1f} | {row['add'] / memcpy:.2f} | "
                f"{row['owner']:.1f} |"
            )
        lines.append("")
    return lines


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw the error over bits, a point a codec, and the speed over the size, a line a codec."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for kind, marker in zip(KINDS[:2], ("o", "s"), strict=True):
        found = {codec: document["error"][codec] for codec in CODECS}
        color = "#0b6e99" if marker == "o" else "#e07b39"
        bits = [one["bits"] for one in found.values()]
        errors = [one[kind]["one-shot"] for one in found.values()]
        left.scatter(bits, errors, marker=marker, label=kind, color=color)
        for codec, one in found.items():
            if kind == KINDS[0]:
                left.annotate(codec, (one["bits"], one[kind]["one-shot"]), xytext=(6, 2),
                              textcoords="offset points", fontsize=7)  # fmt: skip
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xticks([4, 8, 16], ["4", "8", "16"])
    left.set_xlabel("bits a value on the wire")
    left.set_ylabel(f"relative error of an average over {MEMBERS}, one-shot")
    sizes = [int(size) for size in document["speed"]]
    speeds = list(document["speed"].values())
    right.plot(sizes, [one["memcpy"]["copy"] for one in speeds], "--", color="#777777",
               label="memcpy")  # fmt: skip
    for codec, color in (("int8", "#0b6e99"), ("int4", "#e07b39"), ("bf16", "#2a9d5c")):
        for what, style in (("encode", "-"), ("add", ":"), ("owner", "-.")):
            right.plot(sizes, [one[codec][what] for one in speeds], style, color=color,
                       marker=".", label=f"{codec}, {what}")  # fmt: skip
    right.set_xscale("log", base=2)
    right.set_xticks(sizes, [f"{4 * size >> 10} K" for size in sizes], fontsize=8)
    right.set_ylim(bottom=0)
    right.set_xlabel("bytes of the tensor")
    right.set_ylabel("GB/s of float32, one thread")
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    machine = document["machine"]
    figure.suptitle(f"Codecs, {machine['processor']}, {document['simd']}", x=0.01, ha="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
