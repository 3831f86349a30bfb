"""Which channels go of each group, for which budget, and what is lost with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dprp_tf.costs.budget import bounds_text
from dprp_tf.costs.channel_plan import ChannelPlan, PlannedChannels
from dprp_tf.report.formatting import DASH, clean_name, count_text, percent_text
from dprp_tf.report.tables.cells import Cell, Column, Table, less_is_better_cell
from dprp_tf.report.tables.plan_costs import plan_cost_figures

__all__ = ["channel_plan_about", "channel_plan_figures", "channel_plan_table"]

_COLUMNS = (
    Column("Group", code=True),
    Column("Filters go from"),
    Column("Lost", numeric=True),
    Column("Channels", numeric=True),
    Column("Kept", numeric=True),
)


def channel_plan_about(plan: Mapping[str, Any]) -> str:
    """Say how the channels were chosen, and what was asked for.

    Args:
        plan: Content of `channel_plan.json`.

    Raises:
        ValueError: If `plan` isn't a channel plan.

    Example:

    >>> plan = ChannelPlan("l1", 8, {"macs": 0.5, "tolerance": 0.01}, (), {}, {})
    >>> channel_plan_about(plan.as_dict())
    'l1 · in multiples of 8 · asked: macs 0.5'
    """
    found = ChannelPlan.from_dict(plan)
    asked = bounds_text(found.budget, found.unit)
    said = (found.method, f"in multiples of {found.multiple}", f"asked: {asked}")
    return " · ".join(map(clean_name, said))


def channel_plan_figures(plan: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """Name what the narrower model is predicted to cost, each with the change from dense.

    Args:
        plan: Content of `channel_plan.json`.

    Returns:
        Heading and cell of each cost that the plan holds.

    Raises:
        ValueError: If `plan` isn't a channel plan.

    Example:

    >>> plan = ChannelPlan("l1", 8, {}, (), {"macs": 50.0}, {"macs": 100.0})
    >>> channel_plan_figures(plan.as_dict())
    [('MACs', Cell(text='50', note='−50 %', tone='better'))]
    """
    found = ChannelPlan.from_dict(plan)
    return plan_cost_figures(found.cost, found.dense)


def channel_plan_table(plan: Mapping[str, Any]) -> Table:
    """Lay out each group's channels, how many are kept, and what is lost with the others.

    Args:
        plan: Content of `channel_plan.json`; empty for a table without rows.

    Returns:
        The table.

    Raises:
        ValueError: If `plan` isn't a channel plan.

    Example:

    >>> group = PlannedChannels("a", 8, 6, 0.1, {"a": (0, 5)})
    >>> plan = ChannelPlan("l1", 2, {}, (group,), {}, {})
    >>> [cell.text for cell in channel_plan_table(plan.as_dict()).rows[0]]
    ['a', 'a', '10.00 %', '8', '6']
    """
    groups = ChannelPlan.from_dict(plan).groups if plan else ()
    size, kept = (sum(getattr(row, name) for row in groups) for name in ("size", "kept"))
    total = (Cell("Together"), Cell(count_text(size)), less_is_better_cell(kept, size, count_text))
    return Table(
        "Channel plan", _COLUMNS, tuple(map(_cells, groups)), total=total if groups else ()
    )


def _cells(row: PlannedChannels) -> tuple[Cell, ...]:
    whole = row.kept == row.size
    return (
        Cell(clean_name(row.name)),
        Cell(DASH if whole else ", ".join(map(clean_name, row.removed))),
        Cell(DASH if whole else percent_text(row.lost)),
        Cell(count_text(row.size)),
        less_is_better_cell(row.kept, row.size, count_text),
    )
