"""Proofs: the published bytes, exact arithmetic, honest noise small, and nothing that crashes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.proof import (
    ProofErrors,
    ProofFormat,
    ProofMalformed,
    build_proofs,
    verify_proofs,
)
from asyncrl.proof.polynomial import PRIME, evaluate, interpolate

VECTORS = Path(__file__).parents[1] / "data" / "toploc_vectors.json"
SMALL = ProofFormat(point_count=8, rows_per_proof=4)


def states(rows: int, width: int, seed: int = 0) -> Any:
    return numpy.random.default_rng(seed).normal(size=(rows, width)).astype(numpy.float32)


def to_bf16(values: Any) -> Any:
    """The bits of the nearest bf16, by way of the difference to both neighbours."""
    wide = values.astype(numpy.float32).view(numpy.uint32).astype(numpy.uint64)
    down, rest = wide >> 16, wide & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & (down & 1 == 1))
    return (down + up).astype(numpy.uint16)


# --- arithmetic ---


@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 127, 128, 129])
def test_polynomials_go_through_their_points(count: int) -> None:
    random = numpy.random.default_rng(count)
    x = numpy.stack([random.permutation(PRIME)[:count] for _ in range(3)])
    y = random.integers(0, PRIME, (3, count))
    # The largest values that sums can reach.
    y[0], x[0, :] = PRIME - 1, PRIME - 1 - numpy.arange(count)
    coefficients = interpolate(x, y)
    assert coefficients.shape == (3, count)
    for row in range(3):
        for point in range(0, count, 7):
            at, value = int(x[row, point]), 0
            for coefficient in coefficients[row, ::-1].tolist():
                value = (value * at + coefficient) % PRIME
            assert value == y[row, point]
    assert (evaluate(coefficients, x) == y).all()


# --- the published format ---


def vector_bits(name: str, dtype: str, rows: int, width: int) -> Any:
    """Bit patterns that any program can make again: SHAKE-128 of the name, no NaN or Inf."""
    stream = hashlib.shake_128(name.encode()).digest(2 * rows * width)
    bits = numpy.frombuffer(stream, ">u2").reshape(rows, width).astype(numpy.uint16)
    # One exponent bit less: every value is finite.
    return bits & (0xBFFF if dtype == "bf16" else 0xBBFF)


def shape_of(vector: dict[str, Any]) -> tuple[str, int, int]:
    return vector["dtype"], vector["rows"], vector["width"]


# Computed with that package, built from its sources: proofs, and its errors of changed states.
@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text()), ids=lambda v: str(v["name"]))
def test_the_bytes_are_those_of_the_published_package(vector: dict[str, Any]) -> None:
    bits = vector_bits(vector["name"], *shape_of(vector))
    if vector["dtype"] == "fp16":
        bits = bits.view(numpy.float16)
    proof_format = ProofFormat(dtype=vector["dtype"])
    (proof,) = build_proofs([bits], proof_format)
    assert proof.hex() == vector["proofs"]
    (errors,) = verify_proofs([bits], [proof], proof_format)
    assert set(errors) == {ProofErrors(0, 0.0, 0.0)}
    if "errors_when_changed" in vector:
        flips = vector_bits("changed " + vector["name"], *shape_of(vector)) & 3
        changed = bits.view(numpy.uint16) ^ flips
        (errors,) = verify_proofs([changed.view(bits.dtype)], [proof], proof_format)
        for error, (exponents, mean, median) in zip(
            errors, vector["errors_when_changed"], strict=True
        ):
            assert error.exponent_mismatches == exponents
            assert error.mantissa_mean == pytest.approx(mean)
            assert error.mantissa_median == median


def test_fp32_is_rounded_to_the_nearest_bf16() -> None:
    values = states(1, 128)  # all are points: of a choice, fp32 knows which of equals is larger
    values[0, :3] = (3e38, -1.00390625, 1.01171875)  # a large one, and two halfway between bf16
    assert build_proofs([values]) == build_proofs([to_bf16(values)], ProofFormat(dtype="bf16"))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 97])
def test_there_is_one_proof_for_32_rows(rows: int) -> None:
    values = states(rows, 192)
    (proof,) = build_proofs([values])
    assert len(proof) == 258 * -(-rows // 32)
    assert verify_proofs([values], [proof]) == [[ProofErrors(0, 0.0, 0.0)] * -(-rows // 32)]


@pytest.mark.parametrize("width", [1, 7, 127, 128])
def test_fewer_values_than_points_are_all_proven(width: int) -> None:
    values = states(1, width)
    (proof,) = build_proofs([values])
    assert verify_proofs([values], [proof]) == [[ProofErrors(0, 0.0, 0.0)]]
    ((error,),) = verify_proofs([-values], [proof])
    assert error == ProofErrors(width, float("inf"), float("inf"))


def test_many_rollouts_in_one_call_are_what_each_is_alone() -> None:
    hidden = [states(rows, 192, rows) for rows in (1, 33, 5, 300)]
    hidden = hidden * 30  # more than go through the field at once
    proofs = build_proofs(hidden)
    assert proofs == [build_proofs([one])[0] for one in hidden]
    assert verify_proofs(hidden, proofs) == [
        verify_proofs([one], [proof])[0] for one, proof in zip(hidden, proofs, strict=True)
    ]


def test_indices_beyond_the_field_get_a_smaller_modulus() -> None:
    values = numpy.full((32, 4096), 0.001, numpy.float32)
    values.reshape(-1)[[5, 5 + PRIME, 77]] = (9.0, -8.0, 7.0)  # 5 and 5 + PRIME collide
    three = ProofFormat(point_count=3)
    (proof,) = build_proofs([values], three)
    assert int.from_bytes(proof[:2], "big") == PRIME - 1
    assert verify_proofs([values], [proof], three) == [[ProofErrors(0, 0.0, 0.0)]]


# --- what the errors say ---


def test_noise_of_rounding_costs_little_and_other_states_all() -> None:
    values = states(64, 192)
    (proof,) = build_proofs([values])
    noisy = values * (1 + 1e-6 * states(64, 192, 1))
    (errors,) = verify_proofs([noisy.astype(numpy.float32)], [proof])
    assert max(error.exponent_mismatches for error in errors) <= 1
    assert max(error.mantissa_mean for error in errors) < 0.1
    (errors,) = verify_proofs([states(64, 192, 2)], [proof])
    assert min(error.exponent_mismatches for error in errors) > 100


def test_errors_are_counted_in_units_of_the_last_place() -> None:
    values = numpy.full((1, 128), 1.0, numpy.float32)
    (proof,) = build_proofs([values])
    changed = values.copy()
    changed[0, :30] = -1.0  # another sign
    changed[0, 30:60] = 2.0  # another exponent
    changed[0, 60:80] = 1 + 4 / 128
    ((error,),) = verify_proofs([changed], [proof])
    assert error == ProofErrors(60, 20 * 4 / 68, 0.0)


# --- bad input ---


@pytest.mark.parametrize(
    ("proof", "message"),
    [
        (b"", "got 0 bytes"),  # none
        (b"\0\0", "got 2 bytes"),
        (bytes(258), "modulus"),  # null
        (bytes(516), "got 516 bytes"),  # surplus
        (b"\x80\x00" + bytes(256), "modulus"),
        (b"\xff\xda" + bytes(256), "modulus"),
        (b"\xff\xd8" + bytes(256), "modulus"),  # of so few values it is 65497
        (b"\xff\xd9" + bytes(254) + b"\xff\xd9", "coefficient 65497"),
        (b"\xff\xd9" + bytes(255), "got 257 bytes"),
    ],
)
def test_a_malformed_proof_is_refused(proof: bytes, message: str) -> None:
    with pytest.raises(ProofMalformed, match=f"rollout 1: .*{message}"):
        verify_proofs([states(1, 192)] * 2, [build_proofs([states(1, 192)])[0], proof])


@settings(max_examples=300, deadline=None)
@given(proof=st.binary(max_size=60), rows=st.integers(1, 9))
def test_any_bytes_are_judged_or_refused(proof: bytes, rows: int) -> None:
    values = states(rows, 6)
    try:
        (errors,) = verify_proofs([values], [proof], SMALL)
    except ProofMalformed:
        return
    assert len(errors) == SMALL.proof_count(rows)
    assert proof == build_proofs([values], SMALL)[0] or any(e.exponent_mismatches for e in errors)


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(st.integers(0, PRIME - 1), min_size=8, max_size=8),
    modulus=st.just(PRIME) | st.integers(1 << 15, 1 << 16),
)
def test_any_coefficients_are_judged_or_refused(words: list[int], modulus: int) -> None:
    proof = b"".join(word.to_bytes(2, "big") for word in [modulus % (1 << 16), *words])
    if modulus == PRIME:
        ((error,),) = verify_proofs([states(3, 6)], [proof], SMALL)
        assert 0 <= error.exponent_mismatches <= 8
        assert error.mantissa_mean >= 0
    else:
        with pytest.raises(ProofMalformed):
            verify_proofs([states(3, 6)], [proof], SMALL)


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
def test_states_that_are_not_numbers_are_an_error(value: float) -> None:
    values = states(2, 192)
    values[1, 3] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        build_proofs([values])
    with pytest.raises(ValueError, match="NaN or Inf"):
        build_proofs([values.astype(numpy.float16)], ProofFormat(dtype="fp16"))
    with pytest.raises(ValueError, match="NaN or Inf"):
        build_proofs([to_bf16(values)], ProofFormat(dtype="bf16"))


@pytest.mark.parametrize(
    "wrong", [states(2, 4).astype(numpy.float64), states(2, 4)[0], states(0, 4)]
)
def test_other_shapes_and_dtypes_are_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="hidden states: expected float32"):
        build_proofs([wrong])


def test_wrong_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="1 hidden states, 0 proofs"):
        verify_proofs([states(1, 4)], [])
    with pytest.raises(ValueError, match="dtype"):
        ProofFormat(dtype="fp64")
    with pytest.raises(ValueError, match="positive"):
        ProofFormat(rows_per_proof=0)
