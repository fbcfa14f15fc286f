import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnnkit.language_modeling.windows import (
    Window,
    WindowLoader,
    evaluation_streams,
    random_lengths,
    rank_columns,
    training_streams,
    window_count,
)

START = 1000


def loader(steps: int = 10, batch_size: int = 2, window: int = 3) -> WindowLoader:
    streams = torch.arange(steps * batch_size).view(steps, batch_size)
    return WindowLoader(streams, streams + 1, window)


@given(length=st.integers(2, 60), batch_size=st.integers(1, 12), window=st.integers(1, 9))
def test_training_windows_continue_every_stream(length: int, batch_size: int, window: int) -> None:
    if length // batch_size < 2:
        with pytest.raises(ValueError, match=f"batch_size {batch_size} needs .* has {length}"):
            training_streams(torch.arange(length), batch_size)
        return
    steps = length // batch_size
    windows = list(WindowLoader(*training_streams(torch.arange(length), batch_size), window))
    assert [window.position for window in windows] == list(range(len(windows)))
    inputs = torch.cat([window.input for window in windows])
    targets = torch.cat([window.target for window in windows])
    assert inputs.shape == (steps - 1, batch_size)
    assert all(window.input.is_contiguous() for window in windows)  # one copy to a GPU
    for stream in range(batch_size):  # row b is the text from b N//B on
        expected = torch.arange(stream * steps, (stream + 1) * steps)
        assert torch.equal(inputs[:, stream], expected[:-1])
        assert torch.equal(targets[:, stream], expected[1:])


@given(length=st.integers(1, 60), batch_size=st.integers(1, 12), window=st.integers(1, 9))
def test_evaluation_scores_every_token_once_after_its_own_predecessor(
    length: int, batch_size: int, window: int
) -> None:
    tokens = torch.arange(length)
    if batch_size > length:
        with pytest.raises(ValueError, match=f"batch_size {batch_size} .* has {length}"):
            evaluation_streams(tokens, batch_size, START)
        return
    windows = list(WindowLoader(*evaluation_streams(tokens, batch_size, START), window))
    inputs = torch.cat([window.input for window in windows]).t().flatten()
    targets = torch.cat([window.target for window in windows]).t().flatten()
    scored = targets != -100
    assert torch.equal(targets[scored], tokens)
    assert torch.equal(inputs[scored], torch.cat([torch.tensor([START]), tokens[:-1]]))
    assert (inputs[~scored] == START).all()
    assert len(targets) - length < batch_size  # no more padding than it takes


def test_windows_are_time_major_int64_and_the_last_is_shorter() -> None:
    windows = list(loader(steps=10, batch_size=2, window=4))
    assert [tuple(window.input.shape) for window in windows] == [(4, 2), (4, 2), (2, 2)]
    assert {window.target.dtype for window in windows} == {torch.int64}


def test_a_window_moves_with_its_place_and_its_rate() -> None:
    window = Window(torch.ones(3, 2, dtype=torch.int64), torch.zeros(3, 2), 4, 0.5)
    moved = window.to(torch.device("meta"))
    assert [part.device.type for part in moved[:2]] == ["meta", "meta"]
    assert [part.shape for part in moved[:2]] == [part.shape for part in window[:2]]
    assert [part.dtype for part in moved[:2]] == [part.dtype for part in window[:2]]
    assert moved[2:] == (4, 0.5)


def test_length_is_the_number_of_windows() -> None:
    for steps in range(1, 8):
        assert len(loader(steps=steps)) == len(list(loader(steps=steps)))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"1 or more, got {batch_size}"):
        training_streams(torch.arange(9), batch_size)
    with pytest.raises(ValueError, match=f"1 or more, got {batch_size}"):
        evaluation_streams(torch.arange(9), batch_size, START)


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1 step or more, got 0"):
        loader(window=0)


def positions(windows: WindowLoader) -> list[int]:
    return [window.position for window in windows]


@pytest.mark.parametrize("consumed", [1, 2, 3])
def test_a_loader_goes_on_where_another_stopped(consumed: int) -> None:
    first, second = loader(), loader()
    iterator = iter(first)
    seen = [next(iterator).position for _ in range(consumed)]
    second.load_state_dict(first.state_dict())
    assert seen + positions(second) == [0, 1, 2, 3]
    assert positions(second) == [0, 1, 2, 3]  # the next epoch is whole


def test_a_loader_at_the_end_of_its_epoch_begins_anew() -> None:
    first, second = loader(), loader()
    positions(first)
    second.load_state_dict(first.state_dict())
    assert positions(second) == [0, 1, 2, 3]


def test_an_abandoned_epoch_is_not_continued() -> None:
    windows = loader()
    next(iter(windows))
    assert positions(windows) == [0, 1, 2, 3]


def test_state_is_plain_data() -> None:
    windows = loader()
    next(iter(windows))
    assert windows.state_dict() == {
        "epoch": 0,
        "position": 1,
        "window": 3,
        "batch_size": 2,
        "seed": None,
        "fingerprint": None,
    }


@pytest.mark.parametrize("other", [{"window": 4}, {"batch_size": 4}])
def test_a_position_in_windows_of_another_shape_is_refused(other: dict[str, int]) -> None:
    windows = loader()
    next(iter(windows))
    with pytest.raises(ValueError, match="before window 1 of shape"):
        loader(**other).load_state_dict(windows.state_dict())


def test_the_shape_may_change_between_epochs() -> None:
    other = loader(window=5)
    other.load_state_dict(loader().state_dict())
    assert positions(other) == [0, 1]


def test_a_position_beyond_the_text_is_refused() -> None:
    windows = loader(steps=20)
    iterator = iter(windows)
    for _ in range(5):
        next(iterator)
    with pytest.raises(ValueError, match="goes on at window 5, the text has 4"):
        loader(steps=10).load_state_dict(windows.state_dict())


def test_a_state_from_before_there_were_random_lengths_is_taken() -> None:
    windows = loader()
    windows.load_state_dict({"position": 2, "window": 3, "batch_size": 2})
    assert positions(windows) == [2, 3]


def test_an_iterator_that_gave_nothing_is_no_epoch() -> None:
    windows = loader()
    windows.load_state_dict({"position": 2, "window": 3, "batch_size": 2})
    iter(windows)
    assert positions(windows) == [2, 3]


# Random lengths


@given(steps=st.integers(1, 3000), window=st.integers(1, 90), epoch=st.integers(0, 3))
def test_random_windows_read_every_step_once_and_none_is_empty(
    steps: int, window: int, epoch: int
) -> None:
    lengths = random_lengths(steps, window, 0, epoch)
    assert sum(lengths) == steps
    assert min(lengths) >= 1
    assert len(lengths) == window_count(steps, window, random=True)


def random_loader(steps: int = 500, window: int = 20, seed: int = 0) -> WindowLoader:
    streams = torch.arange(steps * 2).view(steps, 2)
    return WindowLoader(streams, streams + 1, window, seed=seed)


def test_an_epoch_of_random_windows_is_the_text_in_order() -> None:
    windows = random_loader()
    for _ in range(3):
        epoch = list(windows)
        assert len(epoch) == len(windows)
        assert torch.equal(torch.cat([window.input for window in epoch]), windows.inputs)
        assert torch.equal(torch.cat([window.target for window in epoch]), windows.targets)
        assert [window.position for window in epoch] == list(range(len(windows)))
        assert [20 * window.rate_factor for window in epoch] == pytest.approx(
            [len(window.input) for window in epoch]
        )


def test_windows_that_are_all_as_long_leave_the_learning_rate_alone() -> None:
    # Also the last one, which is shorter: as in plain truncated backpropagation.
    assert {window.rate_factor for window in loader()} == {1.0}


def test_random_lengths_follow_the_law_of_their_paper() -> None:
    # N(70, 5) and, once in 20 times, N(35, 5), of 100,000 draws.
    lengths = torch.tensor(random_lengths(6_780_000, 70, 0, 0), dtype=torch.float64)
    halved = lengths < 52
    assert halved.double().mean() == pytest.approx(0.05, abs=0.003)
    # The half of a step that the integer part takes away from the mean:
    assert lengths[~halved].mean() == pytest.approx(69.5, abs=0.3)
    assert lengths[halved].mean() == pytest.approx(34.5, abs=0.4)
    assert lengths[~halved].std() == pytest.approx(5, abs=0.1)
    assert lengths[halved].std() == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("window", [1, 5, 8, 20, 70])
def test_what_is_drawn_hardly_has_to_be_stretched_to_cover_the_text(window: int) -> None:
    # The count is right where the mean of a plain loop of the paper's draws is what it assumes.
    generator = torch.Generator().manual_seed(0)
    centres = torch.where(torch.rand(40_000, generator=generator) < 0.95, window, window / 2)
    drawn = torch.normal(centres.double(), 5, generator=generator).trunc().clamp(min=5)
    assert window_count(1_000_000, window, random=True) == pytest.approx(
        1_000_000 / float(drawn.mean()), rel=0.005
    )


def lengths_of(windows: WindowLoader) -> list[int]:
    return [len(window.input) for window in windows]


def test_lengths_follow_from_the_seed_and_the_epoch() -> None:
    windows, again, other = random_loader(), random_loader(), random_loader(seed=1)
    first, second = lengths_of(windows), lengths_of(windows)
    assert [lengths_of(again), lengths_of(again)] == [first, second]
    assert len({tuple(lengths) for lengths in (first, second, lengths_of(other))}) == 3


@pytest.mark.parametrize("consumed", [1, 9, 26, 30, 51])  # of 26 an epoch
def test_random_windows_go_on_where_another_loader_stopped(consumed: int) -> None:
    whole, first, second = random_loader(), random_loader(), random_loader()
    assert len(whole) == 26
    expected = [lengths_of(whole) for _ in range(3)]
    seen: list[int] = []
    while len(seen) < consumed:
        for window in first:
            seen.append(len(window.input))
            if len(seen) == consumed:
                break
    second.load_state_dict(first.state_dict())
    while len(seen) < 3 * 26:
        seen += lengths_of(second)
    assert seen == [length for epoch in expected for length in epoch]


def test_a_position_among_lengths_of_another_seed_is_refused() -> None:
    windows = random_loader()
    next(iter(windows))
    with pytest.raises(ValueError, match=r"drawn from seed 0 .* got seed 1"):
        random_loader(seed=1).load_state_dict(windows.state_dict())
    streams = torch.zeros(500, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="got seed None"):
        WindowLoader(streams, streams, 20).load_state_dict(windows.state_dict())


@given(columns=st.integers(1, 12), world_size=st.integers(1, 5))
def test_processes_share_the_streams_in_order(columns: int, world_size: int) -> None:
    streams = torch.arange(3 * columns).view(3, columns)
    if columns % world_size:
        with pytest.raises(ValueError, match=f"{columns} streams .* {world_size} processes"):
            rank_columns(streams, 0, world_size)
        return
    parts: list[Tensor] = [rank_columns(streams, rank, world_size) for rank in range(world_size)]
    assert {part.shape[1] for part in parts} == {columns // world_size}
    assert torch.equal(torch.cat(parts, dim=1), streams)
