"""LanguageModelingData: a text as batches of consecutive windows."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor

from rnnkit.data.text import Level, read_corpus
from rnnkit.data.vocabulary import Vocabulary
from rnnkit.data.windows import (
    Window,
    WindowLoader,
    evaluation_streams,
    rank_columns,
    training_streams,
)

__all__ = ["LanguageModelingData", "Window", "WindowLoader"]


class LanguageModelingData(LightningDataModule):
    """A plain-text corpus for language modelling, read when the object is made.

    Training reads `batch_size` contiguous streams side by side, `window` tokens at a time, in
    order; the model carries its state from window to window and resets it at position 0.
    Evaluation scores every token once. On W devices each reads its own 1/W of the streams: both
    batch sizes are totals over all devices.

    Args:
        corpus: Name of a corpus (python-docs, ptb, wikitext2, tinyshakespeare), or path of a
            folder with train.txt, valid.txt and test.txt, of a folder with one input.txt, or of
            a text file; a single text is split 90/5/5. `rnnkit data list` tells what is there.
        level: Whether tokens are words (separated by white space, one <eos> a line) or
            characters.
        batch_size: Number of streams in training.
        window: Tokens a stream in one batch, the length of truncated backpropagation.
        eval_batch_size: Number of streams in validation and test. Each begins with an empty
            state: perplexity falls a little as the number falls, so state it with a result.
        eval_window: Tokens a stream in one batch of validation and test; no effect on the
            scores. null: as `window`.
        min_count: Tokens that are rarer in the training text become <unk>.
        lowercase: Lower-case the text.

    Attributes:
        vocabulary: The `Vocabulary` of the training text.
        vocabulary_size: Its size V.
        tokenizer: The `rnnkit.data.text.Tokenizer` of the corpus, for prompts and samples.
        start_index: Id of the token before a text's first: <eos>, or the line end.
        train_tokens: Training text, int64 (N,).
        valid_tokens: Validation text, int64 (N,).
        test_tokens: Test text, int64 (N,).

    Raises:
        DataError: The corpus does not exist, lacks a part, is empty, or is no UTF-8.
        ValueError: A number is out of range, or a batch size exceeds what the text holds.

    Example:
        >>> data = LanguageModelingData("python-docs", batch_size=16, window=32)
        >>> next(iter(data.train_dataloader())).input.shape
        torch.Size([32, 16])
    """

    def __init__(
        self,
        corpus: str = "python-docs",
        level: Level = "word",
        batch_size: int = 20,
        window: int = 35,
        eval_batch_size: int = 10,
        eval_window: int | None = None,
        min_count: int = 1,
        lowercase: bool = False,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.batch_size = batch_size
        self.window = window
        self.eval_batch_size = eval_batch_size
        self.eval_window = window if eval_window is None else eval_window
        texts = read_corpus(corpus, level, lowercase)
        self.tokenizer = texts.tokenizer
        self.vocabulary = texts.vocabulary(min_count)
        self.vocabulary_size = len(self.vocabulary)
        self.start_index = self.vocabulary.index(self.tokenizer.start)
        self.train_tokens = self.vocabulary.encode(texts.train)
        self.valid_tokens = self.vocabulary.encode(texts.valid)
        self.test_tokens = self.vocabulary.encode(texts.test)
        # Made once here for their errors: a bad number is told before training starts.
        self.train_dataloader()
        self.val_dataloader()
        self.test_dataloader()

    def train_dataloader(self) -> WindowLoader:
        """Windows of the training text, this process's streams."""
        inputs, targets = training_streams(self.train_tokens, self.batch_size)
        windows = -(-len(inputs) // max(self.window, 1))
        return self._loader(inputs, targets, self.window, self._limit(windows))

    def val_dataloader(self) -> WindowLoader:
        """Windows of the validation text, this process's streams."""
        return self._evaluation_loader(self.valid_tokens)

    def test_dataloader(self) -> WindowLoader:
        """Windows of the test text, this process's streams."""
        return self._evaluation_loader(self.test_tokens)

    def _evaluation_loader(self, tokens: Tensor) -> WindowLoader:
        inputs, targets = evaluation_streams(tokens, self.eval_batch_size, self.start_index)
        return self._loader(inputs, targets, self.eval_window, None)

    def _loader(
        self, inputs: Tensor, targets: Tensor, window: int, windows_per_epoch: int | None
    ) -> WindowLoader:
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return WindowLoader(
            rank_columns(inputs, rank, world_size),
            rank_columns(targets, rank, world_size),
            window,
            windows_per_epoch,
        )

    def _limit(self, windows: int) -> int:
        """Windows a training epoch, by the Trainer's own arithmetic."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return int(windows * limit) if isinstance(limit, float) else min(windows, limit)

    def __str__(self) -> str:
        # Lightning's own asks every batch for an attribute that a named tuple has not.
        return f"{type(self).__name__}({self.corpus!r})"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to turn text into ids and back, as plain data."""
        return {
            "vocabulary": self.vocabulary.state_dict(),
            "level": self.tokenizer.level,
            "lowercase": self.tokenizer.lowercase,
            "split_marks": self.tokenizer.split_marks,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint was trained on the vocabulary of this data.

        Lightning calls this after it has loaded the model's weights. A model whose weights have
        the size of the vocabulary calls it earlier, from its own `on_load_checkpoint`.

        Raises:
            ValueError: It was not; the message has both sizes and the first difference.
        """
        saved = Vocabulary.from_state_dict(state_dict["vocabulary"])
        difference = saved.difference(self.vocabulary)
        if difference is not None:
            raise ValueError(
                f"the checkpoint's vocabulary is not that of corpus {self.corpus!r}: {difference}; "
                "use the corpus, level, min_count and lowercase that it was trained with"
            )
