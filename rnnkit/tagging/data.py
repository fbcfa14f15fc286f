"""TaggingData: tagged sentences as padded batches of similar length, with their characters."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from rnnkit.data.buckets import Batches, BatchLoader, InOrder, SentenceBuckets
from rnnkit.data.fingerprint import fingerprint
from rnnkit.data.schemes import Scheme, tag_names
from rnnkit.data.splits import called, named_files
from rnnkit.data.vectors import read_vectors
from rnnkit.tagging.checks import UnseenTypes
from rnnkit.tagging.columns import Sentence
from rnnkit.tagging.corpora import BUILT_IN, read_tagged
from rnnkit.tagging.layout import Column
from rnnkit.tagging.words import Sentences, WordEncoder, normalize, padded

UNSEEN = -100
"""In place of the id of a tag that no training sentence has; what torch's losses leave out."""


class TaggedSentences(NamedTuple):
    """A batch of B sentences with their tags, time first.

    Attributes:
        sentences: What the model reads.
        rare: Which words are known and occur once in the training text, bool (T, B).
        target: Ids of the tags, int64 (T, B); 0 on padding, UNSEEN where the model has no such tag.
        references: The same tags as they are written.
    """

    sentences: Sentences
    rare: Tensor
    target: Tensor
    references: list[list[str]]


class TaggingData(LightningDataModule):
    r"""Sentences with a tag on each word, read when the object is made.

    Training batches hold sentences of similar length, shuffled anew each epoch; validation and
    test keep the order of their files and every sentence. On W devices each has 1/W of the
    sentences of every batch: batch sizes are totals over all devices.

    Args:
        corpus: announcements, built in; conll2003; or the path of a folder with a file each for
            training, validation and test: a word a line with its tag, a blank line between
            sentences. With train, valid and test it is not read.
        train: Path of the file with the training sentences, instead of the corpus's; null: the
            corpus has it.
        valid: The same for validation.
        test: The same for the test.
        word_column: Column of the words: its number, from 0 or negative from the right, or its name
            in a header or in CoNLL-U; null: the one that a header tells, in CoNLL-U form, else 0.
        tag_column: Column of the tags likewise; of CoNLL-U it is to be named, as in upos, xpos or
            deprel, or misc.NER for the entries NER= of its last column.
        separator: What stands between columns, such as '\t'; null: blanks or tabs, tabs alone
            where tokens hold blanks, and commas, semicolons or tabs in .csv files.
        sentence_column: Column that tells sentences apart, besides blank lines; null: the one that
            a header tells, if any.
        file_scheme: Scheme of the files' tags: IOB1, BIO, BILOU or BIOES; labels: a label on each
            word and no entities, as parts of speech; null: the one they fit.
        scheme: Scheme of the model's tags; labels wherever the files' tags are.
        fix: Read tags that break the files' scheme as conlleval does, and warn how many there are;
            else the first is an error.
        unseen_types: What to do about a type or label that is in the validation or test file only.
            error: refuse it; missed: score it as missed, and leave its words out of the loss, with
            a CRF their sentences.
        min_count: Rarer words of the training text are unknown.
        lowercase: Look words up in lower case; characters and casing keep the case.
        normalize_digits: Look words up with 0 for every digit.
        max_word_length: Of a longer word, this many characters are read, half of them its last.
        vectors: File of word vectors, GloVe's or word2vec's, in text or binary. Its words are known
            besides those of the training text, written as words are looked up; of several that
            become the same, the first has the vector.
        vectors_limit: Most vectors to read, from the top of the file; null: all.
        batch_size: Most sentences of a training batch.
        eval_batch_size: Most sentences of a batch in validation and test; no effect on scores.
        seed: Decides the order of the training sentences.

    Attributes:
        tags: The tags in the order of their ids, O first; labels in string order.
        scheme: Their scheme.
        encoder: Turns sentences into what the model reads.
        vocabulary_size: Number of word ids.
        character_vocabulary_size: Number of ids of characters.
        vectors: Ids (N,) and vectors (N, D), float32, of the words that have one; or None.

    Raises:
        DataError: The corpus does not exist, lacks a file, or a file makes no sense: names the
            file and the line.
        ValueError: A number is out of range.

    Example:
        >>> data = TaggingData("announcements", batch_size=8)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.target.shape == batch.sentences.words.shape
        True
    """

    def __init__(
        self,
        corpus: str = BUILT_IN,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        word_column: Column | None = None,
        tag_column: Column = -1,
        separator: str | None = None,
        sentence_column: Column | None = None,
        file_scheme: Scheme | None = None,
        scheme: Scheme = "BILOU",
        fix: bool = False,
        unseen_types: UnseenTypes = "error",
        min_count: int = 1,
        lowercase: bool = True,
        normalize_digits: bool = True,
        max_word_length: int = 40,
        vectors: str | None = None,
        vectors_limit: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.corpus = called(corpus, named_files(train, valid, test))
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        texts = read_tagged(
            corpus,
            scheme,
            train=train,
            valid=valid,
            test=test,
            file_scheme=file_scheme,
            fix=fix,
            word_column=word_column,
            tag_column=tag_column,
            separator=separator,
            sentence_column=sentence_column,
            unseen_types=unseen_types,
        )
        self.scheme: Scheme = texts.scheme
        self._train, self._valid, self._test = texts.train, texts.valid, texts.test
        self.tags = tag_names(texts.types, self.scheme)
        self._ids = {tag: index for index, tag in enumerate(self.tags)}
        first: dict[str, int] = {}  # line of each word that has a vector
        if vectors is not None:
            found, rows = read_vectors(vectors, limit=vectors_limit)
            for line, word in enumerate(found):
                first.setdefault(normalize(word, lowercase, normalize_digits), line)
        self.encoder = WordEncoder.train(
            [sentence.words for sentence in texts.train],
            min_count=min_count,
            lowercase=lowercase,
            normalize_digits=normalize_digits,
            max_word_length=max_word_length,
            more_words=[*first],
        )
        self.vocabulary_size = len(self.encoder.words)
        self.character_vocabulary_size = len(self.encoder.characters)
        self.vectors: tuple[Tensor, Tensor] | None = None
        if vectors is not None:
            self.vectors = self.encoder.words.encode(first), rows[[*first.values()]]
        written = self.encoder.normalize
        counts = Counter(written(word) for sentence in texts.train for word in sentence.words)
        self._rare = torch.tensor([counts[word] == 1 for word in self.encoder.words.tokens])  # (V,)
        self._fingerprint = fingerprint((sentence.words, sentence.tags) for sentence in texts.train)
        # Made once here for their errors: a bad number is told before training starts.
        self.train_dataloader()
        self.val_dataloader()
        self.test_dataloader()

    def train_dataloader(self) -> BatchLoader[TaggedSentences]:
        """Batches of the training sentences, this process's share of each."""
        lengths = [len(sentence.words) for sentence in self._train]
        batches = SentenceBuckets(lengths, self.batch_size, self.seed)
        return self._loader(batches, self._train, training=True)

    def val_dataloader(self) -> BatchLoader[TaggedSentences]:
        """Batches of the validation sentences, this process's share of each."""
        return self._loader(InOrder(len(self._valid), self.eval_batch_size), self._valid)

    def test_dataloader(self) -> BatchLoader[TaggedSentences]:
        """Batches of the test sentences, this process's share of each."""
        return self._loader(InOrder(len(self._test), self.eval_batch_size), self._test)

    def _loader(
        self, batches: Batches, sentences: list[Sentence], training: bool = False
    ) -> BatchLoader[TaggedSentences]:
        def collate(indices: list[int]) -> TaggedSentences:
            return self._collate([sentences[i] for i in indices])

        return BatchLoader.for_trainer(batches, collate, self.trainer, training, self._fingerprint)

    def _collate(self, sentences: list[Sentence]) -> TaggedSentences:
        """The batch of some sentences."""
        encoded = self.encoder.encode([sentence.words for sentence in sentences])
        return TaggedSentences(
            encoded,
            self._rare[encoded.words],
            padded([[self._ids.get(tag, UNSEEN) for tag in each.tags] for each in sentences]),
            [sentence.tags for sentence in sentences],
        )

    def transfer_batch_to_device(
        self, batch: TaggedSentences, device: torch.device, dataloader_idx: int
    ) -> TaggedSentences:
        """Move a batch, but for the sentences' lengths: the host reads them."""
        return batch._replace(
            sentences=batch.sentences.to(device),
            rare=batch.rare.to(device, non_blocking=True),
            target=batch.target.to(device, non_blocking=True),
        )

    def __str__(self) -> str:
        # Lightning's own asks every batch for an attribute that a named tuple has not.
        return f"{type(self).__name__}({self.corpus!r})"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to read sentences and to name tags, as plain data."""
        return {"encoder": self.encoder.state_dict(), "tags": self.tags, "scheme": self.scheme}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint was trained on the vocabularies and tags of this data.

        Raises:
            ValueError: It was not; the message has the first difference.
        """
        different = WordEncoder.from_state_dict(state_dict["encoder"]).difference(self.encoder)
        if state_dict["tags"] != self.tags:
            different = f"tags {', '.join(state_dict['tags'])} and {', '.join(self.tags)}"
        if state_dict["scheme"] != self.scheme:
            different = f"scheme {state_dict['scheme']} and {self.scheme}"
        if different is not None:
            raise ValueError(
                f"the checkpoint's data are not those of corpus {self.corpus!r}: {different}; use "
                "the corpus, scheme, vectors, min_count, lowercase, normalize_digits and "
                "max_word_length that it was trained with"
            )
