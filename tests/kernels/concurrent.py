"""Triton's interpreter for programs that wait for one another, and with exact bfloat16."""

import itertools
import multiprocessing
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from torch.utils._pytree import tree_map_only
from triton.runtime import interpreter
from triton.runtime.jit import mangle_type

from rnnkit_kernels.ops import interpreter as interpreted

Index = tuple[int, int, int]

PAUSE = 1e-3  # seconds after a poll


def run_programs_concurrently(
    kernel: Any,
    grid: tuple[int, ...],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    timeout: float = 60.0,
    missing: Index | None = None,
) -> None:
    """Run `kernel[grid](*args, **kwargs)` in the interpreter, all programs at the same time.

    On its own the interpreter runs programs one after another, and one that waits for a later one
    hangs. Here each program is a forked process, over tensors in shared memory.

    Atomics on integers, float32 and float64 hold across processes: the interpreter applies
    std::atomic, with the memory order of `sem`, to the memory itself. (Those on float16 take a lock
    that processes do not share.) Plain loads and stores go element by element, none of them torn.
    `tl.debug_barrier`, `scope=` and cache modifiers do nothing.

    Args:
        kernel: a function decorated by triton.jit under TRITON_INTERPRET=1.
        grid: number of programs along up to three axes.
        args, kwargs: as for a launch; the interpreter drops num_warps and other options. Tensors,
            those in tuples too, lie on the CPU; they may be views and may overlap.
        timeout: seconds for all programs together.
        missing: a program that does not run, to see what the others do about it.

    Raises:
        TimeoutError: with the programs that had not ended.
        RuntimeError: a program raised or its process died; with the traceback.

    When it raises, no program runs any more and the tensors are unchanged, save those that were in
    shared memory before: to these the programs write directly.
    """
    storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def share(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.is_shared():
            return tensor
        if storage.data_ptr() not in storages:
            shared = storage.clone().share_memory_()  # type: ignore[no-untyped-call]
            storages[storage.data_ptr()] = storage, shared
        _, shared = storages[storage.data_ptr()]
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(shared, tensor.storage_offset(), tensor.size(), tensor.stride())

    args, kwargs = tree_map_only(Tensor, share, (tuple(args), kwargs))
    mangle_type(0)  # its first call imports for long: here, not in every child

    width, height, depth = (*grid, 1, 1)[:3]
    fork = multiprocessing.get_context("fork")
    deadline = time.monotonic() + timeout
    processes: list[ForkProcess] = []
    running: dict[Connection, tuple[Index, ForkProcess]] = {}
    try:
        for index in itertools.product(range(width), range(height), range(depth)):
            if index == missing:
                continue
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(
                target=_run_program,
                args=(kernel, args, kwargs, (width, height, depth), index, timeout, sender),
                daemon=True,
            )
            processes.append(process)
            with warnings.catch_warnings():
                # Of forks beside threads, since Python 3.12; `_run_program` sees to torch's.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            running[receiver] = index, process
            sender.close()  # leaves the child as the only writer, so that its end is seen
        while running:
            ended = wait(list(running), deadline - time.monotonic())
            if not ended:
                indices = ", ".join(str(index) for index, _ in running.values())
                raise TimeoutError(f"after {timeout} s these programs had not ended: {indices}")
            for receiver in [receiver for receiver in running if receiver in ended]:
                index, process = running.pop(receiver)
                try:
                    report = receiver.recv()
                except EOFError:
                    report = ""
                process.join()
                if report or process.exitcode:
                    raise RuntimeError(f"program {index}, exit code {process.exitcode}\n{report}")
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    for storage, shared in storages.values():
        storage.copy_(shared)


def _run_program(
    kernel: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    grid: Index,
    index: Index,
    timeout: float,
    sender: Connection,
) -> None:
    """One program, in a process of its own; sends the traceback if it raises."""
    # The parent decides what Ctrl-C does. Should the parent be killed, the alarm ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout + 5)
    # OpenMP would wait for threads of the parent, which are not here.
    torch.set_num_threads(1)

    builder = interpreter.interpreter_builder
    set_grid_dim, set_grid_idx = builder.set_grid_dim, builder.set_grid_idx
    builder.set_grid_dim = lambda *_: set_grid_dim(*grid)
    builder.set_grid_idx = lambda *_: set_grid_idx(*index)

    # Where programs outnumber cores, those that poll must leave a core to the one they wait for.
    load = builder.create_masked_load

    def create_masked_load(
        ptrs: Any,
        mask: Any,
        other: Any,
        cache_modifier: Any,
        eviction_policy: Any,
        is_volatile: Any,
    ) -> Any:
        values = load(ptrs, mask, other, cache_modifier, eviction_policy, is_volatile)
        if is_volatile:
            time.sleep(PAUSE)
        return values

    def pausing(atomic: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*operands: Any) -> Any:
            before = atomic(*operands)
            time.sleep(PAUSE)
            return before

        return operation

    builder.create_masked_load = create_masked_load
    builder.create_atomic_rmw = pausing(builder.create_atomic_rmw)
    builder.create_atomic_cas = pausing(builder.create_atomic_cas)

    try:
        kernel[(1, 1, 1)](*args, **kwargs)
    except Exception:
        sender.send(traceback.format_exc())


@contextmanager
def exact_bfloat16_dot() -> Iterator[None]:
    """Let the interpreter compute with bfloat16, in programs forked meanwhile as well.

    It keeps the bits as uint16 and takes them for integers: in `tl.dot`, in arithmetic and in
    comparisons. It casts float32 to bfloat16 by cutting bits off. Here `tl.dot` multiplies exactly
    and sums in float32, arithmetic is rounded from float32, and casts round to nearest even, NaN
    becoming 0x7FFF as on NVIDIA GPUs. Still wrong are reductions: cast to float32 before `tl.sum`.
    """
    builder = interpreter.interpreter_builder
    cast_impl, binary_op, create_dot = builder.cast_impl, builder.binary_op, builder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def rounded(values: Any) -> Any:
        values = values.astype(np.float32)
        bits = values.view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        bits = np.where(np.isnan(values), 0x7FFF, bits).astype(np.uint16)
        return interpreter.TensorHandle(bits, tl.bfloat16)

    def cast(source: Any, target: Any) -> Any:
        source = widened(source)
        return rounded(source.data) if target.scalar == tl.bfloat16 else cast_impl(source, target)

    def binary(lhs: Any, rhs: Any, operation: Any) -> Any:
        result = binary_op(widened(lhs), widened(rhs), operation)
        is_number = lhs.dtype.scalar == tl.bfloat16 and result.data.dtype == np.float32
        return rounded(result.data) if is_number else result

    def dot(a: Any, b: Any, *others: Any) -> Any:
        return create_dot(widened(a), widened(b), *others)

    def constant(value: float) -> Any:
        return rounded(np.array([value]))

    with (
        mock.patch.multiple(
            builder,
            create=True,
            cast_impl=cast,
            binary_op=binary,
            create_dot=dot,
            get_bf16=constant,
        ),
        mock.patch.object(interpreted, "WRONG", frozenset()),
    ):
        yield
