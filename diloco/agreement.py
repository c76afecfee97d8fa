"""Before a member takes part: are its settings and its model those of the run?"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn
from torch.distributed.tensor import DTensor

import pccl
from diloco.members import Alone, Members
from diloco.merge import Outcome
from diloco.settings import Settings, SettingsMismatch, find_differences

__all__ = ["agree", "check_members", "mark_of"]

_logger = logging.getLogger("diloco")

# Of the settings and the model's shapes as JSON: bounds what a member can make the others hold.
_TEXT_BYTES_MAX = 4 << 20


def mark_of(settings: Settings, shapes: dict[str, list[int]]) -> str:
    """What the names of the shared state begin with: it differs where settings or models do."""
    return hashlib.sha256((settings.as_json() + json.dumps(shapes)).encode()).hexdigest()[:16]


def check_members(members: Members, settings: Settings, model: nn.Module) -> None:
    """Raise ValueError for what these members can't do."""
    is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    is_simple = settings.method in ("synchronous", "streaming") and settings.delay_steps == 0
    if is_sharded and members.is_elastic and not is_simple:
        raise ValueError(
            f"method={settings.method!r}: where members of an elastic run have sharded models, "
            "only 'synchronous' and 'streaming', with delay_steps=0"
        )
    if not (members.takes_codecs or settings.codec == "none"):
        raise ValueError(
            f"codec={settings.codec!r}: only over pccl, alone or as the backend of "
            "torch.distributed"
        )
    if settings.method == "gossip" and not (members.takes_neighbors or isinstance(members, Alone)):
        raise ValueError("method='gossip': only over what pccl.join() or pccl.init() returns")


def agree(
    members: Members,
    settings: Settings,
    shapes: dict[str, list[int]],
    round_index: int,
    share: Callable[[], None],
) -> None:
    """Call share(), which lets newcomers in, until nobody is there whose settings differ.

    Members of the run go on; those that differ leave it.

    Raises:
        SettingsMismatch: here, where they differ; it names each field and both values.
    """
    if not members.is_elastic:
        explain(members, settings, shapes, round_index)
        share()
        return
    while True:  # a member less each time
        try:
            share()
            return
        except pccl.CallMismatch:
            explain(members, settings, shapes, round_index)


def explain(
    members: Members, settings: Settings, shapes: dict[str, list[int]], round_index: int
) -> None:
    """Compare everybody's settings and shapes with those of the oldest member."""
    own = {"settings": json.loads(settings.as_json()), "model": shapes}
    told = _gather_texts(members, {"name": members.name, "round": round_index, **own})
    reference = max(told, key=lambda other: other["round"])  # the first of them: the lowest rank
    for other in told:
        faults = find_differences(other["settings"], reference["settings"])
        faults += [
            f"parameter {fault}" for fault in find_differences(other["model"], reference["model"])
        ]
        if list(other["model"]) != list(reference["model"]) and not faults:
            faults = ["the parameters have another order"]
        if not faults:
            continue
        text = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        if other["name"] == members.name:
            members.leave()
            raise SettingsMismatch(f"refused: {text}")
        if not members.is_elastic:
            raise SettingsMismatch(f"{other['name']} differs from {reference['name']}: {text}")
        _logger.warning("member %s is refused: %s", other["name"], text)


def check_restored(
    own: Settings, saved: Settings, shapes: dict[str, list[int]], saved_shapes: dict[str, list[int]]
) -> None:
    """Raise SettingsMismatch where a checkpoint is of another run."""
    faults = find_differences(json.loads(own.as_json()), json.loads(saved.as_json()))
    faults += [f"parameter {fault}" for fault in find_differences(shapes, saved_shapes)]
    if faults:
        raise SettingsMismatch(f"the checkpoint is of another run: {'; '.join(faults[:8])}")


def check_digests(outcome: Outcome) -> None:
    """Raise where members of a fixed group hold different outer states: they never meet again."""
    digests = [report["digest"].tobytes() for report in outcome.reports]
    common = Counter(digests).most_common(1)[0][0]
    wrong = [
        member for member, digest in zip(outcome.members, digests, strict=True) if digest != common
    ]
    if wrong:
        raise RuntimeError(
            f"the outer state of {', '.join(wrong)} is not that of the other members; restart from "
            "a checkpoint"
        )


def _gather_texts(members: Members, value: dict[str, Any]) -> list[dict[str, Any]]:
    text = json.dumps(value).encode()
    if len(text) > _TEXT_BYTES_MAX:
        raise ValueError(f"model: its names and shapes are {len(text)} bytes of JSON, too many")
    # Rows are equally long; a first gather says how long.
    lengths = members.gather(np.array([len(text)], np.int64).view(np.uint8)).view(np.int64)
    longest = int(lengths.max())
    if longest > _TEXT_BYTES_MAX:
        raise pccl.RemoteProtocolError(f"a member's settings are {longest} bytes")
    rows = members.gather(np.frombuffer(text.ljust(longest), np.uint8))
    return [json.loads(row.tobytes()) for row in rows]
