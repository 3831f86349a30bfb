"""How the forms that a fold plan measured compare, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import DASH, TIMES, clean_name, number
from dprp_tf.report.loading import records
from dprp_tf.report.tables.cells import Cell, Column, Table, ratio_cell, without_empty_columns
from dprp_tf.report.tables.fold_plan import form_text

__all__ = ["measured_forms_table"]


def measured_forms_table(plan: Mapping[str, Any]) -> Table:
    """Lay out the ratio of every form to the dense one, layer by layer, the chosen one marked.

    Args:
        plan: Content of `plan.json`.

    Returns:
        The table, a column for each form; without rows where no layer holds candidates.

    Raises:
        ValueError: If a part of `plan` isn't of its kind.

    Example:

    >>> table = measured_forms_table({"layers": [{"name": "conv", "form": "summed", "candidates": [
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
        by_form = _candidate_of_each_form(layer)
        cells = [_candidate_cell(by_form.get(form, {}), form, layer) for form in forms]
        rows.append([Cell(clean_name(layer.get("name", DASH))), *cells])
    headings = [Column(form_text(form).capitalize(), numeric=True) for form in forms]
    return without_empty_columns("Forms measured", [Column("Layer"), *headings], rows)


def _candidate_of_each_form(layer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of one form at several ranks the chosen stands for all, else the fastest."""
    by_form: dict[str, dict[str, Any]] = {}
    for entry in sorted(records(layer, "candidates"), key=_ratio_of, reverse=True):
        form = str(entry.get("form"))
        if not _is_chosen(by_form.get(form, {}), layer):
            by_form[form] = entry
    return by_form


def _candidate_cell(entry: Mapping[str, Any], form: str, layer: Mapping[str, Any]) -> Cell:
    cell = ratio_cell(*(entry.get(key) for key in ("ratio", "low", "high")))
    if form == "dense" and number(entry.get("ratio")) == 1:
        cell = Cell(f"1{TIMES}")
    if _is_chosen(entry, layer):
        # What was chosen is marked, so that colour alone doesn't have to say it.
        return Cell(f"✓ {cell.text}", cell.note, "better")
    return Cell(cell.text, cell.note)


def _is_chosen(candidate: Mapping[str, Any], layer: Mapping[str, Any]) -> bool:
    same_form = candidate.get("form") is not None and candidate.get("form") == layer.get("form")
    return same_form and candidate.get("ranks", layer.get("ranks")) == layer.get("ranks")


def _ratio_of(candidate: Mapping[str, Any]) -> float:
    ratio = number(candidate.get("ratio"))
    return math.inf if math.isnan(ratio) else ratio
