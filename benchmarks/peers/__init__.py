"""Who competes: one file a peer, each found at run time."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Protocol

from ..work import Prepared, Work


class Peer(Protocol):
    """Somebody's recurrent layer.

    Attributes:
        name: as it stands in tables.
    """

    name: str

    def absent(self, work: Work) -> str | None:
        """Why it can't run this work, or None if it can."""
        ...

    def prepare(self, work: Work, mode: str) -> Prepared:
        """Lay out the work; weights and inputs are copied here, outside the clock."""
        ...


def peers() -> dict[str, Peer]:
    """All peers by name, importable or not."""
    from . import flashrnn, loops, rnnkit_layers, torch_layers, torchrl

    found: list[Peer] = [
        *torch_layers.PEERS,
        *rnnkit_layers.PEERS,
        *flashrnn.PEERS,
        *torchrl.PEERS,
        *loops.PEERS,
    ]
    return {peer.name: peer for peer in found}


def select(patterns: list[str]) -> list[Peer]:
    """The peers whose names match any of the patterns, such as `rnnkit*`, in their order.

    Raises:
        ValueError: a pattern matches none.
    """
    known = peers()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(f"no peer is called {pattern!r}: choose from {', '.join(known)}")
    return [
        peer
        for name, peer in known.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
