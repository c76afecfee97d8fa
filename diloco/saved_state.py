"""What a DiLoCo knows, as a dictionary of tensors, numbers and text, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diloco import agreement
from diloco.settings import Settings

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["collect", "install"]


def collect(run: DiLoCo) -> dict[str, Any]:
    """For DiLoCo.state_dict()."""
    with run.method.lock():
        return {
            "settings": run.settings.as_json(),
            "shapes": run.shapes,
            "data": _copied(run.data),
            "counters": run.counters.clone(),
            "theta": run.state.theta.detach().clone(),
            "outer": _copied(run.outer.state),
            "residual": run.compressor.state_dict(),
            "progress": run.progress.state_dict(),
            "method": run.method.state_dict(),
        }


@torch.no_grad()
def install(run: DiLoCo, state: dict[str, Any]) -> None:
    """For DiLoCo.load_state_dict(): nothing is changed where settings or model differ."""
    saved = Settings.from_json(state["settings"])
    agreement.check_restored(run.settings, saved, run.shapes, state["shapes"])
    run.counters.copy_(state["counters"])
    run.state.theta.copy_(state["theta"])
    for own, kept in ((run.outer.state, state["outer"]), (run.data, state["data"])):
        for name, tensor in own.items():
            tensor.copy_(kept[name])
    run.compressor.load_state_dict(state["residual"])
    run.progress.load_state_dict(state["progress"])
    run.method.load_state_dict(state["method"])


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
