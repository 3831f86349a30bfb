"""Which form a fold plan chose for each layer, what that costs, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import (
    DASH,
    MINUS,
    TIMES,
    change_text,
    clean_name,
    cost_text,
    number,
    ratio_text,
)
from dprp_tf.report.loading import mapping, records, texts
from dprp_tf.report.tables.cells import (
    Cell,
    Column,
    Table,
    less_is_better_cell,
    ratio_cell,
    without_empty_columns,
)

__all__ = ["form_text", "plan_figures", "plan_notes", "plan_table"]


def plan_figures(plan: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Name the plan's sums: dense, planned as predicted and as measured, and their ratio.

    Args:
        plan: Content of `plan.json`.

    Returns:
        Heading and cell of each figure that the plan holds.

    Raises:
        ValueError: If a part of `plan` isn't of its kind.

    Example:

    >>> plan_figures({"unit": "ms", "dense_cost": 2.0, "planned_cost_measured": 1.0})[1]
    ('Planned, measured', Cell(text='1.00 ms', note='−50 %', tone='better'))
    """
    unit, dense = _unit(plan), plan.get("dense_cost")
    predicted, measured = (plan.get(f"planned_cost_{kind}") for kind in ("predicted", "measured"))
    ratio = mapping(plan, "ratio")
    figures = [
        ("Dense, measured", Cell(cost_text(dense, unit))),
        ("Planned, measured", less_is_better_cell(measured, dense, lambda v: cost_text(v, unit))),
        ("Planned, predicted", Cell(cost_text(predicted, unit), _missed_by(predicted, measured))),
        ("Cost ratio", ratio_cell(*(ratio.get(key) for key in ("ratio", "low", "high")))),
        ("MAC ratio", _quotient(plan.get("planned_macs"), plan.get("dense_macs"))),
    ]
    return [(title, cell) for title, cell in figures if cell.text != DASH]


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Lay out the form of every layer, its cost beside the dense layer's, and the reason.

    Args:
        plan: Content of `plan.json`.

    Returns:
        The table; columns that no layer fills are left out.

    Raises:
        ValueError: If a part of `plan` isn't of its kind.

    Example:

    >>> plan_table({"layers": [{"name": "conv", "form": "dense", "ranks": [3]}]}).rows
    ((Cell(text='conv', note='', tone=''), Cell(text='dense', note='', tone=''), \
Cell(text='3', note='', tone='')),)
    """
    unit = _unit(plan)
    rows = []
    for layer in records(plan, "layers"):
        dense = layer.get("dense_cost")
        rows.append(
            [
                Cell(clean_name(layer.get("name", DASH))),
                Cell(form_text(layer.get("form"))),
                Cell(_ranks(layer.get("ranks"))),
                Cell(cost_text(dense, unit)),
                less_is_better_cell(layer.get("cost"), dense, lambda v: cost_text(v, unit)),
                Cell(clean_name(layer.get("reason") or DASH)),
            ]
        )
    columns = [
        Column("Layer"),
        Column("Form"),
        Column("Rank", numeric=True),
        Column("Dense", numeric=True),
        Column("Planned", numeric=True),
        Column("Reason"),
    ]
    return without_empty_columns("Fold plan", columns, rows)


def plan_notes(plan: Mapping[str, Any]) -> list[str]:
    """Return what the planner has to say, such as why it kept every layer dense."""
    return [clean_name(note) for note in texts(plan, "notes")]


def form_text(form: Any) -> str:
    """Return what to call the form of a layer."""
    return clean_name(form or DASH).replace("_", " ")


def _missed_by(predicted: Any, measured: Any) -> str:
    note = change_text(predicted, measured)
    if not note or note.startswith("±"):
        return note and "as measured"
    side = "below" if note.startswith(MINUS) else "above"
    return f"{note[1:]} {side} measured"


def _quotient(value: Any, baseline: Any) -> Cell:
    quotient = number(value) / number(baseline) if number(baseline) else math.nan
    return Cell(ratio_text(quotient))


def _unit(plan: Mapping[str, Any]) -> str:
    return str(plan.get("unit") or "ms")


def _ranks(ranks: Any) -> str:
    if ranks is None:
        return DASH
    if isinstance(ranks, Mapping):
        return ", ".join(f"{clean_name(key)} {_ranks(value)}" for key, value in ranks.items())
    if isinstance(ranks, list | tuple):
        return f" {TIMES} ".join(_ranks(value) for value in ranks) or DASH
    return clean_name(ranks)
