"""What a benchmark run is asked to do, and how sizes are written. Knows nothing of torch."""

import dataclasses
import re
from dataclasses import dataclass

__all__ = ["COLLECTIVES", "DTYPES", "OPS", "BenchOptions", "format_bytes", "parse_bytes", "sizes"]

COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "reduce",
    "all_gather",
    "reduce_scatter",
    "gather",
    "scatter",
    "all_to_all",
    "send_recv",
    "barrier",
)
DTYPES = {
    "uint8": 1,
    "int8": 1,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}  # name -> bytes
OPS = ("sum", "product", "min", "max", "avg", "band", "bor", "bxor")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class BenchOptions:
    """One run of `pccl bench`.

    Args:
        collective: one of COLLECTIVES, several with commas between them, or "all".
        backend: torch.distributed backend under test.
        compare: a second backend, measured in turn with the first; "" measures one only.
        processes: ranks to start on this machine; under torchrun, torchrun decides.
        bytes_min, bytes_max, factor: sizes bytes_min, bytes_min * factor, ... up to bytes_max.
        bytes_list: these sizes instead, where it is not empty.
        seconds: to spend per size, placement and backend; decides iterations and repetitions where
            these are 0.
        iterations: calls per repetition, timed together; 0 = decided by `seconds`.
        repetitions: times that are the sample of the statistics; 0 = decided by `seconds`, 5 to 21.
        warmup: calls before the first repetition.
        codec: codecs with commas between them; all_reduces in each of them, in turn with plain.
        error: measure what goes over the wire, and the error of the result, of all_reduces.
        placement: "in_place", "out_of_place" or "both"; a collective that has only one ignores it.
        check: compare one result per size and placement with the exact one, element by element.
        transport: "tcp" or "memory" sets PCCL_SHARED_MEMORY for pccl; "auto" leaves it.
    """

    collective: str = "all_reduce"
    backend: str = "pccl"
    compare: str = ""
    processes: int = 4
    bytes_min: int = 4
    bytes_max: int = 64 << 20
    factor: int = 4
    bytes_list: tuple[int, ...] = ()
    dtype: str = "float32"
    op: str = "sum"
    codec: str = ""
    error: bool = False
    root: int = 0
    seconds: float = 0.4
    iterations: int = 0
    repetitions: int = 0
    warmup: int = 3
    placement: str = "both"
    check: bool = True
    transport: str = "auto"
    json_path: str = ""
    plot_path: str = ""

    def __post_init__(self) -> None:
        """Refuse what no run could do, before a process is started."""
        for name in self.collectives:
            _one_of("collective", name, COLLECTIVES)
        _one_of("placement", self.placement, ("both", "in_place", "out_of_place"))
        _one_of("dtype", self.dtype, tuple(DTYPES))
        _one_of("op", self.op, OPS)
        _one_of("transport", self.transport, ("auto", "tcp", "memory"))
        if self.processes < 1:
            raise ValueError(f"bench: processes must be at least 1, not {self.processes}")
        for name in ("root", "iterations", "repetitions", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"bench: {name} must not be negative")
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"bench: seconds must be positive, not {self.seconds}")
        if not all(size > 0 for size in self.bytes_list):
            raise ValueError("bench: sizes must be at least 1")
        if not 0 < self.bytes_min <= self.bytes_max:
            raise ValueError(f"bench: no sizes from {self.bytes_min} to {self.bytes_max}")
        if self.factor < 2:
            raise ValueError(f"bench: factor must be at least 2, not {self.factor}")
        if self.op in ("band", "bor", "bxor") and self.dtype.startswith(("float", "bfloat")):
            raise ValueError(f"bench: {self.op} is for integers, not {self.dtype}")
        if self.op == "avg" and not self.dtype.startswith(("float", "bfloat")):
            raise ValueError(f"bench: avg is for floating point, not {self.dtype}")
        if self.codec or self.error:
            self._check_codecs()
        if self.plot_path and (len(self.collectives) > 1 or self.collective == "barrier"):
            raise ValueError("bench: plot needs one collective, and a barrier has no sizes")

    def _check_codecs(self) -> None:
        if self.collective != "all_reduce" or self.op not in ("sum", "avg"):
            raise ValueError("bench: codec and error are for all_reduce, by sum or avg")
        if not self.dtype.startswith(("float", "bfloat")):
            raise ValueError(f"bench: codec and error are for floating point, not {self.dtype}")
        if self.placement == "out_of_place":
            raise ValueError("bench: codec and error are measured in place")
        if self.codec and (self.backend != "pccl" or self.compare):
            raise ValueError("bench: codec is for pccl alone, without compare")
        from pccl._quantized import check_codec  # the core, which other options do without

        try:
            for name in self.codecs:
                check_codec(name)
        except ValueError as error:
            raise ValueError(f"bench: {error}") from None
        if len(set(self.codecs)) != len(self.codecs):
            raise ValueError(f"bench: codec names one twice: {self.codec}")

    @property
    def codecs(self) -> tuple[str, ...]:
        """The names in `codec`, one by one."""
        return tuple(self.codec.split(",")) if self.codec else ()

    @property
    def placements(self) -> tuple[str, ...]:
        """What is measured, where a collective has both."""
        if self.placement != "both":
            return (self.placement,)
        return ("in_place",) if self.codec or self.error else ("out_of_place", "in_place")

    @property
    def collectives(self) -> tuple[str, ...]:
        """The names in `collective`, one by one."""
        return COLLECTIVES if self.collective == "all" else tuple(self.collective.split(","))

    def each(self) -> "list[BenchOptions]":
        """Return the options of each single collective."""
        return [dataclasses.replace(self, collective=name) for name in self.collectives]

    def to_dict(self) -> dict[str, object]:
        """Return the options as plain data for the JSON file, without the names of files."""
        options = dataclasses.asdict(self)
        return {name: value for name, value in options.items() if not name.endswith("_path")}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"bench: {name} must be one of {', '.join(allowed)}; not {value!r}")


def parse_bytes(text: str) -> int:
    """Read "4", "4K", "256M" or "1G" (powers of 1024); raise ValueError for anything else."""
    match = re.fullmatch(r"(\d+)([KMG]?)I?B?", text.strip().upper())
    if match is None:
        raise ValueError(f"not a size: {text!r} (write 4, 4K, 256M or 1G)")
    return int(match[1]) * _UNITS[match[2]]


def format_bytes(count: int) -> str:
    """Write a size as short as is exact enough to read: 4, 4K, 4M, else with one decimal: 1.3K."""
    unit = max(
        (name for name in _UNITS if count >= _UNITS[name]), key=_UNITS.__getitem__, default=""
    )
    value = count / _UNITS[unit]
    return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"


def sizes(options: BenchOptions) -> list[int]:
    """Return the sizes to measure; a barrier has none, so one row of 0."""
    if options.collective == "barrier":
        return [0]
    if options.bytes_list:
        return sorted(options.bytes_list)
    found = [options.bytes_min]
    while found[-1] * options.factor <= options.bytes_max:
        found.append(found[-1] * options.factor)
    return found
