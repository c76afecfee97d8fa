"""Polynomials over GF(65497): interpolation and evaluation, many at a time.

A batch costs a fixed number of numpy calls, whatever its size: products of polynomials are FFTs in
float64, sums of powers are matrix products. Both are exact: every integer in them stays below
2^40, and the rounding of a float64 FFT of 256 such sums is below 0.001.
"""

from __future__ import annotations

import functools

import numpy
from numpy.typing import NDArray

__all__ = ["PRIME", "evaluate", "interpolate"]

PRIME = 65497  # the field of the published format

Integers = NDArray[numpy.int64]

_STRIDE = (
    16  # powers below it are held, the rest is Horner's scheme: 16 + 8 products instead of 128
)


def evaluate(coefficients: Integers, x: Integers) -> Integers:
    """Values [batch, points] of polynomials at x, modulo PRIME.

    Args:
        coefficients: [batch, terms], of x^0 first, each from 0 to PRIME - 1.
        x: [batch, points], likewise.
    """
    batch, terms = coefficients.shape
    block_count = max(1, -(-terms // _STRIDE))
    padded = numpy.zeros((batch, block_count * _STRIDE))
    padded[:, :terms] = coefficients
    blocks = padded.reshape(batch, block_count, _STRIDE).transpose(0, 2, 1)
    powers = _powers(x)
    values = _reduce(powers.astype(numpy.float64) @ blocks)  # [batch, points, blocks]
    stride_power = powers[..., -1] * x % PRIME
    result = values[..., -1]
    for block in range(block_count - 2, -1, -1):
        result = _reduce(result * stride_power + values[..., block])
    return result


def interpolate(x: Integers, y: Integers) -> Integers:
    """Coefficients [batch, points], of x^0 first, of the polynomials through points (x, y).

    Lagrange's formula by coefficients: with M the product of (X - x_i) and a_i = y_i / M'(x_i),
    coefficient j is the sum over l > j of M_l * S_(l - j - 1), where S_m is the sum of a_i * x_i^m.

    Args:
        x, y: [batch, points], each from 0 to PRIME - 1; those of x distinct in a row.
    """
    count = x.shape[1]
    product = _product_of_roots(x)  # [batch, count + 1]
    slope = product[:, 1:] * numpy.arange(1, count + 1) % PRIME
    weights = _inverses()[evaluate(slope, x)] * y % PRIME
    sums = _power_sums(x, weights)  # [batch, count]
    reversed_sums = sums[:, ::-1]  # index count - 1 - m
    # The sum above is a convolution: l + (count - 1 - m) = j + count.
    return _multiply(product, reversed_sums)[:, count : 2 * count]


def _powers(x: Integers) -> Integers:
    """x^0 .. x^(_STRIDE - 1): [batch, points, _STRIDE]."""
    powers = numpy.ones((*x.shape, _STRIDE), numpy.int64)
    powers[..., 1] = x
    filled = 2
    while filled < _STRIDE:
        top = powers[..., filled - 1] * x % PRIME
        powers[..., filled : 2 * filled] = _reduce(powers[..., :filled] * top[..., None])
        filled *= 2
    return powers


def _power_sums(x: Integers, weights: Integers) -> Integers:
    """Sums of weights_i * x_i^m for m from 0 to points - 1: [batch, points]."""
    batch, count = x.shape
    powers = _powers(x)
    stride_power = powers[..., -1] * x % PRIME
    block_count = -(-count // _STRIDE)
    scaled = numpy.empty((batch, block_count, count))  # weights_i * x_i^(_STRIDE * block)
    current = weights
    for block in range(block_count):
        scaled[:, block] = current
        current = _reduce(current * stride_power)
    sums = _reduce(scaled @ powers.astype(numpy.float64))  # [batch, blocks, _STRIDE]
    return sums.reshape(batch, -1)[:, :count]


def _product_of_roots(x: Integers) -> Integers:
    """Coefficients [batch, points + 1] of the products of (X - x_i), by a tree of products."""
    batch, count = x.shape
    leaf_count = 1 << (count - 1).bit_length()
    level = numpy.zeros((batch, leaf_count, 2), numpy.int64)
    level[..., 0] = 1  # the polynomial 1, where there is no root
    level[:, :count, 0] = (PRIME - x) % PRIME
    level[:, :count, 1] = 1
    while level.shape[1] > 1:
        level = _multiply(level[:, ::2], level[:, 1::2])
    return level[:, 0, : count + 1]


def _multiply(first: Integers, second: Integers) -> Integers:
    """Products of polynomials along the last axis, which holds coefficients."""
    terms = first.shape[-1] + second.shape[-1] - 1
    size = 1 << (terms - 1).bit_length()
    spectrum = numpy.fft.rfft(first, size) * numpy.fft.rfft(second, size)
    return _reduce(numpy.rint(numpy.fft.irfft(spectrum, size)[..., :terms]))


def _reduce(values: NDArray[numpy.float64] | Integers) -> Integers:
    # A division by a constant is vectorised in numpy, the remainder is not.
    integers = values.astype(numpy.int64)
    reduced: Integers = integers - integers // PRIME * PRIME
    return reduced


@functools.cache
def _inverses() -> Integers:
    """1 / i modulo PRIME at index i, which is i^(PRIME - 2) (Fermat); 0 at 0."""
    inverses = numpy.ones(PRIME, numpy.int64)
    base = numpy.arange(PRIME, dtype=numpy.int64)
    exponent = PRIME - 2
    while exponent:
        if exponent & 1:
            inverses = _reduce(inverses * base)
        base = _reduce(base * base)
        exponent >>= 1
    return inverses
