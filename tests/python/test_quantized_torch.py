"""pccl.quantized() and PCCL_CODEC reach the all_reduces of torch, DDP's among them."""

import sys
from pathlib import Path

import pytest

from pccl.launch import launch

PROGRAM = """
import hashlib, os
import torch, torch.distributed as dist
import pccl

dist.init_process_group("pccl")
rank = dist.get_rank()

def error():
    values = [torch.randn(10_000, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    tensor = values[rank].clone()
    dist.all_reduce(tensor)
    digests = [None, None]
    dist.all_gather_object(digests, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
    assert digests[0] == digests[1], digests
    return float((tensor - sum(values)).norm() / sum(values).norm())

if os.environ.get("PCCL_CODEC"):
    assert 0.001 < error() < 0.02, error()
    with pccl.quantized("none"):
        assert error() == 0
else:
    assert error() == 0
    with pccl.quantized("int8"):
        assert 0.001 < error() < 0.02, error()
        counts = torch.tensor([rank + 1])
        dist.all_reduce(counts)  # integers travel as they are
        assert counts.item() == 3
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(100, 100, bias=False))
        model(torch.randn(8, 100)).sum().backward()
        gradient = model.module.weight.grad
        gathered = [torch.empty_like(gradient) for _ in range(2)]
        dist.all_gather(gathered, gradient)
        assert torch.equal(*gathered)
    assert error() == 0
dist.destroy_process_group()
"""


@pytest.mark.parametrize("codec", ["", "int8"])
def test_torch_sends_in_the_codec_in_force(codec: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {"PCCL_CODEC": codec, "OMP_NUM_THREADS": "1"}
    assert launch([sys.executable, str(program)], 2, environment=environment) == 0
