"""The demo of translation: dates written out, read into ISO 8601 by a model that learns it here.

    make demo-translation

Trains on a corpus that every machine can make, shows a few translations and the share of test dates
that come out exactly right, and draws where the decoder looked into demo_attention.png.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# Read when torch is loaded; demos/language_modeling.py says why.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

from rnnkit.cli import main as rnnkit
from rnnkit.translation.attention_picture import draw_translation
from rnnkit.translation.data import TranslationData
from rnnkit.translation.translator import Translator
from rnnkit.translation.written import best_text

CONFIG = Path(__file__).parents[1] / "configs" / "translation" / "dates.yaml"
RUNS = Path("runs") / "dates"
PICTURE = Path("demo_attention.png")


def main() -> int:
    """Train, translate, draw; returns the exit status."""
    begin = time.perf_counter()
    before = set(RUNS.glob("version_*"))
    status = rnnkit(["fit", "-c", str(CONFIG)])
    if status:
        return status
    run = max(set(RUNS.glob("version_*")) - before)
    translator = Translator.from_checkpoint(run / "checkpoints" / "best.ckpt")
    data = TranslationData("dates")
    batches = list(data.test_dataloader())
    right = total = 0
    shown: list[str] = []
    for batch in batches:
        found = translator.translate(batch.sources, translator.model.beam, len(batch.sources))
        for each, reference in zip(found, batch.references, strict=True):
            written = best_text(each.best, data.target_tokenizer)
            right += written == reference
            total += 1
            if len(shown) < 8:
                mark = "" if written == reference else f"   (should be {reference})"
                shown.append(f"  {each.line:48} {written}{mark}")
            if total == 1 and each.best[0].attention is not None:
                sides = data.source_tokenizer, data.target_tokenizer
                draw_translation(each.source, each.best[0], *sides, PICTURE)
    print("\nnever seen in training:\n")
    print("\n".join(shown))
    print(f"\n{right:,} of {total:,} test dates exactly right: {100 * right / total:.1f} %")
    print(f"where the decoder looked: {PICTURE}; run and checkpoint: {run}")
    print(f"{time.perf_counter() - begin:.0f} s in all")
    return 0 if right >= 0.99 * total else 1


if __name__ == "__main__":
    sys.exit(main())
