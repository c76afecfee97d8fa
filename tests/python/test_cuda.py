"""Tensors on a GPU: the checks of tensors on the CPU once more, and the bytes of the kernels.

All ranks share one GPU. Needs a torch with CUDA; the kernels' tests need a build with PCCL_CUDA=ON.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import test_elastic_torch
import torch
from torch_ranks import TorchRanks, checks

if not torch.cuda.is_available():
    pytest.skip("no GPU that this torch can use", allow_module_level=True)

from pccl import codecs
from pccl.process_group import device_codec

CODECS = ("int8", "int6", "int4", "fp8_e4m3", "fp8_e5m2")
# Half a byte, a tile and its neighbours, a prime, many blocks of the grid.
COUNTS = (1, 3, 255, 256, 257, 1009, 70_003, 4_000_037)
MODULES = [
    f"torch_checks_{name}"
    for name in ("collectives", "messages", "groups", "training", "hooks", "diloco", "cuda")
]
# gloo takes no part in what this tests, and needs tensors on the CPU for some of it.
OF_GLOO = {"results_equal_those_of_gloo", "diloco_over_gloo"}
ALL = [(module, check) for module in MODULES for check in checks(module) if check not in OF_GLOO]

needs_kernels = pytest.mark.skipif(
    not device_codec.LIBRARY.exists(),
    reason=f"no {device_codec.LIBRARY.name} beside the extension: build with PCCL_CUDA=ON",
)


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[TorchRanks]:
    ranks = TorchRanks(4, TEST_DEVICE="cuda")
    yield ranks
    ranks.close()


@pytest.mark.parametrize(("module", "check"), ALL, ids=[f"{m[13:]}-{check}" for m, check in ALL])
def test_on_four_ranks(four_ranks: TorchRanks, module: str, check: str) -> None:
    four_ranks.run(module, check)


@needs_kernels
def test_a_tensor_on_a_gpu_is_encoded_there() -> None:
    two_ranks = TorchRanks(2)
    two_ranks.run("torch_checks_device", "real_device")
    two_ranks.close()


def test_ddp_on_a_gpu_loses_no_step_when_a_member_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_DEVICE", "cuda")
    test_elastic_torch.test_ddp_loses_no_step_when_a_member_dies_in_backward_and_a_newcomer_gets_the_state(
        tmp_path
    )


def _made(kind: str, count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=random)
    if kind == "wide":  # every exponent that a codec takes, denormals as well
        return torch.ldexp(values, torch.randint(-149, 100, (count,), generator=random))
    if kind == "sparse":  # whole tiles of zeros among others
        return values * (torch.arange(count) // 300 % 3 == 0)
    if kind == "constant":
        return torch.full((count,), -0.3)
    return values


@needs_kernels
@pytest.mark.parametrize("codec", [*CODECS, "int8:stochastic", "int4:stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_write_and_read_the_bytes_of_the_cpu(codec: str, dtype: torch.dtype) -> None:
    assert device_codec.takes(torch.zeros(device_codec.ELEMENTS_MIN, device="cuda"), codec)
    for kind in ("normal", "wide", "sparse", "constant"):
        for count in COUNTS:
            # Half of them begin at an odd element, so that nothing is aligned.
            values = _made(kind, count + 1)[count % 2 :][:count].to(dtype)
            if dtype is torch.float16:
                values = values.clamp(-65000, 65000)
            wire = codecs.encode(values, codec, seed=7, step=count)
            place = torch.empty(count + 1, dtype=dtype, device="cuda")[count % 2 :][:count]
            place.copy_(values)
            staging = device_codec.EncodedStaging(place, codec, 7, count)
            staging.ready()
            head = len(wire) - staging.host.numel()
            assert staging.host.numpy().tobytes() == wire[head:], (kind, count)
            expected = torch.empty(count, dtype=dtype)
            codecs.decode(wire, expected)
            place.fill_(torch.nan)
            staging.copy_back()()
            found = place.cpu()
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8)), (kind, count)
