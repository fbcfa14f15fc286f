"""The demo of tagging: persons, organisations, places and dates, found by a model that learns here.

    make demo-tagging

Trains a BiLSTM-CRF on sentences that every machine can make, prints conlleval's table for sentences
with names that never occurred in training, beside what looking words up would reach, and shows some
of them in colour.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

# Read when torch is loaded; demos/language_modeling.py says why.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

from rich.console import Console

from rnnkit.cli import main as rnnkit
from rnnkit.metrics import EntityF1
from rnnkit.tagging.announcements import announcements
from rnnkit.tagging.columns import Sentence
from rnnkit.tagging.formats import coloured, colours_of
from rnnkit.tagging.tag import EntityTagger

CONFIG = Path(__file__).parents[1] / "configs" / "tagging" / "announcements.yaml"
RUNS = Path("runs") / "announcements"
SHOWN = 10


def lookup_f1(train: list[Sentence], test: list[Sentence]) -> float:
    """F1 of giving each word the tag that it has most often in training, and O to other words."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sentence in train:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts[word][tag] += 1
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    metric = EntityF1("BIO")
    metric.update(
        [[best.get(word, "O") for word in sentence.words] for sentence in test],
        [sentence.tags for sentence in test],
    )
    return float(metric.compute()["f1"])


def main() -> int:
    """Train, test, show; returns the exit status."""
    begin = time.perf_counter()
    before = set(RUNS.glob("version_*"))
    status = rnnkit(["fit", "-c", str(CONFIG)])
    if status:
        return status
    run = max(set(RUNS.glob("version_*")) - before)
    checkpoint = run / "checkpoints" / "best.ckpt"
    status = rnnkit(["test", "-c", str(CONFIG), "--ckpt_path", str(checkpoint)])
    if status:
        return status
    train, _, test = announcements()
    print(f"\nlooking each word up reaches an F1 of {100 * lookup_f1(train, test):.1f}\n")
    tagger = EntityTagger.from_checkpoint(checkpoint)
    colours = colours_of(tagger.model.tags, tagger.model.scheme)
    seen = {word.lower() for sentence in train for word in sentence.words}
    unseen = [each.words for each in test if any(word.lower() not in seen for word in each.words)]
    console = Console()
    print("sentences with words that never occurred in training:\n")
    for line in tagger.tag(unseen[:SHOWN]):
        console.print(coloured(line, colours), soft_wrap=not console.is_terminal)
    print(f"\ntry your own: rnnkit tag --ckpt {checkpoint}")
    print(f"{time.perf_counter() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
