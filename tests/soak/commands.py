"""Configurations and command lines to fuzz, in this process, with nothing trained or fetched."""

import contextlib
import functools
import io
import os
import sys
import warnings
from typing import Any

import requests
from hypothesis import strategies as st

from rnnkit.cli import main
from rnnkit.screen.terminal import UNSAFE
from rnnkit.training import study
from rnnkit.training.command import TrainingCLI
from tests.soak.inputs import folder, hostile_text, small_checkpoint, write

CONFIG = """\
seed_everything: 0
data:
  class_path: rnnkit.language_modeling.LanguageModelingData
  init_args:
    corpus: corpus
    batch_size: 4
    window: 10
model:
  class_path: rnnkit.language_modeling.LanguageModel
  init_args:
    embedding_size: 8
    hidden_size: 8
    num_layers: 1
    optimizer:
      class_path: torch.optim.SGD
      init_args: {lr: 0.1}
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/ppl, mode: min}
"""

_VALUES = (
    *("null", "{}", "[]", "[[]]", "-1", "0", "1e999", ".nan", "true", "''", "'\\0'", "!!set {a}"),
    *('"\\u202e\\e[2J"', "&a [*a]", "*a", "{class_path: os.system}", "os.system", "x.y", "- 1"),
    *("{class_path: torch.optim.Adam}", "2020-13-45", "0x_", "!!binary a", "!!python/name:a.b"),
    *("{init_args: {}}", "{class_path: 3}", "{class_path: null, init_args: 4}", "99999999999999"),
)
# What to do to a line: its number, and what takes its place.
config_edits = st.lists(
    st.tuples(
        st.integers(0, len(CONFIG.splitlines()) - 1),
        st.sampled_from(("value", "key", "drop", "twice", "indent")),
        st.one_of(st.sampled_from(_VALUES), hostile_text),
    ),
    min_size=1,
    max_size=3,
)


def edited(edits: list[tuple[int, str, str]]) -> str:
    """The configuration with some lines changed."""
    lines = CONFIG.splitlines()
    for number, kind, new in edits:
        line = lines[number]
        key, _, _ = line.partition(":")
        blank = line[: len(line) - len(line.lstrip())]
        lines[number] = {
            "value": f"{key}: {new}",
            "key": f"{blank}{new}: 1",
            "drop": "",
            "twice": f"{line}\n{line}",
            "indent": f" {line}",
        }[kind]
    return "\n".join(lines)


def check_configuration(edits: list[tuple[int, str, str]]) -> None:
    text = edited(edits)
    _prepare_commands()
    write("case.yaml", text.encode("utf-8", "surrogatepass"))
    check_command(["fit", "-c", "case.yaml"])


COMMANDS = (
    *("fit", "validate", "test", "study", "generate", "score", "plot", "translate"),
    *("tag", "data"),
)
_WORDS = (
    *("--ckpt", "small.ckpt", "a.ckpt", "-c", "plain.yaml", "--model", "--data", "--trainer", "-h"),
    *("--model.init_args.hidden_size", "--optimizer", "--trainer.max_epochs", "--ckpt_path", "-"),
    *("--length", "--beam", "--batch-size", "--device", "--metric", "--runs", "--corpus", "list"),
    *("get", "where", "ptb", "hafez", "ptb-small", "corpus.txt", "--seeds", "--", "-1", "0", "nan"),
    *("--print_config", "--help", "/dev/null", "..", "=", "--=", "--model=", "--n-best", "1e9"),
)
command_lines = st.tuples(
    st.sampled_from(COMMANDS),
    st.lists(st.one_of(st.sampled_from(_WORDS), hostile_text), max_size=6),
).map(lambda parts: [parts[0], *parts[1]])


@functools.cache
def _prepare_commands() -> None:
    """A corpus and files to name; no training, no download, from here on in this process."""
    for name in ("train", "valid", "test"):
        write(f"corpus/{name}.txt", b"the cat sees a dog\n" * 20)
    write("plain.yaml", CONFIG.encode())
    small_checkpoint()
    os.chdir(folder())
    warnings.simplefilter("ignore")

    def no_network(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError

    TrainingCLI._run_subcommand = lambda self, subcommand: None
    study._train = lambda *_: None
    requests.get = no_network


def check_command(arguments: list[str]) -> None:
    _prepare_commands()
    output, errors = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, type("Input", (), {"buffer": io.BytesIO(b"a b\n")})()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = main(arguments)
    finally:
        sys.stdin = before
    said = errors.getvalue()
    assert status in (0, 1, 2), status
    assert "Traceback" not in said, said
    assert status == 0 or "rnnkit" in said, said
    assert not UNSAFE.search(said.replace("\n", "").replace("\t", "")), said
    assert len(said) < 10_000, said
