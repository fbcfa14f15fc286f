"""Lines of standard input: asked for where they are typed, read as they come where not."""

import argparse
import builtins
import io
import sys

import pytest

from rnnkit.training.lines import AT_ONCE, PROMPT, add_options, input_lines, lines_at_once


class Stream(io.StringIO):
    """A text stream that is a terminal or not."""

    def __init__(self, terminal, content=b""):
        super().__init__()
        self.terminal = terminal
        self.buffer = Bytes(terminal, content)

    def isatty(self):
        return self.terminal


class Bytes(io.BytesIO):
    def __init__(self, terminal, content):
        super().__init__(content)
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def typed(monkeypatch):
    """Lets somebody type lines; what input() was asked with, and what was told."""

    def type_(lines, end=EOFError, output=True):
        prompts, waiting = [], iter(lines)

        def answer(prompt=""):
            prompts.append(prompt)
            for line in waiting:
                return line
            raise end

        told = Stream(True)
        monkeypatch.setattr(builtins, "input", answer)
        monkeypatch.setattr(sys, "stdin", Stream(True))
        monkeypatch.setattr(sys, "stdout", Stream(output))
        monkeypatch.setattr(sys, "stderr", told)
        return prompts, told

    return type_


def arguments(*given):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(["--ckpt", "a", *given])


def test_typed_lines_are_asked_for_one_by_one_until_ctrl_d(typed):
    prompts, told = typed(["one", "", "two"])
    assert lines_at_once(arguments()) == 1
    assert list(input_lines(print)) == ["one", "", "two"]
    assert prompts == [PROMPT] * 4
    assert "Ctrl-D ends" in told.getvalue()
    assert told.getvalue().endswith("\n")  # the shell goes on in a line of its own


def test_ctrl_c_at_the_prompt_ends_the_line_on_the_screen(typed):
    _, told = typed(["one"], end=KeyboardInterrupt)
    lines = input_lines(print)
    assert next(lines) == "one"
    with pytest.raises(KeyboardInterrupt):
        next(lines)
    assert told.getvalue().endswith("Ctrl-D ends\n\n")


def test_the_prompt_is_no_part_of_an_output_in_a_file(typed):
    prompts, told = typed(["one"], output=False)
    assert list(input_lines(print)) == ["one"]
    assert set(prompts) == {""}
    assert sys.stdout.getvalue() == ""
    assert told.getvalue().count(PROMPT) == 2


def test_a_pipe_is_not_asked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Stream(False, b"one\ntwo"))
    assert lines_at_once(arguments()) == AT_ONCE
    assert lines_at_once(arguments("--batch-size", "3")) == 3
    assert list(input_lines(print)) == ["one", "two"]
    assert capsys.readouterr() == ("", "")
