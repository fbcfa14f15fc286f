"""Hafez's ghazals by the character: 495 poems of 5 to 25 couplets, plain and vocalised.

The text has one hemistich (half a couplet) a line and a blank line between poems. The vocalised
text writes short vowels and other marks that Persian usually leaves out, and joins compounds by
U+200C ZERO WIDTH NON-JOINER. A divan is ordered by the rhyme's last letter, so a text cut 90/5/5
would be tested on rhymes that it never saw; here every twentieth poem is held out, and poems stay
whole.
"""

from __future__ import annotations

from rnnkit.data.registry import DataError

FILES = {"hafez": "ghazals_plain.txt", "hafez-vocalised": "ghazals_vocalised.txt"}
"""File of the dataset `hafez` for each name of a corpus."""

_POEMS = 495


def split(text: str, name: str) -> tuple[str, str, str]:
    """Training, validation and test poems: 446, 25 and 24 of them.

    Of every twenty poems the tenth is for validation and the last for test. Every part ends with
    a blank line, as every poem does, so a model learns how a poem ends.

    Args:
        text: All poems.
        name: Of the file, for an error.

    Raises:
        DataError: There are not 495 poems: the file was put together in another way.
    """
    poems = text.strip("\n").split("\n\n")
    if len(poems) != _POEMS:
        raise DataError(
            f"expected {_POEMS} ghazals in {name}, one hemistich a line and one blank line between "
            f"poems, got {len(poems)} blocks of lines"
        )
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for number, poem in enumerate(poems):
        parts[{9: 1, 19: 2}.get(number % 20, 0)].append(f"{poem}\n\n")
    train, valid, test = ("".join(part) for part in parts)
    return train, valid, test
