"""Every step of a search for the best file, in the order in which they were done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import DASH, clean_name, duration_text, number
from dprp_tf.report.loading import mapping, records
from dprp_tf.report.tables.cells import Cell, Column, Table, accuracy_cell, without_empty_columns

__all__ = ["search_table"]

_COLUMNS = (
    Column("Step", numeric=True),
    Column(
        "Stage",
        note="Cut is without training; tuned after a little; finished as a file, quantized after "
        "more training with int8 rounding; narrow is an evenly narrower network from scratch.",
    ),
    Column("Candidate"),
    Column("From", numeric=True, note="From is the cut that was trained."),
    Column(
        "Accuracy",
        numeric=True,
        note="Accuracies are those on the validation samples, of cuts on some of them, beside the "
        "model's as it was given.",
    ),
    Column("Time", numeric=True),
    Column(
        "Bytes",
        numeric=True,
        note="Time and bytes are shares of the dense file's, predicted until a file was measured.",
    ),
    Column("Epochs", numeric=True),
    Column("Took", numeric=True),
)


def search_table(results: Mapping[str, Any]) -> Table:
    """Lay out the steps of a search for the best file.

    Args:
        results: Content of `results.json`.

    Returns:
        The table; without rows where the run was no such search.

    Raises:
        ValueError: If `search` isn't a list of objects.

    Example:

    >>> table = search_table({"search": [{"number": 0, "stage": "cut", "label": "ranks, 0.50",
    ...     "state": "complete", "score": 0.8, "time": 0.5, "size": 0.4}]})
    >>> [cell.text for cell in table.rows[0]]
    ['0', 'cut', 'ranks, 0.50', '80.00 %', '0.50', '0.40']
    """
    dense = mapping(results, "wish").get("dense_score")
    rows = [_row(step, dense) for step in records(results, "search")]
    return without_empty_columns("Search", _COLUMNS, rows)


def _row(step: Mapping[str, Any], dense: Any) -> tuple[Cell, ...]:
    label = clean_name(step.get("label") or "")
    if step.get("state") == "missed":
        label += ": no such cut" if step.get("stage") == "cut" else ": came to nothing"
    elif step.get("state") != "complete":
        label += f": {clean_name(step.get('state') or 'unknown')}"
    if step.get("goes_on"):
        label += ", gone on with"
    score = step.get("score")
    return (
        Cell(_count(step.get("number"))),
        Cell(clean_name(step.get("stage") or "")),
        Cell(label),
        Cell(_count(step.get("of"))),
        Cell(DASH) if score is None else accuracy_cell(score, dense),
        Cell(_share(step.get("time"))),
        Cell(_share(step.get("size"))),
        Cell(_count(step.get("epochs"))),
        Cell(DASH if step.get("seconds") is None else duration_text(step["seconds"])),
    )


def _share(value: Any) -> str:
    found = number(value)
    return DASH if math.isnan(found) else f"{found:.2f}"


def _count(value: Any) -> str:
    found = number(value)
    return DASH if math.isnan(found) else f"{found:g}"
