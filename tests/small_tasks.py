"""A small run of each task: its data are written into a folder, its arguments returned."""

from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def language_model(folder):
    generator = torch.Generator().manual_seed(0)
    (folder / "corpus").mkdir()
    for name, count in (("train", 244), ("valid", 60), ("test", 60)):
        ids = torch.randint(12, (count,), generator=generator).tolist()
        (folder / "corpus" / f"{name}.txt").write_text(" ".join(f"w{i}" for i in ids))
    return [
        *("-c", str(ROOT / "configs/lm/ptb_zaremba_small.yaml")),
        *("--data.init_args.corpus", str(folder / "corpus")),
        *("--data.init_args.batch_size", "4", "--data.init_args.window", "5"),
        *("--model.init_args.embedding_size", "8", "--model.init_args.hidden_size", "8"),
    ]


def translation(folder):
    (folder / "pairs").mkdir()
    for name in ("train", "valid", "test"):
        for language in ("de", "en"):
            lines = [f"{language} {' '.join('abcde'[: 1 + i % 5])}" for i in range(96)]
            (folder / "pairs" / f"{name}.{language}").write_text("\n".join(lines))
    return [
        *("-c", str(ROOT / "configs/translation/multi30k_bahdanau.yaml")),
        *("--data.init_args.corpus", str(folder / "pairs")),
        *("--data.init_args.batch_tokens", "60"),
        *("--model.init_args.embedding_size", "8", "--model.init_args.encoder_size", "8"),
        *("--model.init_args.hidden_size", "8"),
    ]


def tagging(folder):
    (folder / "tagged").mkdir()
    for name in ("train", "valid", "test"):
        sentences = [
            "".join(f"{word} {'B-X' if word == 'c' else 'O'}\n" for word in "abcde"[: 2 + i % 4])
            for i in range(96)
        ]
        (folder / "tagged" / f"{name}.txt").write_text("\n".join(sentences))
    return [
        *("-c", str(ROOT / "configs/tagging/announcements.yaml")),
        *("--data.init_args.corpus", str(folder / "tagged")),
        *("--data.init_args.batch_size", "8"),
        *("--model.init_args.embedding_size", "8", "--model.init_args.hidden_size", "8"),
    ]


TASKS = [language_model, translation, tagging]
