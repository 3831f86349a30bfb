"""Cells and tables that the terminal, Markdown and the page lay out each in their way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dprp_tf.report.formatting import (
    DASH,
    MINUS,
    change_text,
    milliseconds_text,
    number,
    percent_text,
    points_text,
    ratio_text,
)

__all__ = [
    "Cell",
    "Column",
    "Table",
    "accuracy_cell",
    "latency_cell",
    "less_is_better_cell",
    "ratio_cell",
    "without_empty_columns",
]


@dataclass(frozen=True)
class Cell:
    """One figure and, where there is a baseline, its change.

    Args:
        text: The figure.
        note: The change from the baseline, such as `"−41 %"`. Defaults to none.
        tone: `"better"`, `"worse"` or `""` for neither. Defaults to `""`.
        share: What the page draws as a bar behind the figure, in [0, 1]. Defaults to no bar.

    Example:

    >>> Cell("412 kB", note="−41 %", tone="better").note
    '−41 %'
    """

    text: str
    note: str = ""
    tone: str = ""
    share: float | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Column:
    """A heading, and how its cells are shown.

    Args:
        title: The heading.
        numeric: Whether the cells are aligned to the right. Defaults to False.
        code: Whether they name things of the model. Defaults to False.
        note: What a reader must know of the column, in a sentence. Defaults to nothing.

    Example:

    >>> Column("Size", numeric=True).numeric
    True
    """

    title: str
    numeric: bool = False
    code: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells.

    Args:
        title: What the table is about.
        columns: A heading for each cell of a row.
        rows: The cells, row by row.
        starts: The rows where a new group begins. Defaults to one group of all rows.
        total: A last row: its heading, then the cells of the last columns. Defaults to none.

    Example:

    >>> Table("Models", (Column("Model"),), ((Cell("Dense"),),)).groups
    [((Cell(text='Dense', note='', tone=''),),)]
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    starts: tuple[int, ...] = ()
    total: tuple[Cell, ...] = ()

    @property
    def groups(self) -> list[tuple[tuple[Cell, ...], ...]]:
        """The rows of each group."""
        bounds = itertools.pairwise([*(self.starts or (0,)), len(self.rows)])
        return [self.rows[start:end] for start, end in bounds]

    @property
    def note(self) -> str:
        """What a reader must know of the columns."""
        return " ".join(column.note for column in self.columns if column.note)


def accuracy_cell(accuracy: Any, baseline: Any = None) -> Cell:
    """Show an accuracy and how many points it lies from the baseline's.

    Example:

    >>> accuracy_cell(0.98, 0.983)
    Cell(text='98.00 %', note='−0.30 pt', tone='worse')
    """
    note = points_text(accuracy, baseline)
    # Judged as printed: a difference that shows as ±0.00 pt is neither better nor worse.
    tone = "better" if note.startswith("+") else "worse" if note.startswith(MINUS) else ""
    return Cell(percent_text(accuracy), note, tone)


def less_is_better_cell(value: Any, baseline: Any, text: Callable[[Any], str]) -> Cell:
    """Show a cost, written by `text`, and its relative change from the baseline's.

    Example:

    >>> from dprp_tf.report.formatting import size_text
    >>> less_is_better_cell(590, 1000, size_text)
    Cell(text='590 B', note='−41 %', tone='better')
    """
    note = change_text(value, baseline)
    tone = "better" if note.startswith(MINUS) else "worse" if note.startswith("+") else ""
    return Cell(text(value), note, tone)


def latency_cell(median: Any, low: Any = None, high: Any = None) -> Cell:
    """Show a latency in milliseconds and the percentiles around it.

    Example:

    >>> latency_cell(0.412, 0.4, 0.445)
    Cell(text='0.412 ms', note='0.400 to 0.445 ms', tone='')
    """
    known = not (math.isnan(number(low)) or math.isnan(number(high)))
    spread = f"{milliseconds_text(low).removesuffix(' ms')} to {milliseconds_text(high)}"
    return Cell(milliseconds_text(median), spread if known else "")


def ratio_cell(ratio: Any, low: Any = None, high: Any = None) -> Cell:
    """Show a ratio of costs; better or worse only where the whole interval says so.

    Example:

    >>> ratio_cell(0.63, 0.6, 0.66), ratio_cell(0.98, 0.95, 1.02).tone
    (Cell(text='0.63×', note='[0.60, 0.66]', tone='better'), '')
    """
    value, least, most = number(ratio), number(low), number(high)
    if math.isnan(value):
        return Cell(DASH)
    text, _, interval = ratio_text(value, [least, most]).partition(" ")
    if not interval:
        least = most = value
    return Cell(text, interval, "better" if most < 1 else "worse" if least > 1 else "")


def without_empty_columns(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    starts: Sequence[int] = (),
) -> Table:
    """Build a table of the first column and those where any row has more than a dash.

    Example:

    >>> table = without_empty_columns("A", [Column("B"), Column("C")], [[Cell("b"), Cell("–")]])
    >>> [column.title for column in table.columns]
    ['B']
    """
    kept = [
        index
        for index in range(len(columns))
        if index == 0 or any(row[index] != Cell(DASH) for row in rows)
    ]
    return Table(
        title,
        tuple(columns[index] for index in kept),
        tuple(tuple(row[index] for index in kept) for row in rows),
        tuple(starts),
    )
