"""How long each step of a run took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import clean_name, duration_text, number
from dprp_tf.report.loading import mapping
from dprp_tf.report.tables.cells import Cell, Column, Table

__all__ = ["timing_table"]


def timing_table(results: Mapping[str, Any]) -> Table:
    """Lay out the wall-clock time of every step beside the longest.

    Args:
        results: Content of `results.json`.

    Returns:
        The table; without rows where the run recorded no times.

    Raises:
        ValueError: If `timing` isn't an object.

    Example:

    >>> table = timing_table({"timing": {"training": 40.0, "export": 10.0}})
    >>> table.rows[1][1].text, table.rows[1][1].share
    ('10.0 s', 0.25)
    """
    timing = mapping(results, "timing")
    longest = max((s for s in map(number, timing.values()) if s > 0), default=0.0)
    rows = []
    for label, value in timing.items():
        seconds = number(value)
        share = seconds / longest if longest and seconds >= 0 else None
        rows.append((Cell(clean_name(label)), Cell(duration_text(seconds), share=share)))
    columns = (Column("Step"), Column("Wall-clock time", numeric=True))
    return Table("Timing", columns, tuple(rows))
