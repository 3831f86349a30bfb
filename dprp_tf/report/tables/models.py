"""Accuracy and cost of every model of a run beside the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import DASH, clean_name, count_text
from dprp_tf.report.loading import records
from dprp_tf.report.tables.cells import (
    Cell,
    Column,
    Table,
    accuracy_cell,
    less_is_better_cell,
    without_empty_columns,
)

__all__ = ["BASELINE", "baseline_first", "model_label", "models_table"]

BASELINE = "dense"


def models_table(results: Mapping[str, Any]) -> Table:
    """Lay out accuracy, parameters and MACs of every model beside the dense baseline.

    Args:
        results: Content of `results.json`.

    Returns:
        The table, the baseline first; columns that no model fills are left out.

    Raises:
        ValueError: If `models` isn't a list of objects.

    Example:

    >>> table = models_table({"models": [{"name": "dense", "parameters": 100},
    ...                                  {"name": "dprp", "parameters": 59}]})
    >>> table.rows[1][1]
    Cell(text='59', note='−41 %', tone='better')
    """
    models = baseline_first(records(results, "models"), "name")
    baseline = models[0] if models else {}
    columns = [
        Column("Model"),
        Column("Accuracy", numeric=True),
        Column("Parameters", numeric=True),
        Column("MACs", numeric=True),
        Column("Parameters while training", numeric=True),
    ]
    rows = []
    for model in models:
        reference = {} if model is baseline else baseline
        rows.append(
            [
                Cell(model_label(model)),
                accuracy_cell(model.get("accuracy"), reference.get("accuracy")),
                less_is_better_cell(
                    model.get("parameters"), reference.get("parameters"), count_text
                ),
                less_is_better_cell(model.get("macs"), reference.get("macs"), count_text),
                Cell(count_text(model.get("trained_parameters"))),
            ]
        )
    return without_empty_columns("Models", columns, rows)


def baseline_first(items: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return `items` with the dense ones in front, else in their order."""
    return sorted(items, key=lambda item: item.get(key) != BASELINE)


def model_label(model: Mapping[str, Any]) -> str:
    """Return what to call a model: its label, else its name with the usual capitals."""
    name = clean_name(model.get("name", DASH))
    return clean_name(model.get("label") or {"dense": "Dense", "dprp": "DPRP"}.get(name, name))
