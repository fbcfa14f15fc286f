"""Decoding a batch of sentences against a plain loop that takes one after the other.

A translation model of the size of configs/translation/multi30k_bahdanau.yaml with random weights;
every sentence is as long as one of Multi30k's, and so is its translation. The plain side steps the
same model, all beams of a sentence at once. The two have to write the same words.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from rnnkit.decoding import BeamSearch, GreedySearch, select_rows
from rnnkit.decoding.beam import gnmt_penalty
from rnnkit.translation import Translation
from rnnkit.translation.data import BEGIN, END

from .progress import Progress
from .turns import figures_of, synchronize, twin

VOCABULARIES = (7895, 5910)
SENTENCES, BEAM, PENALTY = 64, 5, 0.6


def sentence(source: Tensor, model: Translation, limit: int, width: int) -> list[int]:
    """Beam search as one would write it for one sentence: source (S, 1); greedy with width 1."""
    state = model.start((source, torch.tensor([len(source)])))
    tokens = torch.tensor([BEGIN], device=source.device)
    totals = torch.zeros(1, device=source.device)
    paths: list[list[int]] = [[]]
    finished: list[tuple[float, list[int]]] = []
    penalties = gnmt_penalty(torch.arange(limit + 1), PENALTY).tolist()
    for length in range(1, limit + 1):
        log_probabilities, state = model.step(tokens, state)
        candidates = (totals.unsqueeze(1) + log_probabilities).flatten()
        best = candidates.topk(width)
        rows, words = best.indices // log_probabilities.shape[1], best.indices % VOCABULARIES[1]
        kept = []
        grown = []
        for i, (row, word, total) in enumerate(
            zip(rows.tolist(), words.tolist(), best.values.tolist(), strict=True)
        ):
            path = [*paths[row], word]
            if word == END or length == limit:
                finished.append((total / penalties[length], path))
            else:
                kept.append(i)
                grown.append(path)
        if not kept:
            break
        chosen = torch.tensor(kept, device=source.device)
        tokens, totals, paths = words[chosen], best.values[chosen], grown
        state = select_rows(state, rows[chosen])
        if finished and max(finished)[0] >= float(totals.max()) / penalties[limit]:
            break
    return max(finished)[1]


def decoding(batches: int, repeats: int, backend: str | None = None) -> dict[str, Any]:
    """Sentences a second, greedy and by beam, both sides in turn.

    Args:
        batches: of one turn, 64 sentences each.
        repeats: turns of each side.
        backend: None: the other side is the plain loop; else the same search on the same model,
            whose layers have this backend.

    Returns:
        Raw figures, ready for JSON.

    Raises:
        ValueError: the two sides wrote different words.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    sizes = {"embedding_size": 256, "encoder_size": 256, "hidden_size": 512, "tied": True}
    model = Translation(*VOCABULARIES, **sizes).to(device).eval()  # type: ignore[arg-type]
    work = []
    for _ in range(batches):
        lengths = torch.randn(SENTENCES).mul(4).add(13).long().clamp(5, 40)
        source = torch.randint(4, VOCABULARIES[0], (int(lengths.max()), SENTENCES))
        for i, length in enumerate(lengths.tolist()):
            source[length - 1 :, i] = 0
            source[length - 1, i] = END
        limits = torch.randn(SENTENCES).mul(3).add(13).long().clamp(4, 40)
        work.append((source.to(device), lengths, limits))
    other = None if backend is None else twin(model, backend)
    progress = Progress()
    parts = []
    searches: dict[str, tuple[GreedySearch | BeamSearch, int]] = {
        "greedy": (GreedySearch(), 1),
        f"beam {BEAM}": (BeamSearch(BEAM, length_penalty=PENALTY), BEAM),
    }

    def together(
        search: GreedySearch | BeamSearch, model: Translation, given: tuple[Tensor, ...]
    ) -> list[list[int]]:
        source, lengths, limits = given
        first = torch.full((SENTENCES,), BEGIN, device=device)
        return [each[0].tokens for each in search(model, (source, lengths), first, END, limits)]

    @torch.inference_mode()
    def alone(width: int, given: tuple[Tensor, ...]) -> list[list[int]]:
        source, lengths, limits = given
        return [
            sentence(source[:length, i : i + 1], model, limit, width)
            for i, (length, limit) in enumerate(zip(lengths.tolist(), limits.tolist(), strict=True))
        ]

    for number, (name, (search, width)) in enumerate(searches.items()):
        rates = []
        for repeat in range(1 + repeats):  # the first turn is the warm-up
            progress((number + repeat / (1 + repeats)) / 2, f"decoding, {name}")
            seconds = [0.0, 0.0]
            for given in work:
                words: list[list[list[int]]] = [[], []]
                # Every other time the other side begins.
                for side in (0, 1) if repeat % 2 == 0 else (1, 0):
                    begin = time.perf_counter()
                    if side == 0:
                        words[side] = together(search, model, given)
                    elif other is not None:
                        words[side] = together(search, other, given)
                    else:
                        words[side] = alone(width, given)
                    synchronize(device)
                    seconds[side] += time.perf_counter() - begin
                differing = sum(a != b for a, b in zip(*words, strict=True))
                if differing > SENTENCES // 20:  # rounding decides between near equals
                    raise ValueError(
                        f"{name}: the two sides wrote {differing} of {SENTENCES} sentences "
                        "differently"
                    )
            rates.append((batches * SENTENCES / seconds[0], batches * SENTENCES / seconds[1]))
        against = "one at a time" if backend is None else f'backend="{backend}"'
        what = f"sentences/s, {name}, batches of {SENTENCES} against {against}"
        parts.append({"what": what, **figures_of(rates[1:], device)})
    progress.close()
    return {"what": "decoding of a translation model", "parts": parts}
