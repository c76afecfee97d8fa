"""`python -m asyncrl.protocol`: a run's coordinator, keys, and the audit of a ledger."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncrl.protocol.coordinator import Coordinator
from asyncrl.protocol.keys import Key
from asyncrl.protocol.ledger import LedgerBroken, LedgerError, replay
from asyncrl.protocol.options import RunOptions
from asyncrl.protocol.server import serve_coordinator, watch_validators
from asyncrl.protocol.serving import Limits, run_until_stopped, serve

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, help=__doc__, no_args_is_help=True
)

# A file of 16 MB over a line of 1 Mbit/s.
_UPLOAD_SECONDS = 180.0


def _fail(text: object) -> typer.Exit:
    Console(stderr=True).print(Text(f"asyncrl.protocol: {text}", style="red"), soft_wrap=True)
    return typer.Exit(1)


@app.command()
def coordinator(
    options: Annotated[Path, typer.Argument(help="JSON: the fields of RunOptions")],
    folder: Annotated[Path, typer.Option(help="for all that it must not forget")],
    host: Annotated[str, typer.Option(help="local address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any; the address is printed")] = 0,
    connections: Annotated[int, typer.Option(help="at most, of all callers together")] = 512,
) -> None:
    """Run a coordinator; the same command takes up where the last one ended, however that was."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run = RunOptions.from_json(options.read_text())
        folder.mkdir(parents=True, exist_ok=True)
        key = Key.load_or_create(folder / "coordinator.pem")
        state = Coordinator(folder, key, run)
    except (OSError, ValueError, TypeError, sqlite3.Error, LedgerError, LedgerBroken) as error:
        raise _fail(error) from None

    async def main() -> None:
        limits = Limits(
            connections=connections,
            connections_per_host=connections,
            request_seconds=_UPLOAD_SECONDS,
        )
        server = await serve(serve_coordinator(state, key.address), host, port, limits)
        print(f"coordinator {key.address}", flush=True)
        print(f"serving http://{host}:{server.port}", flush=True)
        try:
            await watch_validators(state)
        finally:
            await server.close()

    run_until_stopped(main())


@app.command()
def keygen(path: Path) -> None:
    """Make a key, if there is none in that file; print its address."""
    try:
        print(Key.load_or_create(path).address)
    except (OSError, ValueError) as error:
        raise _fail(error) from None


@app.command()
def ledger(
    path: Annotated[Path, typer.Argument(help="a copy of ledger.db")],
    key: Annotated[str, typer.Option(help="public key of the coordinator, 64 digits")],
) -> None:
    """Compute all balances from the rows alone. Exit code 1: a row is wrong; it is named."""
    try:
        balances = replay(path, bytes.fromhex(key))
    except (LedgerBroken, sqlite3.Error, ValueError) as error:
        raise _fail(error) from None
    table = Table(title=f"step {balances.step}, {balances.burnt} burnt", title_justify="left")
    names = ("stake", "pending", "claimable", "paid", "units")
    table.add_column("address")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("banned")
    for address, account in sorted(balances.accounts.items()):
        row = account.summary()
        table.add_row(address, *(str(row[name]) for name in names), Text(row["ban_reason"]))
    Console().print(table)


if __name__ == "__main__":
    app()
