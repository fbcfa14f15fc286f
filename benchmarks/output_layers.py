"""The kinds of softmax of a language model: how fast they train, and how well.

Zaremba's small model with each of them, from one seed, on the same windows in the same order. They
take turns, some steps each and in changing order, so that a machine that is busy for a while is so
for all. After as many steps of each, the exact perplexity of the validation text; and the most
memory that the loss of one window and its gradients take. Beside the full softmax, whose scores are
never there all at once, stands the same in torch's two steps: scores, then cross entropy.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rnnkit.data.registry import DataError
from rnnkit.language_modeling.data import LanguageModelingData
from rnnkit.language_modeling.task import OUTPUTS, LanguageModel
from rnnkit.language_modeling.windows import IGNORED, Window
from rnnkit.nn.sampled_softmax import SampledSoftmax
from rnnkit.nn.softmax import CountedOutputLayer
from rnnkit.nn.truncation import State, map_state
from rnnkit.screen.terminal import Parser

from . import clock, machine
from .progress import Progress
from .turns import synchronize

BASELINE, UNFUSED, LOG_UNIFORM = "full", "unfused", "sampled, log-uniform"
# What is measured, and the key of `OUTPUTS` that it is a form of.
SIDES = {**{name: name for name in OUTPUTS}, LOG_UNIFORM: "sampled", UNFUSED: BASELINE}
# Of Zaremba et al. 2014, whose loss is the sum over the steps of a window.
BATCH, WINDOW, RATE, CLIP = 20, 20, 1.0, 5.0


class Side:
    """One model in training.

    Args:
        name: a key of `SIDES`.
        data: what it is trained on.
        samples: words that the sampled softmax draws.
        device: where.
        options: other arguments of `LanguageModel`.
    """

    def __init__(
        self,
        name: str,
        data: LanguageModelingData,
        samples: int,
        device: torch.device,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = LanguageModel(
            data.vocabulary_size,
            output=SIDES[name],  # type: ignore[arg-type]
            output_samples=samples,
            **options,
        )
        decoder = self.model.decoder
        if name == LOG_UNIFORM:
            assert isinstance(decoder, SampledSoftmax)
            decoder.proposal = "log_uniform"  # before it is prepared with the counts
        if isinstance(decoder, CountedOutputLayer):
            decoder.set_counts(data.train_tokens.bincount(minlength=data.vocabulary_size))
        self.unfused = name == UNFUSED
        self.model.to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)
        self.state: State | None = None
        self.windows = self._endlessly(data)
        self.seconds: list[float] = []
        self.losses: list[Tensor] = []

    def _endlessly(self, data: LanguageModelingData) -> Iterator[Window]:
        while True:
            yield from data.train_dataloader()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum over the targets (N,) of their negative log-likelihood after the outputs (N, H)."""
        decoder = self.model.decoder
        if self.unfused:
            return cross_entropy(decoder(output), target, ignore_index=IGNORED, reduction="sum")
        return decoder.loss(output, target, IGNORED)

    def peak_bytes(self) -> int:
        """The most memory that the loss of a window and its gradients take."""
        window, device = next(self.windows), self.model.device
        target = window.target.to(device).flatten()
        output = torch.randn(len(target), self.model.decoder.hidden_size, device=device)
        output.requires_grad_()

        def call() -> None:
            # Gradients as results: those of a module would be there before or not.
            torch.autograd.grad(
                self.loss(output, target), [output, *self.model.decoder.parameters()]
            )

        return clock.peak_bytes(call, device)

    def train(self, steps: int) -> None:
        """Take some steps and note how long they took."""
        device = self.model.device
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(steps):
            window = next(self.windows)
            state = None if window.position == 0 else self.state
            embedded = self.model.embedding(window.input.to(device))
            output, state = self.model.rnn(embedded, state)
            assert state is not None
            self.state = map_state(state, torch.Tensor.detach)
            target = window.target.to(device).flatten()
            summed = self.loss(output.flatten(0, 1), target)
            self.optimizer.zero_grad()
            (summed / window.input.shape[1]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.losses.append(summed.detach() / len(target))
        synchronize(device)
        self.seconds.append(time.perf_counter() - begin)


def output_layers(corpus: str, steps: int, repeats: int, samples: int) -> dict[str, Any]:
    """Tokens a second and perplexity of each kind of softmax.

    Args:
        corpus: name or path of a corpus.
        steps: of one turn.
        repeats: turns of each that count; one comes before them.
        samples: words that the sampled softmax draws.

    Returns:
        Raw figures with all that is needed to read them, ready for JSON.

    Raises:
        ValueError: no steps or turns.
    """
    for name, number in (("steps", steps), ("repeats", repeats)):
        if number < 1:
            raise ValueError(f"expected --{name} of 1 or more, got {number}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = LanguageModelingData(corpus, batch_size=BATCH, window=WINDOW)
    sides = {name: Side(name, data, samples, device) for name in SIDES}
    progress, order = Progress(), list(sides)
    for turn in range(1 + repeats):
        progress(turn / (1 + repeats), f"turn {turn} of {repeats}")
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            sides[name].train(steps)
    layers = {}
    for name, side in sides.items():
        progress(1.0, f"perplexity, {name}")
        rates = [steps * BATCH * WINDOW / seconds for seconds in side.seconds[1:]]
        pairs = zip(sides[BASELINE].seconds[1:], side.seconds[1:], strict=True)
        layers[name] = {
            "tokens_per_second": rates,
            "median": statistics.median(rates),
            f"ratio_to_{BASELINE}": statistics.median(a / b for a, b in pairs),
            "peak_bytes": side.peak_bytes(),
            "parameters": sum(p.numel() for p in side.model.decoder.parameters()),
            "validation_perplexity": side.model.perplexity(data.val_dataloader()[0]),
        }
    progress.close()
    return {
        "what": "training, tokens/s, and validation perplexity by kind of softmax, 2 x 200 LSTM",
        "corpus": corpus,
        "vocabulary_size": data.vocabulary_size,
        "samples": samples,
        "steps": steps,
        "steps_before_perplexity": steps * (1 + repeats),
        "layers": layers,
        "machine": machine.describe(device),
        "commit": machine.commit(),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"After {figures['steps_before_perplexity']:,} steps of {BATCH} x {WINDOW} tokens, "
        f"{figures['vocabulary_size']:,} words, {figures['samples']:,} samples:",
        "",
        f"| softmax | tokens/s | against {BASELINE} | parameters | MiB for the loss "
        "| validation perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in figures["layers"].items():
        lines.append(
            f"| {name} | {found['median']:,.0f} | {found[f'ratio_to_{BASELINE}']:.2f} "
            f"| {found['parameters']:,} | {found['peak_bytes'] / 2**20:.1f} "
            f"| {found['validation_perplexity']:.1f} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print and write the figures; returns the exit status: 0, or 1 for an error."""
    parser = Parser(
        prog="rnnkit bench output-layers",
        description="rnnkit bench output-layers --corpus ptb\n\n"
        "Compare the kinds of softmax of a language model: speed and perplexity.",
    )
    add = parser.add_argument
    add("--corpus", default="python-docs", help="ptb, python-docs or a path (default: python-docs)")
    add("--steps", type=int, default=50, help="steps of one turn (default: 50)")
    add("--repeats", type=int, default=8, help="turns of each that count (default: 8)")
    add("--samples", type=int, default=1000, help="words the sampled softmax draws (default: 1000)")
    add("--out", type=Path, help="where the figures go (default: runs/output_layers.json)")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        figures = output_layers(
            arguments.corpus, arguments.steps, arguments.repeats, arguments.samples
        )
    except (ValueError, DataError) as error:
        print(f"rnnkit bench output-layers: {error}", file=sys.stderr)
        return 1
    figures["command"] = shlex.join(["rnnkit", "bench", "output-layers", *argv])
    out = arguments.out or Path("runs/output_layers.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print(f"figures in {out}")
    return 0
