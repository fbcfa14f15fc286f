r"""Encoder and decoder with attention: read a sequence, write another.

    h_1..h_S = encoder(x_1..x_S)         s_0 = bridge(last states)

    inside the recurrence (Bahdanau et al. 2015, arXiv 1409.0473):
        c_t = attend(s_{t−1}, h)         s_t = cell([y_{t−1}; c_t], s_{t−1})
    after it (Luong et al. 2015, arXiv 1508.04025), o_{t−1} only with input feeding:
        s_t = cell([y_{t−1}; o_{t−1}], s_{t−1})         c_t = attend(s_t, h)
    none (Cho et al. 2014, arXiv 1406.1078), c the encoder's last state:
        s_t = cell([y_{t−1}; c], s_{t−1})               c_t = c

    o_t = tanh(W [s_t; c_t; y_{t−1}])

Inside, or with input feeding, the target takes a step at a time; else its steps run in one call.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rnnkit.nn.attention import AdditiveAttention, Attention, DotAttention, GeneralAttention
from rnnkit.nn.connections import ConnectionName, NormName
from rnnkit.nn.recurrent import GRU, LSTM, RNN
from rnnkit.nn.stack import Stack

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
CellName = Literal["lstm", "gru", "rnn"]
AttentionName = Literal["additive", "general", "dot", "none"]
BridgeName = Literal["tanh", "last", "zero"]


class Encoded(NamedTuple):
    """What an encoder made of a batch.

    Attributes:
        memory: Outputs (B, S, C), both directions side by side.
        mask: Which of them are real, bool (B, S).
        last: Last states, h and for an LSTM c, each (layers, B, C).
    """

    memory: Tensor
    mask: Tensor
    last: tuple[Tensor, ...]


class Encoder(nn.Module):
    """Embedding and recurrent layers over a padded source.

    Args:
        vocabulary_size: V.
        embedding_size: Width of a token's vector.
        hidden_size: H of one direction.
        num_layers: Recurrent layers.
        cell: lstm, gru or rnn.
        bidirectional: Read in both directions; C = 2H, else H.
        dropout: On the vectors and between the layers.
        padding: Id whose vector is zero, and gets no gradient from here.
        connection: What goes around the layers, see `rnnkit.nn.Stack`.
        norm: Of what each layer reads, see there.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: CellName = "gru",
        bidirectional: bool = True,
        dropout: float = 0.0,
        padding: int = 0,
        connection: ConnectionName = "plain",
        norm: NormName | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=padding)
        self.dropout = nn.Dropout(dropout)
        self.num_layers = num_layers
        self.rnn = Stack(
            CELLS[cell],
            embedding_size,
            [hidden_size] * num_layers,
            connection,
            norm,
            bidirectional=bidirectional,
            dropout=dropout,
        ).simplified()
        self.output_size = hidden_size * (1 + bidirectional)

    def forward(self, source: Tensor, lengths: Tensor) -> Encoded:
        """Read a batch.

        Args:
            source: Token ids, int64 (S, B), padded.
            lengths: int64 (B,), at least 1 each.
        """
        output, last = self.rnn(self.dropout(self.embedding(source)), lengths=lengths)  # (S, B, C)
        states = last if isinstance(last, tuple) else (last,)
        shape = (self.num_layers, -1)
        sides = [state.unflatten(0, shape) for state in states]  # (layers, directions, B, H)
        joined = tuple(side.transpose(1, 2).flatten(2) for side in sides)
        steps = torch.arange(len(source), device=source.device)
        mask = steps < lengths.to(source.device).unsqueeze(1)
        return Encoded(output.transpose(0, 1).contiguous(), mask, joined)


class Bridge(nn.Module):
    """The decoder's first states from the encoder's last.

    Args:
        kind: tanh: tanh(W h), a W for every layer and state; last: as they are, of the same sizes;
            zero: zeros.
        states: Kinds of state: 2 for an LSTM, else 1.
        from_layers: Of the encoder.
        from_size: C.
        to_layers: Of the decoder; those above the encoder's last start from that.
        to_size: H of the decoder.

    Raises:
        ValueError: "last" with other sizes.
    """

    def __init__(
        self,
        kind: BridgeName,
        states: int,
        from_layers: int,
        from_size: int,
        to_layers: int,
        to_size: int,
    ) -> None:
        super().__init__()
        if kind not in ("tanh", "last", "zero"):
            raise ValueError(f"expected bridge tanh, last or zero, got {kind!r}")
        if kind == "last" and (from_layers, from_size) != (to_layers, to_size):
            raise ValueError(
                f"bridge last needs states of one shape, got {from_layers} layers of {from_size} "
                f"in the encoder (both directions together) and {to_layers} of {to_size} in the "
                "decoder: use tanh, or make them equal"
            )
        self.kind = kind
        self.states = states
        self.shape = (to_layers, to_size)
        self.sources = [min(layer, from_layers - 1) for layer in range(to_layers)]
        count = states * to_layers if kind == "tanh" else 0
        self.linear = nn.ModuleList([nn.Linear(from_size, to_size) for _ in range(count)])

    def forward(self, last: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """States (B, layers, H) from states (layers, B, C)."""
        if self.kind == "last":
            return tuple(state.transpose(0, 1) for state in last)
        if self.kind == "zero":
            layers, size = self.shape
            return tuple(state.new_zeros(state.shape[1], layers, size) for state in last)
        made = iter(self.linear)
        return tuple(
            torch.stack([torch.tanh(next(made)(state[layer])) for layer in self.sources], 1)
            for state in last
        )


class DecoderState(NamedTuple):
    """All that the next step needs; every tensor has the batch first.

    Attributes:
        hidden: h and for an LSTM c, each (B, layers, H).
        memory: Of the encoder (B, S, C); without attention its last output (B, C).
        keys: Of the attention (B, S, ·), or None.
        mask: bool (B, S).
        feed: The last o (B, E) with input feeding, else None.
        attention: Weights of the last step (B, S), or None.
    """

    hidden: tuple[Tensor, ...]
    memory: Tensor
    keys: Tensor | None
    mask: Tensor
    feed: Tensor | None
    attention: Tensor | None


class Decoder(nn.Module):
    """Embedding, recurrent layers and attention over a target.

    Args:
        vocabulary_size: V.
        embedding_size: E, width of a token's vector and of o.
        hidden_size: H.
        memory_size: C of the encoder.
        num_layers: Recurrent layers.
        cell: lstm, gru or rnn.
        attention: Its score, or none.
        inside: Whether the context enters the recurrence; else it comes after.
        input_feeding: Whether o enters the next step, with attention after the recurrence.
        dropout: On the vectors, between the layers and on o.
        padding: Id whose vector is zero, and gets no gradient from here.

    Raises:
        ValueError: Options that exclude each other.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        memory_size: int,
        num_layers: int = 1,
        cell: CellName = "gru",
        attention: AttentionName = "additive",
        inside: bool = True,
        input_feeding: bool = False,
        dropout: float = 0.0,
        padding: int = 0,
    ) -> None:
        super().__init__()
        if input_feeding and (inside or attention == "none"):
            raise ValueError(
                "input_feeding goes with attention after the recurrence: inside, the context "
                "enters it already"
            )
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=padding)
        self.dropout = nn.Dropout(dropout)
        self.attention: Attention | None = None
        if attention == "additive":
            self.attention = AdditiveAttention(hidden_size, memory_size, hidden_size)
        elif attention == "general":
            self.attention = GeneralAttention(hidden_size, memory_size)
        elif attention == "dot":
            self.attention = DotAttention(hidden_size, memory_size)
        elif attention != "none":
            raise ValueError(
                f"expected attention additive (also Luong's concat), general, dot or none, got "
                f"{attention!r}"
            )
        self.inside = inside or attention == "none"
        self.input_feeding = input_feeding
        entering = memory_size if self.inside else embedding_size * input_feeding
        self.rnn = CELLS[cell](
            embedding_size + entering,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.output = nn.Linear(hidden_size + memory_size + embedding_size, embedding_size)

    @property
    def step_by_step(self) -> bool:
        """Whether a step needs the one before beyond its recurrent state."""
        return self.input_feeding or (self.attention is not None and self.inside)

    def start(self, encoded: Encoded, hidden: tuple[Tensor, ...]) -> DecoderState:
        """State before the first step.

        Args:
            encoded: The source.
            hidden: Of the bridge.
        """
        feed = attention = None
        memory, keys = encoded.last[0][-1], None  # (B, C)
        if self.attention is not None:
            memory, keys = encoded.memory, self.attention.keys(encoded.memory)
            attention = memory.new_zeros(encoded.mask.shape)
        if self.input_feeding:
            feed = memory.new_zeros(len(memory), self.output.out_features)
        return DecoderState(hidden, memory, keys, encoded.mask, feed, attention)

    def whole(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """All steps of a target in one call, where `step_by_step` is False.

        Args:
            tokens: Ids that the steps read, int64 (T, B).
            state: Of `start`.

        Returns:
            o, floating point (T, B, E).
        """
        vectors = self.dropout(self.embedding(tokens))  # (T, B, E)
        context = None if self.attention is not None else state.memory.expand(len(tokens), -1, -1)
        input = vectors if context is None else torch.cat([vectors, context], -1)
        states, _ = self._recur(input, state.hidden)  # (T, B, H)
        if context is None:
            context = self._attend(states, state)[0]
        return self._output(states, context, vectors)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One step.

        Args:
            tokens: Ids, int64 (B,).
            state: Of `start` or the step before.

        Returns:
            o, floating point (B, E), and the state after it.
        """
        vectors = self.dropout(self.embedding(tokens)).unsqueeze(0)  # (1, B, E)
        s, context, state = self.advance(vectors, state)
        output = self._output(s, context, vectors).squeeze(0)
        return output, state._replace(feed=output if self.input_feeding else None)

    def advance(self, vectors: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, DecoderState]:
        """The recurrence and the attention of one step, without o.

        Args:
            vectors: Of the tokens that are read (1, B, E).
            state: Of `start` or the step before.

        Returns:
            s (1, B, H), context (1, B, C), and the state after the step but for `feed`.
        """
        weights, input = None, vectors
        context = state.memory.unsqueeze(0)
        if self.attention is not None and self.inside:
            context, weights = self._attend(state.hidden[0][:, -1].unsqueeze(0), state)
        if self.inside:
            input = torch.cat([vectors, context], -1)
        elif state.feed is not None:
            input = torch.cat([vectors, state.feed.unsqueeze(0)], -1)
        s, hidden = self._recur(input, state.hidden)
        if self.attention is not None and not self.inside:
            context, weights = self._attend(s, state)
        weights = None if weights is None else weights.squeeze(1)
        return s, context, state._replace(hidden=hidden, attention=weights)

    def forced(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """o (T, B, E) of all steps that read the given tokens (T, B), by the shortest way."""
        if not self.step_by_step:
            return self.whole(tokens, state)
        if self.input_feeding:
            outputs = []
            for step in tokens:
                output, state = self.step(step, state)
                outputs.append(output)
            return torch.stack(outputs)
        vectors = self.dropout(self.embedding(tokens))
        states, contexts = [], []
        for step in vectors.split(1):
            s, context, state = self.advance(step, state)
            states.append(s)
            contexts.append(context)
        # One product for all steps: nothing in the loop needs o.
        return self._output(torch.cat(states), torch.cat(contexts), vectors)

    def _recur(
        self, input: Tensor, hidden: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layers over (T, B, ·), their states kept with the batch first."""
        first = tuple(state.transpose(0, 1).contiguous() for state in hidden)
        output, last = self.rnn(input, first if len(first) > 1 else first[0])
        states = last if isinstance(last, tuple) else (last,)
        return output, tuple(state.transpose(0, 1) for state in states)

    def _attend(self, states: Tensor, state: DecoderState) -> tuple[Tensor, Tensor]:
        """Contexts (T, B, C) of states (T, B, H), and weights (B, T, S)."""
        assert self.attention is not None
        assert state.keys is not None
        found = self.attention(states.transpose(0, 1), state.keys, state.memory, state.mask)
        return found[0].transpose(0, 1), found[1]

    def _output(self, s: Tensor, context: Tensor, vectors: Tensor) -> Tensor:
        output = torch.tanh(self.output(torch.cat([s, context, vectors], -1)))
        return self.dropout(output)  # type: ignore[no-any-return]
