r"""Word vectors as word2vec.c writes them: text, and binary that keeps every bit.

N D\n                   in ASCII, in both
word 0.1 -0.25 ...\n    text: the shortest decimals that give the same float32 again
word <4·D bytes>        binary: float32, little-endian; word2vec.c ends each by \n, gensim not
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from rnnkit.data.registry import DataError
from rnnkit.screen.atomic_file import atomic_write

# What ends a word in a file. Others, no-break spaces among them, occur within words.
_BLANK = re.compile(r"[ \t\n\r\v\f]")
_MOST_WORD_BYTES = 10_000


def write_vectors(
    path: str | Path, words: Sequence[str], vectors: Tensor, binary: bool = False
) -> None:
    r"""Write vectors for gensim's `KeyedVectors.load_word2vec_format`, `read_vectors` and others.

    Args:
        path: The file; it is replaced when the new one is complete.
        words: N of them, each once.
        vectors: (N, D), written as float32; both formats keep every bit.
        binary: The binary format, half as large.

    Raises:
        ValueError: Words and vectors are not as many, a word holds a blank, is empty or there
            twice, or a number is not finite.

    Example:
        >>> path = getfixture("tmp_path") / "vectors.txt"
        >>> write_vectors(path, ["the", "of"], torch.tensor([[0.5, 1.5], [2.0, -1.0]]))
        >>> path.read_text()
        '2 2\nthe 0.5 1.5\nof 2.0 -1.0\n'
    """
    rows = vectors.detach().to(torch.float32).cpu().numpy()
    if rows.ndim != 2 or len(words) != len(rows):
        raise ValueError(f"expected a vector for each of {len(words)} words, got {rows.shape}")
    seen: set[str] = set()
    for word, finite in zip(words, np.isfinite(rows).all(1), strict=True):
        if not word or _BLANK.search(word):
            raise ValueError(f"word {word!r} is empty or holds a blank, which ends a word here")
        if word in seen:
            raise ValueError(f"word {word!r} is there twice")
        if not finite:
            raise ValueError(f"the vector of {word!r} holds a number that is not finite")
        seen.add(word)
    with atomic_write(Path(path)) as beside, beside.open("wb") as file:
        file.write(f"{rows.shape[0]} {rows.shape[1]}\n".encode())
        for word, row in zip(words, rows, strict=True):
            if binary:
                file.write(word.encode() + b" " + row.astype("<f4").tobytes() + b"\n")
            else:
                file.write(f"{word} {' '.join(map(str, row))}\n".encode())


def read_binary(
    path: Path, file: IO[bytes], keep: Container[str] | None, limit: int | None
) -> tuple[list[str], Tensor]:
    """Read the binary format; arguments, results and errors are those of `read_vectors`.

    Args:
        path: For errors.
        file: At its first byte.
        keep: See there.
        limit: See there.
    """
    count, size = (int(number) for number in file.readline().split())
    if size == 0:
        raise DataError(f"line 1 of {path} declares vectors of 0 numbers")
    words: dict[str, None] = {}
    rows: list[np.ndarray] = []
    for number in range(1, (count if limit is None else min(count, limit)) + 1):
        word = _word(path, file, number, count)
        data = file.read(4 * size)
        if len(data) < 4 * size:
            raise DataError(
                f"{path} ends within vector {number} of {count}, which has {len(data)} of "
                f"{4 * size} bytes: it is cut off"
            )
        row = np.frombuffer(data, "<f4")
        if word in words or (keep is not None and word not in keep):
            continue
        if not np.isfinite(row).all():
            raise DataError(f"the vector of {word!r} in {path} holds a number that is not finite")
        words[word] = None
        rows.append(row)
    if limit is None and (rest := file.read(64).strip()):
        raise DataError(
            f"line 1 of {path} says {count} vectors of {size} numbers, and more follows them "
            f"({rest[:8]!r}): correct its first line"
        )
    if not rows:
        return [], torch.empty(0, size)
    return [*words], torch.from_numpy(np.stack(rows).astype(np.float32))


def _word(path: Path, file: IO[bytes], number: int, count: int) -> str:
    found = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(found) == _MOST_WORD_BYTES:
            what = "it is cut off" if not byte else "this is no word2vec's binary format"
            raise DataError(f"{path} ends before vector {number} of {count}: {what}")
        if byte != b"\n":  # the end of the vector before
            found += byte
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"word {number} of {path} is no UTF-8: {bytes(found[:40])!r}; its first line may have "
            "another number of columns than its vectors"
        ) from error
