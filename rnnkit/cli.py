"""The `rnnkit` command: training, generation, data, benchmarks."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import rnnkit
from rnnkit.data.registry import DataError
from rnnkit.screen.terminal import sentence, visible, waiting

_HELP = """\
rnnkit configs
rnnkit fit -c tagging/announcements
rnnkit tag --ckpt runs/announcements/version_0/checkpoints/best.ckpt < text.txt

Recurrent networks for sequences: train them, score them, use them.

commands:
  fit        train the model of a configuration: rnnkit fit -c tagging/announcements
  validate   score a checkpoint on the validation data: rnnkit validate -c ... --ckpt_path ...
  test       score a checkpoint on the test data: rnnkit test -c ... --ckpt_path ...
  configs    list the configurations that come with rnnkit: rnnkit configs
  study      train several configurations, with a table and pictures: rnnkit study ptb-small
  generate   let a language model write: rnnkit generate --ckpt ... --prompt ...
  score      score a text with a language model: rnnkit score FILE --ckpt ...
  gradients  show how far back gradients reach: rnnkit gradients --cells tanh lstm
  plot       draw the curves of several runs in one picture: rnnkit plot runs/...
  translate  translate lines with a checkpoint: rnnkit translate --ckpt ... < in > out
  tag        find entities in lines, or label words: rnnkit tag --ckpt ... < in
  words      neighbours, analogies and scores of word vectors: rnnkit words similar FILE king
  data       list the known datasets, get them, say where they lie: rnnkit data list
  bench      measure the layers against torch.nn and other peers: rnnkit bench --quick

`rnnkit COMMAND --help` tells more, `rnnkit fit -c NAME --help` the options of a configuration,
`rnnkit --version` which release this is. RNNKIT_DEBUG=1 shows where in the program an error arose.
"""

_TRAINING = ("fit", "validate", "test")

# Where each command stands. It is imported when it is asked for: Lightning takes seconds.
_COMMANDS = {
    **dict.fromkeys(_TRAINING, "rnnkit.training.command"),
    "configs": "rnnkit.training.shipped",
    "study": "rnnkit.training.study",
    "generate": "rnnkit.language_modeling.generate",
    "score": "rnnkit.language_modeling.score",
    "gradients": "rnnkit.training.gradients",
    "plot": "rnnkit.training.plot",
    "translate": "rnnkit.translation.translate",
    "tag": "rnnkit.tagging.tag",
    "words": "rnnkit.word_vectors.command",
    "data": "rnnkit.data.command",
    "bench": "rnnkit_benchmarks.command",
}

# Lightning's command of this name would print nothing that one could use.
_INSTEAD = {
    "predict": "translate, tag, generate and score let a checkpoint work on text of yours, as in "
    "rnnkit tag --ckpt best.ckpt < text.txt"
}

# One of these is something that the user can put right; anything else is a defect of the program.
_EXPECTED = (DataError, ValueError, OSError, FloatingPointError, MemoryError)

_format_warning = warnings.formatwarning

# The shell's status of a command that SIGINT or SIGPIPE has ended.
_INTERRUPTED, _PIPE_CLOSED = 128 + 2, 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments; None: those of the process.

    Returns:
        Exit status: 0; 1 for an error, told in one sentence on stderr; 2 for a command line that
        makes no sense; 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP, end="")
        return 0
    if arguments[:1] == ["--version"]:
        print(f"rnnkit {rnnkit.__version__}")
        return 0
    if not arguments or arguments[0] not in _COMMANDS:
        found = f"there is no command {arguments[0]}" if arguments else "a command is missing"
        advice = _INSTEAD.get("".join(arguments[:1]), f"choose from {', '.join(_COMMANDS)}")
        print(f"rnnkit: {sentence(found)}: {advice}", file=sys.stderr)
        return 2
    command = arguments[0]
    warnings.formatwarning = _visible_warning
    try:
        with waiting("loading …"):
            module = import_module(_COMMANDS[command])
        if command in _TRAINING:
            module.run(arguments)
            return 0
        return int(module.main(arguments[1:]))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # who read the output has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning's way to end on Ctrl-C
            return _INTERRUPTED
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _TRAIN_EXTRA:
            raise
        return _fail(
            command,
            f"needs the package {error.name}, install it with: pip install 'rnnkit[train]'",
            error,
        )
    except (*_EXPECTED, RuntimeError) as error:
        short = _ran_out_of_memory(error)
        if not short and not isinstance(error, _EXPECTED):
            raise
        reason = _sentence(error)
        if short:
            reason = " ".join(reason.split()) + _less(command)
        return _fail(command, reason, error)


def _visible_warning(*args: Any, **kwargs: Any) -> str:
    """A warning of a library, which may have a name from a file or a command line in it."""
    return visible(_format_warning(*args, **kwargs))


def _ran_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # nothing of it has run, and its import takes seconds
        return False
    from rnnkit_kernels.functional import is_shortage

    return is_shortage(error)


def _less(command: str) -> str:
    """What to reduce where memory has run out."""
    if command in (*_TRAINING, "study"):
        sizes = "batch_size, batch_tokens or window of the data, or the sizes of the model"
        return f"; lower {sizes}"
    return "; lower the batch size or the length of lines"


def _sentence(error: BaseException) -> str:
    """What is wrong. jsonargparse wraps what a constructor raises in a list of all it tried."""
    while str(error).startswith("Does not validate") and error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__  # Python's own MemoryError says nothing


def _fail(command: str, reason: str, error: Exception) -> int:
    if os.environ.get("RNNKIT_DEBUG") == "1":
        raise error
    print(f"rnnkit {command}: {sentence(reason)}", file=sys.stderr)
    return 1


# What the extra `train` brings along, by the names that are imported.
_TRAIN_EXTRA = {
    "docstring_parser",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "numpy",
    "pooch",
    "requests",
    "rich",
    "sacrebleu",
    "scipy",
    "tokenizers",
    "torchmetrics",
    "tqdm",
    "yaml",
}

if __name__ == "__main__":
    sys.exit(main())
