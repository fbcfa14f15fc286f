"""Layers for programs that ask `isinstance(layer, torch.nn.LSTM)`: see `rnnkit.nn.compat`."""

from rnnkit.nn.compat import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN"]
