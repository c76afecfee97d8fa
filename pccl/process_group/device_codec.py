"""all_reduce of a tensor on a GPU in a codec: the thin bytes cross PCIe, both ways.

The tensor is encoded on the device, on its current stream; its encoded bytes are copied to the
host, summed with those of the others there, and the result's are copied back and decoded on the
device. So a rank's own contribution is what its encoding says, on itself too; ranks whose tensors
are on the CPU may take part. Where libpccl_cuda.so is not beside the extension (PCCL_CUDA=ON builds
it), or the codec has no kernels, tensors are staged as they are.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pccl import _core
from pccl.process_group.tensors import MOVED, STRIDED, empty_staged
from pccl.process_group.work import CopyBack

LIBRARY = Path(_core.__file__).with_name("libpccl_cuda.so")
DEVICES = {"cuda"}
# Below it the launch of two kernels costs more than the bytes that are saved.
ELEMENTS_MIN = 1 << 14

_HEADER_BYTES = 8  # of a segment; what follows are its tiles


def takes(tensor: Tensor, codec: str) -> bool:
    """Whether the tensor can be encoded where it is."""
    return (
        tensor.device.type in DEVICES
        and tensor.layout is STRIDED
        and tensor.is_contiguous()
        and tensor.numel() >= ELEMENTS_MIN
        and _core.has_cuda_kernels(codec, MOVED[tensor.dtype])
        and _has_library(str(LIBRARY))
    )


@functools.cache
def _has_library(path: str) -> bool:
    return _core.load_cuda_codecs(path)


class EncodedStaging:
    """Host memory for the encoded bytes of one tensor on a device; in place of a Staging.

    The kernel and the copy are on the device's current stream, which ready() waits for. A value
    that is not finite makes a tile that the core refuses, with this rank's name.
    """

    def __init__(self, tensor: Tensor, codec: str, seed: int, step: int) -> None:
        """seed, step: of ":stochastic", as for pccl.codecs.encode()."""
        self._tensor, self._codec = tensor, codec
        dtype = MOVED[tensor.dtype]
        size = _core.encoded_bytes(codec, dtype, tensor.numel()) - _HEADER_BYTES
        self._device = torch.empty(size, dtype=torch.uint8, device=tensor.device)
        self.host = empty_staged([size], self._device)
        # Set where a value is not finite, which the tiles say as well.
        flag = torch.zeros(1, dtype=torch.int32, device=tensor.device)
        values = (tensor.data_ptr(), tensor.numel())
        with _on(tensor.device):
            _core.cuda_encode(
                codec,
                values,
                dtype,
                self._device.data_ptr(),
                flag.data_ptr(),
                _stream(tensor),
                seed=seed,
                step=step,
            )
        self.host.copy_(self._device, non_blocking=True)

    def ready(self) -> None:
        """Return when the encoded bytes are in `host`."""
        if self._tensor.is_cuda:
            torch.cuda.current_stream(self._tensor.device).synchronize()

    def copy_back(self) -> CopyBack:
        """What is to be done when `host` holds the result's."""
        return CopyBack([(self._tensor, self.host)], self._decode)

    def _decode(self, tensor: Tensor, host: Tensor) -> None:
        """On the current stream, whichever thread this is."""
        self._device.copy_(host, non_blocking=True)
        if tensor.is_cuda:
            # It was made on the stream of the launch; its memory is not reused before this is done.
            self._device.record_stream(torch.cuda.current_stream(tensor.device))
        values = (tensor.data_ptr(), tensor.numel())
        dtype = MOVED[tensor.dtype]
        with _on(tensor.device):
            _core.cuda_decode(self._codec, self._device.data_ptr(), values, dtype, _stream(tensor))


def _stream(tensor: Tensor) -> int:
    """The current stream of the tensor's device, as a kernel's launch takes it."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0


def _on(device: torch.device) -> Any:
    """Kernels go to the device that is current."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
