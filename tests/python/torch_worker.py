"""A rank of a torch.distributed world that a test commands; see torch_ranks.py.

    torch_worker.py RANK WORLD_SIZE [STORE_FILE]

With a store file the default group exists before the first check; without one each check makes its
own. Each line on stdin names a function of a module torch_checks_*.py; the answer, one line on
stdout, is the digest of what it returned, or why it failed. TEST_DEVICE names where the checks'
tensors are, "cpu" if it is not set.
"""

from __future__ import annotations

import faulthandler
import hashlib
import importlib
import json
import os
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

# Shorter than what torch_ranks.py waits for an answer, so that its report says where a rank hangs.
TRACE_SECONDS = 90.0
# Nothing here takes a second; the machine may be busy.
TIMEOUT = timedelta(seconds=60)


class Skip(Exception):
    """Raised by a check that this version of torch, or this machine, cannot run."""


def feed(digest: hashlib._Hash, value: object) -> None:
    """Add the exact bytes of whatever a check returned."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        flat = value.detach().resolve_conj().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).cpu().numpy().tobytes())
    elif isinstance(value, dict):
        feed(digest, sorted(value.items()))
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            feed(digest, item)
    else:
        digest.update(repr(value).encode())


def run(command: dict[str, object]) -> dict[str, object]:
    """Call the check that the command names."""
    module = importlib.import_module(str(command["module"]))
    check = getattr(module, str(command["check"]))
    arguments = command.get("arguments")
    digest = hashlib.sha256()
    faulthandler.dump_traceback_later(TRACE_SECONDS, exit=False)
    try:
        feed(digest, check(**(arguments if isinstance(arguments, dict) else {})))
    except Skip as skip:
        return {"skip": str(skip)}
    except BaseException:
        return {"error": traceback.format_exc()}
    finally:
        faulthandler.cancel_dump_traceback_later()
    return {"digest": digest.hexdigest()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what torch prints must not pass for an answer
    torch.set_num_threads(1)
    torch.set_default_device(os.environ.get("TEST_DEVICE", "cpu"))
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    if len(sys.argv) > 3:
        dist.init_process_group(
            "pccl",
            init_method=f"file://{sys.argv[3]}",
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
        )
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    # Checks import this module by its name; there must be one Skip.
    sys.modules["torch_worker"] = sys.modules["__main__"]
    main()
