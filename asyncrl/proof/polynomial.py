"""Polynomials over GF(65497): interpolation and evaluation, many at a time.

A batch costs a fixed number of numpy calls, whatever its size. All numbers are integers in float64,
as residues between -PRIME / 2 and PRIME / 2: products of polynomials are outer products or FFTs,
sums of powers are matrix products, and a remainder is three multiplications. All of it is exact:
every sum stays below 2^38, and the rounding of an FFT of 256 such numbers is below 0.001.
"""

from __future__ import annotations

import functools

import numpy
from numpy.typing import NDArray

__all__ = ["PRIME", "evaluate", "interpolate"]

PRIME = 65497  # the field of the published format

Integers = NDArray[numpy.int64]
# Integers in float64; the result of _reduce() is one.
Residues = NDArray[numpy.float64]

# x^m is x^(m mod 16) times x^(16 * (m div 16)): 16 + 8 powers instead of 128.
_STRIDE = 16
# Longer products of coefficients, of all polynomials of a call, are FFTs.
_OUTER_COUNT_MAX = 1 << 14
# Of the field's multiplicative group, whose order is PRIME - 1 = 2^3 * 3 * 2729.
_GENERATOR = 7


def evaluate(coefficients: Integers, x: Integers) -> Integers:
    """Values [batch, points] of polynomials at x, modulo PRIME.

    Args:
        coefficients: [batch, terms], of x^0 first, each from 0 to PRIME - 1.
        x: [batch, points], likewise.
    """
    powers = _powers(x, coefficients.shape[1])
    return _integers(_values(_reduce(coefficients.astype(numpy.float64)), *powers))


def interpolate(x: Integers, y: Integers) -> Integers:
    """Coefficients [batch, points], of x^0 first, of the polynomials through points (x, y).

    Lagrange's formula by coefficients: with M the product of (X - x_i) and a_i = y_i / M'(x_i),
    coefficient j is the sum over l > j of M_l * S_(l - j - 1), where S_m is the sum of a_i * x_i^m.

    Args:
        x, y: [batch, points], each from 0 to PRIME - 1; those of x distinct in a row.
    """
    count = x.shape[1]
    small, large = _powers(x, count)
    product = _product_of_roots(_reduce(x.astype(numpy.float64)))  # [batch, count + 1]
    slope = _reduce(product[:, 1:] * numpy.arange(1, count + 1))
    logarithms, powers = _tables()
    inverses = powers[-logarithms[_integers(_values(slope, small, large))]]
    weights = _reduce(inverses * _reduce(y.astype(numpy.float64)))
    sums = _power_sums(weights, small, large)[:, :count]
    # The sum above is a convolution: S_m is at count - 1 - m, and l + (count - 1 - m) = j + count.
    return _integers(_multiply_by_fft(product, sums[:, ::-1])[:, count : 2 * count])


def _powers(x: Integers, count: int) -> tuple[Residues, Residues]:
    """x^0 .. x^(_STRIDE - 1), and x^0, x^_STRIDE, x^(2 * _STRIDE) .. below x^count.

    Both [batch, points, powers].
    """
    logarithms, powers = _tables()
    large_count = max(1, -(-count // _STRIDE))
    exponents = numpy.arange(_STRIDE + large_count)
    exponents[_STRIDE:] = exponents[:large_count] * _STRIDE
    logs = logarithms[x][..., None] * exponents
    logs -= logs // (PRIME - 1) * (PRIME - 1)  # several times faster than a remainder
    found = powers[logs]
    small, large = found[..., :_STRIDE], found[..., _STRIDE:]
    is_zero = x == 0  # has no logarithm
    if is_zero.any():
        small[is_zero, 1:] = 0
        large[is_zero, 1:] = 0
    return small, large


def _values(coefficients: Residues, small: Residues, large: Residues) -> Residues:
    """Values [batch, points] of polynomials with coefficients [batch, terms]."""
    batch, terms = coefficients.shape
    padded = numpy.zeros((batch, large.shape[-1] * _STRIDE))
    padded[:, :terms] = coefficients
    parts = _reduce(small @ padded.reshape(batch, -1, _STRIDE).transpose(0, 2, 1))
    parts *= large
    return _reduce(parts.sum(axis=-1))


def _power_sums(weights: Residues, small: Residues, large: Residues) -> Residues:
    """Sums of weights_i * x_i^m for m from 0 on: [batch, powers]."""
    scaled = _reduce(large * weights[..., None])
    sums = _reduce(scaled.transpose(0, 2, 1) @ small)
    return sums.reshape(len(weights), -1)


def _product_of_roots(x: Residues) -> Residues:
    """Coefficients [batch, points + 1] of the products of (X - x_i), by a tree of products."""
    batch, count = x.shape
    leaf_count = 1 << (count - 1).bit_length()
    level = numpy.zeros((batch, leaf_count, 2))
    level[..., 0] = 1  # the polynomial 1, where there is no root
    numpy.negative(x, out=level[:, :count, 0])
    level[:, :count, 1] = 1
    while level.shape[1] > 1:
        outer_count = level.size * level.shape[2]
        multiply = _multiply if outer_count <= _OUTER_COUNT_MAX else _multiply_by_fft
        level = multiply(level[:, ::2], level[:, 1::2])
    return level[:, 0, : count + 1]


def _multiply(first: Residues, second: Residues) -> Residues:
    """Products of polynomials [batch, polynomials, terms] with as many terms each."""
    batch, polynomials, terms = first.shape
    # Row i of the outer product belongs i places to the right. Read again as rows that are
    # one shorter, each begins one place further right than the row before.
    rows = numpy.zeros((batch, polynomials, terms, 2 * terms))
    numpy.multiply(first[..., None], second[:, :, None], out=rows[..., :terms])
    flat = rows.reshape(batch, polynomials, -1)[..., : terms * (2 * terms - 1)]
    return _reduce(flat.reshape(batch, polynomials, terms, -1).sum(axis=2))


def _multiply_by_fft(first: Residues, second: Residues) -> Residues:
    """Products of polynomials along the last axis, which holds coefficients."""
    terms = first.shape[-1] + second.shape[-1] - 1
    size = 1 << (terms - 1).bit_length()
    spectrum = numpy.fft.rfft(first, size)
    spectrum *= numpy.fft.rfft(second, size)
    return _reduce(numpy.rint(numpy.fft.irfft(spectrum, size)[..., :terms]))


def _reduce(values: Residues) -> Residues:
    """The residues nearest to 0, in place."""
    # Division and remainder of integers take several times as long.
    quotients = values * (1 / PRIME)
    numpy.rint(quotients, out=quotients)
    quotients *= PRIME
    values -= quotients
    return values


def _integers(values: Residues) -> Integers:
    found: Integers = values.astype(numpy.int64) % PRIME
    return found


@functools.cache
def _tables() -> tuple[Integers, Residues]:
    """Logarithms of 1 to PRIME - 1 (0 of 0, which has none), and powers 0 to PRIME - 2 of
    _GENERATOR."""
    powers = numpy.ones(PRIME - 1)
    filled, top = 1, float(_GENERATOR)  # top is _GENERATOR^filled
    while filled < len(powers):
        more = powers[filled : 2 * filled]
        more[:] = _reduce(powers[: len(more)] * top)
        filled, top = 2 * filled, top * top % PRIME
    logarithms = numpy.zeros(PRIME, numpy.int64)
    logarithms[_integers(powers)] = numpy.arange(PRIME - 1)
    return logarithms, powers
