"""JSON as its standard has it: it knows neither NaN nor infinities, written or read."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

__all__ = ["from_json", "to_json"]


def to_json(value: Any, indent: int | None = None) -> str:
    """Write a value as JSON that any program reads: NaN and infinities become `null`.

    Args:
        value: Anything `json` can write.
        indent: Spaces per level, 0 or more. Defaults to one line.

    Returns:
        The text, without a newline at its end.

    Raises:
        TypeError: If `value` holds something JSON has no form for.

    Example:

    >>> to_json({"loss": 0.5, "val_loss": float("nan")})
    '{"loss": 0.5, "val_loss": null}'
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_with_gaps(value), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """Read JSON, and refuse what other programs would not read or would read as something else.

    Args:
        text: The text.

    Returns:
        The value, whose numbers are finite.

    Raises:
        ValueError: If it is no JSON, holds NaN or a number beyond what a float holds, or is nested
            too deeply.

    Example:

    >>> from_json('{"rank": 3}')
    {'rank': 3}
    >>> from_json('{"rank": NaN}')
    Traceback (most recent call last):
      ...
    ValueError: it holds NaN, which is no JSON
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _with_gaps(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_gaps(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_gaps(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"it holds {digits[:40]}, which is beyond what a float holds")
    return value
