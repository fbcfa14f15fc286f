"""`make demo`: train a small LSTM on Python's language reference, score it, let it write.

Everything goes through the command line that a user types: `rnnkit fit` and `rnnkit test`, then
`rnnkit generate`'s own function. Beside the LSTM stand two count-based models on the same text.
"""

from __future__ import annotations

import os
import sys
import time
from math import log2
from pathlib import Path

# Read when torch is loaded. On a busy machine, threads that wait by spinning take the processor
# from those that they wait for: training was then up to 17 times slower. On an idle machine the
# waiting by sleeping costs about a fifth of the speed.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rnnkit.decoding.sampling import Sampler
from rnnkit.language_modeling.generate import Writer
from rnnkit.language_modeling.ngram import InterpolatedKneserNey, UnigramModel
from rnnkit.training.command import run

CONFIG = Path(__file__).parents[1] / "configs" / "lm" / "python_docs.yaml"

PROMPTS = ("a class is", "if the", "the function returns")


def main() -> int:
    """Run the demo; returns the exit status 0."""
    console = Console(highlight=False)
    begin = time.perf_counter()
    config = os.path.relpath(CONFIG)
    console.print(f"[bold]rnnkit fit -c {config}[/]", soft_wrap=True)
    trainer = run(["fit", "-c", str(CONFIG)]).trainer
    best = os.path.relpath(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    folder = Path(os.path.relpath(trainer.log_dir or "."))

    console.print(f"\n[bold]rnnkit test -c {config} --ckpt_path {best}[/]", soft_wrap=True)
    tested = run(["test", "-c", str(CONFIG), "--ckpt_path", best, "--verbose", "false"])
    data = tested.datamodule
    size = data.vocabulary_size
    unigram = UnigramModel(data.train_tokens, size)
    bigram = InterpolatedKneserNey(data.train_tokens, size, 2, data.start_index)
    console.print(f"Perplexity on {len(data.test_tokens):,} words of held-out topics")
    table = Table()
    table.add_column("model")
    table.add_column("perplexity", justify="right")
    table.add_column("bits per word", justify="right")
    table.add_row("unigram", *_scores(unigram.perplexity(data.test_tokens)))
    table.add_row("Kneser-Ney bigram", *_scores(bigram.perplexity(data.test_tokens)))
    lstm = float(tested.trainer.callback_metrics["test/ppl"])
    table.add_row("[bold]LSTM[/]", *(f"[bold]{score}[/]" for score in _scores(lstm)))
    console.print(table)

    console.print(
        f"\n[bold]rnnkit generate --ckpt {best} --temperature 0.8 --top-k 20[/]", soft_wrap=True
    )
    writer = Writer.from_checkpoint(best)
    for seed, prompt in enumerate(PROMPTS):
        sampler = Sampler(temperature=0.8, top_k=20, seed=seed)
        (text,) = writer.write(prompt, length=30, count=1, sampler=sampler)
        written = escape(" ".join(text[len(prompt) :].split()))
        console.print(f"  [bold]{escape(prompt)}[/] {written}")

    console.print(
        f"\ncheckpoint  {best}\nscores      {folder / 'metrics.csv'}\n"
        f"curves      {folder / 'ppl.png'}\n"
        f"{time.perf_counter() - begin:.0f} s in all",
        soft_wrap=True,
    )
    return 0


def _scores(perplexity: float) -> tuple[str, str]:
    return f"{perplexity:.1f}", f"{log2(perplexity):.2f}"


if __name__ == "__main__":
    sys.exit(main())
