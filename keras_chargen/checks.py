"""Argument checks: one line that names the argument and what it accepts."""

import math
import sys
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


def check_number(name, value, low, high=math.inf):
    """Returns `value` as a finite float in `[low, high]`."""
    bound = f">= {low}" if high == math.inf else f"from {low} to {high}"
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not low <= value <= high
        # Integers have no upper end, floats do.
        or abs(value) > sys.float_info.max
    ):
        raise ValueError(
            f"`{name}` must be a finite number {bound}. Received: {value!r}"
        )
    return float(value)


def check_choice(name, value, choices):
    """Returns `value` when it is one of `choices`."""
    if value not in choices:
        accepted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"`{name}` must be one of {accepted}. Received: {value!r}"
        )
    return value
