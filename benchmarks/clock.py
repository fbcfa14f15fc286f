"""How a call is timed, and how its memory is read."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Call = Callable[[], Any]

# Samples of each call: at least so many; no more once the calls of a case have taken their time.
LEAST, MOST = 10, 100
# More than any GPU's second-level cache holds.
FLUSHED = 256 * 2**20
# Turns of what is taken to be as fast as its fastest call.
REPEATS = 5


class Clock:
    """Times single calls on a device.

    Args:
        device: a GPU is timed by its events, with the second-level cache flushed before each call,
            a CPU by `time.perf_counter`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cache = None
        if device.type == "cuda":
            self._cache = torch.empty(FLUSHED, dtype=torch.int8, device=device)

    def seconds(self, call: Call) -> float:
        """One call."""
        if self._cache is None:
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        new: Any = torch.cuda.Event
        begin, end = new(enable_timing=True), new(enable_timing=True)
        self._cache.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def first(self, call: Call) -> float:
        """The first call, with all that it compiles, by the host's clock."""
        begin = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def in_turn(self, calls: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
        """Samples of several calls that take turns, so that a busy machine is busy for all.

        Args:
            calls: by name, each called before.
            seconds: for one call's samples, beyond the least number of them.

        Returns:
            As many samples of each.
        """
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            self.seconds(call)
        end = time.perf_counter() + seconds * len(calls)
        # Who follows whom matters, since caches hold what the one before left: in a new order
        # every turn, and never after oneself.
        draw, names = random.Random(0), list(calls)
        for turn in range(MOST):
            if turn >= LEAST and time.perf_counter() > end:
                break
            last = names[-1:]
            draw.shuffle(names)
            if names and names[:1] == last:
                names.append(names.pop(0))
            for name in names:
                samples[name].append(self.seconds(calls[name]))
        return samples


def captured(call: Call, device: torch.device) -> Call:
    """A replay of the call as a CUDA graph.

    Raises:
        RuntimeError: the call can't be captured.
    """
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most memory that tensors held during a call beyond what they held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    now = most = 0
    assert profiler.profiler is not None
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the profiler's own messages off the terminal; it writes past Python's streams."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, by events on CUDA."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    new: Any = torch.cuda.Event
    start, end = new(enable_timing=True), new(enable_timing=True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def fastest_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls; on CUDA in a graph, which no host holds up."""
    if device.type != "cuda":
        samples, since = [timed(call, device)], time.perf_counter()
        # Often, for a CPU is seldom alone.
        while len(samples) < 2 or (len(samples) < 200 and time.perf_counter() - since < 0.25):
            samples.append(timed(call, device))
        return min(samples)
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph, calls = torch.cuda.CUDAGraph(), 10
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return min(timed(graph.replay, device) for _ in range(REPEATS)) / calls
