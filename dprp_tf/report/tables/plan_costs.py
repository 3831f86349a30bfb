"""What a plan is predicted to cost, each cost with its change from the dense model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.report.formatting import count_text, number
from dprp_tf.report.tables.cells import Cell, less_is_better_cell

__all__ = ["plan_cost_figures"]

_COSTS = {
    "parameters": "Parameters",
    "macs": "MACs",
    "activations": "Activations",
    "milliseconds": "Time, in the table's unit",
}


def plan_cost_figures(
    cost: Mapping[str, float], dense: Mapping[str, float]
) -> list[tuple[str, Cell]]:
    """Name what a plan is predicted to cost, each with the change from dense.

    Args:
        cost: Cost by metric of the model cut as planned.
        dense: Cost of the dense model, likewise.

    Returns:
        Heading and cell of each cost that is known.

    Example:

    >>> plan_cost_figures({"parameters": 96.0}, {"parameters": 296.0})
    [('Parameters', Cell(text='96', note='−68 %', tone='better'))]
    """
    return [
        (title, less_is_better_cell(cost[name], dense.get(name), _cost_text))
        for name, title in _COSTS.items()
        if name in cost
    ]


def _cost_text(value: Any) -> str:
    return count_text(value) if number(value) >= 100 else f"{value:.4g}"
