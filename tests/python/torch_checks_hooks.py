"""Checks of pccl.hooks: gradients in a codec, as exact as it is, with what it loses sent later.

The gradients of these models do not depend on their parameters, so what they must be is known.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_values import value

import pccl

ROWS = 4
STEPS = 16


def _model(**options: object) -> DistributedDataParallel:
    """Three parameters, in a bucket at first, then in two or three."""
    torch.manual_seed(7)
    layers = [nn.Linear(64, 48, bias=False) for _ in range(3)]
    return DistributedDataParallel(_Sum(layers), bucket_cap_mb=0.02, **options)  # type: ignore[arg-type]


class _Sum(nn.Module):
    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, batch: Tensor) -> Tensor:
        return sum((i + 1) * layer(batch) for i, layer in enumerate(self.layers))  # type: ignore[return-value]


def _batch(rank: int) -> Tensor:
    return value(rank, ROWS * 64, salt=3).reshape(ROWS, 64)


def _scale() -> Tensor:
    return value(0, 48, salt=5)


def _gradient(model: DistributedDataParallel) -> Tensor:
    """One backward pass; all gradients in a row."""
    model.zero_grad()
    (model(_batch(dist.get_rank())) * _scale()).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _exact() -> Tensor:
    rows = torch.stack([_batch(rank).double().sum(0) for rank in range(dist.get_world_size())])
    one = torch.outer(_scale().double(), rows.mean(0)).flatten()
    return torch.cat([one, 2 * one, 3 * one])


def _error(gradient: Tensor) -> float:
    exact = _exact()
    return float((gradient.double() - exact).norm() / exact.norm())


def _errors_of_means(model: DistributedDataParallel) -> tuple[float, float, Tensor]:
    """Of the last gradient, and of the mean of all; and the latter."""
    gradients = [_gradient(model) for _ in range(STEPS)]
    mean = torch.stack(gradients).double().mean(0)
    return _error(gradients[-1]), _error(mean), mean


def int8_has_the_error_of_int8() -> Tensor:
    model = _model()
    model.register_comm_hook(None, pccl.hooks.int8)
    gradient = [_gradient(model) for _ in range(3)][-1]
    assert 1e-4 < _error(gradient) < 0.015, _error(gradient)
    return gradient


def int4_with_error_feedback_is_exact_in_the_mean() -> list[Tensor]:
    model = _model()
    group = dist.new_group(pg_options=pccl.Config(codec="int4"))
    plain = _model(process_group=group)
    one, without, first = _errors_of_means(plain)
    assert 0.01 < one < 0.15, one
    model.register_comm_hook(pccl.hooks.ErrorFeedback(model), pccl.hooks.int4_error_feedback)
    _, with_feedback, second = _errors_of_means(model)
    # The same gradients each time: without feedback the mean has the error of each of them.
    assert with_feedback < without / 6, (with_feedback, without)
    dist.destroy_process_group(group)
    return [first, second]


def differences_come_closer_step_by_step() -> Tensor:
    model = _model()
    state = pccl.hooks.ErrorFeedback(model, ef21=True)
    model.register_comm_hook(state, pccl.hooks.int4_error_feedback)
    errors = [_error(_gradient(model)) for _ in range(7)]
    assert errors[1] < errors[0] / 3, errors
    assert errors[-1] < 1e-4, errors  # buckets were formed anew after the first step
    return _gradient(model)


def what_is_saved_is_sent_after_a_restart() -> Tensor:
    total, saved = torch.zeros_like(_exact()), {}
    for _ in range(2):
        model = _model()
        state = pccl.hooks.ErrorFeedback(model)
        state.load_state_dict(saved)
        model.register_comm_hook(state, pccl.hooks.int4_error_feedback)
        for _ in range(3):
            total += _gradient(model)
        saved = state.state_dict()
    left = torch.cat([saved[f"residual.layers.{i}.weight"].flatten() for i in range(3)]).to(total)
    dist.all_reduce(left)
    found = total + left / dist.get_world_size()
    torch.testing.assert_close(found, 6 * _exact(), rtol=1e-4, atol=1e-4)
    return total


def differences_go_on_after_a_restart() -> Tensor:
    saved: dict[str, Tensor] = {}
    for _ in range(2):
        model = _model()
        state = pccl.hooks.ErrorFeedback(model, ef21=True)
        state.load_state_dict(saved)
        model.register_comm_hook(state, pccl.hooks.int4_error_feedback)
        errors = [_error(_gradient(model)) for _ in range(4)]
        saved = state.state_dict()
    assert errors[0] < 1e-3, errors
    return _gradient(model)


def a_state_of_another_model_is_refused_as_a_whole() -> None:
    model = _model()
    state = pccl.hooks.ErrorFeedback(model)
    state.load_state_dict({"residual.layers.0.weight": torch.ones(48, 64)})
    with pytest.raises(ValueError, match=r"has no 'residual\.nowhere'"):
        state.load_state_dict({"residual.nowhere": torch.zeros(3)})
    with pytest.raises(ValueError, match="has 3 elements"):
        state.load_state_dict({"residual.layers.1.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="has no 'estimate"):
        state.load_state_dict({"estimate.layers.0.weight": torch.ones(48, 64)})
    kept = state.state_dict()["residual.layers.0.weight"]
    assert kept.tolist() == torch.ones(48, 64).tolist()


def powersgd_approximates_and_ends_alike() -> Tensor:
    model = _model()
    state = pccl.hooks.PowerSGDState(
        dist.group.WORLD, matrix_approximation_rank=4, start_powerSGD_iter=2
    )
    model.register_comm_hook(state, pccl.hooks.powersgd)
    gradients = [_gradient(model) for _ in range(4)]
    # The gradient of each layer is an outer product: rank 1.
    assert _error(gradients[-1]) < 1e-4, _error(gradients[-1])
    return gradients[-1]


def a_group_of_another_backend_is_refused() -> None:
    group = dist.new_group(backend="gloo")
    dist.barrier()  # who leaves earlier breaks the others' connections while they are made
    with pytest.raises(TypeError, match="expected a process group of pccl"):
        pccl.hooks.int8(group, None)  # type: ignore[arg-type]
    dist.destroy_process_group(group)


def a_codec_that_is_none_is_refused_when_the_group_is_made() -> None:
    with pytest.raises(ValueError, match=r"codec: .*int9"):
        dist.new_group(pg_options=pccl.Config(codec="int9"))
    with pytest.raises(ValueError, match="not for an all_reduce"):
        pccl.Config(codec="topk:64")
