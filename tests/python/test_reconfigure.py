"""torch 2.14's reconfigure interface, its methods called directly: members as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import pccl

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from pccl.process_group.reconfigure import ReconfigurableProcessGroup  # noqa: E402

WORLD_SIZE = 3
PATIENCE = timedelta(seconds=30)
Group = ReconfigurableProcessGroup


@pytest.fixture
def groups() -> Iterator[list[Group]]:
    config = pccl.Config(hosts=("127.0.0.1",), bind="127.0.0.1")
    made = [Group((r, WORLD_SIZE), "world", PATIENCE, config, None) for r in range(WORLD_SIZE)]
    yield made
    for group in made:
        group.shutdown()


def together(groups: Sequence[Group], call: Callable[[Group], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(call, groups))


def options(uuid: int, handles: Any, timeout: timedelta = PATIENCE) -> Any:
    return SimpleNamespace(uuid=uuid, handles=handles, timeout=timeout, hints={})


def reconfigure(uuid: int, groups: Sequence[Group]) -> None:
    """Make these, in this order, one group; and have it work."""
    handles = [group.get_reconfigure_handle() for group in groups]
    together(groups, lambda group: group.reconfigure(options(uuid, handles)).wait())
    for rank, group in enumerate(groups):
        assert (group.rank(), group.size()) == (rank, len(groups))

    def add_up(group: Group) -> float:
        tensor = torch.full((1000,), group.rank() + 1.0)
        group.allreduce([tensor]).wait()
        return float(tensor.max())

    assert set(together(groups, add_up)) == {len(groups) * (len(groups) + 1) / 2}


def test_a_group_has_no_members_before_it_is_told(groups: list[Group]) -> None:
    with pytest.raises(RuntimeError, match="reconfigure"):
        groups[0].allreduce([torch.ones(3)])
    assert groups[0].supports_reconfigure
    assert groups[0].get_error().name == "SUCCESS"


def test_members_shrink_grow_split_and_merge_and_change_their_order(groups: list[Group]) -> None:
    reconfigure(1, groups)
    reconfigure(2, groups[:2])
    reconfigure(3, [groups[2], groups[0]])
    for index, group in enumerate(groups):
        reconfigure(10 + index, [group])
    reconfigure(4, groups[::-1])
    reconfigure(5, groups[:1])
    reconfigure(6, groups[1:])
    reconfigure(7, groups)


def test_messages_pass_between_ranks_of_a_new_group(groups: list[Group]) -> None:
    reconfigure(1, groups)

    def pass_on(group: Group) -> float:
        received = torch.zeros(4)
        sent = group.send([torch.full((4,), float(group.rank()))], (group.rank() + 1) % 3, 0)
        group.recv([received], (group.rank() - 1) % 3, 0).wait()
        sent.wait()
        return float(received.sum()) / 4

    assert together(groups, pass_on) == [2.0, 0.0, 1.0]


def test_a_set_of_handles_gives_everybody_the_same_ranks(groups: list[Group]) -> None:
    handles = {group.get_reconfigure_handle() for group in groups}
    together(groups, lambda group: group.reconfigure(options(1, handles)).wait())
    assert sorted(group.rank() for group in groups) == [0, 1, 2]


def test_an_aborted_group_says_so_and_can_be_made_anew(groups: list[Group]) -> None:
    reconfigure(1, groups)
    groups[1].abort()
    assert groups[1].get_error().name == "COMM_ERROR"
    with pytest.raises(pccl.PcclError, match="abort"):
        groups[0].allreduce([torch.ones(3)]).wait()
    reconfigure(2, groups)
    assert groups[1].get_error().name == "SUCCESS"


def test_a_call_that_times_out_breaks_the_group_tells_its_hooks_and_is_forgotten(
    groups: list[Group],
) -> None:
    reconfigure(1, groups)
    told = [threading.Event() for _ in groups]
    unwanted: list[int] = []
    for group, event in zip(groups, told, strict=True):
        group.set_timeout(timedelta(seconds=0.2))
        group.register_abort_hook(0, event.set)
        group.register_abort_hook(1, lambda: unwanted.append(1))
        group.register_abort_hook(2, lambda: unwanted.append(1 // 0))  # its error harms nobody
        group.unregister_abort_hook(1)
    options = dist.AllreduceOptions()
    started = [group.allreduce([torch.ones(4)], options) for group in groups[1:]]
    for event in told[1:]:
        assert event.wait(20)
    for group in groups[1:]:
        assert group.get_error().name == "TIMEOUT"
        with pytest.raises(RuntimeError, match="Timed out"):
            group.allreduce([torch.ones(4)], options).wait()
    del started
    groups[0].abort()
    assert told[0].is_set()
    for group in groups:
        group.set_timeout(PATIENCE)
    reconfigure(2, groups)
    for event in told:
        event.clear()
    groups[2].abort()
    assert told[2].is_set()
    assert not unwanted


def test_who_does_not_come_costs_a_timeout_and_the_rest_goes_on(groups: list[Group]) -> None:
    handles = [group.get_reconfigure_handle() for group in groups]
    work = groups[0].reconfigure(options(1, handles, timedelta(seconds=0.2)))
    with pytest.raises(pccl.CollectiveTimeout):
        work.wait()
    reconfigure(2, groups[:2])
    reconfigure(3, groups)


def test_a_uuid_serves_once_and_handles_are_checked(groups: list[Group]) -> None:
    own, other = (group.get_reconfigure_handle() for group in groups[:2])
    groups[0].reconfigure(options(1, [own])).wait()
    with pytest.raises(RuntimeError, match="already used"):
        groups[0].reconfigure(options(1, [own]))
    for handles in ([other], [own, own]):
        with pytest.raises(RuntimeError, match="handles"):
            groups[0].reconfigure(options(2, handles))
    with pytest.raises((RuntimeError, ValueError), match=r"handle|address"):
        groups[0].reconfigure(options(3, [own, "no handle"]))


@pytest.mark.skipif(not hasattr(dist, "_reconfigure"), reason="torch 2.14 is not installed")
def test_torch_reaches_the_interface(groups: list[Group]) -> None:
    store = dist.HashStore()
    init: Any = dist.init_process_group
    init("pccl", store=store, rank=0, world_size=1, enable_reconfigure=True)
    torch_dist: Any = dist
    try:
        assert torch_dist._supports_reconfigure()
        world: Any = dist.group.WORLD
        handles = [torch_dist._get_reconfigure_handle(), groups[0].get_reconfigure_handle()]
        for uuid, order in ((1, handles), (2, handles[::-1])):
            work = torch_dist._reconfigure(uuid, order, timeout=PATIENCE)
            groups[0].reconfigure(options(uuid, order)).wait()
            work.wait()
            assert (dist.get_rank(), dist.get_world_size()) == (uuid - 1, 2)
            assert dist.get_process_group_ranks(world) == [0, 1]
            tensor = torch.ones(3)
            work = dist.all_reduce(tensor, async_op=True)
            groups[0].allreduce([torch.ones(3)]).wait()
            assert work is not None
            work.wait()
            assert (tensor == 2).all()
        torch_dist._reconfigure(3, handles[:1]).wait()
        assert dist.get_world_size() == 1
        with pytest.raises(RuntimeError, match="already used"):
            torch_dist._reconfigure(3, handles[:1])
    finally:
        dist.destroy_process_group()
