"""What a layer may be built with: types and ranges of the constructors' arguments.

Exceptions are of the type that torch.nn raises where it has the argument.
"""

import numbers

Zoneout = float | tuple[float, float]


def check_flag(name: str, value: object) -> None:
    """Refuse what is no bool with a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_size(name: str, value: object) -> None:
    """Refuse what is no integer with a TypeError, and one below 1 with a ValueError."""
    if not isinstance(value, int):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be greater than zero, got {value}")


def check_dropout(value: object) -> float:
    """`dropout` as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it lies outside [0, 1]; as in torch also a bool or a string.
    """
    if not isinstance(value, numbers.Real | str):
        raise TypeError(f"dropout should be a number, got: {type(value).__name__}")
    if isinstance(value, bool | str) or not 0 <= float(value) <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            f"element being zeroed, got {value!r}"
        )
    return float(value)


def check_projection(proj_size: int, hidden_size: int) -> None:
    """Refuse a projection that is negative or not smaller than what it projects."""
    if proj_size < 0:
        raise ValueError(
            "proj_size should be a positive integer or zero to disable projections, "
            f"got {proj_size}"
        )
    if proj_size >= hidden_size:
        raise ValueError(
            f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}"
        )


def check_probability(name: str, value: object, event: str) -> float:
    """A probability as a float.

    Args:
        name: of the argument.
        value: what was given.
        event: what it is the probability of, for the message.

    Raises:
        TypeError: it is no number.
        ValueError: it lies outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} should be a number, got: {type(value).__name__}")
    if not 0 <= float(value) <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1], the probability of {event}, got {value!r}"
        )
    return float(value)


def check_zoneout(value: object, states: int, proj_size: int) -> Zoneout:
    """`zoneout` as a float, or as a pair of them where they differ.

    Args:
        value: what was given: a number, or a pair for a layer of two states.
        states: 2 for a layer with (h, c), else 1.
        proj_size: size of the projected h, or 0.

    Raises:
        TypeError: it is neither a number nor, with two states, a pair of numbers.
        ValueError: a probability lies outside [0, 1], or h is projected.
    """
    event = "a unit to keep its state"
    pair: tuple[float, ...]
    if isinstance(value, tuple | list):
        if len(value) != states or states == 1:
            expected = "a number or a pair (h, c)" if states > 1 else "one number"
            raise TypeError(
                f"zoneout should be {expected}, got: {type(value).__name__} of {len(value)}"
            )
        pair = tuple(
            check_probability(f"zoneout of {state}", share, event)
            for state, share in zip(("h", "c"), value, strict=True)
        )
    else:
        pair = (check_probability("zoneout", value, event),) * 2
    if any(pair) and proj_size > 0:
        raise ValueError(
            "zoneout and proj_size exclude each other: zoneout keeps units of the cell's h, a "
            f"projection hands on another vector; got zoneout={value} and proj_size={proj_size}"
        )
    return pair[0] if pair[0] == pair[1] else (pair[0], pair[1])
