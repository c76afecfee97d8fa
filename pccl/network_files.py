"""Networks from CSV files: a matrix of rates, and optionally of latencies, caps, and edges."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from pccl.topology import Edge, Network

__all__ = ["UNITS", "NetworkFileError", "read_edges", "read_network"]

# Bytes a second in one.
UNITS = {"Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8, "MB/s": 1e6, "B/s": 1.0}
# Bounds what a wrong file could make us hold.
_BYTES_MAX = 16 << 20


class NetworkFileError(ValueError):
    """A file is no such matrix or list; the message names file, place and what is wrong."""


def read_network(
    matrix: Path, *, latency: Path | None = None, caps: Path | None = None, unit: str = "Mbit/s"
) -> Network:
    """Read a network.

    Args:
        matrix: rates in `unit`, a line for each sender, a column for each receiver. Names may stand
            in the first line and the first column. 0: the pair may carry nothing; the diagonal may
            be empty. Lines that begin with # are comments.
        latency: milliseconds, one way, in the same form.
        caps: a line for each member: name, what it sends at most, what it receives at most, in
            `unit`; empty: no cap.

    Raises:
        NetworkFileError: a file can't be read, has another size, or a figure is none.
    """
    rates, names = _read_matrix(matrix)
    latencies = None
    if latency is not None:
        latencies, _ = _read_matrix(latency, names)
    out_caps, in_caps = (None, None) if caps is None else _read_caps(caps, names, UNITS[unit])
    try:
        return Network(
            rates * UNITS[unit],
            None if latencies is None else latencies / 1000,
            out_bytes_per_second=out_caps,
            in_bytes_per_second=in_caps,
            names=names,
        )
    except ValueError as error:
        raise NetworkFileError(f"{matrix}: {error}") from None


def read_edges(path: Path, names: list[str]) -> list[Edge]:
    """Read a graph: two members a line, by name or by number.

    Raises:
        NetworkFileError: a line names somebody else, or not two.
    """
    edges = []
    for number, row in _rows(path):
        if len(row) != 2:
            raise NetworkFileError(f"{path}, line {number}: {len(row)} cells, not two members")
        edges.append((_rank(row[0], names, path, number), _rank(row[1], names, path, number)))
    if not edges:
        raise NetworkFileError(f"{path}: no edges")
    return edges


def _rank(cell: str, names: list[str], path: Path, number: int) -> int:
    if cell in names:
        return names.index(cell)
    if cell.isdecimal() and int(cell) < len(names):
        return int(cell)
    raise NetworkFileError(f"{path}, line {number}: there is no member {cell!r}")


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Lines with something in them, with their numbers."""
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise NetworkFileError(f"{path}: larger than {_BYTES_MAX >> 20} MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NetworkFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return [
        (number, [cell.strip() for cell in next(csv.reader([line]))])
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]


def _is_figure(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _figure(cell: str, where: str) -> float:
    if not _is_figure(cell):
        raise NetworkFileError(f"{where}: {cell!r} is no number; write 0 for no link")
    figure = float(cell)
    if not math.isfinite(figure):
        raise NetworkFileError(f"{where}: {cell} is not a finite number")
    if figure < 0:
        raise NetworkFileError(f"{where}: {cell} is negative")
    return figure


def _read_matrix(path: Path, wanted: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    rows = _rows(path)
    names: list[str] = []
    if rows and not all(_is_figure(cell) or not cell for cell in rows[0][1][1:]):
        names = rows[0][1][1:]
        rows = [(number, row[1:]) for number, row in rows[1:]]
    size = len(rows)
    names = names or [str(rank) for rank in range(size)]
    if size == 0:
        raise NetworkFileError(f"{path}: no figures")
    if len(names) != size:
        raise NetworkFileError(f"{path}: {len(names)} names, but {size} lines of figures")
    if len(set(names)) != size:
        raise NetworkFileError(f"{path}: a name stands twice")
    if wanted is not None and size != len(wanted):
        raise NetworkFileError(f"{path}: {size} members, but the matrix of rates has {len(wanted)}")
    matrix = np.zeros((size, size))
    for rank, (number, row) in enumerate(rows):
        if len(row) != size:
            raise NetworkFileError(f"{path}, line {number}: {len(row)} figures, not {size}")
        for other, cell in enumerate(row):
            if other != rank:
                where = f"{path}, from {names[rank]} to {names[other]}"
                matrix[rank, other] = _figure(cell, where)
    return matrix, names


def _read_caps(path: Path, names: list[str], scale: float) -> tuple[list[float], list[float]]:
    caps: dict[str, tuple[float, float]] = {}
    for number, row in _rows(path):
        if not caps and row[1:] == ["out", "in"]:
            continue  # the names of the columns
        if len(row) != 3:
            raise NetworkFileError(f"{path}, line {number}: {len(row)} cells, not name, out, in")
        name = names[_rank(row[0], names, path, number)]
        out, into = (
            _figure(cell, f"{path}, {name}") * scale if cell else math.inf for cell in row[1:]
        )
        if out == 0 or into == 0:
            raise NetworkFileError(f"{path}, {name}: a cap of 0; leave the cell empty for none")
        caps[name] = (out, into)
    missing = [name for name in names if name not in caps]
    if missing:
        raise NetworkFileError(f"{path}: no caps for {missing[0]}")
    return [caps[name][0] for name in names], [caps[name][1] for name in names]
