"""What codecs are measured on: gradients and pseudo-gradients of a real small model on real text.

The model and the text are those of the examples. Members start from the same parameters, already
trained for some steps, and see different parts of the text.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from torch import Tensor, nn

__all__ = ["Vectors", "real_gradients", "real_pseudo_gradients"]

Vectors = list[npt.NDArray[np.float32]]  # one a member, [parameters]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WARM_UP_STEPS = 10
INNER_STEPS = 12
BATCH = 4
LENGTH = 64
RATE = 1e-3


def real_gradients(members: int, channels: int = 128, steps: int = WARM_UP_STEPS) -> Vectors:
    """Return each member's gradient at the same parameters, flat."""
    with _single_thread():
        model, batch = _trained(channels, steps)
        gradients = []
        for member in range(members):
            model.zero_grad()
            _loss(model, batch(1 + member)).backward()  # type: ignore[no-untyped-call]
            gradients.append(_flat(p.grad for p in model.parameters() if p.grad is not None))
        return gradients


def real_pseudo_gradients(
    members: int, channels: int = 128, steps: int = WARM_UP_STEPS, inner_steps: int = INNER_STEPS
) -> Vectors:
    """Return, for each member, what `inner_steps` of AdamW took off the same parameters, flat."""
    with _single_thread():
        model, batch = _trained(channels, steps)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        before = _flat(p.detach() for p in model.parameters())
        vectors = []
        for member in range(members):
            model.load_state_dict(start)
            optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
            for step in range(inner_steps):
                _step(model, optimizer, batch(1000 * (member + 1) + step))
            vectors.append(before - _flat(p.detach() for p in model.parameters()))
        return vectors


@contextmanager
def _single_thread() -> Iterator[None]:
    """With more threads the sums of a matrix product depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _trained(channels: int, steps: int) -> tuple[nn.Module, Callable[[int], Tensor]]:
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    corpus: Any = importlib.import_module("corpus")
    llama: Any = importlib.import_module("model")
    text = corpus.load_corpus("devil", may_download=False).train
    torch.manual_seed(1)
    model = llama.ByteLlama(llama.ModelOptions(channels=channels, hidden=channels * 11 // 4))

    def batch(seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        windows: Tensor = corpus.sample_windows(text, BATCH, LENGTH, random)
        return windows

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(steps):
        _step(model, optimizer, batch(10**6 + step))
    return model, batch


def _loss(model: nn.Module, bytes_bt: Tensor) -> Tensor:
    logits = model(bytes_bt[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), bytes_bt[:, 1:].flatten())


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, bytes_bt: Tensor) -> None:
    optimizer.zero_grad()
    _loss(model, bytes_bt).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _flat(tensors: Iterator[Tensor]) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = torch.cat([tensor.flatten() for tensor in tensors]).numpy()
    return np.array(flat)
