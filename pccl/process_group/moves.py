"""The operations of a group that move tensors as they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work

from pccl.process_group.base import GroupBase
from pccl.process_group.tensors import (
    DEFAULTS,
    Staging,
    block,
    call_options,
    check_alike,
    check_dtypes,
    check_not_empty,
    check_root,
    check_single,
    empty_staged,
    equal_blocks,
    fail,
    listed,
    moved_dtype,
    split_blocks,
)


class Moves(GroupBase):
    """broadcast, gather, scatter, allgather and alltoall in all their forms."""

    def broadcast(
        self,
        tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        root: int | None = None,
    ) -> Work:
        """Copy the tensor of rank opts.rootRank to all ranks, and over a list of several."""
        name = "broadcast"
        opts = call_options(opts, timeout, root=root)
        tensors = listed(tensors)
        check_root(opts.rootRank, self._size, name)
        check_not_empty(tensors, name)
        if not 0 <= opts.rootTensor < len(tensors):
            fail(name, f"invalid root tensor: {opts.rootTensor}")
        check_alike(tensors, tensors[0], name)
        tensor = tensors[opts.rootTensor]
        dtype = moved_dtype(tensor, name)
        staging = Staging(name)
        is_root = opts.rootRank == self._rank
        staged = staging.source(tensor) if is_root else staging.target(tensor)
        for index, other in enumerate(tensors):
            if index != opts.rootTensor:
                staging.copy_later(other, staged)
        arguments = (staged.data_ptr(), staged.numel(), dtype, opts.rootRank)
        return self._launch(
            "broadcast", self._core.broadcast, arguments, opts, tensors, staging, staged
        )

    def gather(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        root: int | None = None,
    ) -> Work:
        """Collect every rank's tensor at rank opts.rootRank, in the list output_tensors[0]."""
        name = "gather"
        opts = call_options(opts, timeout, root=root)
        check_root(opts.rootRank, self._size, name)
        tensor = check_single(listed(input_tensors), name, "input tensor list")
        dtype = moved_dtype(tensor, name)
        outputs: list[Tensor] = []
        if opts.rootRank == self._rank:
            outputs = self._list_of_ranks(output_tensors, "output", name)
            check_alike(outputs, tensor, name)
        elif len(output_tensors) > 0:
            fail(name, "requires empty output on non-root")
        staging = Staging(name)
        source = staging.source(tensor)
        targets = [staging.target(output) for output in outputs]
        arguments = (block(source), [block(t) for t in targets], dtype, opts.rootRank)
        keep = (source, targets)
        return self._launch(
            "gather", self._core.gather, arguments, opts, outputs, staging, keep, [tensor]
        )

    def scatter(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        root: int | None = None,
    ) -> Work:
        """Give each rank its tensor of the list input_tensors[0] at rank opts.rootRank."""
        name = "scatter"
        opts = call_options(opts, timeout, root=root)
        check_root(opts.rootRank, self._size, name)
        outputs = listed(output_tensors)
        tensor = check_single(outputs, name, "output tensor list")
        dtype = moved_dtype(tensor, name)
        inputs: list[Tensor] = []
        if opts.rootRank == self._rank:
            inputs = self._list_of_ranks(input_tensors, "input", name)
            check_alike(inputs, tensor, name)
        elif len(input_tensors) > 0:
            fail(name, "requires empty input on non-root")
        staging = Staging(name)
        sources = [staging.source(t) for t in inputs]
        target = staging.target(tensor)
        arguments = ([block(s) for s in sources], block(target), dtype, opts.rootRank)
        keep = (sources, target)
        return self._launch(
            "scatter", self._core.scatter, arguments, opts, outputs, staging, keep, inputs
        )

    def allgather(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
    ) -> Work:
        """Collect every rank's tensors at all ranks; each list of outputs gets all of them."""
        name = "allgather"
        opts = call_options(opts, timeout)
        inputs = listed(input_tensors)
        check_not_empty(inputs, name, "input tensor list")
        if output_tensors and isinstance(output_tensors[0], Tensor):
            output_tensors = [output_tensors]
        if len(output_tensors) != len(inputs):
            fail(name, "requires input/output tensor lists to have the same length")
        check_alike(inputs, inputs[0], name)
        expected = self._size * len(inputs)
        for index, outputs in enumerate(output_tensors):
            if len(outputs) != expected:
                fail(
                    name,
                    f"invalid output tensor list at index {index} (expected length {expected}, got "
                    f"{len(outputs)})",
                )
            check_alike(outputs, inputs[0], name)
        if len(inputs) > 1:
            return self._all_gather_several(output_tensors, inputs, opts)
        dtype = moved_dtype(inputs[0], name)
        staging = Staging(name)
        source = staging.source(inputs[0])
        targets = [staging.target(output) for output in output_tensors[0]]
        arguments = (block(source), [block(t) for t in targets], dtype)
        keep = (source, targets)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            opts,
            output_tensors,
            staging,
            keep,
            inputs,
        )

    def _all_gather_several(
        self, output_lists: Sequence[list[Tensor]], inputs: list[Tensor], opts: Any
    ) -> Work:
        name = "allgather"
        dtype = moved_dtype(inputs[0], name)
        staging = Staging(name)
        with torch.no_grad():
            source = staging.source(torch.stack(inputs))
        target = empty_staged((self._size * len(inputs), *inputs[0].shape), inputs[0])
        for outputs in output_lists:
            for output, result in zip(outputs, target, strict=True):
                staging.copy_later(output, result)
        arguments = (block(source), equal_blocks(target, self._size), dtype)
        keep = (source, target)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            opts,
            output_lists,
            staging,
            keep,
            inputs,
        )

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = DEFAULTS) -> Work:
        """Collect every rank's input at all ranks, one after the other in `output`."""
        name = "all_gather_single"
        check_dtypes([output], input, name)
        if output.numel() != input.numel() * self._size:
            fail(
                name,
                f"invalid tensor size: output tensor size must be equal to world_size times input "
                f"tensor size, got {output.numel()} and {input.numel()} elements at world size "
                f"{self._size}",
            )
        dtype = moved_dtype(input, name)
        staging = Staging(name)
        source, target = staging.source(input), staging.target(output)
        arguments = (block(source), equal_blocks(target, self._size), dtype)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            call_options(opts),
            [output],
            staging,
            (source, target),
            [input],
        )

    _allgather_base = all_gather_single

    def allgather_coalesced(self, output_lists: Any, input_list: Any, opts: Any = DEFAULTS) -> Work:
        """all_gather of several tensors; output_lists[r][i] becomes rank r's input_list[i]."""
        name = "allgather_coalesced"
        opts = call_options(opts)
        inputs = listed(input_list)
        check_not_empty(inputs, name, "input tensor list")
        if len(output_lists) != self._size:
            fail(name, "output lists should be equal to world size")
        for index, outputs in enumerate(output_lists):
            if len(outputs) != len(inputs):
                fail(
                    name,
                    f"invalid output size: (expected length {len(inputs)}, got {len(outputs)}) at "
                    f"index {index}",
                )
            for output, tensor in zip(outputs, inputs, strict=True):
                check_alike([output], tensor, name)
        if len({(t.dtype, t.device) for t in inputs}) > 1:
            works = []
            for index, tensor in enumerate(inputs):
                column = [outputs[index] for outputs in output_lists]
                works.append(self.allgather([column], [tensor], opts))
            return self._together(works, output_lists)
        # All tensors of a rank in one message.
        dtype = moved_dtype(inputs[0], name)
        staging = Staging(name)
        with torch.no_grad():
            source = staging.source(torch.cat([tensor.reshape(-1) for tensor in inputs]))
        target = empty_staged((self._size, source.numel()), inputs[0])
        counts = [tensor.numel() for tensor in inputs]
        for outputs, row in zip(output_lists, target, strict=True):
            for output, piece in zip(outputs, torch.split(row, counts), strict=True):
                staging.copy_later(output, piece.view(output.shape))
        arguments = (block(source), equal_blocks(target, self._size), dtype)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            opts,
            output_lists,
            staging,
            (source, target),
            inputs,
        )

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = DEFAULTS) -> Work:
        """all_gather_single of several tensors."""
        name = "all_gather_single_coalesced"
        if len(outputs) != len(inputs):
            fail(name, "requires input/output tensor lists to have the same length")
        opts = call_options(opts)
        works = [self.all_gather_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)]
        return self._together(works, outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def alltoall(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
    ) -> Work:
        """Send input_tensors[r] to rank r, receive output_tensors[r] from it; sizes may differ."""
        name = "alltoall"
        opts = call_options(opts, timeout)
        for tensors, what in ((input_tensors, "input"), (output_tensors, "output")):
            check_not_empty(tensors, name, f"{what} tensor list")
            if len(tensors) != self._size:
                fail(name, f"invalid {what} tensor list: expected {self._size}, got {len(tensors)}")
            check_dtypes(tensors, input_tensors[0], name)
        dtype = moved_dtype(input_tensors[0], name)
        staging = Staging(name)
        sources = [staging.source(tensor) for tensor in input_tensors]
        targets = [staging.target(tensor) for tensor in output_tensors]
        arguments = ([block(s) for s in sources], [block(t) for t in targets], dtype)
        return self._launch(
            "all_to_all",
            self._core.all_to_all,
            arguments,
            opts,
            output_tensors,
            staging,
            (sources, targets),
            input_tensors,
        )

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
    ) -> Work:
        """Send rank r its rows of `input`; what is received follows each other in `output`."""
        name = "all_to_all_single"
        check_dtypes([output], input, name)
        dtype = moved_dtype(input, name)
        staging = Staging(name)
        source, target = staging.source(input), staging.target(output)
        arguments = (
            split_blocks(source, input_split_sizes, self._size, name),
            split_blocks(target, output_split_sizes, self._size, name),
            dtype,
        )
        return self._launch(
            "all_to_all",
            self._core.all_to_all,
            arguments,
            call_options(opts, timeout),
            [output],
            staging,
            (source, target),
            [input],
        )

    alltoall_base = all_to_all_single
