"""What was measured, as data: the rows of table and JSON file, and their statistics."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PLACEMENTS", "Measurement", "Row", "Spread", "spread"]

PLACEMENTS = ("out_of_place", "in_place")


@dataclass(frozen=True)
class Spread:
    """Median and the range that holds 80 % of a sample."""

    p10: float
    p50: float
    p90: float


def spread(sample: Sequence[float]) -> Spread:
    """Return median, 10th and 90th percentile (linear between neighbours)."""
    if len(sample) == 1:
        return Spread(sample[0], sample[0], sample[0])
    tenths = statistics.quantiles(sample, n=10, method="inclusive")
    return Spread(tenths[0], statistics.median(sample), tenths[-1])


@dataclass(frozen=True)
class Measurement:
    """One backend, one placement, one size."""

    seconds: list[float]  # [repetitions] for one call; the slowest rank's
    iterations: int  # calls per repetition
    algorithm_bandwidth: float  # GB/s (10^9) at the median time: bytes of the larger side / time
    bus_bandwidth: float  # GB/s: the above * bus_factor()
    # Elements on all ranks that are not what they must be; in a codec: ranks that have other bytes
    # than rank 0. None: not checked.
    wrong: int | None
    wire_bytes: float | None = None  # that a rank sends in one call, on average; None: not counted
    error: float | None = None  # relative, L2, of normally distributed values; None: not measured


@dataclass(frozen=True)
class Row:
    """All that was measured for one size: backend -> placement -> Measurement."""

    collective: str
    bytes: int
    count: int
    dtype: str
    op: str
    root: int
    backends: dict[str, dict[str, Measurement]] = field(default_factory=dict)

    def ratios(self, placement: str) -> Spread | None:
        """Return how many times faster the first backend is, paired by repetition."""
        measured = [placements.get(placement) for placements in self.backends.values()]
        if len(measured) != 2 or measured[0] is None or measured[1] is None:
            return None
        first, second = measured[0].seconds, measured[1].seconds
        return spread([slow / fast for fast, slow in zip(first, second, strict=True)])

    def speed_up(self, backend: str, placement: str) -> float | None:
        """Return how many times faster than the first backend this one is, paired likewise."""
        first = next(iter(self.backends.values())).get(placement)
        other = self.backends[backend].get(placement)
        if first is None or other is None:
            return None
        return spread([a / b for a, b in zip(first.seconds, other.seconds, strict=True)]).p50

    @property
    def wrong(self) -> int:
        """Wrong elements of all backends and placements together."""
        return sum(
            measurement.wrong or 0
            for placements in self.backends.values()
            for measurement in placements.values()
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain data for the JSON file, ratios included."""
        ratios = {
            placement: dataclasses.asdict(ratio)
            for placement in PLACEMENTS
            if (ratio := self.ratios(placement)) is not None
        }
        return dataclasses.asdict(self) | {"ratios": ratios}
