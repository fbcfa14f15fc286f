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
from .turns import figures_of, synchronize

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


def decoding(batches: int, repeats: int) -> dict[str, Any]:
    """Sentences a second, greedy and by beam, both sides in turn.

    Args:
        batches: of one turn, 64 sentences each.
        repeats: turns of each side.

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
    progress = Progress()
    parts = []
    searches: dict[str, tuple[GreedySearch | BeamSearch, int]] = {
        "greedy": (GreedySearch(), 1),
        f"beam {BEAM}": (BeamSearch(BEAM, length_penalty=PENALTY), BEAM),
    }
    for number, (name, (search, width)) in enumerate(searches.items()):
        rates = []
        for repeat in range(1 + repeats):  # the first turn is the warm-up
            progress((number + repeat / (1 + repeats)) / 2, f"decoding, {name}")
            seconds = [0.0, 0.0]
            for source, lengths, limits in work:
                begin = time.perf_counter()
                first = torch.full((SENTENCES,), BEGIN, device=device)
                ours = search(model, (source, lengths), first, END, limits)
                synchronize(device)
                between = time.perf_counter()
                with torch.inference_mode():
                    plain = [
                        sentence(source[:length, i : i + 1], model, limit, width)
                        for i, (length, limit) in enumerate(
                            zip(lengths.tolist(), limits.tolist(), strict=True)
                        )
                    ]
                seconds[0] += between - begin
                seconds[1] += time.perf_counter() - between
                differing = sum(a[0].tokens != b for a, b in zip(ours, plain, strict=True))
                if differing > SENTENCES // 20:  # rounding decides between near equals
                    raise ValueError(
                        f"{name}: the two sides wrote {differing} of {SENTENCES} sentences "
                        "differently"
                    )
            rates.append((batches * SENTENCES / seconds[0], batches * SENTENCES / seconds[1]))
        what = f"sentences/s, {name}, batches of {SENTENCES} against one at a time"
        parts.append({"what": what, **figures_of(rates[1:], device)})
    progress.close()
    return {"what": "decoding of a translation model", "parts": parts}
