"""Text of files as a terminal may show it: names that anyone chose can't move the cursor."""

from __future__ import annotations

import unicodedata
from typing import Any

__all__ = ["shown"]

# They join letters, as Persian and some emoji need it, and do nothing else.
_JOINERS = "\u200c\u200d"


def shown(value: Any, lines: bool = False) -> str:
    r"""Return text without characters that a terminal obeys instead of showing them.

    Control characters (C0 and C1), marks of direction, separators of lines and halves of
    surrogates become their escapes, so that different names stay different.

    Args:
        value: Text, or what `str` makes text of.
        lines: Whether line ends stay, as in a text of several lines. Defaults to False.

    Returns:
        The text.

    Example:

    >>> print(shown("a\x1b[31m\u202eb\n"))
    a\x1b[31m\u202eb\n
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        letter if _harmless(letter) or (lines and letter == "\n") else _escape(letter)
        for letter in text
    )


def _harmless(letter: str) -> bool:
    return letter in _JOINERS or not unicodedata.category(letter).startswith(("C", "Zl", "Zp"))


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
