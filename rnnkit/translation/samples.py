"""What a translation model writes by now: samples and attention after every validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from rnnkit.decoding import Hypothesis
from rnnkit.translation.attention_picture import draw_translation
from rnnkit.translation.data import Pairs
from rnnkit.translation.task import Translation
from rnnkit.translation.written import best_text


class SampleTranslations(Callback):
    """Writes the first sentences of the validation text beside `metrics.csv`.

    `translations.txt` grows by one block an epoch: source, reference and translation of each
    sentence, the first two as their files have them. `attention.png` shows the first one's
    attention, where the model has one.

    Args:
        count: Number of sentences.

    Raises:
        ValueError: It is below 1.
    """

    def __init__(self, count: int = 5) -> None:
        if count < 1:
            raise ValueError(f"expected count of 1 or more, got {count}")
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Translation,  # type: ignore[override]
        outputs: Any,
        batch: Pairs,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the sentences from the first batch."""
        if batch_idx > 0 or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # A broadcast, so every process has to ask; without a logger it is the working folder.
        folder = trainer.log_dir if trainer.loggers else None
        if folder is None or not trainer.is_global_zero:
            return
        found: list[list[Hypothesis]] = outputs["translations"][: self.count]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        lines = [f"epoch {trainer.current_epoch}, step {trainer.global_step}"]
        for i, best in enumerate(found):
            lines += ["", f"  source       {batch.sources[i]}"]
            lines += [f"  reference    {batch.references[i]}"]
            lines += [f"  translation  {best_text(best, data.target_tokenizer)}"]
        path = Path(folder) / "translations.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
        drawn = next((i for i, best in enumerate(found) if best), None)
        if drawn is None or found[drawn][0].attention is None:
            return
        read = min(int(batch.source_lengths[drawn]) - 1, pl_module.max_source)
        draw_translation(
            batch.source[:read, drawn].tolist(), found[drawn][0],
            data.source_tokenizer, data.target_tokenizer, Path(folder) / "attention.png",
        )  # fmt: skip
