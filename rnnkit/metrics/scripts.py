"""Scripts that part words by blanks, and scripts that do not."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Thai, Lao, Tibetan, Burmese, Khmer, kana and Han.
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def count_without_blanks(lines: Iterable[str]) -> tuple[int, int]:
    """How many characters are of a script without blanks between words, and how many there are.

    Args:
        lines: Text; blanks do not count.

    Example:
        >>> count_without_blanks(["猫 cat"])
        (1, 4)
    """
    text = "".join("".join(lines).split())
    return len(_WITHOUT_BLANKS.findall(text)), len(text)
