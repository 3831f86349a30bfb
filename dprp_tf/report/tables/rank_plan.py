"""Which ranks were chosen for each layer, for which budget, and what they are predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.costs.budget import bounds_text
from dprp_tf.costs.rank_plan import PlannedRanks, RankPlan
from dprp_tf.report.formatting import DASH, TIMES, clean_name, count_text, percent_text
from dprp_tf.report.tables.cells import Cell, Column, Table, less_is_better_cell
from dprp_tf.report.tables.plan_costs import plan_cost_figures

__all__ = ["rank_plan_about", "rank_plan_figures", "rank_plan_table"]

_COLUMNS = (
    Column("Layer", code=True),
    Column("Decomposition"),
    Column("Rank of full rank", numeric=True),
    Column("Energy lost", numeric=True),
    Column("Dense weights", numeric=True),
    Column("Chosen weights", numeric=True),
)


def rank_plan_about(plan: Mapping[str, Any]) -> str:
    """Say how the ranks were chosen, and what was asked for.

    Args:
        plan: Content of `rank_plan.json`.

    Raises:
        ValueError: If `plan` isn't a rank plan.

    Example:

    >>> row = PlannedRanks("a", "channel", (3, 3, 4, 8), (8,), (2,), 0.1, 88, 288)
    >>> plan = RankPlan("energy", "channel", "kernel", {"parameters": 0.4, "tolerance": 0.01},
    ...     (row,), {"parameters": 96.0}, {"parameters": 296.0})
    >>> rank_plan_about(plan.as_dict())
    'energy · channel · asked: parameters 0.4'
    """
    found = RankPlan.from_dict(plan)
    asked = bounds_text(found.budget, found.unit)
    said = (found.method, found.decomposition, f"asked: {asked}")
    return " · ".join(map(clean_name, said))


def rank_plan_figures(plan: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Name what the chosen ranks are predicted to cost, each with the change from dense.

    Args:
        plan: Content of `rank_plan.json`.

    Returns:
        Heading and cell of each cost that the plan holds.

    Raises:
        ValueError: If `plan` isn't a rank plan.

    Example:

    >>> row = PlannedRanks("a", "channel", (3, 3, 4, 8), (8,), (2,), 0.1, 88, 288)
    >>> plan = RankPlan("energy", "channel", "kernel", {"parameters": 0.4}, (row,),
    ...     {"parameters": 96.0}, {"parameters": 296.0})
    >>> rank_plan_figures(plan.as_dict())
    [('Parameters', Cell(text='96', note='−68 %', tone='better'))]
    """
    found = RankPlan.from_dict(plan)
    return plan_cost_figures(found.cost, found.dense)


def rank_plan_table(plan: Mapping[str, Any]) -> Table:
    """Lay out each layer's rank, the energy that is lost with it, and its weights.

    Args:
        plan: Content of `rank_plan.json`.

    Returns:
        The table; without rows for an empty plan.

    Raises:
        ValueError: If `plan` isn't a rank plan.

    Example:

    >>> row = PlannedRanks("a", "channel", (3, 3, 4, 8), (8,), (2,), 0.1, 88, 288)
    >>> plan = RankPlan("energy", "channel", "kernel", {}, (row,), {}, {})
    >>> [cell.text for cell in rank_plan_table(plan.as_dict()).rows[0]]
    ['a', 'channel', '2 of 8', '10.00 %', '288', '88']
    """
    layers = RankPlan.from_dict(plan).layers if plan else ()
    dense, chosen = (
        sum(getattr(row, name) for row in layers) for name in ("dense_parameters", "parameters")
    )
    total = (Cell("Together"), Cell(count_text(dense)), _weights(chosen, dense))
    return Table("Rank plan", _COLUMNS, tuple(map(_cells, layers)), total=total if layers else ())


def _cells(row: PlannedRanks) -> tuple[Cell, ...]:
    kept = row.ranks is None
    return (
        Cell(clean_name(row.name)),
        Cell("stays dense" if kept else row.decomposition),
        _rank_cell(row),
        Cell(DASH if kept else percent_text(row.lost)),
        Cell(count_text(row.dense_parameters)),
        _weights(row.parameters, row.dense_parameters),
    )


def _rank_cell(row: PlannedRanks) -> Cell:
    if row.ranks is None:
        return Cell(DASH)
    ranks, full = (f" {TIMES} ".join(map(str, of)) for of in (row.ranks, row.full_ranks))
    # A pair of Tucker ranks has no single bar.
    share = row.ranks[0] / row.full_ranks[0] if len(row.ranks) == 1 else None
    return Cell(f"{ranks} of {full}", share=share)


def _weights(chosen: int, dense: int) -> Cell:
    return less_is_better_cell(chosen, dense, count_text)
