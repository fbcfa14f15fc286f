"""What a translation model writes by now: samples and attention after every validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rnnkit.decoding import Hypothesis
from rnnkit.screen.pictures import draw_attention
from rnnkit.translation.data import Pairs


class SampleTranslations(Callback):
    """Writes the first sentences of the validation text beside `metrics.csv`.

    `translations.txt` grows by one block an epoch: source, reference and translation of each
    sentence. `attention.png` shows the first one's attention, where the model has one.

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
        pl_module: LightningModule,
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
        found: list[Hypothesis] = outputs["translations"][: self.count]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        read, write = data.source_tokenizer, data.target_tokenizer
        lines = [f"epoch {trainer.current_epoch}, step {trainer.global_step}"]
        for i, hypothesis in enumerate(found):
            ids = batch.source[: batch.source_lengths[i], i].tolist()
            lines += ["", f"  source       {read.decode(ids)}"]
            lines += [f"  reference    {batch.references[i]}"]
            lines += [f"  translation  {write.decode(hypothesis.tokens)}"]
        path = Path(folder) / "translations.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
        first = found[0]
        if first.attention is not None:
            ids = batch.source[: batch.source_lengths[0], 0].tolist()
            draw_attention(
                read.vocabulary.decode(ids),
                write.vocabulary.decode(first.tokens),
                first.attention[:, : len(ids)],
                Path(folder) / "attention.png",
            )
