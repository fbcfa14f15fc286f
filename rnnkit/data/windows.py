"""Windows: a text cut into B parallel streams and read T tokens at a time.

    tokens      a b c d e f g h i j k l m n            B = 2, T = 3
    streams     a b c d e f g                          one column a stream
                h i j k l m n
    windows     (abc -> bcd, hij -> ijk), (def -> efg, klm -> lmn)

A model carries its state from a window to the next: row b of every window continues stream b.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Target that no loss counts, `cross_entropy`'s own `ignore_index`."""


class Window(NamedTuple):
    """One batch of language modelling.

    Attributes:
        input: Token ids, int64 (T, B), time-major.
        target: The token after each input token, int64 (T, B); -100 where there is none.
        position: Index of the window in the epoch. At 0 the streams begin: the model resets its
            carried state.
    """

    input: Tensor
    target: Tensor
    position: int


def training_streams(tokens: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of B streams of N // B tokens each, the tail dropped.

    As in Zaremba et al. 2014 (arXiv 1409.2329): the last token of a stream is a target only.

    Args:
        tokens: int64 (N,).
        batch_size: B.

    Returns:
        Inputs and targets, int64 (N // B - 1, B) each.

    Raises:
        ValueError: `batch_size` is below 1, or fewer than 2 tokens a stream.
    """
    _check_batch_size(batch_size)
    steps = len(tokens) // batch_size
    if steps < 2:
        raise ValueError(
            f"batch_size {batch_size} needs {2 * batch_size} tokens or more, 2 a stream, the text "
            f"has {len(tokens)}: lower batch_size"
        )
    streams = tokens[: steps * batch_size].view(batch_size, steps).t()
    return streams[:-1], streams[1:]


def evaluation_streams(tokens: Tensor, batch_size: int, start: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of B streams that make every token a target exactly once.

    Stream b has the tokens from b S to (b + 1) S, S = ceil(N / B), as its targets. Its first
    input is the token before them: the last one of stream b - 1, and `start` for stream 0.

    Args:
        tokens: int64 (N,).
        batch_size: B.
        start: Id of the token before the first one; also the input where the text has ended.

    Returns:
        Inputs and targets, int64 (S, B) each. Targets beyond the end of the text are -100.

    Raises:
        ValueError: `batch_size` is below 1 or above N.
    """
    _check_batch_size(batch_size)
    if batch_size > len(tokens):
        raise ValueError(
            f"batch_size {batch_size} needs as many tokens or more, the text has {len(tokens)}: "
            "lower batch_size"
        )
    steps = -(-len(tokens) // batch_size)
    inputs = tokens.new_full((steps * batch_size,), start)
    inputs[1 : len(tokens)] = tokens[:-1]
    targets = tokens.new_full((steps * batch_size,), IGNORED)
    targets[: len(tokens)] = tokens
    return inputs.view(batch_size, steps).t(), targets.view(batch_size, steps).t()


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"expected a batch size of 1 or more, got {batch_size}")


class WindowLoader:
    """Iterates over the windows of some streams, in order, and can go on where it stopped.

    It is no `torch.utils.data.DataLoader`: Lightning replaces a DataLoader's sampler when it
    trains on several devices, which would tear the streams apart. It has a length, so Lightning
    does not fetch ahead, and `state_dict` counts just the windows that were consumed.

    Args:
        inputs: int64 (S, B).
        targets: int64 (S, B).
        window: T. The last window is shorter where T does not divide S.
        windows_per_epoch: Number of windows after which an epoch ends early, where the Trainer's
            `limit_train_batches` makes it do so. None: all.

    Raises:
        ValueError: `window` is below 1.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, window: int, windows_per_epoch: int | None = None
    ) -> None:
        if window < 1:
            raise ValueError(f"expected a window of 1 step or more, got {window}")
        # A window is then one block of memory, copied to a GPU as it stands.
        self.inputs = inputs.contiguous()
        self.targets = targets.contiguous()
        self.window = window
        self._windows_per_epoch = len(self) if windows_per_epoch is None else windows_per_epoch
        self._position = 0  # of the next window
        self._resume_at = 0

    @property
    def batch_size(self) -> int:
        """B, the number of streams."""
        return self.inputs.shape[1]

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.window)

    def __iter__(self) -> Iterator[Window]:
        # Not a generator itself: the position is taken now, and only by this one iterator.
        self._position, self._resume_at = self._resume_at, 0
        return self._windows(self._position)

    def _windows(self, first: int) -> Iterator[Window]:
        for position in range(first, len(self)):
            steps = slice(position * self.window, (position + 1) * self.window)
            self._position = position + 1
            yield Window(self.inputs[steps], self.targets[steps], position)

    def state_dict(self) -> dict[str, int]:
        """The next window's position, 0 at the end of an epoch, and the shape it counts in."""
        return {
            "position": self._position % max(self._windows_per_epoch, 1),
            "window": self.window,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration begin at the saved position.

        Raises:
            ValueError: The position lies within an epoch, of windows of another shape.
        """
        position = state_dict["position"]
        saved = state_dict["window"], state_dict["batch_size"]
        if position and saved != (self.window, self.batch_size):
            raise ValueError(
                f"the checkpoint was saved within an epoch, before window {position} of shape "
                f"{saved} (steps, streams): going on there needs the same window and batch size, "
                f"got {(self.window, self.batch_size)}"
            )
        if not 0 <= position < max(len(self), 1):
            raise ValueError(
                f"the checkpoint goes on at window {position}, the text has {len(self)}: it is "
                "not the text that the checkpoint was trained on"
            )
        self._resume_at = position
        self._position = position


def rank_columns(streams: Tensor, rank: int, world_size: int) -> Tensor:
    """The streams that one of several processes works on: columns r B / W to (r + 1) B / W.

    Args:
        streams: (S, B).
        rank: r, index of the process.
        world_size: W, number of processes.

    Returns:
        (S, B / W).

    Raises:
        ValueError: W does not divide B.
    """
    if streams.shape[1] % world_size:
        raise ValueError(
            f"a batch size of {streams.shape[1]} streams cannot be shared equally by {world_size} "
            "processes: choose a multiple"
        )
    return torch.chunk(streams, world_size, dim=1)[rank]
