"""LanguageModelingData: a text as batches of consecutive windows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor

from rnnkit.data.fingerprint import fingerprint
from rnnkit.data.splits import called, named_files
from rnnkit.data.vocabulary import UNKNOWN, Vocabulary
from rnnkit.language_modeling.corpora import Level, read_corpus
from rnnkit.language_modeling.windows import (
    Window,
    WindowLoader,
    evaluation_streams,
    rank_columns,
    training_streams,
    window_count,
)
from rnnkit.screen.terminal import visible

__all__ = ["LanguageModelingData", "Window", "WindowLoader"]

_log = logging.getLogger(__name__)

TRAIN_EVALUATION_TOKENS = 80_000
"""Training tokens that are scored like a validation text: as many as the Penn Treebank's has."""

_STAGES = {"test": "test", "train": "train_eval"}


class LanguageModelingData(LightningDataModule):
    """A plain-text corpus for language modelling, read when the object is made.

    Training reads `batch_size` contiguous streams side by side, `window` tokens at a time, in
    order; the model carries its state from window to window and resets it at position 0.
    Evaluation scores every token once. On W devices each reads its own 1/W of the streams: both
    batch sizes are totals over all devices.

    Args:
        corpus: Name of a corpus (python-docs, ptb, wikitext2, tinyshakespeare, hafez,
            hafez-vocalised), or path of a folder with train.txt, valid.txt and test.txt, of a
            folder with one input.txt, or of a text file; a single text is split 90/5/5. `rnnkit
            data list` tells what is there. With train, valid and test it is not read.
        train: Path of the training text, instead of the corpus's; null: the corpus has it.
        valid: The same for validation.
        test: The same for the test.
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
        also_validate_on: Further texts that every validation scores, each with its own state: test
            as `test/ppl`, train as `train_eval/ppl`, the first 80,000 training tokens without
            dropout. They are for curves; `val/ppl` alone may choose anything.
        random_windows: Draw the lengths of the training windows around `window`, anew in each
            epoch, and let the learning rate of a step follow its window's length, see
            `rnnkit.language_modeling.windows`; for a loss that is a mean over time.
        seed: Decides the random lengths.

    Attributes:
        vocabulary: The `Vocabulary` of the training text.
        vocabulary_size: Its size V.
        tokenizer: The corpus's `Tokenizer`, for prompts and samples.
        validation_stages: What the scores of each validation text are logged under: val first.
        start_index: Id of the token before a text's first: <eos>, or the line end.
        unknown_shares: Of the tokens of train, valid and test, the share that <unk> stands for.
        train_tokens: Training text, int64 (N,).
        valid_tokens: Validation text, int64 (N,).
        test_tokens: Test text, int64 (N,).

    Raises:
        DataError: The corpus does not exist, lacks a part, is empty or in an unknown encoding.
        ValueError: A number is out of range, or a batch size exceeds what the text holds.

    Example:
        >>> data = LanguageModelingData("python-docs", batch_size=16, window=32)
        >>> next(iter(data.train_dataloader())).input.shape
        torch.Size([32, 16])
    """

    def __init__(
        self,
        corpus: str = "python-docs",
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        level: Level = "word",
        batch_size: int = 20,
        window: int = 35,
        eval_batch_size: int = 10,
        eval_window: int | None = None,
        min_count: int = 1,
        lowercase: bool = False,
        also_validate_on: Sequence[Literal["test", "train"]] = (),
        random_windows: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.validation_stages = ["val", *(_STAGES[name] for name in also_validate_on)]
        self.corpus = called(corpus, named_files(train, valid, test))
        self.batch_size = batch_size
        self.window = window
        self.eval_batch_size = eval_batch_size
        self.eval_window = window if eval_window is None else eval_window
        self.random_windows = random_windows
        self.seed = seed
        texts = read_corpus(corpus, level, lowercase, train=train, valid=valid, test=test)
        self.tokenizer = texts.tokenizer
        self.vocabulary = texts.vocabulary(min_count)
        self.vocabulary_size = len(self.vocabulary)
        self.start_index = self.vocabulary.index(self.tokenizer.start)
        self.train_tokens = self.vocabulary.encode(texts.train)
        self.valid_tokens = self.vocabulary.encode(texts.valid)
        self.test_tokens = self.vocabulary.encode(texts.test)
        self.unknown_shares = self._unknown_shares()
        self._fingerprint = fingerprint([self.train_tokens.numpy().data])
        # Made once here for their errors: a bad number is told before training starts.
        self.train_dataloader()
        self.val_dataloader()
        self.test_dataloader()

    def _unknown_shares(self) -> dict[str, float]:
        """Shares that <unk> stands for, told in one line where there are any."""
        parts = {"train": self.train_tokens, "valid": self.valid_tokens, "test": self.test_tokens}
        if UNKNOWN not in self.vocabulary:
            return dict.fromkeys(parts, 0.0)
        unknown = self.vocabulary.index(UNKNOWN)
        shares = {
            name: int((tokens == unknown).sum()) / len(tokens) for name, tokens in parts.items()
        }
        told = [f"{100 * share:.1f} % of {name}" for name, share in shares.items() if share]
        if told:
            _log.warning(
                "Note: perplexity counts as one token all that %s stands for in %s: %s.",
                *(UNKNOWN, visible(self.corpus), ", ".join(told)),
            )
        return shares

    def train_dataloader(self) -> WindowLoader:
        """Windows of the training text, this process's streams."""
        inputs, targets = training_streams(self.train_tokens, self.batch_size)
        windows = window_count(len(inputs), max(self.window, 1), self.random_windows)
        first_epoch = 0
        if self.trainer is not None and self.random_windows:
            # From a checkpoint of an epoch's end Lightning loads no state of a loader: the number
            # of finished epochs alone tells which lengths are next.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            first_epoch = progress.processed
        return WindowLoader(
            self._share(inputs),
            self._share(targets),
            self.window,
            self._limit(windows),
            self.seed if self.random_windows else None,
            first_epoch,
            self._fingerprint,
            1 if self.trainer is None else self.trainer.world_size,
        )

    def val_dataloader(self) -> list[WindowLoader]:
        """Windows of each validation text, this process's streams."""
        texts = {
            "val": self.valid_tokens,
            "test": self.test_tokens,
            "train_eval": self.train_tokens[:TRAIN_EVALUATION_TOKENS],
        }
        return [self.evaluation_loader(texts[stage]) for stage in self.validation_stages]

    def test_dataloader(self) -> WindowLoader:
        """Windows of the test text, this process's streams."""
        return self.evaluation_loader(self.test_tokens)

    def evaluation_loader(self, tokens: Tensor) -> WindowLoader:
        """Windows in which every token of a text is scored once, this process's streams.

        Args:
            tokens: int64 (N,).
        """
        inputs, targets = evaluation_streams(tokens, self.eval_batch_size, self.start_index)
        return WindowLoader(self._share(inputs), self._share(targets), self.eval_window)

    def _share(self, streams: Tensor) -> Tensor:
        """The streams of this process."""
        if self.trainer is None:
            return streams
        return rank_columns(streams, self.trainer.global_rank, self.trainer.world_size)

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
