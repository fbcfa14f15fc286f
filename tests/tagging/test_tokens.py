"""Words and marks of text: nothing seen is lost, and nothing unseen is a token."""

import re

import pytest

from rnnkit.tagging.tokens import places, places_between_blanks, tokenize
from rnnkit.tagging.words import IGNORABLE, JOINERS


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("Ada Lovelace's U.S. tour.", "Ada Lovelace 's U.S. tour ."),
        ("It cost $1,200 at 10:30, or 6-4", "It cost $ 1,200 at 10:30 , or 6-4"),
        ("the 3rd of the 1990s, 2-year-old", "the 3rd of the 1990s , 2-year-old"),
        ("'we are' (Jean-Luc)", "' we are ' ( Jean-Luc )"),
        ("हिन्दी में, है", "हिन्दी में , है"),
        ("cafe\u0301's Zoe\u0308-Ann.", "cafe\u0301 's Zoe\u0308-Ann ."),  # accents by themselves
        ("می\u200cخواهم، مُحَمَّد", "می\u200cخواهم ، مُحَمَّد"),
        ("", ""),
        (" \t\u3000", ""),
    ],
)
def test_words_and_marks_of_text(line, tokens):
    assert tokenize(line) == tokens.split()


def test_no_mark_of_a_text_is_lost():
    text = "".join(chr(i) for i in range(1, 0x3000)) + "😀a_b__-x''s..''"
    unseen = re.compile(f"[{IGNORABLE}{JOINERS}]")
    assert unseen.sub("", "".join(tokenize(text))) == unseen.sub("", "".join(text.split()))


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("co\u00adoperate now\u00ad.", ["co\u00adoperate", "now\u00ad", "."]),
        ("\u200eAda\u200f (\u2060Zoë)", ["Ada\u200f", "(\u2060", "Zoë", ")"]),
        ("ไป\u200bไหน", ["ไป", "ไหน"]),
        ("I \u2764\ufe0f it", ["I", "\u2764\ufe0f", "it"]),
        ("\U0001f469\u200d\U0001f4bb!", ["\U0001f469\u200d\U0001f4bb", "!"]),
        ("\U0001f44d\U0001f3fd\U0001f44d", ["\U0001f44d\U0001f3fd", "\U0001f44d"]),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", [
            "\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7"
        ]),
        ("1\ufe0f\u20e3 a", ["1\ufe0f\u20e3", "a"]),
        ("\ufeff \u00ad \u200d", []),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_no_token_of_its_own(line, tokens):
    assert tokenize(line) == tokens


def test_places_are_those_of_the_tokens():
    line = "  Ada's\u00a0U.S.\ttrip, "
    assert [line[start:end] for start, end in places(line)] == tokenize(line)
    assert places(line)[:2] == [(2, 5), (5, 7)]
    blanks = places_between_blanks(line)
    assert [line[start:end] for start, end in blanks] == ["Ada's\u00a0U.S.", "trip,"]
