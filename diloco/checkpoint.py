"""Checkpoints of a member: whole or not there at all, and what follows is as without a break.

Each member writes a folder of its own, SLOT/step-00000400/: tensors by torch.distributed.checkpoint
and manifest.json, which holds all else and a SHA-256 of every file. It holds the shared state
(theta, the outer optimizer's, counters, the place in the data), so one member's is enough to begin
the run again, with any number of members; and what is the member's own: parameters, inner
optimizer, residual, random generators.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from diloco.optimizer import DiLoCo
from diloco.outer_state import local_shard
from diloco.settings import SettingsMismatch

__all__ = ["CheckpointError", "Checkpoints"]

_logger = logging.getLogger("diloco")

_FORMAT, _VERSION = "diloco checkpoint", 1
_MANIFEST = "manifest.json"
_READ_BYTES = 1 << 20
# More members of one machine than this is a folder whose locks nobody releases.
_SLOTS_MAX = 1024
# In JSON a tensor is {_TENSOR: its name in the tensors' files}.
_TENSOR = "$tensor"


class CheckpointError(RuntimeError):
    """A checkpoint can't be written or read; the message says which, why, and what is left."""


class Stateful(Protocol):
    """A scheduler, a scaler, a loader: anything with torch's two methods."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Checkpoints:
    """Saves a run every so many rounds, keeps the newest, and goes on from them.

        run = DiLoCo(comm, model, optimizer, sync_every=100)
        Checkpoints("checkpoints", run, every=10).restore()
        with run:
            ...

    Where a save fails (a full disk, say) the run goes on, and the last whole one stays.

    Args:
        folder: of the run, on this machine. Its members take a slot each: in a fixed group that of
            their rank, else the first that no living process has.
        run: not entered yet.
        every: rounds; 0: only where save() is called.
        keep: so many, the newest; at least 1.
        more: other things to save by name, each with state_dict() and load_state_dict().

    Only restore what you wrote: torch's metadata file is a pickle.
    """

    def __init__(
        self,
        folder: Path | str,
        run: DiLoCo,
        *,
        every: int = 0,
        keep: int = 3,
        more: Mapping[str, Stateful] | None = None,
    ) -> None:
        if every < 0 or keep < 1:
            raise ValueError(f"Checkpoints: expected every >= 0, keep >= 1, got {every}, {keep}")
        self._run, self._every, self._keep = run, every, keep
        self._more = dict(more or {})
        name = "" if run.members.is_elastic else run.members.name.replace(" ", "-")
        self.folder, self._lock = _take_slot(Path(folder), name)
        if every:
            run.on_round.append(self._after_round)

    # --- writing ----------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write one of this moment, if there is none of this step yet; its folder.

        Until it is whole it has another name, so that whatever happens meanwhile the last one is
        untouched. It costs the bytes on disk once, and a pass over them.

        Raises:
            CheckpointError: it can't be written; nothing of it is left, the older ones are.
        """
        target = self.folder / f"step-{self._run.step:08d}"
        if target.exists() and not _find_fault(target):
            return target
        unfinished = self.folder / f".{target.name}"
        try:
            self._sweep()
            unfinished.mkdir(parents=True)
            _write(unfinished, self._collect())
            shutil.rmtree(target, ignore_errors=True)  # it was damaged
            unfinished.rename(target)
            _sync(self.folder)
        except (OSError, RuntimeError, CheckpointException) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"save: step {self._run.step} to {target}: {_reason(error)}. {self._what_is_left()}"
            ) from error
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self.folder / f"step-{old:08d}", ignore_errors=True)
        return target

    def steps(self) -> list[int]:
        """Of the checkpoints in this member's slot, oldest first."""
        found = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(number) for number in found if number.isdigit())

    def _after_round(self, run: DiLoCo) -> None:
        if run.round % self._every:
            return
        try:
            self.save()
        except CheckpointError as error:
            _logger.error("%s. The run goes on", error)

    def _sweep(self) -> None:
        """Remove what a process that was killed left unfinished."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def _collect(self) -> dict[str, Any]:
        run = self._run
        return {
            "run": run.state_dict(),
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "random": _random_state(),
            "more": {name: thing.state_dict() for name, thing in self._more.items()},
        }

    def close(self) -> None:
        """Save no more, and leave the slot to others; the end of the process does the same."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._after_round in self._run.on_round:
            self._run.on_round.remove(self._after_round)

    # --- reading ----------------------------------------------------------------------------------

    def restore(self, step: int | None = None) -> int | None:
        """Go on from a checkpoint of this slot; call it before the run is entered.

        What comes then has the bytes that it would have had without the break, where the members
        have the ranks that they had. A member whose checkpoint is older than the run's state gets
        the newest theta when it enters, and keeps its inner optimizer.

        Args:
            step: which one. None: the newest, if there is any.

        Returns:
            Its step; None: there is none, the run begins with the model as it is.

        Raises:
            CheckpointError: it is damaged, or none of ours, or of another version. Nothing has
                been changed.
            SettingsMismatch: it is of other settings or another model; they are named. Likewise.
        """
        steps = self.steps()
        if step is None and not steps:
            return None
        step = steps[-1] if step is None else step
        place = self.folder / f"step-{step:08d}"
        fault = _find_fault(place)
        if fault:
            raise CheckpointError(f"restore: {place}: {fault}. {self._what_is_left(but=step)}")
        state = _read(place)
        self._check_model(state["model"], state["optimizer"], place)
        if set(state["more"]) != set(self._more):
            raise SettingsMismatch(
                f"restore: {place} holds {sorted(state['more'])}, expected {sorted(self._more)}"
            )
        run = self._run
        run.load_state_dict(state["run"])
        with torch.no_grad():
            for name, tensor in run.model.state_dict().items():
                local_shard(tensor).copy_(state["model"][name])
        run.optimizer.load_state_dict(state["optimizer"])
        _make_shards(run.optimizer)
        for name, thing in self._more.items():
            thing.load_state_dict(state["more"][name])
        _set_random_state(state["random"])
        _logger.info("restored step %d from %s", step, place)
        return step

    def _check_model(
        self, saved: Mapping[str, Tensor], optimizer: Mapping[str, Any], place: Path
    ) -> None:
        own = {name: local_shard(t) for name, t in self._run.model.state_dict().items()}
        faults = [f"{name} is missing" for name in own.keys() - saved.keys()]
        faults += [f"{name} is unknown here" for name in saved.keys() - own.keys()]
        faults += [
            f"{name}: {list(saved[name].shape)} {saved[name].dtype} there, {list(tensor.shape)} "
            f"{tensor.dtype} here"
            for name, tensor in own.items()
            if name in saved
            and (saved[name].shape != tensor.shape or saved[name].dtype != tensor.dtype)
        ]
        groups = [
            [len(group["params"]) for group in found["param_groups"]]
            for found in (optimizer, self._run.optimizer.state_dict())
        ]
        if groups[0] != groups[1]:
            faults.append(f"the optimizer has groups of {groups[0]} parameters, here {groups[1]}")
        if faults:
            raise SettingsMismatch(f"restore: {place} is of another model: {'; '.join(faults[:8])}")

    def _what_is_left(self, but: int = -1) -> str:
        whole = [
            step
            for step in self.steps()
            if step != but and not _find_fault(self.folder / f"step-{step:08d}")
        ]
        return f"Whole ones in {self.folder} are of steps {whole}" if whole else "No other is there"


def _take_slot(folder: Path, name: str) -> tuple[Path, int]:
    """A folder that no other living process has; the lock ends with this process, however."""
    names = [name] if name else [f"slot-{number}" for number in range(_SLOTS_MAX)]
    for found in names:
        place = folder / found
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return place, lock
        except BlockingIOError:
            os.close(lock)
    raise CheckpointError(f"{folder}: {names[-1]} is in use by another process of this machine")


# --- files ----------------------------------------------------------------------------------------


def _write(folder: Path, state: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is meant
        save_tensors(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
    manifest = {"format": _FORMAT, "version": _VERSION, "files": files, "state": tree}
    text = json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with (folder / _MANIFEST).open("w") as file:
        file.write(f"{text}\n{digest}\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _read(folder: Path) -> dict[str, Any]:
    """What was written; the files have been checked."""
    reader = FileSystemReader(folder)
    tensors: dict[str, Any] = {}
    for name, found in reader.read_metadata().state_dict_metadata.items():
        tensors[name] = torch.empty(found.size, dtype=found.properties.dtype, device="cpu")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_tensors(tensors, storage_reader=reader, no_dist=True)
    state: dict[str, Any] = _join(_read_manifest(folder)["state"], tensors)
    return state


def _read_manifest(folder: Path) -> dict[str, Any]:
    text, _, digest = (folder / _MANIFEST).read_text().rstrip("\n").rpartition("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError(f"{_MANIFEST} is damaged")
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def _find_fault(folder: Path) -> str:
    """Why a checkpoint can't be read; "": it is whole."""
    try:
        manifest = _read_manifest(folder)
        if manifest.get("format") != _FORMAT:
            return f"{_MANIFEST} is none of a {_FORMAT}"
        if manifest["version"] != _VERSION:
            return f"it is of version {manifest['version']}, this library reads {_VERSION}"
        for name, expected in manifest["files"].items():
            if _describe(folder / name) != expected:
                return f"{name} is damaged: its size or SHA-256 is not that of {_MANIFEST}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing: it is no {_FORMAT}, or damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} can't be read: {error}"
    return ""


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """torch hides the reason behind its own exception."""
    inner = [pair[0] for pair in getattr(error, "failures", {}).values()]
    return str(inner[0] if inner else error) or type(error).__name__


def _make_shards(optimizer: Optimizer) -> None:
    """With FSDP2 an optimizer's state is sharded as its parameters are; read were plain shards."""
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, DTensor):
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == local_shard(parameter).shape:
                mesh, placements = parameter.device_mesh, parameter.placements
                state[key] = DTensor.from_local(
                    value, mesh, placements, shape=parameter.shape, stride=parameter.stride()
                )


# --- trees of tensors and plain values ------------------------------------------------------------


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors out of a tree, and name them; what is left is JSON."""
    if isinstance(value, Tensor):
        tensors[name] = local_shard(value).cpu().contiguous()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        # Optimizers number their parameters: a key that is a number stays one.
        pairs = [[key, _split(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"$pairs": pairs}
    if isinstance(value, (list, tuple)):
        return [_split(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"save: {name.lstrip('.')} is a {type(value).__name__}, no plain value")


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _join(item, tensors) for key, item in value["$pairs"]}
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    return value


def _random_state() -> dict[str, Any]:
    name, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [name, [int(word) for word in words], position, has_gauss, gauss],
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))
