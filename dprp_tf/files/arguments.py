"""Checks of arguments that many functions share: one meaning of integer, one grammar of refusal.

NumPy's numbers count as numbers; truth values do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, TypeGuard

__all__ = ["check_choice", "check_integer", "check_number", "is_finite_number", "is_integer"]


def is_integer(value: Any, minimum: int = 1) -> TypeGuard[int]:
    """Tell whether a value is an integer of a certain size.

    Args:
        value: Anything.
        minimum: The least that it may be. Defaults to 1.

    Returns:
        True for Python's and NumPy's integers that are large enough.

    Example:

    >>> is_integer(3), is_integer(0), is_integer(3.0), is_integer(True)
    (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= minimum


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a number that a float can hold.

    Args:
        value: Anything.

    Returns:
        True for Python's and NumPy's numbers that are neither NaN nor infinite as a float.

    Example:

    >>> is_finite_number(0.5), is_finite_number(float("nan")), is_finite_number(10**400)
    (True, False, False)
    """
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_integer(name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """Refuse what is not an integer of a range.

    Args:
        name: What a user calls the argument.
        value: What the user gave.
        minimum: The least that it may be. Defaults to 1.
        maximum: The most that it may be. Defaults to no limit.

    Returns:
        The value as Python's `int`, which JSON and configurations take.

    Raises:
        ValueError: If it is none; the message names the argument, the range and the value.

    Example:

    >>> check_integer("port", 22, 1, 65535)
    22
    >>> check_integer("epochs", 2.5)
    Traceback (most recent call last):
      ...
    ValueError: `epochs` must be an integer of 1 or more. Received: epochs=2.5
    """
    if is_integer(value, minimum) and (maximum is None or value <= maximum):
        return int(value)
    extent = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
    raise ValueError(f"`{name}` must be an integer of {extent}. Received: {name}={value!r}")


def check_number(
    name: str,
    value: Any,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Refuse what is not a finite number of a range.

    Args:
        name: What a user calls the argument.
        value: What the user gave.
        minimum: The least that it may be. Defaults to no limit.
        maximum: The most that it may be. Defaults to no limit.
        above: What it must exceed. Defaults to no limit.
        below: What it must stay below. Defaults to no limit.

    Returns:
        The value as Python's `float`.

    Raises:
        ValueError: If it is none; the message names the argument, the range and the value.

    Example:

    >>> check_number("share", 0.5, above=0, maximum=1)
    0.5
    >>> check_number("share", 1.5, above=0, maximum=1)
    Traceback (most recent call last):
      ...
    ValueError: `share` must be a finite number above 0 and at most 1. Received: share=1.5
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        found = float(value) if number else math.nan
    except OverflowError:
        found = math.nan  # an integer beyond what a float holds
    if (
        math.isfinite(found)
        and (minimum is None or found >= minimum)
        and (maximum is None or found <= maximum)
        and (above is None or found > above)
        and (below is None or found < below)
    ):
        return found
    limits = {"at least": minimum, "above": above, "at most": maximum, "below": below}
    extent = " and ".join(f"{word} {edge}" for word, edge in limits.items() if edge is not None)
    raise ValueError(f"`{name}` must be a finite number {extent}. Received: {name}={value!r}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse what is not one of a few values.

    Args:
        name: What a user calls the argument.
        value: What the user gave.
        choices: The values.

    Raises:
        ValueError: If it is none of them; the message names the argument, them and the value.

    Example:

    >>> check_choice("padding", "full", ("valid", "same"))
    Traceback (most recent call last):
      ...
    ValueError: `padding` must be one of ('valid', 'same'). Received: padding='full'
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {tuple(choices)}. Received: {name}={value!r}")
