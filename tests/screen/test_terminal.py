import sys
from io import StringIO

import pytest
from rich.cells import cell_len

from rnnkit.screen.terminal import couplets, for_terminal, right_to_left, visible, waiting

RLI, PDI = "\u2067", "\u2069"
PLAIN = ("دل می رود ز دستم", "صاحب دلان خدا را")
VOCALISED = ("دِل می‌رَوَد ز دَستَم", "صاحِب‌دِلان خُدا را")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\x07\x08\x7f", r"a\x07\x08\x7f"),
        ("\x9b31m", r"\x9b31m"),  # one character begins an escape sequence as well
        ("a\u202eb\u202c", r"a\u202eb\u202c"),
        ("\u2066\u2067\u2068\u2069", r"\u2066\u2067\u2068\u2069"),
        ("a\u2028b\rc", r"a\u2028b\rc"),
        ("a\tb\nc", "a\tb\nc"),
        (VOCALISED[0], VOCALISED[0]),  # joiner and vowels stay
        ("\u200f!", "\u200f!"),
    ],
)
def test_what_would_act_on_a_terminal_is_shown(text, expected):
    assert visible(text) == expected


def test_the_first_letter_decides_the_direction():
    assert right_to_left("1. " + PLAIN[0] + " abc")
    assert right_to_left("שלום")
    assert not right_to_left("abc " + PLAIN[0])
    assert not right_to_left("12 !")
    assert not right_to_left("")


def test_only_lines_from_right_to_left_are_isolated():
    assert for_terminal(f"abc\n{PLAIN[0]}\n\n\x1b") == f"abc\n{RLI}{PLAIN[0]}{PDI}\n\n\\x1b"


def test_an_isolate_in_the_text_cannot_end_ours():
    assert for_terminal(f"{PLAIN[0]}{PDI}x") == f"{RLI}{PLAIN[0]}\\u2069x{PDI}"


def test_a_pipe_gets_the_halves_of_a_couplet_and_a_tab():
    text = f"{PLAIN[0]}\n{PLAIN[1]}\x1b\n\na\nb\nc"
    assert couplets(text, None) == f"{PLAIN[0]}\t{PLAIN[1]}\x1b\n\na\tb\nc"


def test_the_halves_stand_in_columns_whatever_their_vowels():
    text = "\n".join([*PLAIN, *VOCALISED, "", PLAIN[1], PLAIN[1] + "!"])
    lines = couplets(text, 80).split("\n")
    assert lines.pop(2) == ""
    for line, first in zip(lines, (PLAIN[0], VOCALISED[0], PLAIN[1]), strict=True):
        assert line.startswith(RLI + first + " ")
        assert line.endswith(PDI)
        # Marks of vowels, the joiner and the isolates take no column.
        assert cell_len(line) == len(PLAIN[1]) + 4 + len(PLAIN[1]) + 1
    assert len(lines[1]) > len(lines[0])


def test_couplets_from_left_to_right_are_padded_between_the_halves_only():
    assert couplets("ab\nc\na\nd", 80) == "ab    c\na     d"


def test_a_narrow_terminal_gets_one_half_a_line():
    text = "\n".join(PLAIN)
    width = len(PLAIN[0]) + 4 + len(PLAIN[1])
    assert "\n" not in couplets(text, width)
    assert couplets(text, width - 1) == "\n".join(f"{RLI}{half}{PDI}" for half in PLAIN)


def test_what_is_waited_for_is_wiped_out_and_no_file_has_it(monkeypatch):
    for terminal in (True, False):
        stream = StringIO()
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        with waiting("loading a\x1b[31m …"):
            told = stream.getvalue()
        if not terminal:
            assert stream.getvalue() == ""
            continue
        assert told == "loading a\\x1b[31m …"
        wiped = stream.getvalue().removeprefix(told)
        assert (wiped[0], wiped[-1]) == ("\r", "\r")
        assert wiped.strip("\r") == " " * (len(told) + 2)  # and the ^C of somebody in a hurry
