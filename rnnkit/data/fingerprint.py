"""Whether the data are still those that a run was reading when it was stopped.

A run reads its files once, when it begins. One that goes on in the middle of an epoch reads them
again, and with others in their place it would train on some examples twice and on some never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def fingerprint(examples: Iterable[object]) -> str:
    """SHA-256, in hex, of examples: of memory as it is, of other plain data their repr."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example if isinstance(example, memoryview) else repr(example).encode())
    return digest.hexdigest()


def check_fingerprint(position: int, state_dict: Mapping[str, Any], actual: str | None) -> None:
    """Refuse to go on within an epoch of other data.

    Args:
        position: Where a loader stood in its epoch.
        state_dict: Of that loader; `fingerprint` is that of its data, where it is known.
        actual: That of the data now; None: unknown.

    Raises:
        ValueError: The fingerprints differ.
    """
    saved = state_dict.get("fingerprint")
    if position and None not in (saved, actual) and saved != actual:
        raise ValueError(
            f"the training data have changed since the checkpoint was saved within an epoch, "
            f"before batch {position} (SHA-256 {str(saved)[:12]} then, {str(actual)[:12]} now): "
            "bring them back, or use a checkpoint of an epoch's end"
        )
