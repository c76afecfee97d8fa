"""all_reduce of what is encoded already, and by a GPU: the bytes of encoding inside.

The GPU's library is emulated in the memory of the CPU (tests/cpp/emulated_cuda.cpp), and tensors of
the CPU stand for those of a device. test_cuda.py runs the same on a GPU.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from thread_ranks import run_ranks
from torch_ranks import TorchRanks

import pccl
from pccl import codecs

ROOT = Path(__file__).resolve().parents[2]
CODECS = ("bf16", "int8", "int6", "int4", "fp8_e4m3", "fp8_e5m2")
COUNT = 70_003
CHECKS = "torch_checks_device"

Floats = npt.NDArray[np.float32]


def values(rank: int, count: int = COUNT) -> Floats:
    return np.random.default_rng(rank).normal(size=count).astype(np.float32)


def encoded(tensor: Floats, codec: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytearray(codecs.encode(tensor, codec)), np.uint8)


def decoded(wire: bytes, count: int) -> Floats:
    target = np.empty(count, np.float32)
    codecs.decode(wire, target)
    return target


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("algorithm", ["direct", "ring", "double_binary_tree"])
def test_an_encoded_contribution_gives_the_bytes_of_encoding_inside(
    codec: str, algorithm: str
) -> None:
    def both(comm: pccl.Communicator) -> tuple[bytes, bytes]:
        for count in (1, 257, COUNT):
            wire = encoded(values(comm.rank, count), codec)
            inside = decoded(wire.tobytes(), count)
            comm.all_reduce_encoded(wire, "avg")
            comm.all_reduce(inside, "avg", codec=codec)
            assert np.array_equal(decoded(wire.tobytes(), count), inside), count
        return wire.tobytes(), inside.tobytes()

    config = pccl.Config(bind="127.0.0.1", algorithm=algorithm)
    assert len(set(run_ranks(3, both, config))) == 1


def test_ranks_that_encode_inside_take_part() -> None:
    def mixed(comm: pccl.Communicator) -> bytes:
        tensor = values(comm.rank)
        if comm.rank == 1:
            comm.all_reduce(tensor, codec="int8")
        else:
            wire = encoded(tensor, "int8")
            comm.all_reduce_encoded(wire)
            tensor = decoded(wire.tobytes(), COUNT)
        exact = sum(values(rank).astype(np.float64) for rank in range(comm.world_size))
        assert np.linalg.norm(tensor - exact) < 0.015 * np.linalg.norm(exact)
        return tensor.tobytes()

    assert len(set(run_ranks(3, mixed))) == 1


def test_what_is_not_finite_and_what_is_not_encoded_is_refused() -> None:
    def refused(comm: pccl.Communicator) -> str:
        good = encoded(values(comm.rank), "int8")
        for bad, message in (
            (good[:-1], "70003 elements"),
            (np.zeros(9, np.uint8), "encoded bytes"),
            (encoded(values(0), "none"), "none"),
            (encoded(values(0), "topk:64"), "feedback"),
        ):
            with pytest.raises(ValueError, match=message):
                comm.all_reduce_encoded(bad)
        with pytest.raises(ValueError, match="op"):
            comm.all_reduce_encoded(good, "max")
        if comm.rank == 1:
            good[8 + 258 * 3 : 8 + 258 * 3 + 2] = 0xFF  # the scale of a tile with an infinity
        with pytest.raises(pccl.NonFiniteContribution) as raised:
            comm.all_reduce_encoded(good)
        return str(raised.value)

    for message in run_ranks(2, refused):
        assert "rank 1" in message, message
        assert "tile of element 768 " in message, message


@pytest.fixture
def two_ranks() -> Iterator[TorchRanks]:
    """New ones for each test: a process loads one library."""
    ranks = TorchRanks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler, which the emulation of a GPU needs")
    library = tmp_path_factory.mktemp("device") / "libpccl_cuda.so"
    source = ROOT / "tests" / "cpp" / "emulated_cuda.cpp"
    options = ["-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
    return library


def test_a_tensor_on_a_device_is_encoded_there(emulated: Path, two_ranks: TorchRanks) -> None:
    two_ranks.run(CHECKS, "emulated_device", library=str(emulated))
