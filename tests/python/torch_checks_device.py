"""Checks of tensors on a device: encoded there, the bytes of encoding on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch_worker import Skip

import pccl
from pccl import codecs
from pccl.process_group import device_codec
from pccl.process_group.group import ProcessGroupPCCL

COUNT = device_codec.ELEMENTS_MIN + 4099


class _Counted(device_codec.EncodedStaging):
    """Proves which way a tensor goes."""

    calls = 0

    def ready(self) -> None:
        type(self).calls += 1
        super().ready()


def emulated_device(library: str) -> list[Tensor]:
    """`library` works on the memory of the CPU, and tensors there pass for those of a device."""
    device_codec.LIBRARY = Path(library)
    return _all_checks("cpu")


def real_device() -> list[Tensor]:
    sample = torch.zeros(COUNT, device="cuda")
    if not device_codec.takes(sample, "int8"):
        raise Skip(f"no {device_codec.LIBRARY.name} beside the extension: build with PCCL_CUDA=ON")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        return _all_checks("cuda")


def _all_checks(device: str) -> list[Tensor]:
    patch = pytest.MonkeyPatch()
    patch.setattr(device_codec, "EncodedStaging", _Counted)
    patch.setattr(device_codec, "DEVICES", {device})
    try:
        results = [
            _same_as_inside(device, dtype, codec, op)
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
            for codec in ("int8", "int6", "int4", "fp8_e4m3", "fp8_e5m2")
            for op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG)
        ]
        _other_ways(device)
        _fallbacks(device)
        _not_finite(device)
        return results
    finally:
        patch.undo()


def _values(device: str, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(dist.get_rank())
    return torch.randn(COUNT, generator=random).to(dtype).to(device)


def _inside(tensor: Tensor, codec: str, op: dist.ReduceOp.RedOpType) -> Tensor:
    """What the CPU makes of the same encoded values, in float32."""
    values = torch.empty(COUNT)
    codecs.decode(codecs.encode(tensor.cpu(), codec), values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_codec, "DEVICES", set())
        with pccl.quantized(codec):
            dist.all_reduce(values, op)
    return values


def _same_as_inside(
    device: str, dtype: torch.dtype, codec: str, op: dist.ReduceOp.RedOpType
) -> Tensor:
    tensor = _values(device, dtype)
    expected = _inside(tensor, codec, op)
    before = _Counted.calls
    with pccl.quantized(codec):
        dist.all_reduce(tensor, op)
    assert _Counted.calls == before + 1
    assert torch.equal(tensor.cpu(), expected.to(dtype)), (dtype, codec, op)
    return tensor.cpu()


def _other_ways(device: str) -> None:
    expected = _inside(_values(device, torch.float32), "int8", dist.ReduceOp.AVG)
    before = _Counted.calls
    tensor = _values(device, torch.float32)
    with pccl.quantized("int8"):
        work = dist.all_reduce(tensor, dist.ReduceOp.AVG, async_op=True)
    assert work is not None
    [result] = work.get_future().wait()
    assert torch.equal(result.cpu(), expected)
    tensor = _values(device, torch.float32)
    group = dist.group.WORLD
    backend = group if isinstance(group, ProcessGroupPCCL) else None
    if backend is not None:
        backend.all_reduce_in("int8", tensor).wait()
        assert torch.equal(tensor.cpu(), expected)
    assert _Counted.calls == before + 1 + (backend is not None)


def _fallbacks(device: str) -> None:
    """What the device does not encode is staged as before."""
    before = _Counted.calls
    with pccl.quantized("bf16"):  # no kernels
        dist.all_reduce(torch.ones(COUNT, device=device))
    with pccl.quantized("int8"):
        dist.all_reduce(torch.ones(100, device=device))
        dist.all_reduce(torch.ones(2, COUNT, device=device).t())
        dist.all_reduce(torch.ones(COUNT, dtype=torch.int64, device=device))
    dist.all_reduce(torch.ones(COUNT, device=device))
    assert _Counted.calls == before


def _not_finite(device: str) -> None:
    """Named everywhere, and the tensor on the device is as it was."""
    group = dist.new_group()
    tensor = torch.ones(COUNT, device=device)
    if dist.get_rank() == 1:
        tensor[700] = torch.inf
    kept = tensor.clone()
    with pccl.quantized("int8"), pytest.raises(pccl.NonFiniteContribution, match="rank 1"):
        dist.all_reduce(tensor, group=group)
    assert torch.equal(tensor, kept)
