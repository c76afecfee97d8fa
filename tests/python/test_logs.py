"""What members tell Python's logging: records with fields, which any formatter can take."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_processes import PATIENCE_SECONDS, CoordinatorProcess
from member_processes import members
from test_elastic_status import CONFIG
from thread_ranks import run_ranks

import pccl

FIELDS = ("event", "run", "member", "quorum", "operation", "about", "error")


class JsonFormatter(logging.Formatter):
    """As those for logs as data do it: what a record has beyond the usual, by name."""

    USUAL = frozenset(vars(logging.makeLogRecord({})))

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in self.USUAL}
        return json.dumps({"text": record.getMessage(), "level": record.levelname, **fields})


class Log:
    """All that "pccl" says, through the formatter."""

    def __init__(self, level: int) -> None:
        self._stream = StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(JsonFormatter())
        self._logger = logging.getLogger("pccl")
        self._before = self._logger.level, self._logger.handlers, self._logger.propagate
        self._logger.setLevel(level)
        self._logger.handlers, self._logger.propagate = [handler], False

    def close(self) -> None:
        level, self._logger.handlers, self._logger.propagate = self._before
        self._logger.setLevel(level)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def wait_for(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for record in self.records():
                if is_wanted(record):
                    return record
            time.sleep(0.02)
        raise AssertionError("\n".join(map(str, self.records())))


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    made = Log(getattr(request, "param", logging.INFO))
    yield made
    made.close()


def test_a_member_tells_quorums_deaths_and_recoveries_with_their_fields(
    tmp_path: Path, log: Log
) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(1, coordinator.address, "sum", 100_000, 100_000) as [other],
        pccl.join(str(coordinator.address), config=CONFIG) as comm,
    ):
        victim = other.wait_for("member")["member"]
        tensor = np.ones(100_000, np.float32)
        comm.wait_for_members(2)
        comm.all_reduce(tensor)
        # An operation that can't be complete when it dies.
        other.process.send_signal(signal.SIGSTOP)
        work = comm.all_reduce(tensor, async_op=True)
        assert work is not None
        other.kill()
        work.wait()
        entered = log.wait_for(
            lambda record: (
                record["event"] == "quorum_entered" and f"without {victim}" in record["text"]
            )
        )
        assert entered["quorum"] == comm.quorum_id
        lost = log.wait_for(lambda record: record["event"] == "connection_lost")
        assert (lost["about"], lost["error"]) == (victim, "MemberLost")
        ended = log.wait_for(lambda record: record["event"] == "recovery_ended")
        assert ended["operation"] > 0
        assert ended["quorum"] == comm.quorum_id
    assert log.wait_for(lambda record: record["event"] == "left")
    for record in log.records():
        assert set(FIELDS) <= set(record), record
        assert (record["run"], record["member"]) == ("main", comm.member_id)


def test_a_fixed_group_names_the_operation_that_failed(log: Log) -> None:
    def rank(comm: pccl.Communicator) -> None:
        tensor = np.ones(10 + comm.rank, np.float32)
        with pytest.raises(pccl.CallMismatch):
            comm.all_reduce(tensor)

    run_ranks(2, rank, pccl.Config(bind="127.0.0.1", log="info"))
    broken = [record for record in log.records() if record["event"] == "group_broken"]
    assert {record["level"] for record in broken} == {"WARNING"}
    assert len({record["member"] for record in broken}) == 2
    for record in broken:
        assert "all_reduce" in record["text"]
        assert record["error"] == "CallMismatch"
        assert record["run"]


@pytest.mark.parametrize("log", [logging.WARNING], indirect=True)
def test_where_nobody_listens_nothing_is_followed(tmp_path: Path, log: Log) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        pccl.join(str(coordinator.address), config=CONFIG) as comm,
    ):
        assert comm._events._thread is None
    assert log.records() == []
