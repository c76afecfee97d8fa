"""pccl.codecs against a reference in numpy: the same bytes, the expected error, named faults."""

import importlib
import sys
from pathlib import Path
from typing import Any

import codec_reference as reference
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pccl
from pccl import codecs

EXACT = (
    "bf16",
    "fp16",
    "int8",
    "int6",
    "int4",
    "int4:mse_clip",
    "int4:hadamard",
    "int4:mse_clip:hadamard",
    "fp8_e4m3",
    "fp8_e5m2",
)
MEMBERS = 8
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def round_trip(values: npt.NDArray[Any], codec: str, **options: Any) -> npt.NDArray[Any]:
    target = np.full_like(values, 7)
    codecs.decode(codecs.encode(values, codec, **options), target, codecs_name(codec))
    return target


def codecs_name(codec: str) -> str:
    described = codecs.describe(codecs.encode(np.zeros(1, np.float32), codec))
    assert described is not None
    return described.codec


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- the same bytes as the reference ---

FLOATS = hnp.arrays(
    np.float32,
    st.integers(0, 600),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
)


@pytest.mark.parametrize("codec", EXACT)
@settings(max_examples=40, deadline=None)
@given(values=FLOATS)
def test_bytes_are_those_of_the_reference(codec: str, values: npt.NDArray[np.float32]) -> None:
    wire = codecs.encode(values, codec)
    assert wire == reference.encode(values, codec)
    assert len(wire) == codecs.encoded_bytes(codec, len(values))


@pytest.mark.parametrize("codec", EXACT)
@pytest.mark.parametrize("count", [1, 31, 255, 256, 257, 4099])
def test_bytes_of_normal_values_are_those_of_the_reference(codec: str, count: int) -> None:
    values = np.random.default_rng(count).standard_t(3, count).astype(np.float32)
    assert codecs.encode(values, codec) == reference.encode(values, codec)


@pytest.mark.parametrize(
    "codec", [*EXACT, "int8:stochastic", "int4:stochastic", "topk", "topk_2bit"]
)
def test_describe_says_what_is_in_it(codec: str) -> None:
    wire = codecs.encode(np.ones((3, 7), np.float32), codec)
    described = codecs.describe(wire)
    assert described is not None
    assert described.codec.startswith(codec.split(":")[0])
    assert (described.dtype, described.elements) == (None, 21)
    assert codecs.describe(b"\0" + wire[1:]) is None
    assert codecs.describe(wire[:5]) is None


# --- the error of an average ---


def one_shot(vectors: list[npt.NDArray[np.float32]], codec: str) -> npt.NDArray[np.float32]:
    """Each member encodes once; the owner adds in float32, encodes the average, all decode."""
    sums = np.zeros_like(vectors[0])
    for vector in vectors:
        codecs.decode(codecs.encode(vector, codec), sums, add=True)
    target = np.empty_like(sums)
    codecs.decode(codecs.encode(sums, codec, divisor=len(vectors)), target)
    return target


def reference_one_shot(vectors: list[npt.NDArray[np.float32]], codec: str) -> npt.NDArray[Any]:
    wires = [reference.quantized(vector.astype(np.float64), codec) for vector in vectors]
    return reference.quantized(np.mean(wires, axis=0), codec)


@pytest.fixture(scope="module")
def real_values() -> dict[str, list[npt.NDArray[np.float32]]]:
    pytest.importorskip("torch")
    sys.path.append(str(BENCHMARKS))
    try:
        gradients: Any = importlib.import_module("gradients")
    finally:
        sys.path.remove(str(BENCHMARKS))
    return {
        "gradients": gradients.real_gradients(MEMBERS, channels=64, steps=3),
        "pseudo-gradients": gradients.real_pseudo_gradients(
            MEMBERS, channels=64, steps=3, inner_steps=4
        ),
    }


@pytest.mark.parametrize(
    ("codec", "limit"),
    [
        ("int8", 0.011),
        ("int6", 0.05),
        ("int4", 0.11),
        ("int4:hadamard", 0.13),
        ("fp8_e4m3", 0.035),
        ("fp8_e5m2", 0.065),
        ("bf16", 0.0025),
    ],
)
@pytest.mark.parametrize("kind", ["gradients", "pseudo-gradients"])
def test_an_average_of_real_values_is_as_close_as_the_reference(
    real_values: dict[str, list[npt.NDArray[np.float32]]], kind: str, codec: str, limit: float
) -> None:
    vectors = real_values[kind]
    exact = np.mean([vector.astype(np.float64) for vector in vectors], axis=0)
    error = relative_error(one_shot(vectors, codec), exact)
    assert error < limit
    assert error < 1.05 * relative_error(reference_one_shot(vectors, codec), exact)


# --- options ---


@pytest.mark.parametrize("codec", EXACT)
def test_combine_is_decode_add_and_encode_in_one(codec: str) -> None:
    own, *others = (np.random.default_rng(r).normal(size=1000).astype("f4") for r in range(MEMBERS))
    wires = [codecs.encode(other, codec) for other in others]
    sums = own.copy()
    for wire in wires:
        codecs.decode(wire, sums, add=True)
    expected = reference.encode(sums / np.float32(MEMBERS), codec)
    assert codecs.combine(own, wires, codec, divisor=MEMBERS) == expected
    with pytest.raises(pccl.RemoteProtocolError, match=r"contribution 2: .* bytes"):
        codecs.combine(own, [*wires[:2], wires[2][:-1]], codec)
    own[17] = np.inf
    with pytest.raises(pccl.NonFiniteContribution, match="element 17 of 1000"):
        codecs.combine(own, wires, codec)


def test_stochastic_rounding_is_right_on_average() -> None:
    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    rounds = [round_trip(values, "int4:stochastic", step=step) for step in range(200)]
    mean = np.mean(rounds, axis=0)
    step = np.abs(values.reshape(-1, 32)).max(axis=1) / 7
    # The error of one is at most a step and uniform; the mean of 200 is within 5 sigma of it.
    assert np.max(np.abs(mean - values).reshape(-1, 32) / step[:, None]) < 5 / np.sqrt(200)
    assert np.any(rounds[0] != rounds[1])
    np.testing.assert_array_equal(rounds[3], round_trip(values, "int4:stochastic", step=3))


@pytest.mark.parametrize("codec", ["int8:stochastic", "int4:hadamard:stochastic", "topk:128"])
def test_parts_are_encoded_as_they_are_within_the_whole(codec: str) -> None:
    values = np.random.default_rng(2).standard_normal(10000).astype(np.float32)
    whole = codecs.encode(values, codec, seed=5)
    parts = [codecs.encode(values[:8192], codec, seed=5)]
    parts.append(codecs.encode(values[8192:], codec, seed=5, first_element=8192))
    assert whole[8:] == b"".join(part[8:] for part in parts)


@pytest.mark.parametrize("codec", ["int4", "int8", "topk:64", "topk_2bit:64"])
def test_error_feedback_sends_in_the_end_what_was_meant(codec: str) -> None:
    values = np.random.default_rng(3).standard_normal(8192).astype(np.float32)
    feedback = codecs.ErrorFeedback(len(values))
    sent = np.zeros(len(values))
    rounds = 40
    for step in range(rounds):
        target = np.empty_like(values)
        codecs.decode(feedback.encode(values, codec, step=step), target)
        sent += target
    np.testing.assert_allclose(sent + feedback.residual, rounds * values, atol=2e-4)
    once = relative_error(round_trip(values, codec), values)
    assert relative_error(sent / rounds, values) < once / 1.4


def test_a_difference_brings_receivers_to_the_values() -> None:
    values = np.random.default_rng(4).standard_normal(5000).astype(np.float32)
    sender, receiver = codecs.Difference(5000), np.zeros(5000, np.float32)
    for _ in range(5):
        codecs.decode(sender.encode(values, "int4"), receiver, add=True)
        np.testing.assert_array_equal(sender.estimate, receiver)
    assert relative_error(receiver, values) < 1e-4


# --- dtypes, bad input ---


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_float_type_comes_back_as_itself(dtype: Any) -> None:
    values = np.linspace(-2, 2, 777).astype(dtype)
    back = round_trip(values, "int8")
    assert back.dtype == values.dtype
    np.testing.assert_allclose(back.astype(float), values.astype(float), atol=0.02)


def test_integers_refuse_to_lose_bits() -> None:
    with pytest.raises(ValueError, match=r"'int8' loses bits.*not int32"):
        codecs.encode(np.ones(3, np.int32), "int8")
    values = np.arange(5, dtype=np.int32)
    target = np.zeros_like(values)
    codecs.decode(codecs.encode(values, "none"), target)
    np.testing.assert_array_equal(target, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", [*EXACT, "int8:stochastic", "topk"])
def test_the_first_value_that_is_not_finite_is_named(codec: str, bad: float) -> None:
    values = np.ones(1000, np.float32)
    values[[555, 777]] = bad
    with pytest.raises(pccl.NonFiniteContribution, match="element 555 of 1000"):
        codecs.encode(values, codec)
    feedback = codecs.ErrorFeedback(1000)
    with pytest.raises(pccl.NonFiniteContribution, match="element 555 of 1000"):
        feedback.encode(values, codec)
    assert not feedback.residual.any()


def test_wrong_names_are_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"codec 'int7': expected one of none, bf16.*topk_2bit"):
        codecs.encode(np.ones(1, np.float32), "int7")


@pytest.mark.parametrize("codec", ["int8", "int4", "fp8_e4m3", "bf16", "topk"])
def test_forged_bytes_leave_the_target_as_it_was(codec: str) -> None:
    wire = bytearray(codecs.encode(np.ones(300, np.float32), codec))
    target = np.full(300, 5, np.float32)
    wire[8:12] = b"\xff\xff\xff\xff"
    with pytest.raises(pccl.RemoteProtocolError, match="no sender makes"):
        codecs.decode(bytes(wire), target)
    for damaged in (bytes(wire[:-1]), b"", b"\0" * len(wire)):
        with pytest.raises(pccl.RemoteProtocolError):
            codecs.decode(damaged, target)
    with pytest.raises(pccl.RemoteProtocolError, match=r"expected|299 elements"):
        codecs.decode(codecs.encode(np.ones(299, np.float32), codec), target)
    with pytest.raises(pccl.RemoteProtocolError, match="instead of int6"):
        codecs.decode(codecs.encode(np.ones(300, np.float32), "int6:stochastic"), target, "int6")
    assert (target == 5).all()
