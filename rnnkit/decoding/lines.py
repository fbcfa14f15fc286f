"""Text by the line: how many, how long, and whether two make a couplet.

The form is kept by what a model may write next, so any search or sampler of this package keeps it:
a token that the form forbids has the log-probability -inf. Another token, the end of the text, is
added behind the vocabulary's V and becomes the only one possible when the lines are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkit.decoding.steps import StepModel, check_at_least_one


class _State(NamedTuple):
    """The model's state, and for each of B texts what decides about its next token.

    All int64 (B,): tokens of the line so far, lines finished, and those since a blank line.
    """

    model: Any
    length: Tensor
    lines: Tensor
    stanza: Tensor


@dataclass(frozen=True)
class LinesOf:
    """A language model that writes a number of lines and then ends the text.

    A blank line only separates: it does not count, the text does not begin with one, and no two
    follow each other. Lines of the source count, and so does the one that it breaks off in.

    Args:
        model: Its state is that after the tokens it has read, its log-probabilities are (B, V).
        line_end: Id of the token that ends a line.
        vocabulary_size: V, which is also the id of the token that ends the text.
        lines: Lines of the text.
        longest: Most tokens of a line without its end, which is then the only one possible.
        paired: Let a blank line follow an even number of lines only: every poem has whole couplets.

    Raises:
        ValueError: A number is below 1, or an odd number of lines is to be paired.

    Example:
        >>> class Dice:
        ...     def start(self, source):
        ...         return None
        ...     def step(self, tokens, state):
        ...         return torch.tensor([[0.2, 0.5, 0.3]]).log().expand(len(tokens), 3), state
        >>> form = LinesOf(Dice(), line_end=0, vocabulary_size=3, lines=2, longest=1)
        >>> from rnnkit.decoding import GreedySearch
        >>> begin = torch.tensor([0])
        >>> GreedySearch()(form, begin.new_zeros(0, 1), begin, end=form.text_end)[0][0].tokens
        [1, 0, 1, 0, 3]
    """

    model: StepModel
    line_end: int
    vocabulary_size: int
    lines: int
    longest: int
    paired: bool = False

    def __post_init__(self) -> None:
        check_at_least_one("lines", self.lines)
        check_at_least_one("longest", self.longest)
        if self.paired and self.lines % 2:
            raise ValueError(f"expected an even number of lines for couplets, got {self.lines}")

    @property
    def text_end(self) -> int:
        """Id of the token that ends the text."""
        return self.vocabulary_size

    @property
    def max_length(self) -> int:
        """Most tokens of a text: every line as long as it may be, each followed by a blank one."""
        return self.lines * (self.longest + 2) + 1

    def start(self, source: Tensor) -> _State:
        """State after reading a text.

        Args:
            source: Token ids, int64 (T, B), a line's end first.
        """
        zeros = source.new_zeros(source.shape[1])
        state = _State(None, zeros, zeros, zeros)
        for tokens in source:
            state = self._after(tokens, state)
        return state._replace(model=self.model.start(source))

    def step(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        """One step of decoding.

        Args:
            tokens: Token ids, int64 (B,).
            state: From `start` or the step before.

        Returns:
            Log-probabilities of the next token (B, V + 1), not normalised over those that the
            form allows, and the state after this one.
        """
        log_probabilities, model_state = self.model.step(tokens, state.model)
        state = self._after(tokens, state)._replace(model=model_state)
        at_start = state.length == 0
        may_part = state.stanza > 0
        if self.paired:
            may_part &= state.stanza % 2 == 0
        finished = (state.lines >= self.lines) & at_start
        ends = log_probabilities[:, self.line_end].masked_fill(at_start & ~may_part, -torch.inf)
        full = (state.length >= self.longest) | finished
        log_probabilities = log_probabilities.masked_fill(full.unsqueeze(-1), -torch.inf)
        log_probabilities[:, self.line_end] = ends.masked_fill(finished, -torch.inf)
        text_ends = torch.zeros_like(ends).masked_fill(~finished, -torch.inf)
        return torch.cat([log_probabilities, text_ends.unsqueeze(-1)], dim=-1), state

    def _after(self, tokens: Tensor, state: _State) -> _State:
        ends = tokens == self.line_end
        written = ends & (state.length > 0)
        blank = ends & (state.length == 0)
        return _State(
            state.model,
            torch.where(ends, 0, state.length + 1),
            state.lines + written,
            torch.where(blank, 0, state.stanza + written),
        )
