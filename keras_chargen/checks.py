"""Argument checks: one line that names the argument and what it accepts."""

import math
from numbers import Integral, Real


def check_integer(name, value, minimum=None):
    """Returns `value` as an int; `ValueError` names what was wrong."""
    bound = "an integer" if minimum is None else f"an integer >= {minimum}"
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or (minimum is not None and value < minimum)
    ):
        raise ValueError(f"`{name}` must be {bound}. Received: {value!r}")
    return int(value)


def check_number(name, value, low=-math.inf, high=math.inf):
    """Returns `value` as a finite float in `[low, high]`."""
    bound = ""
    if low > -math.inf:
        bound = f" >= {low}" if high == math.inf else f" from {low} to {high}"
    number = _as_float(value)
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(
            f"`{name}` must be a finite number{bound}. Received: {value!r}"
        )
    return number


def check_share(name, value):
    """Returns `value` as a float from 0 on and below 1."""
    if value == 1:
        raise ValueError(f"`{name}` must be below 1. Received: {value!r}")
    return check_number(name, value, 0, 1)


def check_positive(name, value, high=math.inf):
    """Returns `value` as a finite float above 0 and at most `high`."""
    if _as_float(value) == 0:
        raise ValueError(f"`{name}` must be above 0. Received: {value!r}")
    return check_number(name, value, 0, high)


def _as_float(value):
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # Integers have no upper end, floats do.
        return math.inf


def check_choice(name, value, choices):
    """Returns `value` when it is one of `choices`."""
    if value not in choices:
        accepted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"`{name}` must be one of {accepted}. Received: {value!r}"
        )
    return value
