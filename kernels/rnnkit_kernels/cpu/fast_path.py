"""A layer or a cell with little Python around: by the native engine, or by torch's own layers.

A step of 256 units takes less time than the checks and the choice of an engine in a general call.
So what can be known beforehand is worked out once for each shape, and whatever is out of the
ordinary is left to the general way: every call returns None for it.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from rnnkit_kernels.cells import CELLS
from rnnkit_kernels.cpu import native, rule
from rnnkit_kernels.cpu.library import HEADER, LAYER, library

_PACK = struct.Struct(f"={HEADER + LAYER}q").pack
_empty = torch.empty
_grad_enabled = torch.is_grad_enabled
_modes = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._are_functorch_transforms_active,
    torch._C._get_tracing_state,
    torch._C._is_any_autocast_enabled,
)
_forward_ad: Any = torch.autograd.forward_ad
_VF: Any = torch._VF
_NO_BIAS = (0, 0)


class FastPath:
    """What is known of a module's calls; kept by the module, and not pickled with it."""

    def __init__(self) -> None:
        self._shapes: dict[Any, tuple[Any, ...] | None] = {}

    def __reduce__(self) -> tuple[type[FastPath], tuple[()]]:
        return FastPath, ()

    def layer(
        self,
        cell: str,
        weights: tuple[Tensor, ...],
        input: Tensor,
        states: tuple[Tensor, ...] | None,
        backend: str,
    ) -> tuple[Tensor, ...] | None:
        """y (T, B, H), h_n (1, B, H) and, where there is one, c_n, of one layer in one direction.

        Args:
            cell: a key of `CELLS`, without weights of its own.
            weights: weight_ih and weight_hh, and perhaps both biases, float32.
            input: (T, B, D).
            states: h0 and, where there is one, c0, (1, B, H); zeros if None.
            backend: "auto", which asks whether the engine is the faster one, or "native".

        Returns:
            None where the general way has to be taken.
        """
        shape = input.shape
        if _grad_enabled():
            return self._torch_layer(cell, weights, input, states, backend)
        prepared = self._prepared(cell, weights, input, shape, backend)
        if prepared is None:
            return None
        call, head, tail, state_shape, zeros, _ = prepared
        if states is None:
            states = zeros
        elif len(states) != len(zeros) or not _plain(states, state_shape):
            return None
        hidden = state_shape[-1]
        try:
            y = _empty((shape[0], shape[1], hidden))
            return self._run(call, head, tail, weights, input, states, y, state_shape)
        except RuntimeError:  # memory ran out: the general way says what it was for
            return None

    def _torch_layer(
        self,
        cell: str,
        weights: tuple[Tensor, ...],
        input: Tensor,
        states: tuple[Tensor, ...] | None,
        backend: str,
    ) -> tuple[Tensor, ...] | None:
        """As `layer`, where a backward pass will follow and torch's own layers are the faster ones.

        That is a matter of single steps: of longer ones the general way costs little.
        """
        shape = input.shape
        if shape[0] != 1 or backend != "auto" or type(input) is not Tensor or _unusual():
            return None
        weight_ih, weight_hh = weights[:2]
        hidden = weight_hh.shape[1]
        if (
            not weight_hh.requires_grad
            or cell not in rule.IN_TORCH
            or not input.is_cpu
            or input.dtype is not weight_ih.dtype
            or weight_ih.shape[1] != shape[2]
            or rule.faster(cell, 1, shape[1], hidden, True, False)[0]
        ):
            return None
        state_shape = (1, shape[1], hidden)
        if states is None:
            states = (input.new_zeros(state_shape),) * (2 if cell == "lstm" else 1)
        for state in states:
            if (
                not isinstance(state, Tensor)
                or state.shape != state_shape
                or state.dtype is not input.dtype
                or not state.is_cpu
            ):
                return None
        options = (len(weights) > 2, 1, 0.0, False, False, False)
        start = states if cell == "lstm" else states[0]
        found: tuple[Tensor, ...] = getattr(_VF, cell)(input, start, list(weights), *options)
        return found

    def cell(
        self,
        cell: str,
        weights: tuple[Tensor, ...],
        input: Tensor,
        states: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, ...] | None:
        """h and, where there is one, c, (B, H) or (H,), after one step; arguments as `layer`'s."""
        shape = input.shape
        prepared = self._prepared(cell, weights, input, shape, "native")
        if prepared is None:
            return None
        call, head, tail, state_shape, zeros, _ = prepared
        if states is None:
            states = zeros
        elif len(states) != len(zeros) or not _plain(states, state_shape):
            return None
        return self._run(call, head, tail, weights, input, states, None, state_shape)

    def _prepared(
        self,
        cell: str,
        weights: tuple[Tensor, ...],
        input: Tensor,
        shape: torch.Size,
        backend: str,
    ) -> tuple[Any, ...] | None:
        if _grad_enabled() or not _plain((input,), shape) or _unusual():
            return None
        key = (cell, shape, len(weights), backend, torch.get_num_threads())
        if key not in self._shapes:
            if len(self._shapes) > 64:
                self._shapes.clear()
            self._shapes[key] = self._prepare(cell, weights, shape, backend)
        prepared = self._shapes[key]
        if prepared is None:
            return None
        for weight, expected in zip(weights, prepared[-1], strict=True):
            if (
                type(weight) not in native.PLAIN
                or weight.shape != expected
                or weight.dtype is not torch.float32
                or not weight.is_cpu
                or not weight.is_contiguous()
                or weight.is_neg()
            ):
                return None
        return prepared

    @staticmethod
    def _prepare(
        cell: str, weights: tuple[Tensor, ...], shape: torch.Size, backend: str
    ) -> tuple[Any, ...] | None:
        kind = CELLS[cell]
        found = library(kind)
        gates = kind.gates_at[-1]
        hidden = weights[1].shape[0] // gates
        features = shape[-1]
        steps, batch = shape[:2] if len(shape) == 3 else (1, shape[0] if len(shape) == 2 else 1)
        rows = steps * batch
        if found is None or rows == 0 or features == 0 or kind.weights:
            return None
        if backend == "auto" and not rule.faster(cell, steps, batch, hidden, False, False)[0]:
            return None
        threads = native.threads_for(rows * gates * hidden * (features + hidden))
        split = native.split(kind, batch, hidden, threads, 4)
        head = (
            found.cells[cell], 4, threads, 1, split, 0,
            steps, batch, features, hidden, hidden, rows, 0, 0, 0, 0, 0,
        )  # fmt: skip
        tail = (*(0,) * 15, features, hidden, 0, 0, 0, 0, 0, 0)
        leading = (1, batch) if len(shape) == 3 else shape[:-1]
        state_shape = torch.Size((*leading, hidden))
        zeros = torch.zeros(state_shape)
        rows_hh = gates * hidden
        shapes = ((rows_hh, features), (rows_hh, hidden), (rows_hh,), (rows_hh,))
        states = (zeros,) * (1 + kind.has_cell_state)
        return found.forward, head, tail, state_shape, states, shapes[: len(weights)]

    @staticmethod
    def _run(
        call: Any,
        head: tuple[int, ...],
        tail: tuple[int, ...],
        weights: tuple[Tensor, ...],
        input: Tensor,
        states: tuple[Tensor, ...],
        y: Tensor | None,
        state_shape: torch.Size,
    ) -> tuple[Tensor, ...]:
        h_n = _empty(state_shape)
        to_h = h_n.data_ptr()
        biases = (weights[2].data_ptr(), weights[3].data_ptr()) if len(weights) > 2 else _NO_BIAS
        if len(states) > 1:
            c_n = _empty(state_shape)
            last: tuple[Tensor, ...] = (h_n, c_n)
            c0, to_c = states[1].data_ptr(), c_n.data_ptr()
        else:
            last = (h_n,)
            c0 = to_c = 0
        failed = call(
            _PACK(
                *head,
                input.data_ptr(),
                weights[0].data_ptr(),
                weights[1].data_ptr(),
                *biases,
                0,
                0,
                states[0].data_ptr(),
                c0,
                0,
                to_h if y is None else y.data_ptr(),
                to_h,
                to_c,
                *tail,
            )
        )
        if failed:
            native.raise_failure(failed)
        return last if y is None else (y, *last)


def _unusual() -> bool:
    """Whether something looks at operators, or changes what they do."""
    for mode in _modes:
        if mode():
            return True
    return _forward_ad._current_level >= 0  # type: ignore[no-any-return]


def _plain(tensors: tuple[Tensor, ...], shape: torch.Size) -> bool:
    """Whether these are float32 tensors on the CPU, of one shape, each in one piece."""
    for tensor in tensors:
        if (
            type(tensor) is not Tensor
            or tensor.shape != shape
            or tensor.dtype is not torch.float32
            or not tensor.is_cpu
            or not tensor.is_contiguous()
            or tensor.is_neg()
            or not tensor.data_ptr()
        ):
            return False
    return True
