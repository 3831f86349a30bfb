"""The headline of a run: whether it achieved what it was meant to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dprp_tf.report.formatting import clean_name
from dprp_tf.report.loading import mapping, records

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """What the run was meant to show, and whether it did.

    Args:
        achieved: True or False; `None` where the run recorded no verdict.
        text: One or two sentences that say so.
        checks: Name, passed and detail of each check.

    Example:

    >>> Verdict(None, "No verdict.", ()).achieved is None
    True
    """

    achieved: bool | None
    text: str
    checks: tuple[tuple[str, bool, str], ...]


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Read the headline of a run; one failed check is enough to withhold it.

    Args:
        results: Content of `results.json`.

    Returns:
        The verdict; `achieved` is `None` where the run recorded none.

    Raises:
        ValueError: If the headline isn't an object.

    Example:

    >>> verdict({"headline": {"achieved": False, "text": "Slower than dense."}}).text
    'Slower than dense.'
    """
    headline = mapping(results, "headline")
    checks = tuple(
        (
            clean_name(c.get("name", "check")),
            c.get("passed") is True,
            clean_name(c.get("detail", "")),
        )
        for c in records(headline, "checks")
    )
    if "achieved" not in headline:
        return Verdict(None, "This run recorded no verdict.", checks)
    failed = sum(not passed for _, passed, _ in checks)
    claimed = headline["achieved"] is True
    text = clean_name(headline.get("text") or "")
    if claimed and failed:
        text = f"{failed} of {len(checks)} checks failed, so the goal counts as missed. {text}"
    elif not text:
        text = "Every check passed." if claimed else "At least one goal of this run was missed."
    return Verdict(claimed and not failed, text.strip(), checks)
