"""The table of nccl-tests on a terminal: 120 columns, a line per size (two backends: three)."""

from rich.console import Console

from pccl.bench.options import BenchOptions, format_bytes
from pccl.bench.result import PLACEMENTS, Measurement, Row, Spread, spread

__all__ = ["BenchTable"]

_COPIED = ("all_reduce", "broadcast", "reduce")
_BLOCK = f"{'time':>9} {'algbw':>7} {'busbw':>7} {'#wrong':>6}"
_UNITS = f"{'(us)':>9} {'(GB/s)':>7} {'(GB/s)':>7} {'':>6}"


class BenchTable:
    """Prints the head at once and each row as it comes."""

    def __init__(self, console: Console, options: BenchOptions) -> None:
        self._console = console
        self._compares = bool(options.compare)
        names = [options.backend, options.compare, *options.codecs]
        self._name_width = max(9, *map(len, names)) if options.compare or options.codec else 0
        # A placement less leaves room for these.
        self._placements = options.placements if options.codec or options.error else PLACEMENTS
        self._shows_speed_up = bool(options.codec)
        self._shows_loss = options.error

    def print_head(self) -> None:
        """Print the names and units of the columns."""
        backend = f" {'backend':<{self._name_width}}" if self._name_width else ""
        left = f"{'size':>6} {'count':>10} {'type':>8} {'redop':>7} {'root':>4}{backend}"
        gap = " " * len(left)
        titles = "  ".join(f"{name.replace('_', '-'):^32}" for name in self._placements)
        self._line(f"[bold]{gap}  {titles}[/]")
        blocks = "  ".join([_BLOCK] * len(self._placements))
        faster = f" {'faster':>8}" if self._shows_speed_up else ""
        loss = f" {'sent':>8} {'error':>8}" if self._shows_loss else ""
        self._line(f"[bold]{left}  {blocks}{faster}{loss}[/]")
        units = f"{'(B)':>6} {'(elements)':>10}".ljust(len(left))
        blocks = "  ".join([_UNITS] * len(self._placements))
        unit_of_sent = f"{'(B)':>9}" if self._shows_loss else ""
        self._line(f"[dim]{units}  {blocks}{' ' * len(faster)}{unit_of_sent}[/]")

    def print_row(self, row: Row) -> None:
        """Print one size: a line per backend, and for two backends how their times compare."""
        left = (
            f"{format_bytes(row.bytes):>6} {row.count:>10} {row.dtype:>8} {row.op:>7} {row.root:>4}"
        )
        blank = " " * len(left)
        for index, (backend, placements) in enumerate(row.backends.items()):
            name = f" [cyan]{backend:<{self._name_width}}[/]" if self._name_width else ""
            blocks = "  ".join(
                _block(placements.get(placement), has_bytes=row.bytes > 0)
                for placement in self._placements
            )
            more = self._loss(row, backend)
            self._line(f"{left if index == 0 else blank}{name}  {blocks}{more}")
        if self._compares:
            ratios = "  ".join(_ratio(row.ratios(placement)) for placement in self._placements)
            self._line(f"{blank} [dim]{'faster':<9}[/]  {ratios}")

    def _loss(self, row: Row, backend: str) -> str:
        """Return what stands behind the block: against the first backend, and what was lost."""
        text = ""
        measured = row.backends[backend].get("in_place")
        if self._shows_speed_up:
            ratio = row.speed_up(backend, "in_place")
            text += f" {'-':>8}" if ratio is None else f" {ratio:>7.2f}x"
        if self._shows_loss and measured is not None and measured.error is not None:
            sent = "-" if measured.wire_bytes is None else format_bytes(round(measured.wire_bytes))
            text += f" {sent:>8} {measured.error:>8.1e}"
        return text

    def print_foot(self, options: BenchOptions, rows: list[Row], sent: dict[str, int]) -> None:
        """Print what the numbers mean, and the verdict on wrong results."""
        self._line("")
        if self._compares:
            first, second = rows[0].backends
            self._line(
                f"[dim]faster: time of {second} / time of {first}, "
                "repetition by repetition in turn: median and p10..p90.[/]"
            )
        if options.codec:
            self._line(
                "[dim]faster: time without a codec / time in this one, paired; #wrong: in a codec, "
                "ranks that hold other bytes than rank 0.[/]"
            )
        if options.error:
            self._line(
                "[dim]sent: by a rank in one call, on average; error: relative, L2, of normally "
                "distributed values.[/]"
            )
        copied = [name for name in _COPIED if name in options.collectives]
        if copied and "out_of_place" in options.placements:
            self._line(
                f"[dim]out-of-place {', '.join(copied)}: a copy, then in place; "
                "torch.distributed has no other.[/]"
            )
        if sent:
            bytes_sent = ", ".join(f"{format_bytes(count)} {name}" for name, count in sent.items())
            self._line(f"[dim]{options.backend} sent from rank 0: {bytes_sent}.[/]")
        if options.check:
            wrong = sum(row.wrong for row in rows)
            color = "bold red" if wrong else "green"
            self._line(f"[{color}]{wrong} wrong values[/]")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


def _block(measurement: Measurement | None, *, has_bytes: bool) -> str:
    if measurement is None:
        return f"{'-':>9} {'-':>7} {'-':>7} {'-':>6}"
    microseconds = spread(measurement.seconds).p50 * 1e6
    wrong = "-" if measurement.wrong is None else str(measurement.wrong)
    style = "bold red" if measurement.wrong else "green"
    speeds = (measurement.algorithm_bandwidth, measurement.bus_bandwidth)
    columns = " ".join(f"{speed:>7.2f}" if has_bytes else f"{'-':>7}" for speed in speeds)
    return f"{_three_digits(microseconds):>9} {columns} [{style}]{wrong:>6}[/]"


def _ratio(ratio: Spread | None) -> str:
    if ratio is None:
        return f"{'-':>9} {'':>7} {'':>7} {'':>6}"
    style = "green" if ratio.p50 >= 1 else "yellow"
    return (
        f"[{style}]{ratio.p50:>8.2f}x[/] [dim]{f'{ratio.p10:.2f}..{ratio.p90:.2f}':>15}[/] {'':>6}"
    )


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 10000 else f"{value:.0f}"
