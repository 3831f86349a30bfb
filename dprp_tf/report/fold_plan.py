"""Which form a fold plan chose for each layer, why, and what it was measured against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dprp_tf.report.cells import (
    Cell,
    Column,
    ComparisonTable,
    less_is_better_cell,
    ratio_cell,
    without_empty_columns,
)
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
from dprp_tf.report.loading import mapping, records

__all__ = ["candidates_table", "plan_figures", "plan_notes", "plan_table"]


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


def plan_table(plan: Mapping[str, Any]) -> ComparisonTable:
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
                Cell(_form(layer.get("form"))),
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


def candidates_table(plan: Mapping[str, Any]) -> ComparisonTable:
    """Lay out the ratio of every form to the dense one, layer by layer, the chosen one marked.

    Args:
        plan: Content of `plan.json`.

    Returns:
        The table, a column for each form; without rows where no layer holds candidates.

    Raises:
        ValueError: If a part of `plan` isn't of its kind.

    Example:

    >>> table = candidates_table({"layers": [{"name": "conv", "form": "summed", "candidates": [
    ...     {"form": "dense", "ratio": 1.0}, {"form": "summed", "ratio": 0.6}]}]})
    >>> [cell.text for cell in table.rows[0]]
    ['conv', '1×', '✓ 0.60×']
    """
    layers = [layer for layer in records(plan, "layers") if layer.get("candidates")]
    forms = dict.fromkeys(
        str(candidate.get("form")) for layer in layers for candidate in records(layer, "candidates")
    )
    rows = []
    for layer in layers:
        by_form: dict[str, dict[str, Any]] = {}
        # Of one form at several ranks the chosen stands for all, else the fastest.
        for entry in sorted(records(layer, "candidates"), key=_ratio_of, reverse=True):
            kept = by_form.get(str(entry.get("form")), {})
            if not _is_chosen(kept, layer):
                by_form[str(entry.get("form"))] = entry
        cells = [Cell(clean_name(layer.get("name", DASH)))]
        for form in forms:
            entry = by_form.get(form, {})
            cell = ratio_cell(*(entry.get(key) for key in ("ratio", "low", "high")))
            if form == "dense" and number(entry.get("ratio")) == 1:
                cell = Cell(f"1{TIMES}")
            if _is_chosen(entry, layer):
                # What was chosen is marked, so that colour alone doesn't have to say it.
                cell = Cell(f"✓ {cell.text}", cell.note, "better")
            else:
                cell = Cell(cell.text, cell.note)
            cells.append(cell)
        rows.append(cells)
    columns = [Column("Layer"), *(Column(_form(form).capitalize(), numeric=True) for form in forms)]
    return without_empty_columns("Forms measured", columns, rows)


def plan_notes(plan: Mapping[str, Any]) -> list[str]:
    """Return what the planner has to say, such as why it kept every layer dense."""
    notes = plan.get("notes") or []
    return [clean_name(note) for note in ([notes] if isinstance(notes, str) else notes)]


def _is_chosen(candidate: Mapping[str, Any], layer: Mapping[str, Any]) -> bool:
    same_form = candidate.get("form") is not None and candidate.get("form") == layer.get("form")
    return same_form and candidate.get("ranks", layer.get("ranks")) == layer.get("ranks")


def _missed_by(predicted: Any, measured: Any) -> str:
    note = change_text(predicted, measured)
    if not note or note.startswith("±"):
        return note and "as measured"
    side = "below" if note.startswith(MINUS) else "above"
    return f"{note[1:]} {side} measured"


def _quotient(value: Any, baseline: Any) -> Cell:
    quotient = number(value) / number(baseline) if number(baseline) else math.nan
    return Cell(ratio_text(quotient))


def _ratio_of(candidate: Mapping[str, Any]) -> float:
    ratio = number(candidate.get("ratio"))
    return math.inf if math.isnan(ratio) else ratio


def _unit(plan: Mapping[str, Any]) -> str:
    return str(plan.get("unit") or "ms")


def _form(form: Any) -> str:
    return clean_name(form or DASH).replace("_", " ")


def _ranks(ranks: Any) -> str:
    if ranks is None:
        return DASH
    if isinstance(ranks, Mapping):
        return ", ".join(f"{clean_name(key)} {_ranks(value)}" for key, value in ranks.items())
    if isinstance(ranks, list | tuple):
        return f" {TIMES} ".join(_ranks(value) for value in ranks) or DASH
    return clean_name(ranks)
