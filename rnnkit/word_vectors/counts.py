r"""Vectors from counts: positive pointwise mutual information, and its largest singular vectors.

    PMI(w, c) = log(#(w, c) · Σ #(c')^α / (#(w) · #(c)^α)) - log k     PPMI = max(PMI, 0) ≈ U Σ V^T

with pairs at d steps counted (L - d + 1) / L, the mean over word2vec's windows that are drawn from
1 to L, α = 0.75 as in its noise, and k its negative samples (Levy, Goldberg & Dagan 2015, TACL 3,
whose vectors are U Σ^p). On texts of a few million words it beats what is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix  # type: ignore[import-untyped]
from scipy.sparse.linalg import svds  # type: ignore[import-untyped]
from torch import Tensor

_WORDS_AT_ONCE = 2_000_000


def vocabulary_of(
    lines: Iterable[Sequence[str]], min_count: int = 5, most: int | None = None
) -> Counter[str]:
    """Words that occur often enough, the most frequent first, and how often they do.

    Args:
        lines: Words of each line.
        min_count: The least that counts.
        most: At most so many words; None: all.

    Raises:
        ValueError: None occurs so often, or a single one.
    """
    counts = Counter(word for line in lines for word in line)
    if not counts:
        raise ValueError("the text holds no word")
    # By the alphabet among equals, so that the order does not depend on the text's.
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = {word: count for word, count in ordered[:most] if count >= min_count}
    if len(kept) < 2:
        raise ValueError(
            f"{len(kept)} of {len(counts)} words occur {min_count} times or more, and 2 are "
            "needed: lower min_count, or take a longer text"
        )
    return Counter(kept)


def cooccurrences(lines: Iterable[Sequence[str]], ids: dict[str, int], window: int) -> csr_matrix:
    """How often words stand near each other, (V, V), symmetric.

    Args:
        lines: Words of each line; no window crosses a line's end. Words without an id leave no gap,
            as in word2vec.c.
        ids: Of the words.
        window: L, the largest distance that counts.

    Raises:
        ValueError: `window` is below 1.
    """
    if window < 1:
        raise ValueError(f"expected a window of 1 or more, got {window}")
    size = len(ids)
    total = csr_matrix((size, size), dtype=np.float64)
    for words, line in _chunks(lines, ids):
        pairs, weights = [], []
        for distance in range(1, window + 1):
            near = line[:-distance] == line[distance:]
            pairs.append(np.stack([words[:-distance][near], words[distance:][near]]))
            weights.append(np.full(pairs[-1].shape[1], (window - distance + 1) / window))
        # Duplicates are summed.
        found = coo_matrix((np.concatenate(weights), np.concatenate(pairs, 1)), (size, size))
        total = total + found.tocsr()
    return (total + total.T).tocsr()


def _chunks(
    lines: Iterable[Sequence[str]], ids: dict[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of the known words and the number of their line, some millions at a time."""
    words: list[int] = []
    of_line: list[int] = []
    for number, line in enumerate(lines):
        known = [ids[word] for word in line if word in ids]
        words += known
        of_line += [number] * len(known)
        if len(words) >= _WORDS_AT_ONCE:
            yield np.array(words), np.array(of_line)
            words, of_line = [], []
    yield np.array(words, dtype=np.int64), np.array(of_line, dtype=np.int64)


def ppmi(counts: csr_matrix, negatives: float = 1.0, smoothing: float = 0.75) -> csr_matrix:
    """Positive pointwise mutual information of co-occurrences.

    Args:
        counts: (V, V), as `cooccurrences` gives them.
        negatives: k, by whose logarithm PMI is shifted.
        smoothing: α, power of the contexts' counts.

    Raises:
        ValueError: k is below 1, α is not above 0, or nothing stands near anything.
    """
    if negatives < 1:
        raise ValueError(f"expected negatives of 1 or more, got {negatives}")
    if not smoothing > 0:
        raise ValueError(f"expected a smoothing above 0, got {smoothing}")
    pairs = counts.tocoo()
    if not pairs.nnz:
        raise ValueError(
            "no two words of the vocabulary stand in one line: there is nothing to count"
        )
    words = np.asarray(counts.sum(1)).ravel()
    contexts = np.asarray(counts.sum(0)).ravel() ** smoothing
    information = np.log(pairs.data * contexts.sum() / (words[pairs.row] * contexts[pairs.col]))
    information -= np.log(negatives)
    kept = information > 0
    places = (pairs.row[kept], pairs.col[kept])
    return coo_matrix((information[kept], places), pairs.shape).tocsr()


def ppmi_vectors(
    information: csr_matrix, dimensions: int = 100, power: float = 0.5, seed: int = 0
) -> Tensor:
    """U Σ^p of the largest singular values, float32 (V, D).

    Args:
        information: (V, V), as `ppmi` gives it.
        dimensions: D, below V.
        power: p of the singular values; ½ is better for analogies than 1.
        seed: Of the first vector of the iteration, so that every run gives the same.

    Raises:
        ValueError: There are not more words than dimensions.
    """
    size = information.shape[0]
    if not 1 <= dimensions < size:
        raise ValueError(
            f"expected dimensions from 1 to {size - 1} for {size} words, got {dimensions}"
        )
    start = np.random.default_rng(seed).standard_normal(size)
    left, values, _ = svds(information.astype(np.float64), dimensions, v0=start)
    order = np.argsort(-values)
    vectors = left[:, order] * values[order] ** power
    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
