"""A relay: fetches every new version, and serves each chunk as soon as it has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from asyncrl.broadcast.client import WeightsClient
from asyncrl.broadcast.source import BroadcastError

__all__ = ["follow"]

_logger = logging.getLogger("asyncrl.broadcast")

_WAIT_SECONDS = 10.0
# After a failure; the version that failed may be gone, or its origin may be down.
_PAUSE_SECONDS = 1.0


async def follow(
    client: WeightsClient, keep: int, on_version: Callable[[int], None] | None = None
) -> None:
    """Bring every newest version into the client's store, for ever; keep the last `keep`.

    A version that has begun is finished before a newer one begins: a trainer that publishes faster
    than this relay fetches must not keep it from ever holding a whole one.

    Args:
        on_version: called when a version is complete.
    """
    done = -1
    while True:
        version = await client.latest(done, _WAIT_SECONDS)
        if version is None:
            await asyncio.sleep(_PAUSE_SECONDS / 4)  # also when nobody could be asked
            continue
        client.store.drop(keep)
        try:
            await client.download(version).run(version)
        except (BroadcastError, OSError) as error:
            _logger.warning("%s", error)
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        done = version
        _logger.info("version %d: complete", version)
        if on_version:
            on_version(version)
