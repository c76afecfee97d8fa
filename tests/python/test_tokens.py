"""`pccl tokens`: what the owner of a run sees of its tokens, and of who came by them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess, environment

import pccl
from pccl import _core
from pccl.address import RunAddress, encode_bytes

typer = pytest.importorskip("typer")

from pccl.keys_command import invite, revoke  # noqa: E402
from pccl.tokens_command import tokens  # noqa: E402

CONFIG = pccl.Config(tls="always", bind="127.0.0.1", hosts=("127.0.0.1",))


def launch(command: list[str], **more: object) -> object:
    more["env"] = environment(PCCL_TLS="always")
    return subprocess.Popen(command, **more)  # type: ignore[call-overload]


def test_the_owner_sees_what_was_issued_used_revoked_and_who_is_connected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "coordinator.db"
    since = int(time.time())
    with CoordinatorProcess(tmp_path, "--name", "demo", launch=launch) as coordinator:
        port = int(coordinator.page.rstrip("/").rpartition(":")[2])

        def listed() -> dict[str, Any]:
            tokens(str(coordinator.address), True, database, port)
            found = json.loads(capsys.readouterr().out)["tokens"]
            return {token["id"]: token for token in found}

        [standing] = listed().values()
        assert standing["is_standing"]
        assert (standing["used"], standing["keys"], standing["state"]) == (0, [], "admits")
        invite(str(coordinator.address), uses=2, expires="1h", database=database)
        guest = RunAddress.parse(capsys.readouterr().out.strip())
        name = encode_bytes(_core.token_id(guest.token))
        with pccl.join(str(guest), config=CONFIG) as comm:
            token = listed()[name]
            assert since <= token["issued"] <= time.time()
            assert token["expires"] - token["issued"] == 3600
            assert (token["used"], token["uses_left"], token["state"]) == (1, 1, "admits")
            [key] = token["keys"]
            assert key["connected"] == comm.members[0].address
            command = ["tokens", str(guest), f"--database={database}", f"--status-port={port}"]
            table = subprocess.check_output(
                [sys.executable, "-m", "pccl", *command],
                env=environment(COLUMNS="200"),
                text=True,
                timeout=60,
            )
            [line] = [line for line in table.splitlines() if name in line]
            assert "1 of 2" in line
            assert comm.members[0].address in line
            assert encode_bytes(guest.token) not in table
        with pccl.join(str(guest), config=CONFIG):
            pass
        revoke(str(guest), token=name, database=database)
        token = listed()[name]
        assert (token["used"], token["uses_left"], token["state"]) == (2, 0, "revoked")
        assert [key["connected"] for key in token["keys"]] == ["", ""]
    # Without its coordinator the book is still there.
    assert [key["connected"] for key in listed()[name]["keys"]] == [None, None]
    with pytest.raises(typer.Exit):
        tokens(str(guest), database=tmp_path / "other.db")
    assert "say --database" in capsys.readouterr().err
