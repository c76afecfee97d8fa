"""Tensors on a GPU: the kernels' speed, and all_reduce that encodes before or behind PCIe.

    python benchmarks/device.py                          needs a GPU and a build with PCCL_CUDA=ON
    python benchmarks/device.py --megabytes 16 --calls 5   smaller: does it run?

Kernels: GB of the tensor's elements a second, beside a copy of as many bytes within the device;
events of CUDA, over several tensors in turn, so that no cache holds them.

all_reduce: ranks that share the GPU and loopback. `staged`: the tensor crosses PCIe as it is and
the host encodes. `on the device`: it is encoded where it is and the thin bytes cross. The arms take
turns; a call's time is the slowest rank's; ratios are paired call by call.

Writes device.md and .json to benchmarks/results/.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import RESULTS, collect, head, ratio_text, write

import pccl
from pccl import _core
from pccl._autoload import register
from pccl.bench.machine import describe_machine
from pccl.bench.result import spread
from pccl.launch import run_rank
from pccl.process_group import device_codec

CODECS = ("int8", "int6", "int4", "fp8_e4m3", "fp8_e5m2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TURNS = 8  # tensors that a kernel works on in turn
# Name of the arm -> codec, whether the device may encode.
ARMS = {
    "float32": ("none", False),
    "int8 staged": ("int8", False),
    "int8 on the device": ("int8", True),
    "int4 staged": ("int4", False),
    "int4 on the device": ("int4", True),
}
PAIRS = (("int8 staged", "int8 on the device"), ("int4 staged", "int4 on the device"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=int, default=2)
    add("--megabytes", type=int, nargs="+", default=[4, 64, 256], help="MiB of a tensor")
    add("--calls", type=int, default=15, help="of each arm")
    add("--results", type=Path, default=RESULTS, help="folder to write to")
    add("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available() or not device_codec.takes(
        torch.zeros(device_codec.ELEMENTS_MIN, device="cuda"), "int8"
    ):
        parser.error("needs a GPU that torch can use, and libpccl_cuda.so beside the extension")
    if "RANK" in os.environ:
        run_rank(lambda: run(options))
    machine = describe_machine() | {"gpu": torch.cuda.get_device_name()}
    rates = {name: kernel_rates(name, max(options.megabytes)) for name in DTYPES}
    part = collect(sys.argv[1:], options.processes, "tcp")
    document = {"machine": machine, "kernels": rates, "all_reduce": part}
    write(options.results, "device", document, report(options, document))
    return 0


# --- kernels --------------------------------------------------------------------------------------


class Kernels:
    """One codec's, on tensors that take turns."""

    def __init__(self, codec: str, dtype_name: str, sources: list[torch.Tensor]) -> None:
        self._codec, self._dtype = codec, _core.DATA_TYPES[dtype_name]
        self._sources = sources
        self._targets = [torch.empty_like(source) for source in sources]
        size = _core.encoded_bytes(codec, self._dtype, sources[0].numel())
        self._payloads = [torch.empty(size, dtype=torch.uint8, device="cuda") for _ in sources]
        self._flag = torch.zeros(1, dtype=torch.int32, device="cuda")
        self._stream = torch.cuda.current_stream().cuda_stream

    def encode(self, turn: int) -> None:
        source, payload = self._sources[turn], self._payloads[turn].data_ptr()
        values = (source.data_ptr(), source.numel())
        _core.cuda_encode(
            self._codec, values, self._dtype, payload, self._flag.data_ptr(), self._stream
        )

    def decode(self, turn: int) -> None:
        target, payload = self._targets[turn], self._payloads[turn].data_ptr()
        values = (target.data_ptr(), target.numel())
        _core.cuda_decode(self._codec, payload, values, self._dtype, self._stream)


def kernel_rates(dtype_name: str, megabytes: int) -> dict[str, dict[str, list[float]]]:
    """GB/s of elements by codec, {"encode": [...], "decode": [...]}; of a "copy" the same twice."""
    dtype = DTYPES[dtype_name]
    count = (megabytes << 20) // dtype.itemsize
    sources = [torch.randn(count, device="cuda").to(dtype) for _ in range(TURNS)]
    targets = [torch.empty_like(source) for source in sources]
    gigabytes = count * dtype.itemsize / 1e9
    copy = _rates(lambda turn: targets[turn].copy_(sources[turn]), gigabytes)
    found = {"copy": {"encode": copy, "decode": copy}}
    for codec in CODECS:
        kernels = Kernels(codec, dtype_name, sources)
        encode = _rates(kernels.encode, gigabytes)
        found[codec] = {"encode": encode, "decode": _rates(kernels.decode, gigabytes)}
    return found


def _rates(kernel: Callable[[int], Any], gigabytes: float) -> list[float]:
    for turn in range(TURNS):
        kernel(turn)
    rates = []
    for turn in range(4 * TURNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        kernel(turn % TURNS)
        end.record()
        end.synchronize()
        rates.append(gigabytes / begin.elapsed_time(end) * 1e3)
    return rates


# --- all_reduce -----------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """One rank: the arms in turn, the slowest rank's times on rank 0."""
    register()
    torch.set_num_threads(1)
    dist.init_process_group("pccl")
    seconds = {}
    for megabytes in options.megabytes:
        count = (megabytes << 20) // 4
        tensor = torch.randn(count, device="cuda")
        for arm in ARMS:
            _time(arm, tensor)
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for index in range(options.calls):
            turn = index % len(ARMS)
            for arm in [*ARMS][turn:] + [*ARMS][:turn]:
                times[arm].append(_time(arm, tensor))
        for arm, local in times.items():
            slowest = torch.tensor(local, dtype=torch.float64)
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            times[arm] = slowest.tolist()
        seconds[str(megabytes)] = times
    if dist.get_rank() == 0:
        options.part.write_text(json.dumps({"seconds": seconds}))
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _time(arm: str, values: torch.Tensor) -> float:
    codec, on_device = ARMS[arm]
    tensor = values.clone()
    torch.cuda.synchronize()
    dist.barrier()
    with pccl.quantized(codec), _devices({"cuda"} if on_device else set()):
        begin = time.perf_counter()
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
        torch.cuda.synchronize()
        return time.perf_counter() - begin


@contextmanager
def _devices(devices: set[str]) -> Iterator[None]:
    before, device_codec.DEVICES = device_codec.DEVICES, devices
    try:
        yield
    finally:
        device_codec.DEVICES = before


# --- what is written ------------------------------------------------------------------------------


def report(options: argparse.Namespace, document: dict[str, Any]) -> list[str]:
    """Two tables."""
    machine = document["machine"]
    lines = head(f"Tensors on a GPU: {machine['gpu']}", machine)
    lines += ["GB/s of the tensor's elements, median (p10 .. p90).", ""]
    lines += ["| kernel | " + " | ".join(f"{n}: encode | decode" for n in DTYPES) + " |"]
    lines += ["| :--- |" + " ---: |" * 2 * len(DTYPES)]
    for codec in ["copy", *CODECS]:
        cells = [codec]
        for rates in document["kernels"].values():
            for way in ("encode", "decode"):
                rate = spread(rates[codec][way])
                cells.append(f"{rate.p50:.0f} ({rate.p10:.0f} .. {rate.p90:.0f})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"all_reduce of float32 on {options.processes} ranks by TCP, {options.calls} calls",
    ]
    lines[-1] += " of each arm; median (p10 .. p90)."
    lines += ["", "| MiB | arm | ms | bytes over PCIe, each way | faster than staged |"]
    lines += ["| ---: | :--- | ---: | ---: | ---: |"]
    for megabytes, seconds in document["all_reduce"]["seconds"].items():
        for arm, (codec, on_device) in ARMS.items():
            times = spread([value * 1e3 for value in seconds[arm]])
            count = (int(megabytes) << 20) // 4
            crossing = 4 * count
            if on_device:
                crossing = _core.encoded_bytes(codec, _core.DATA_TYPES["float32"], count)
            cells = [megabytes if arm == "float32" else "", arm]
            cells += [f"{times.p50:.1f} ({times.p10:.1f} .. {times.p90:.1f})"]
            cells += [f"{crossing / 2**20:.1f} MiB", _ratio(seconds, arm)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio(seconds: dict[str, list[float]], arm: str) -> str:
    for staged, on_device in PAIRS:
        if arm == on_device:
            pairs = zip(seconds[staged], seconds[on_device], strict=True)
            found = spread([before / after for before, after in pairs])
            return ratio_text({"p10": found.p10, "p50": found.p50, "p90": found.p90})
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
