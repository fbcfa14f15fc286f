"""`rnnkit bench output-layers`, on a corpus of few words."""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.command import main
from benchmarks.output_layers import Side
from rnnkit.language_modeling.data import LanguageModelingData


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other in work as small as this."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for part, lines in (("train", 120), ("valid", 4), ("test", 4)):
        text = "the cat sees a bird\nthe bird hears a cat and a dog\n" * lines
        (folder / f"{part}.txt").write_text(text)
    return str(folder)


def test_every_kind_is_measured_and_scored(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    options = ["--steps", "2", "--repeats", "3", "--samples", "5", "--out", str(out)]
    assert main(["output-layers", "--corpus", corpus, *options]) == 0
    figures = json.loads(out.read_text())
    assert list(figures["layers"]) == [
        *("full", "adaptive", "sampled", "hierarchical", "sampled, log-uniform", "unfused")
    ]
    assert figures["steps_before_perplexity"] == 8
    for found in figures["layers"].values():
        assert len(found["tokens_per_second"]) == 3
        assert 1 < found["validation_perplexity"] < 100
        assert found["peak_bytes"] > 400 * 200 * 4  # the gradient of the outputs alone
    assert figures["layers"]["full"]["ratio_to_full"] == 1
    printed = capsys.readouterr().out
    for name, found in figures["layers"].items():
        assert f"| {name} | " in printed
        assert f"{found['validation_perplexity']:.1f} |" in printed


@pytest.mark.parametrize("name", ["full", "adaptive", "hierarchical", "unfused"])
def test_a_step_is_that_of_the_exact_loss(corpus: str, name: str) -> None:
    data = LanguageModelingData(corpus, batch_size=20, window=20)
    side, twin = (Side(name, data, 5, torch.device("cpu")) for _ in range(2))
    windows = list(islice(data.train_dataloader(), 2))
    state = None
    for window in windows:
        scores, state = twin.model(window.input, state)
        state = tuple(part.detach() for part in state)
        twin.model.zero_grad()
        # The sum over the steps of the batch mean.
        (20 * F.cross_entropy(scores.flatten(0, 1), window.target.flatten())).backward()
        torch.nn.utils.clip_grad_norm_(twin.model.parameters(), 5.0)
        for parameter in twin.model.parameters():
            parameter.data -= parameter.grad
    side.train(2)
    for ours, theirs in zip(side.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert len(side.seconds) == 1


def test_the_sampled_side_draws_as_told_from_the_counts_of_the_text(corpus: str) -> None:
    data = LanguageModelingData(corpus, batch_size=20, window=20)
    side = Side("sampled", data, 5, torch.device("cpu"))
    assert side.model.decoder.samples == 5
    assert int(side.model.decoder.counts.sum()) == len(data.train_tokens)
    words = torch.arange(data.vocabulary_size)
    by_counts = side.model.decoder.proposal_probabilities(words)
    counts = side.model.decoder.counts.clamp_min(1).double()
    assert torch.allclose(by_counts, counts / counts.sum())
    other = Side("sampled, log-uniform", data, 5, torch.device("cpu"))
    by_rank = other.model.decoder.proposal_probabilities(words)
    expected = ((words + 2) / (words + 1)).double().log() / math.log(len(words) + 1)
    assert torch.allclose(by_rank, expected, atol=1e-7)


def test_wrong_numbers_are_told_in_a_sentence(
    corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["output-layers", "--corpus", corpus, "--steps", "0"]) == 1
    assert "expected --steps of 1 or more, got 0" in capsys.readouterr().err
    assert main(["output-layers", "--corpus", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
