"""Times and memory of calls whose time and memory are known."""

import os
import time
from itertools import pairwise

import pytest
import torch

from benchmarks import clock
from benchmarks.clock import LEAST, MOST, Clock, peak_bytes

CPU = torch.device("cpu")


def test_a_call_is_timed() -> None:
    assert 0.02 <= Clock(CPU).seconds(lambda: time.sleep(0.02)) < 2


def test_calls_take_turns_in_changing_order_and_none_follows_itself() -> None:
    called: list[str] = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}  # type: ignore[misc]
    samples = Clock(CPU).in_turn(calls, seconds=0.0)
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", LEAST)
    turns = [called[i : i + 3] for i in range(3, len(called), 3)]  # the first warms up
    assert all(sorted(turn) == list("abc") for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 2
    assert all(one != next for one, next in pairwise(called[3:]))


def test_samples_end_with_their_time_or_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    (many,) = Clock(CPU).in_turn({"quick": lambda: None}, seconds=60.0).values()
    assert len(many) == MOST
    monkeypatch.setattr(clock, "LEAST", 2)
    (few,) = Clock(CPU).in_turn({"slow": lambda: time.sleep(0.02)}, seconds=0.05).values()
    assert 2 <= len(few) < 10
    assert Clock(CPU).in_turn({}, seconds=1.0) == {}


def test_the_peak_is_what_was_alive_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def call() -> None:
        first = torch.empty(1000, 1000)
        second = torch.empty(500, 1000)
        del first
        third = torch.empty(500, 1000)
        del second, third

    assert peak_bytes(call, CPU) == 6_000_000
    assert capfd.readouterr() == ("", "")


def test_messages_come_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"hidden")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"), clock._silent():
        fail()
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"
