"""`rnnkit generate`: lines and couplets, in a pipe and on a terminal."""

import io
import sys

import pytest

from rnnkit.cli import main
from rnnkit.language_modeling.generate import Writer
from rnnkit.language_modeling.task import LanguageModel
from tests.small_checkpoints import make_checkpoint

pytestmark = pytest.mark.training

POEM = "دل می رود\nز دستم\x1b صاحب\n"
TEXT = f"{POEM * 3}\n" * 4
RLI, PDI = "\u2067", "\u2069"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    return {level: make_checkpoint(folder, level, TEXT, TEXT) for level in ("word", "character")}


@pytest.fixture
def generate(checkpoints, capsys):
    def run(*arguments, level="character"):
        capsys.readouterr()
        status = main(["generate", "--ckpt", checkpoints[level], "--seed", "1", *arguments])
        return status, *capsys.readouterr()

    return run


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("level", ["word", "character"])
def test_it_writes_so_many_lines(level, generate):
    status, output, _ = generate("--lines", "7", "--longest-line", "6", level=level)
    assert status == 0
    assert output.endswith("\n")
    assert not output.endswith("\n\n")
    lines = [line for line in output.split("\n") if line]
    assert len(lines) == 7
    assert max(len(line.split(" ") if level == "word" else line) for line in lines) <= 6
    assert len(set(lines)) > 1
    assert not any(mark in output for mark in (RLI, PDI, "\\x1b"))


def test_the_same_seed_writes_the_same_lines(generate):
    assert generate("--lines", "5") == generate("--lines", "5")
    assert generate("--lines", "5") != generate("--lines", "5", "--seed", "2")


def test_a_line_begins_after_a_line_end_and_a_poem_after_a_blank_line(generate, monkeypatch):
    lengths = []
    start = LanguageModel.start

    def read(model, source):
        lengths.append(len(source))  # of what is read before the last line end
        return start(model, source)

    monkeypatch.setattr(LanguageModel, "start", read)
    assert generate("--lines", "2")[0] == generate("--couplets", "1")[0] == 0
    assert lengths == [0, 1]


def test_the_prompt_begins_the_text(generate):
    _, output, _ = generate("--lines", "3", "--prompt", "دل\nمی ر", "--longest-line", "5")
    lines = [line for line in output.split("\n") if line]
    assert len(lines) == 3
    assert lines[0] == "دل"
    assert lines[1].startswith("می ر")


def test_couplets_have_a_tab_between_their_halves_in_a_pipe(generate):
    _, output, _ = generate("--couplets", "6", "--longest-line", "8", "--count", "2")
    lines = [line for line in output.split("\n") if line]
    assert len(lines) == 12
    assert all(len(line.split("\t")) == 2 and min(map(len, line.split("\t"))) > 0 for line in lines)


def test_a_terminal_gets_lines_from_right_to_left_and_no_controls(
    generate, checkpoints, monkeypatch
):
    arguments = ("--couplets", "4", "--longest-line", "9", "--prompt", "دل\x1b")
    piped = generate(*arguments)[1]
    assert piped.startswith("دل\x1b")
    shown = []
    for columns in ("100", "20"):
        monkeypatch.setenv("COLUMNS", columns)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Terminal())
            common = ["generate", "--ckpt", checkpoints["character"], "--seed", "1"]
            assert main([*common, *arguments]) == 0
            shown.append(sys.stdout.getvalue())
    wide, narrow = ([line for line in text.split("\n") if line] for text in shown)
    assert len(wide) == 4
    assert len(narrow) == 8
    assert wide[0].startswith(f"{RLI}دل\\x1b")
    assert narrow[0].startswith(f"{RLI}دل\\x1b")
    assert all("\x1b" not in line for line in (*wide, *narrow))
    plain = [line.replace("\x1b", r"\x1b") for line in piped.split("\n") if line]
    for line, halves in zip(wide, plain, strict=True):
        one, two = halves.split("\t")
        assert line.strip(RLI + PDI).split() == f"{one} {two}".split()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lines", "0"], "lines of 1 or more, got 0"),
        (["--lines", "2", "--count", "0"], "count of 1 or more, got 0"),
        (["--lines", "2", "--longest-line", "0"], "longest of 1 or more, got 0"),
        (["--lines", "2", "--prompt", "دل\n\nمی\nر"], "the prompt has 2 lines, there is none left"),
        (["--longest-line", "5"], "--longest-line needs --lines or --couplets"),
    ],
)
def test_what_makes_no_sense_is_told(arguments, expected, generate):
    status, output, errors = generate(*arguments)
    assert (status, output) == (1, "")
    assert expected in errors


def test_only_one_measure_of_the_text_is_given(generate, capsys):
    assert main(["generate", "--ckpt", "x", "--lines", "2", "--couplets", "2"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


RARE = "a b c d e f g h i j k l m n o p"


@pytest.mark.parametrize(
    "how", [[], ["--temperature", "0"], ["--top-k", "3"], ["--lines", "4", "--longest-line", "20"]]
)
def test_unknown_words_are_read_and_not_written(how, tmp_path, capsys, monkeypatch):
    checkpoint = make_checkpoint(tmp_path, "word", f"the cat <unk> sees <unk>\n{RARE}\n" * 3, RARE)
    # A model that would say <unk> wherever it may.
    step = LanguageModel.step
    unknown = Writer.from_checkpoint(checkpoint).vocabulary.index("<unk>")

    def eager(model, tokens, state):
        log_probabilities, state = step(model, tokens, state)
        log_probabilities[:, unknown] += 9
        return log_probabilities, state

    monkeypatch.setattr(LanguageModel, "step", eager)
    arguments = ["generate", "--ckpt", checkpoint, "--seed", "1", "--prompt", "zebra", *how]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("<unk>") > 5
    assert main([*arguments, "--no-unk"]) == 0
    shown = capsys.readouterr()
    assert shown.out.split().index("<unk>") == 0
    assert shown.out.count("<unk>") == 1
    assert shown.err == "read as <unk>: zebra\n"
