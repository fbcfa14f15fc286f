"""Windows: a text cut into B parallel streams and read T tokens at a time.

    tokens      a b c d e f g h i j k l m n            B = 2, T = 3
    streams     a b c d e f g                          one column a stream
                h i j k l m n
    windows     (abc -> bcd, hij -> ijk), (def -> efg, klm -> lmn)

A model carries its state from a window to the next: row b of every window continues stream b.

Windows may have random lengths, those of Merity et al. 2018 (arXiv 1708.02182, section 5): T is
drawn from N(window, 5), or once in 20 times from N(window / 2, 5), and the learning rate of its
step is multiplied by T / window. So a token is not always the first of its window, or the last,
and short windows do not weigh more. An epoch has one number of windows whatever is drawn, for
Lightning counts them once: what the lengths lack or exceed to cover the text is shared by all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkit.data.fingerprint import check_fingerprint

IGNORED = -100
"""Target that no loss counts, `cross_entropy`'s own `ignore_index`."""

# Merity et al.'s law of a window's length.
DEVIATION, HALVED, SHORTEST = 5.0, 0.05, 5


class Window(NamedTuple):
    """One batch of language modelling.

    Attributes:
        input: Token ids, int64 (T, B), time-major.
        target: The token after each input token, int64 (T, B); -100 where there is none.
        position: Index of the window in the epoch. At 0 the streams begin: the model resets its
            carried state.
        rate_factor: What the learning rate is multiplied by for the step on this window.
    """

    input: Tensor
    target: Tensor
    position: int
    rate_factor: float = 1.0

    def to(self, device: torch.device) -> Window:
        """The window on a device. Lightning calls this; without it, it looks into every part."""
        input, target = (part.to(device, non_blocking=True) for part in self[:2])
        return self._replace(input=input, target=target)


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


def window_count(steps: int, window: int, random: bool) -> int:
    """Number of windows in an epoch.

    Args:
        steps: S, steps of the text.
        window: Steps of a window; the mean of the usual ones where lengths are random.
        random: Whether they are.
    """
    if not random:
        return -(-steps // window)
    # The expectation of the larger of ⌊x⌋ and SHORTEST is SHORTEST and P(⌊x⌋ >= k) for each k
    # above; beyond 8 standard deviations there is nothing to add.
    expected = float(SHORTEST)
    for centre, share in ((window, 1 - HALVED), (window / 2, HALVED)):
        for k in range(SHORTEST + 1, math.ceil(centre + 8 * DEVIATION)):
            expected += share * math.erfc((k - centre) / (DEVIATION * math.sqrt(2))) / 2
    return max(round(steps / expected), 1)


def random_lengths(steps: int, window: int, seed: int, epoch: int) -> list[int]:
    """Lengths of the windows of one epoch.

    As many as `window_count` says are drawn as the module's text tells, then all are stretched or
    shortened alike, by about 1 % where there are a hundred, so that they cover the text.

    Args:
        steps: S, steps of the text.
        window: Mean of the usual lengths.
        seed: The lengths follow from this and the epoch.
        epoch: Counted from 0.

    Returns:
        Lengths of 1 or more whose sum is `steps`.
    """
    random = Random(f"{seed} {epoch}")  # a string, for a sum would repeat lengths
    drawn = []
    for _ in range(window_count(steps, window, random=True)):
        centre = window / 2 if random.random() < HALVED else window
        drawn.append(max(int(random.gauss(centre, DEVIATION)), SHORTEST))
    # The first step of each is left alone, so that none is empty; the others are stretched.
    further = list(accumulate(length - 1 for length in drawn))
    spare = steps - len(drawn)
    ends = [number + spare * end // further[-1] for number, end in enumerate(further, start=1)]
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class WindowLoader:
    """Iterates over the windows of some streams, in order, and can go on where it stopped.

    Each iteration is another epoch.

    It is no `torch.utils.data.DataLoader`: Lightning replaces a DataLoader's sampler when it
    trains on several devices, which would tear the streams apart. It has a length, so Lightning
    does not fetch ahead, and `state_dict` counts just the windows that were consumed.

    Args:
        inputs: int64 (S, B), the streams of this process.
        targets: int64 (S, B).
        window: T. The last window is shorter where T does not divide S.
        windows_per_epoch: Number of windows after which an epoch ends early, where the Trainer's
            `limit_train_batches` makes it do so. None: all.
        seed: For windows of random lengths, drawn anew in each epoch. None: all have T steps.
        first_epoch: Number of the first epoch.
        fingerprint: Of the whole text, whatever part of it this process reads. None: unknown.
        processes: W, number of processes that have as many streams each.

    Raises:
        ValueError: `window` is below 1.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        window: int,
        windows_per_epoch: int | None = None,
        seed: int | None = None,
        first_epoch: int = 0,
        fingerprint: str | None = None,
        processes: int = 1,
    ) -> None:
        if window < 1:
            raise ValueError(f"expected a window of 1 step or more, got {window}")
        # A window is then one block of memory, copied to a GPU as it stands.
        self.inputs = inputs.contiguous()
        self.targets = targets.contiguous()
        self.window = window
        self.seed = seed
        self.fingerprint = fingerprint
        self._processes = processes
        self._windows_per_epoch = len(self) if windows_per_epoch is None else windows_per_epoch
        self._epoch = first_epoch
        self._position = 0  # of the next window
        self._started = False  # whether this loader gave a window of this epoch

    @property
    def batch_size(self) -> int:
        """W B, the number of streams of all processes: a run may go on with another W."""
        return self.inputs.shape[1] * self._processes

    def __len__(self) -> int:
        return window_count(len(self.inputs), self.window, self.seed is not None)

    def __iter__(self) -> Iterator[Window]:
        # Not a generator itself: epoch and position are taken now, and only by this one iterator.
        # An iterator that gave nothing was no epoch: Lightning makes some that it does not use.
        if self._started:
            self._epoch, self._position, self._started = self._epoch + 1, 0, False
        return self._windows(self._epoch, self._position)

    def _windows(self, epoch: int, first: int) -> Iterator[Window]:
        lengths = [self.window] * len(self)
        if self.seed is not None:
            lengths = random_lengths(len(self.inputs), self.window, self.seed, epoch)
        start = sum(lengths[:first])
        for position in range(first, len(lengths)):
            steps = slice(start, start + lengths[position])
            start = steps.stop
            factor = 1.0 if self.seed is None else lengths[position] / self.window
            self._epoch, self._position, self._started = epoch, position + 1, True
            yield Window(self.inputs[steps], self.targets[steps], position, factor)

    def state_dict(self) -> dict[str, int | str | None]:
        """Epoch and position of the next window, and what it was cut by."""
        epoch, position = self._epoch, self._position
        if position >= self._windows_per_epoch:
            epoch, position = epoch + 1, 0
        return {
            "epoch": epoch,
            "position": position,
            "window": self.window,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration begin at the saved position.

        Raises:
            ValueError: The position lies within an epoch, of windows of other shapes or of another
                text.
        """
        position = state_dict["position"]
        check_fingerprint(position, state_dict, self.fingerprint)
        # Loaders without random lengths once saved neither seed nor epoch.
        saved = state_dict["window"], state_dict["batch_size"]
        saved_seed = state_dict.get("seed")
        if position and saved != (self.window, self.batch_size):
            raise ValueError(
                f"the checkpoint was saved within an epoch, before window {position} of shape "
                f"{saved} (steps, streams): going on there needs the same window and batch size, "
                f"got {(self.window, self.batch_size)}"
            )
        if position and saved_seed != self.seed:
            raise ValueError(
                f"the checkpoint was saved within an epoch, before window {position} of lengths "
                f"drawn from seed {saved_seed} (None: all as long): going on there needs the same "
                f"lengths, got seed {self.seed}"
            )
        if not 0 <= position < max(len(self), 1):
            raise ValueError(
                f"the checkpoint goes on at window {position}, the text has {len(self)}: it is "
                "not the text that the checkpoint was trained on"
            )
        self._epoch, self._position = state_dict.get("epoch", 0), position
        self._started = False


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
