"""Checks of each collective of torch.distributed, on a world that exists; see torch_ranks.py.

What a check returns is compared between ranks, byte by byte.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch_values import (
    COUNTS,
    DTYPES,
    FLOAT8,
    OPS,
    Op,
    assert_close,
    assert_same,
    is_defined,
    reduced,
    value,
    values,
)


def _rank() -> int:
    return dist.get_rank()


def _size() -> int:
    return dist.get_world_size()


def all_reduce_is_right_for_every_dtype_and_operator() -> list[Tensor]:
    results = []
    for dtype in DTYPES:
        for index, op in enumerate(OPS):
            if is_defined(op, dtype):
                inputs = values(_size(), 1009, dtype, salt=index)
                tensor = inputs[_rank()].clone()
                _all_reduce(tensor, op)
                assert_close(tensor, reduced(inputs, op))
                results.append(tensor)
    return results


def _all_reduce(tensor: Tensor, op: Op.RedOpType) -> None:
    """dist.all_reduce() without torch's own view of complex numbers as pairs of real ones."""
    options = dist.AllreduceOptions()
    options.reduceOp = op
    dist.group.WORLD.allreduce([tensor], options).wait()


def all_reduce_is_right_for_every_size() -> list[Tensor]:
    results = []
    for count in [*COUNTS, 2, 3, 64, 4_000_003]:
        inputs = values(_size(), count, torch.float32)
        tensor = inputs[_rank()].clone()
        dist.all_reduce(tensor)
        assert_close(tensor, reduced(inputs, Op.SUM))
        results.append(tensor)
    return results


def all_reduce_multiplies_by_the_factor_of_premul_sum() -> list[Tensor]:
    results = []
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        inputs = values(_size(), 1009, dtype)
        tensor = inputs[_rank()].clone()
        dist.all_reduce(tensor, dist._make_nccl_premul_sum(0.5))
        assert_close(tensor, reduced([t * 0.5 for t in inputs], Op.SUM))
        results.append(tensor)
    return results


def results_equal_those_of_gloo() -> list[Tensor]:
    gloo = dist.new_group(backend="gloo")
    results = []
    for count in COUNTS:
        ours = value(_rank(), count)
        theirs = ours.clone()
        dist.all_reduce(ours)
        dist.all_reduce(theirs, group=gloo)
        assert_close(ours, theirs)
        gathered = [[torch.empty(count) for _ in range(_size())] for _ in range(2)]
        own = value(_rank(), count, salt=1)
        dist.all_gather(gathered[0], own)
        dist.all_gather(gathered[1], own, group=gloo)
        for left, right in zip(*gathered, strict=True):
            assert_same(left, right)
        scattered = [torch.empty(count) for _ in range(2)]
        rows = value(_rank(), _size() * count, salt=2)
        dist.reduce_scatter_tensor(scattered[0], rows)
        dist.reduce_scatter_tensor(scattered[1], rows, group=gloo)
        assert_close(scattered[0], scattered[1])
        exchanged = [torch.empty(_size() * count) for _ in range(2)]
        dist.all_to_all_single(exchanged[0], rows)
        dist.all_to_all_single(exchanged[1], rows, group=gloo)
        assert_same(exchanged[0], exchanged[1])
        results += [ours, *gathered[0]]
    dist.destroy_process_group(gloo)
    return results


def the_same_call_twice_gives_the_same_bytes() -> list[Tensor]:
    results = []
    for count in COUNTS:
        for dtype in (torch.float32, torch.bfloat16):
            first, second = (value(_rank(), count, dtype) for _ in range(2))
            dist.all_reduce(first)
            dist.all_reduce(second)
            assert_same(first, second)
            results.append(first)
    return results


def a_tensor_that_is_not_contiguous_works_as_a_copy_would() -> list[Tensor]:
    square = torch.arange(900.0).reshape(30, 30)
    layouts = {
        "transposed": lambda t: t.t(),
        "every second column": lambda t: t[:, ::2],
        "a column": lambda t: t[:, 3],
        "a slice at an offset": lambda t: t[3:7, 5:9],
    }
    results = []
    for name, layout in layouts.items():
        tensor = layout(square.clone() + _rank())
        expected = reduced([layout(square + rank) for rank in range(_size())], Op.SUM)
        dist.all_reduce(tensor)
        assert torch.equal(tensor, expected), name
        target = layout(torch.zeros_like(square) + _rank())
        dist.broadcast(target, 1)
        assert torch.equal(target, torch.ones_like(target)), name
        lists = [layout(torch.zeros_like(square)) for _ in range(_size())]
        dist.all_gather(lists, layout(square + _rank()))
        for rank, gathered in enumerate(lists):
            assert torch.equal(gathered, layout(square + rank)), name
        results += [tensor, target, *lists]
    # What lies between the elements of a slice is left alone.
    whole = torch.zeros(10)
    dist.all_reduce(whole[::2].add_(1))
    assert whole.tolist() == [float(_size()), 0.0] * 5
    return results


def scalars_and_lazily_conjugated_tensors_work() -> list[Tensor]:
    scalar = torch.tensor(float(_rank() + 1))
    dist.all_reduce(scalar)
    assert scalar.item() == _size() * (_size() + 1) / 2
    plain = value(_rank(), 12, torch.complex64)
    conjugated = plain.clone().conj()
    assert conjugated.is_conj()
    _all_reduce(conjugated, Op.SUM)
    expected = reduced([t.conj().resolve_conj() for t in values(_size(), 12, plain.dtype)], Op.SUM)
    assert_close(conjugated.resolve_conj(), expected)
    received = [torch.empty(12, dtype=plain.dtype) for _ in range(_size())]
    dist.group.WORLD.allgather([received], [plain.conj()]).wait()
    assert_same(received[1 % _size()], value(1 % _size(), 12, plain.dtype).conj().resolve_conj())
    return [scalar, conjugated, *received]


def parameters_and_inference_tensors_are_reduced_in_place() -> list[Tensor]:
    parameter = torch.nn.Parameter(torch.full((5,), float(_rank())))
    dist.broadcast(parameter, 1)
    assert parameter.requires_grad
    assert parameter.tolist() == [1.0] * 5
    with torch.inference_mode():
        tensor = torch.ones(7)
        dist.all_reduce(tensor)
        assert tensor.is_inference()
    assert tensor.tolist() == [float(_size())] * 7
    return [parameter.detach(), tensor.clone()]


def broadcast_copies_every_dtype_from_every_rank() -> list[Tensor]:
    results = []
    for dtype in [*DTYPES, *FLOAT8]:
        for root in range(_size()):
            for count in COUNTS if dtype == torch.float32 else [1009]:
                tensor = value(_rank(), count, dtype, salt=root)
                dist.broadcast(tensor, root)
                assert_same(tensor, value(root, count, dtype, salt=root))
                results.append(tensor)
    return results


def reduce_changes_the_tensor_of_its_root_only() -> None:
    for root in range(_size()):
        for count in COUNTS:
            for op in (Op.SUM, Op.AVG, Op.MAX):
                inputs = values(_size(), count, torch.float32, salt=root)
                tensor = inputs[_rank()].clone()
                dist.reduce(tensor, root, op)
                if _rank() == root:
                    assert_close(tensor, reduced(inputs, op))
                else:
                    assert_same(tensor, inputs[_rank()])


def all_gather_collects_every_dtype() -> list[Tensor]:
    results = []
    for dtype in [*DTYPES, *FLOAT8]:
        for count in COUNTS if dtype in (torch.float32, torch.bool) else [1009]:
            inputs = values(_size(), count, dtype)
            outputs = [torch.empty_like(t) for t in inputs]
            dist.all_gather(outputs, inputs[_rank()])
            for output, expected in zip(outputs, inputs, strict=True):
                assert_same(output, expected)
            results += outputs
    return results


def all_gather_into_tensor_takes_a_flat_and_a_stacked_output() -> list[Tensor]:
    results = []
    for count in COUNTS:
        own = value(_rank(), count)
        flat = torch.empty(_size() * count)
        stacked = torch.empty(_size(), count)
        dist.all_gather_into_tensor(flat, own)
        dist.all_gather_into_tensor(stacked, own)
        assert_same(stacked, torch.stack(values(_size(), count, own.dtype)))
        assert_same(flat, stacked.reshape(-1))
        results += [flat, stacked]
    return results


def reduce_scatter_gives_each_rank_its_part() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int32, torch.complex64):
        for count in COUNTS:
            for op in (Op.SUM, Op.AVG):
                salts = range(_size())
                inputs = [value(_rank(), count, dtype, salt) for salt in salts]
                expected = reduced(values(_size(), count, dtype, _rank()), op)
                output = torch.empty(count, dtype=dtype)
                dist.reduce_scatter(output, inputs, op)
                assert_close(output, expected)
                flat = torch.empty(count, dtype=dtype)
                dist.reduce_scatter_tensor(flat, torch.cat(inputs), op)
                assert_same(flat, output)


def reduce_scatter_takes_parts_of_different_sizes() -> None:
    sizes = [3 + 5 * rank for rank in range(_size())]
    inputs = [value(_rank(), count, salt=index) for index, count in enumerate(sizes)]
    output = torch.empty(sizes[_rank()])
    work = dist.group.WORLD.reduce_scatter([output], [inputs])
    work.wait()
    assert_close(output, reduced(values(_size(), sizes[_rank()], output.dtype, _rank()), Op.SUM))


def gather_and_scatter_work_from_every_root() -> None:
    for root in range(_size()):
        for count in COUNTS:
            inputs = values(_size(), count, torch.float32, salt=root)
            is_root = _rank() == root
            outputs = [torch.empty(count) for _ in inputs] if is_root else None
            dist.gather(inputs[_rank()], outputs, root)
            for output, expected in zip(outputs or [], inputs, strict=is_root):
                assert_same(output, expected)
            received = torch.empty(count)
            dist.scatter(received, inputs if is_root else None, root)
            assert_same(received, inputs[_rank()])


def all_to_all_exchanges_lists_of_any_sizes() -> None:
    def count(source: int, target: int) -> int:
        return (source * 7 + target * 3) % 5 * 101  # 0 among them

    for dtype in (torch.float32, torch.int64, torch.complex64, torch.bool):
        inputs = [value(_rank(), count(_rank(), to), dtype, to) for to in range(_size())]
        outputs = [torch.empty(count(r, _rank()), dtype=dtype) for r in range(_size())]
        dist.all_to_all(outputs, inputs)
        for source, output in enumerate(outputs):
            assert_same(output, value(source, count(source, _rank()), dtype, _rank()))


def all_to_all_single_exchanges_rows_equal_and_uneven() -> None:
    rows = torch.stack([value(_rank(), 6, salt=to) for to in range(_size())])
    output = torch.empty_like(rows)
    dist.all_to_all_single(output, rows)
    assert_same(output, torch.stack([value(r, 6, salt=_rank()) for r in range(_size())]))
    sends = [(_rank() + to) % 3 for to in range(_size())]
    receives = [(source + _rank()) % 3 for source in range(_size())]
    rows = torch.full((sum(sends), 4), float(_rank()))
    output = torch.empty(sum(receives), 4)
    dist.all_to_all_single(output, rows, receives, sends)
    expected = [torch.full((n, 4), float(source)) for source, n in enumerate(receives)]
    assert_same(output, torch.cat(expected))


def sparse_tensors_are_summed() -> Tensor:
    indices = torch.tensor([[_rank(), 5, 5], [0, 1, 2]])
    tensor = torch.sparse_coo_tensor(indices, torch.tensor([1.0, 2.0, 3.0]), (8, 3))
    dist.all_reduce(tensor)
    dense = tensor.to_dense()
    expected = torch.zeros(8, 3)
    for rank in range(_size()):
        expected[rank, 0] += 1
        expected[5, 1] += 2
        expected[5, 2] += 3
    assert_same(dense, expected)
    return dense


def barriers_return_on_every_rank() -> None:
    dist.barrier()
    dist.barrier(async_op=True).wait()
    for _ in range(50):
        dist.barrier()
    dist.group.WORLD.monitored_barrier()
    dist.group.WORLD.monitored_barrier(wait_all_ranks=True)


def the_callers_default_device_changes_nothing() -> list[Tensor]:
    """What is staged is in the memory of the host."""
    own = value(_rank(), 1200).reshape(30, 40)
    expected = own.t().contiguous()
    dist.all_reduce(expected)
    strided = own.clone().t()
    rows = [torch.empty_like(own) for _ in range(_size())]
    with torch.device("meta"):
        dist.all_reduce(strided)
        dist.all_gather(rows, own)
        dist.barrier()
    assert_same(strided, expected)
    for rank, row in enumerate(rows):
        assert_same(row, value(rank, 1200).reshape(30, 40))
    return [strided, *rows]
