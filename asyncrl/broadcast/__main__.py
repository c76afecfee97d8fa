"""`python -m asyncrl.broadcast`: serve an origin, run a relay, fetch or publish weights."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from asyncrl.broadcast.client import WeightsClient
from asyncrl.broadcast.download import DownloadOptions, Trust
from asyncrl.broadcast.relay import follow
from asyncrl.broadcast.server import serve_store
from asyncrl.broadcast.source import BroadcastError
from asyncrl.broadcast.store import Publisher, Store
from asyncrl.protocol.keys import Key, is_address
from asyncrl.protocol.serving import Limits, run_until_stopped, serve

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, help=__doc__, no_args_is_help=True
)

# Of a relay to its origin. Its requests queue behind what it sends to its clients, so a connection
# stands still for as long as that queue is; 8 chunks under way keep the line full.
_RELAY_CONNECTIONS = 8

_Folder = Annotated[Path, typer.Option(help="where versions are kept")]
_Host = Annotated[str, typer.Option(help="local address to listen on")]
_Port = Annotated[int, typer.Option(help="0: any; the address is printed")]
_Run = Annotated[str, typer.Option(help="the run's name; weights of others are refused")]
_Signer = Annotated[
    list[str], typer.Option(help="address of a trainer's key, may be repeated", metavar="ADDRESS")
]
_Keep = Annotated[int, typer.Option(help="versions to keep", min=1)]
_Connections = Annotated[int, typer.Option(help="at most, of all clients together", min=1)]


def _trust(signers: list[str], run: str) -> Trust:
    for signer in signers:
        if not is_address(signer):
            raise typer.BadParameter(f"--signer: expected 40 digits, got {signer!r}")
    return Trust(frozenset(signers), run)


async def _serve(store: Store, host: str, port: int, connections: int) -> None:
    limits = Limits(connections=connections, connections_per_host=connections)
    server = await serve(serve_store(store), host, port, limits)
    print(f"serving http://{host}:{server.port}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await server.close()


@app.command()
def origin(
    folder: _Folder,
    host: _Host = "127.0.0.1",
    port: _Port = 0,
    connections: _Connections = 256,
) -> None:
    """Serve what a trainer publishes into a folder, while it writes."""
    run_until_stopped(_serve(Store(folder), host, port, connections))


@app.command()
def relay(
    folder: _Folder,
    origin: Annotated[list[str], typer.Option(help="http://host:port of the origin")],
    signer: _Signer,
    run: _Run,
    sibling: Annotated[
        list[str],
        typer.Option(help="http://host:port of another relay: asked while the origin is down"),
    ] = [],  # noqa: B006  # typer copies it
    host: _Host = "127.0.0.1",
    port: _Port = 0,
    keep: _Keep = 5,
    connections: _Connections = 256,
) -> None:
    """Fetch every new version and serve each chunk as soon as it is here and verified."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trust = _trust(signer, run)

    async def main() -> None:
        options = DownloadOptions(connections=_RELAY_CONNECTIONS)
        async with WeightsClient(
            folder, origin, trust, backup_urls=sibling, options=options
        ) as client:
            following = asyncio.create_task(follow(client, keep))
            serving = asyncio.create_task(_serve(client.store, host, port, connections))
            try:
                await asyncio.gather(following, serving)
            finally:
                following.cancel()
                serving.cancel()

    run_until_stopped(main())


@app.command()
def fetch(
    source: Annotated[list[str], typer.Argument(help="http://host:port of relays, or an origin")],
    folder: _Folder,
    signer: _Signer,
    run: _Run,
    version: Annotated[int, typer.Option(help="-1: the newest")] = -1,
    backup: Annotated[
        list[str], typer.Option(help="asked only while one of the others is down")
    ] = [],  # noqa: B006
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="for a version to be announced")
    ] = 0.0,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="for a version to come")
    ] = 3600.0,
) -> None:
    """Bring a version here; print as JSON where it is and who sent what. Exit code 1: it failed."""
    trust = _trust(signer, run)
    columns = (
        TextColumn("version {task.description}, chunks"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(str(version) if version >= 0 else "newest", total=None)
        options = DownloadOptions(
            timeout_seconds=timeout,
            progress=lambda held, count: bars.update(bar, completed=held, total=count),
        )

        async def main() -> None:
            async with WeightsClient(
                folder, source, trust, backup_urls=backup, options=options
            ) as client:
                done = await client.fetch(version if version >= 0 else None, wait=wait)
            print(
                json.dumps(
                    {
                        "path": str(done.path),
                        "version": done.manifest.version,
                        "sha256": done.manifest.sha256,
                        "seconds": done.seconds,
                        "sources": done.sources,
                    }
                )
            )

        try:
            asyncio.run(main())
        except (BroadcastError, OSError) as error:
            print(f"fetch: {error}", file=sys.stderr)
            raise typer.Exit(1) from None


@app.command()
def publish(
    file: Path,
    folder: _Folder,
    key: Annotated[Path, typer.Option(help="the trainer's key, made if it is not there")],
    run: _Run,
    version: Annotated[int, typer.Option(help="newer than all before")],
    model: Annotated[str, typer.Option(help="hash of the model's configuration")] = "",
    keep: _Keep = 5,
) -> None:
    """Sign a file and put it where an origin serves it; print the signer's address."""
    signer = Key.load_or_create(key)
    writer = Publisher(folder, signer, run, keep=keep).begin(version, file.stat().st_size, model)
    with open(file, "rb") as source:
        while data := source.read(4 << 20):
            writer.write(data)
    writer.finish()
    print(signer.address)


if __name__ == "__main__":
    app()
