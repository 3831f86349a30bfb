"""Numbers as people read them: counts, bytes, times, changes; a dash for what is not known."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "DASH",
    "MINUS",
    "TIMES",
    "change_text",
    "clean_name",
    "cost_text",
    "count_text",
    "duration_text",
    "error_text",
    "interval_ends",
    "milliseconds_text",
    "number",
    "percent_text",
    "points_text",
    "ratio_text",
    "score_text",
    "short_count_text",
    "size_text",
]

DASH = "\u2013"
MINUS = "\u2212"
TIMES = "\u00d7"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: Any) -> float:
    """Return `value` as a float, NaN for anything that is not a finite number.

    Example:

    >>> number(3), number(None), number(float("inf"))
    (3.0, nan, nan)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        result = float(value)
    except OverflowError:
        return math.nan
    return result if math.isfinite(result) else math.nan


def clean_name(value: Any, limit: int | None = None) -> str:
    """Return a name on one line, shortened in its middle to `limit` characters.

    Example:

    >>> clean_name("stage1_block2_conv1", limit=11)
    'stage…conv1'
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    if limit is None or len(text) <= limit:
        return text
    head = limit // 2
    return text[:head] + "…" + text[len(text) - (limit - head - 1) :]


def count_text(value: Any) -> str:
    """Return a whole number with thousands marked.

    Example:

    >>> count_text(272474)
    '272,474'
    """
    amount = number(value)
    return DASH if math.isnan(amount) else _signed(f"{amount:,.0f}")


def short_count_text(value: Any, unit: str = "") -> str:
    """Return a count with three digits and a decimal prefix.

    Example:

    >>> short_count_text(272474), short_count_text(40_560_000)
    ('272 k', '40.6 M')
    """
    amount = number(value)
    if math.isnan(amount):
        return DASH
    for step, prefix in _STEPS:
        # 999.5 and above would print as 1000 of the smaller prefix.
        if abs(amount) >= step * 0.9995:
            return _signed(f"{_three_digits(amount / step)} {prefix}{unit}")
    return _signed(f"{amount:.3g} {unit}".rstrip())


def size_text(value: Any) -> str:
    """Return a size in bytes with a decimal unit (1 kB = 1000 B).

    Example:

    >>> size_text(411_964)
    '412 kB'
    """
    return short_count_text(value, unit="B")


def percent_text(value: Any) -> str:
    """Return a fraction as a percentage with two decimals.

    Example:

    >>> percent_text(0.98333)
    '98.33 %'
    """
    amount = number(value)
    return DASH if math.isnan(amount) else _signed(f"{100 * amount:.2f} %")


def change_text(value: Any, baseline: Any) -> str:
    """Return the relative change from `baseline`; empty where either is unknown.

    Example:

    >>> change_text(59, 100), change_text(100.67, 100), change_text(5, 5)
    ('−41 %', '+0.67 %', '±0 %')
    """
    amount, reference = number(value), number(baseline)
    if math.isnan(amount) or math.isnan(reference) or reference == 0:
        return ""
    percent = 100 * (amount - reference) / reference
    if percent == 0:
        return "±0 %"
    size = abs(percent)
    digits = 0 if size >= 9.95 else 1 if size >= 0.995 else 1 - math.floor(math.log10(size))
    return _signed(f"{percent:+,.{min(digits, 6)}f} %")


def points_text(value: Any, baseline: Any) -> str:
    """Return the difference of two fractions in percentage points; empty where unknown.

    Example:

    >>> points_text(0.98, 0.983)
    '−0.30 pt'
    """
    difference = 100 * (number(value) - number(baseline))
    if math.isnan(difference):
        return ""
    text = f"{difference:+.2f}"
    return _signed(f"{'±0.00' if float(text) == 0 else text} pt")


def ratio_text(value: Any, interval: Any = None) -> str:
    """Return a ratio, with its interval where there is one.

    Example:

    >>> ratio_text(0.631), ratio_text(0.631, [0.6, 0.66])
    ('0.63×', '0.63× [0.60, 0.66]')
    """
    amount = number(value)
    if math.isnan(amount):
        return DASH
    digits = 3 if abs(amount) < 0.095 else 2
    text = f"{amount:.{digits}f}{TIMES}"
    low, high = interval_ends(interval)
    if math.isnan(low) or math.isnan(high):
        return text
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def interval_ends(interval: Any) -> tuple[float, float]:
    """Return both ends of a two-element interval, NaN where it is not one."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return math.nan, math.nan
    return number(interval[0]), number(interval[1])


def milliseconds_text(value: Any) -> str:
    """Return a time in milliseconds with three digits.

    Example:

    >>> milliseconds_text(0.41234), milliseconds_text(140.2)
    ('0.412 ms', '140 ms')
    """
    amount = number(value)
    return DASH if math.isnan(amount) else f"{_three_digits(amount)} ms"


def cost_text(value: Any, unit: str) -> str:
    """Return the cost of an inference: milliseconds, or a short count of instructions.

    Example:

    >>> cost_text(0.41234, "ms"), cost_text(12_345_678, "instructions")
    ('0.412 ms', '12.3 M')
    """
    return milliseconds_text(value) if unit == "ms" else short_count_text(value)


def duration_text(value: Any) -> str:
    """Return a time in seconds as people say it.

    Example:

    >>> duration_text(4.21), duration_text(83), duration_text(7500)
    ('4.2 s', '1 min 23 s', '2 h 5 min')
    """
    seconds = number(value)
    if math.isnan(seconds):
        return DASH
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def error_text(value: Any) -> str:
    """Return a small error with two digits.

    Example:

    >>> error_text(3.14e-7), error_text(0)
    ('3.1e−07', '0')
    """
    amount = number(value)
    if math.isnan(amount):
        return DASH
    return "0" if amount == 0 else _signed(f"{amount:.1e}")


def score_text(value: Any, unit: str = "") -> str:
    """Return a score with four digits and its unit.

    Example:

    >>> score_text(31.4159, "dB"), score_text(0.000123456), score_text(-2.5)
    ('31.42 dB', '0.0001235', '−2.5')
    """
    amount = number(value)
    return DASH if math.isnan(amount) else _signed(f"{amount:.4g} {unit}".rstrip())


def _three_digits(amount: float) -> str:
    if amount == 0:
        return "0"
    digits = _digits(amount)
    # 9.996 rounds to 10.0: count digits again on the rounded value.
    rounded = round(amount, digits)
    return f"{rounded:,.{_digits(rounded) if rounded else 0}f}"


def _digits(amount: float) -> int:
    return max(0, min(2 - math.floor(math.log10(abs(amount)) + 1e-12), 6))


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
