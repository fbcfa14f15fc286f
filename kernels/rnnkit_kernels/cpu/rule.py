"""Where the native engine is faster than torch's own layers, by what was measured."""

IN_TORCH = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def faster(
    cell: str,
    steps: int,
    batch: int,
    hidden: int,
    trains: bool,
    ragged: bool,
    has_projections: bool = False,
) -> tuple[bool, str]:
    """Whether "auto" takes the engine, and why.

    Args:
        cell: a key of `CELLS` that torch has too.
        steps: T. batch: B. hidden: H.
        trains: whether a backward pass will follow.
        ragged: whether the sequences have several lengths.
        has_projections: whether h is projected.
    """
    if trains and steps == 1 and cell != "lstm":
        return False, "of a single step with its backward pass torch's own layers are faster"
    return True, "measured to be faster on a CPU"
