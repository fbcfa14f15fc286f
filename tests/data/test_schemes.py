import itertools
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOBES, Tokens

from rnnkit.data.schemes import (
    SCHEMES,
    Entity,
    constraints,
    convert,
    detect,
    entities,
    lenient,
    tag_names,
    tag_types,
    to_tags,
    violations,
)

TYPES = ["PER", "LOC", "GPE-loc"]

# The sentence of the module's own table, and its entities.
LOVELACE = [Entity("PER", 0, 2), Entity("PER", 2, 3), Entity("LOC", 5, 8)]
WRITTEN = {
    "IOB1": "I-PER I-PER B-PER O O I-LOC I-LOC I-LOC",
    "BIO": "B-PER I-PER B-PER O O B-LOC I-LOC I-LOC",
    "BILOU": "B-PER L-PER U-PER O O B-LOC I-LOC L-LOC",
    "BIOES": "B-PER E-PER S-PER O O B-LOC I-LOC E-LOC",
}


def sentences(count, scheme, longest=9):
    """Random tags, most of them invalid, and valid ones among them."""
    drawn = random.Random(f"{count} {scheme}")
    names = tag_names(TYPES, scheme)
    for _ in range(count):
        length = drawn.randint(0, longest)
        if drawn.random() < 0.7:
            yield drawn.choices(names, [4.0] + [1.0] * (len(names) - 1), k=length)
        else:
            yield to_tags(entities(drawn.choices(tag_names(TYPES, "BIO"), k=length), "BIO"),
                          length, scheme)  # fmt: skip


@st.composite
def entity_lists(draw):
    """Entities that share no token, touching ones of one type among them, and a length."""
    found, length = [], 0
    for type_, gap, tokens in draw(
        st.lists(st.tuples(st.sampled_from(TYPES), st.integers(0, 2), st.integers(1, 4)))
    ):
        found.append(Entity(type_, length + gap, length + gap + tokens))
        length = found[-1].end
    return found, length + draw(st.integers(0, 2))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_sentence_in_every_scheme(scheme):
    tags = WRITTEN[scheme].split()
    assert entities(tags, scheme) == LOVELACE
    assert to_tags(reversed(LOVELACE), 8, scheme) == tags
    assert violations(tags, scheme) == []
    for other in SCHEMES:
        assert convert(tags, scheme, other) == WRITTEN[other].split()


@pytest.mark.parametrize("scheme", ["IOB1", "BIO"])
def test_iob1_and_bio_are_read_as_seqeval_reads_them(scheme):
    for tags in sentences(10_000, scheme):
        expected = [Entity(kind, first, last + 1) for kind, first, last in get_entities(tags)]
        assert entities(tags, scheme) == expected, tags


@pytest.mark.parametrize(("scheme", "peer"), [("BILOU", BILOU), ("BIOES", IOBES)])
def test_bilou_and_bioes_are_read_as_strict_seqeval_reads_them(scheme, peer):
    for tags in sentences(10_000, scheme):
        expected = [Entity(one.tag, one.start, one.end) for one in Tokens(tags, peer).entities]
        assert entities(tags, scheme) == expected, tags


def test_lenient_reads_every_scheme_as_conlleval_does():
    as_bioes = str.maketrans("LU", "ES")
    for scheme in SCHEMES:
        for tags in sentences(2_000, scheme):
            theirs = [tag[0].translate(as_bioes) + tag[1:] for tag in tags]
            expected = [Entity(kind, first, last + 1) for kind, first, last in get_entities(theirs)]
            assert lenient(tags) == expected, tags


@given(entity_lists(), st.sampled_from(SCHEMES), st.sampled_from(SCHEMES))
def test_converting_there_and_back_loses_nothing(drawn, source, target):
    found, length = drawn
    tags = to_tags(found, length, source)
    assert len(tags) == length
    assert entities(tags, source) == found
    assert violations(tags, source) == []
    there = convert(tags, source, target)
    assert entities(there, target) == found
    assert convert(there, target, source) == tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sentence_is_valid_where_it_is_what_its_entities_are_written_as(scheme):
    names = tag_names(TYPES[:2], scheme)
    for length in range(4):
        for tags in itertools.product(names, repeat=length):
            written = to_tags(entities(tags, scheme), length, scheme)
            assert (violations(tags, scheme) == []) == (written == list(tags)), tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_constraints_allow_the_valid_sentences(scheme):
    names = tag_names(TYPES[:2], scheme)
    start, end, follows = constraints(names, scheme)
    assert start.dtype == end.dtype == follows.dtype == torch.bool
    for length in range(1, 4):
        for ids in itertools.product(range(len(names)), repeat=length):
            allowed = start[ids[0]] and end[ids[-1]]
            allowed = allowed and all(follows[pair] for pair in itertools.pairwise(ids))
            tags = [names[index] for index in ids]
            assert bool(allowed) == (violations(tags, scheme) == []), tags


def test_the_constraints_follow_the_order_of_the_tags():
    start, end, follows = constraints(["L-A", "O", "B-A"], "BILOU")
    assert start.tolist() == [False, True, True]
    assert end.tolist() == [True, True, False]
    assert follows.tolist() == [[False, True, True], [False, True, True], [True, False, False]]


@pytest.mark.parametrize(
    ("scheme", "tags", "position", "reason"),
    [
        ("BIO", "O I-PER", 1, "I-PER follows O: BIO begins an entity with B-PER"),
        ("BIO", "I-PER O", 0, "I-PER starts the sentence: BIO begins an entity with B-PER"),
        ("BIO", "B-LOC I-PER", 1, "I-PER follows B-LOC: BIO begins an entity with B-PER"),
        ("IOB1", "O B-PER", 1, "B-PER follows O: IOB1 begins an entity with I-PER unless it"),
        ("IOB1", "I-LOC B-PER", 1, "B-PER follows I-LOC: IOB1 begins an entity with I-PER unless"),
        ("BILOU", "B-PER O", 1, "O follows B-PER: BILOU goes on with I-PER or L-PER"),
        ("BILOU", "O B-PER", 1, "B-PER ends the sentence: BILOU goes on with I-PER or L-PER"),
        ("BILOU", "U-PER L-PER", 1, "L-PER follows U-PER: BILOU begins an entity with B-PER or U"),
        ("BIOES", "B-PER E-LOC", 1, "E-LOC follows B-PER: BIOES goes on with I-PER or E-PER"),
        ("BIOES", "I-PER E-PER", 0, "I-PER starts the sentence: BIOES begins an entity with B-PER"),
    ],
)
def test_a_violation_says_what_the_scheme_demands(scheme, tags, position, reason):
    (found,) = violations(tags.split(), scheme)
    assert found.position == position
    assert found.tag == tags.split()[position]
    assert found.reason.startswith(reason)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tag", ["", "B", "B-", "-PER", "X-PER", "O-PER", "BI-PER", "PER", "o"])
def test_a_tag_of_no_scheme_is_a_violation_and_is_not_read(scheme, tag):
    (found,) = violations(["O", tag, "O"], scheme)
    assert found[:2] == (1, tag)
    assert found.reason.startswith(f"{tag!r} is no tag of {scheme}: expected O, B-TYPE")
    for read in (lambda tags: entities(tags, scheme), lenient, lambda t: constraints(t, scheme)):
        with pytest.raises(ValueError, match=r"tag 1: .* is no tag of "):
            read(["O", tag, "O"])


@pytest.mark.parametrize(
    ("scheme", "tag"), [("BIO", "L-PER"), ("IOB1", "E-PER"), ("BILOU", "S-PER"), ("BIOES", "U-PER")]
)
def test_a_tag_of_another_scheme_is_not_read(scheme, tag):
    assert f"{tag!r} is no tag of {scheme}" in violations(["B-PER", tag], scheme)[-1].reason
    with pytest.raises(ValueError, match=f"tag 1: '{tag}' is no tag of {scheme}"):
        entities(["B-PER", tag], scheme)
    with pytest.raises(ValueError, match=f"tag 1: '{tag}' is no tag of {scheme}"):
        constraints(["B-PER", tag], scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_is_detected_from_one_entity(scheme):
    for found in ([Entity("PER", 1, 2)], [Entity("PER", 0, 3)]):
        assert detect(iter([["O"], [], to_tags(found, 4, scheme)])) == scheme


def test_undetectable_tags_say_why():
    with pytest.raises(ValueError, match="from 2 sentences without an entity"):
        detect([["O"], ["O", "O"]])
    with pytest.raises(ValueError, match="fit no scheme") as error:
        detect([["O"], ["I-PER"], ["O", "B-PER"]])
    _, *evidence = str(error.value).splitlines()
    assert [line.split(",")[0] for line in evidence] == list(SCHEMES)
    assert "broken 1 times, first at token 1 of sentence 2: B-PER follows O" in evidence[0]
    assert "broken 1 times, first at token 0 of sentence 1: I-PER starts" in evidence[1]
    assert "broken 3 times, first at token 0 of sentence 1: I-PER starts" in evidence[2]


def test_converting_what_is_not_valid_is_refused():
    with pytest.raises(ValueError, match=r"3 tags break BIO 2 times .* token 0: I-PER starts"):
        convert(["I-PER", "O", "I-PER"], "BIO", "BILOU")


def test_entities_that_no_tags_can_write_are_refused():
    for entity in (
        Entity("PER", 2, 2),
        Entity("PER", -1, 1),
        Entity("PER", 2, 4),
        Entity("", 0, 1),
    ):
        with pytest.raises(ValueError, match=r"end <= 3 in a sentence of 3 tokens, got Entity"):
            to_tags([entity], 3, "BIO")
    with pytest.raises(ValueError, match=r"end=2\) and Entity\(type='B', .* share token 1"):
        to_tags([Entity("B", 1, 3), Entity("A", 0, 2)], 3, "BIO")


def test_names_of_tags_keep_the_order_of_types():
    assert tag_names(["PER", "LOC"], "IOB1") == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert tag_names(["B-", "A"], "BILOU")[1:6] == ["B-B-", "I-B-", "L-B-", "U-B-", "B-A"]
    assert tag_names(["A"], "BIOES") == ["O", "B-A", "I-A", "E-A", "S-A"]
    with pytest.raises(ValueError, match="'PER' 2 times"):
        tag_names(["PER", "LOC", "PER"], "BIO")
    with pytest.raises(ValueError, match="'' 1 times"):
        tag_names([""], "BIO")


def test_an_unknown_scheme_is_refused_by_its_name():
    for call in (entities, violations, constraints, tag_names):
        with pytest.raises(ValueError, match="IOB1, BIO, BILOU, BIOES, got 'IOB2'"):
            call(["O"], "IOB2")
    with pytest.raises(ValueError, match="got 'IOB2'"):
        to_tags([], 0, "IOB2")


@pytest.mark.process
def test_schemes_are_imported_without_lightning():
    code = "import sys, rnnkit.data.schemes; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.data
def test_conll_2003_is_iob1(real_data):
    def tags(part):
        text = (real_data / "conll2003" / f"eng.{part}").read_text()
        blocks = text.split("\n\n")
        return [[line.split()[-1] for line in block.splitlines()] for block in blocks]

    for part, expected in {"train": 23_499, "testa": 5_942, "testb": 5_648}.items():
        read = tags(part)
        assert detect(read) == "IOB1"
        assert sum(len(entities(one, "IOB1")) for one in read) == expected


def test_labels_are_any_tags_and_write_no_entities():
    labels = ["NN", "B", "-LRB-", "O", "B-PER"]
    assert "labels" not in SCHEMES
    assert violations(labels, "labels") == []
    assert entities(labels, "labels") == []
    assert tag_names(labels, "labels") == tag_types(labels, "labels") == labels
    with pytest.raises(ValueError, match="distinct types that are not empty, got 'B' 2 times"):
        tag_names([*labels, "B"], "labels")
    for source, target in (("labels", "BIO"), ("BIO", "labels")):
        with pytest.raises(ValueError, match="a scheme of IOB1, BIO, BILOU, BIOES, got 'labels'"):
            convert(["O", "B-PER"], source, target)


def test_types_of_tags_are_those_of_their_entities():
    assert tag_types(["B-PER", "I-PER", "O", "U-GPE-loc"], "BILOU") == ["PER", "PER", "", "GPE-loc"]
    with pytest.raises(ValueError, match="'NN' is no tag of BIO"):
        tag_types(["O", "NN"], "BIO")
