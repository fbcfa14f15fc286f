"""What is fuzzed: for each target where inputs come from, and what has to hold for each of them.

A check returns where all is well, a refusal by one of the errors that users are told included.
Whatever else it raises is a finding.
"""

import contextlib
import gzip
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from rnnkit.data.encodings import decode
from rnnkit.data.files import read_lines
from rnnkit.data.registry import DataError
from rnnkit.data.schemes import SCHEMES, Entity, convert, detect, entities, lenient, to_tags
from rnnkit.data.schemes import violations as violations_of
from rnnkit.data.vectors import read_vectors
from rnnkit.data.vocabulary import UNKNOWN, Vocabulary
from rnnkit.decoding import BeamSearch
from rnnkit.language_modeling import ghazals
from rnnkit.language_modeling.corpora import Tokenizer, read_corpus
from rnnkit.screen.terminal import ISOLATE, POP, UNSAFE, couplets, for_terminal, json_line, sentence
from rnnkit.screen.terminal import visible as visible_of
from rnnkit.tagging.columns import read_columns
from rnnkit.tagging.corpora import read_tagged
from rnnkit.training.callbacks.checkpoint_io import CheckpointError, read_checkpoint
from rnnkit.translation.corpora import read_pairs
from tests.decoding.table_models import PRIME, TableModel, plain_beam_search
from tests.soak.commands import check_command, check_configuration, command_lines, config_edits
from tests.soak.inputs import folder, hostile_text, small_checkpoint, word, write


class Target(NamedTuple):
    """One thing to fuzz.

    Attributes:
        name: For the command line.
        check: Raises what is a finding.
        inputs: Strategy of the inputs; for a reader of bytes the first ones, to be changed.
    """

    name: str
    check: Callable[[Any], None]
    inputs: Any

    @property
    def reads_bytes(self) -> bool:
        """Whether its inputs are bytes, which a fuzzer that is guided by coverage can make."""
        return isinstance(self.inputs, list)


def check_text(content: bytes) -> None:
    path = str(write("corpus.txt", content))
    for level in ("character", "word"):
        with contextlib.suppress(DataError):
            corpus = read_corpus(path, level, lowercase=False)
            whole = [*corpus.train, *corpus.valid, *corpus.test]
            text = decode(content, "corpus.txt")
            assert whole == Tokenizer(level).tokenize(text)
            assert level == "word" or "".join(whole) == text
            vocabulary = corpus.vocabulary()
            assert vocabulary.decode(vocabulary.encode(corpus.train)) == corpus.train


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No notes of what is odd about a file: each of thousands is."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def check_columns(content: bytes) -> None:
    endings = ("", ".csv", ".conllu", ".gz")
    files = [(ending, content) for ending in endings] + [(".gz", gzip.compress(content, 1))]
    for ending, packed in files:
        path = write(f"columns{ending}", packed)
        for separator, column in ((None, -1), ("\t", -1), (" ", -1), (",", -1), (None, "misc.A")):
            with contextlib.suppress(DataError), _quiet():
                for each in read_columns(path, tag_column=column, separator=separator):
                    assert len(each.words) == len(each.tags) > 0
                    assert all(each.words)
                    assert all(each.tags)


def check_tagged(content: bytes) -> None:
    for name in ("train", "valid", "test"):
        write(f"tagged/{name}.txt", content)
    for fix, scheme in itertools.product((False, True), ("BIO", "BIOES")):
        with contextlib.suppress(DataError), _quiet():
            corpus = read_tagged(str(folder() / "tagged"), scheme, fix=fix)
            assert corpus.types
            assert not any(violations_of(each.tags, scheme) for each in corpus.train)


def check_vectors(content: bytes) -> None:
    for name, packed in (("v.txt", content), ("v.gz", content), ("v.gz", gzip.compress(content))):
        path = write(name, packed)
        for options in ({}, {"keep": {"a"}}, {"limit": 2}):
            with contextlib.suppress(DataError):
                words, vectors = read_vectors(path, **options)
                assert len(words) == len({*words}) == len(vectors)
                assert bool(vectors.isfinite().all())


def check_parallel(content: bytes) -> None:
    first, _, second = content.partition(b"\0\0")
    pair = write("a.de", first), write("a.en", second)
    with contextlib.suppress(DataError):
        pairs = read_pairs(*pair)
        assert len(pairs) == len(read_lines(pair[0]))
        assert not any("\n" in side for both in pairs for side in both)
    for packed in (content, gzip.compress(content, 1)):
        with contextlib.suppress(DataError):
            read_lines(write("a.de.gz", packed))


def check_checkpoint(content: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        assert isinstance(read_checkpoint(write("a.ckpt", content)), dict)


def check_ghazals(lines: list[str]) -> None:
    poems = [f"{lines[i % len(lines)]}\n{i}" for i in range(495)]
    text = "\n\n".join(poems) + "\n"
    try:
        parts = ghazals.split(text, "poems")
    except DataError:
        assert len(text.strip("\n").split("\n\n")) != 495
        return
    assert sum(map(len, parts)) == len(text.strip("\n")) + 2 * 495 - 2 * 494
    assert [part.count("\n\n") >= n for part, n in zip(parts, (446, 25, 24), strict=True)]


def check_vocabulary(given: tuple[dict[str, int], int, list[str], list[str]]) -> None:
    counts, least, special, others = given
    try:
        made = Vocabulary.from_counts(counts, min_count=least, special=special)
    except ValueError:
        assert not special
        assert not [count for count in counts.values() if count >= least]
        return
    again = Vocabulary.from_state_dict(made.state_dict())
    assert again == made
    assert again.difference(made) is None
    assert made.decode(range(len(made))) == list(made.tokens)
    assert made.encode(made.tokens).tolist() == list(range(len(made)))
    if UNKNOWN in made:
        made.encode(others)
    if others and len({*others}) == len(others) and tuple(others) != made.tokens:
        told = made.difference(Vocabulary(others))
        assert told is not None
        assert not UNSAFE.search(told)
    assert not UNSAFE.search(repr(made))


def check_schemes(given: tuple[list[tuple[str, int, int]], list[str]]) -> None:
    parts, strings = given
    spans, end = [], 0
    for type_, gap, size in parts:
        spans.append(Entity(type_, end + gap, end + gap + size))
        end += gap + size
    for source, target in itertools.product(SCHEMES, SCHEMES):
        tags = to_tags(spans, end, source)
        assert entities(tags, source) == spans
        assert convert(convert(tags, source, target), target, source) == tags
        assert lenient(tags) == spans
    for scheme in SCHEMES:
        broken = violations_of(strings, scheme)
        try:
            found = entities(convert(strings, scheme, "BIOES"), "BIOES")
            assert not broken
            assert found == entities(strings, scheme)
        except ValueError:
            assert broken
    for hostile in (detect, lambda tags: lenient(tags[0])):
        with contextlib.suppress(ValueError, IndexError):
            hostile([strings])


def check_terminal(given: tuple[str, int]) -> None:
    text, columns = given
    own = f"\n\t{ISOLATE}{POP}"
    for shown in (for_terminal(text), couplets(text, columns)):
        for line in shown.split("\n"):
            # Isolates are ours: one at each end or none, none of the text's own between.
            inner = line.removeprefix(ISOLATE).removesuffix(POP)
            assert line in (inner, f"{ISOLATE}{inner}{POP}")
            assert not UNSAFE.search(inner.replace("\t", "")), line
    for plain in (visible_of(text), sentence(text)):
        assert not [each for each in UNSAFE.findall(plain) if each not in own[:2]]
    assert not UNSAFE.search(json_line([text]))


def check_beam(given: tuple[list[float], int, int, int, int | None, float, int]) -> None:
    values, vocabulary, limit, size, end, alpha, seed = given
    order = torch.randint(len(values), (1, PRIME, vocabulary), generator=_generator(seed))
    table = torch.tensor(values)[order]
    model = TableModel(table)  # sums of any numbers of 0 or less, as of log-probabilities
    source, begin = torch.tensor([0]), torch.tensor([0])
    every = vocabulary**limit
    for beam in (size, every):
        count = min(beam, 3)
        search = BeamSearch(beam, alpha, limit, count)
        (found,) = search(model, source, begin, end)
        options = {"size": beam, "alpha": alpha, "limit": limit, "count": count}
        wanted = plain_beam_search(model, source, 0, end, **options)
        assert len(found) == len(wanted), (found, wanted)
        for one, (score, _) in zip(found, wanted, strict=True):
            assert math.isclose(one.score, score, rel_tol=1e-4, abs_tol=1e-4), (found, wanted)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


_TAGS = st.one_of(
    st.builds("{}-{}".format, st.sampled_from("BILUES"), st.sampled_from(("A", "B-A"))),
    st.just("O"),
    hostile_text,
)

TARGETS = (
    Target("text", check_text, [b"the cat\n" * 20, "کتاب\n".encode() * 20, b"\xff\n"]),
    Target(
        "columns",
        check_columns,
        [
            b"# c\na B-X\nb I-X\n\n-DOCSTART- O\n\nc O\n",
            b"a\tO\n",
            b'sentence,word,tag\n1,",",O\n',
            b"1-2\tab\t_\t_\t_\t_\t_\t_\t_\t_\n1\ta b\t_\tX\t_\t_\t0\t_\t_\tA=B-X|C=D\n",
        ],
    ),
    Target(
        "tagged", check_tagged, [b"a B-X\nb I-X\n\nc O\n", b"a U-X\nb B-Y\nc L-Y\n", b"a I-X\n"]
    ),
    Target("vectors", check_vectors, [b"2 3\na 1 2 3\nb 1e5 -2 .5\n", b"a 1 2\n. . 3 4\n"]),
    Target("parallel", check_parallel, [b"a\nb\n\0\0c\nd\n", gzip.compress(b"a\nb\n")]),
    Target("checkpoint", check_checkpoint, [small_checkpoint]),
    Target("ghazals", check_ghazals, st.lists(hostile_text, min_size=1, max_size=5)),
    Target(
        "vocabulary",
        check_vocabulary,
        st.tuples(
            st.dictionaries(word, st.integers(0, 5)),
            st.integers(1, 4),
            st.lists(st.one_of(st.just(UNKNOWN), word), max_size=2),
            st.lists(word, max_size=4),
        ),
    ),
    Target(
        "schemes",
        check_schemes,
        st.tuples(
            st.lists(st.tuples(word, st.integers(0, 2), st.integers(1, 3)), max_size=6),
            st.lists(_TAGS, max_size=6),
        ),
    ),
    Target("terminal", check_terminal, st.tuples(hostile_text, st.integers(0, 200))),
    Target(
        "beam",
        check_beam,
        st.tuples(
            st.lists(st.sampled_from((0.0, -0.5, -1.0, -2.5, -math.inf)), min_size=1, max_size=5),
            *(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)),
            st.one_of(st.none(), st.just(0)),
            st.sampled_from((0.0, 0.6, 1.0, 3.0)),
            st.integers(0, 2**31),
        ),
    ),
    Target("configuration", check_configuration, config_edits),
    Target("command", check_command, command_lines),
)
