"""A picture of chosen channels: how many of each group are kept, and what is lost with the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.costs.budget import bounds_text
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.report.axes import percent_ticks, style_axes
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, count_text
from dprp_tf.report.pictures import save_picture
from dprp_tf.report.theme import FONT_SIZE, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = [
    "describe_channel_plan",
    "draw_channel_plan",
    "plot_channel_plan",
    "save_channel_plan_plot",
]

_NAME_LIMIT = 30
_TALLEST = 40.0


def plot_channel_plan(plan: ChannelPlan, theme: str = "light") -> Figure:
    """Draw the channels that each group keeps over all that it has, and what is lost.

    Args:
        plan: What `select_channels` returned.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with two panels.

    Raises:
        NothingToPlotError: If the plan has no groups.
        ValueError: If `theme` is unknown.

    Example:

    >>> from dprp_tf.costs.channel_plan import PlannedChannels
    >>> group = PlannedChannels("a", 8, 6, 0.1, {"a": (0, 5)})
    >>> plan = ChannelPlan("l1", 2, {"macs": 0.8}, (group,), {"macs": 75.0}, {"macs": 100.0})
    >>> [axes.get_xlabel() for axes in plot_channel_plan(plan).axes]
    ['Channels kept, % of the group', 'Lost, %']
    """
    colours = theme_named(theme)
    rows = plan.groups
    if not rows:
        raise NothingToPlotError("`plan` holds no group.")
    figure = new_figure(9.6, min(1.6 + 0.27 * len(rows), _TALLEST), colours)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    asked = bounds_text(plan.budget, plan.unit)
    title = f"{plan.method}, multiples of {plan.multiple}" + (f", asked: {asked}" if asked else "")
    style_axes(left, colours, title, x="Channels kept, % of the group", grid="x")
    style_axes(right, colours, " ", x="Lost, %", grid="x")
    for place, row in enumerate(rows):
        left.barh(place, 1.0, height=0.66, color=colours.before)
        left.barh(place, row.kept / row.size, height=0.66, color=colours.dprp)
        left.annotate(
            f"{row.kept} of {row.size}",
            xy=(1.0, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT_SIZE - 1,
            color=colours.muted,
        )
        right.barh(place, row.lost, height=0.66, color=colours.muted)
    names = [clean_name(row.name, _NAME_LIMIT) for row in rows]
    left.set_yticks(range(len(rows)), names, parse_math=False)
    left.set(xlim=(0, 1.25), ylim=(len(rows) - 0.4, -0.6))
    percent_ticks(left.xaxis)
    left.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    right.set_xlim(0, 1.08 * max(max(row.lost for row in rows), 0.01))
    percent_ticks(right.xaxis)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0, labelcolor=colours.text)
        axes.spines["left"].set_visible(False)
    right.tick_params(axis="y", labelleft=False)
    return figure


def save_channel_plan_plot(plan: ChannelPlan, path: str | os.PathLike[str]) -> Path:
    """Write the picture of a plan as PNG at 150 dots per inch, whole or not at all.

    Args:
        plan: What `select_channels` returned.
        path: The file, such as `channel_plan.png`.

    Returns:
        The path.
    """
    return save_picture(plot_channel_plan(plan), path)


def draw_channel_plan(values: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw a plan from the content of its file, as `plot_channel_plan` does.

    Args:
        values: Content of `channel_plan.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Raises:
        NothingToPlotError: If the plan has no groups.
        ValueError: If it isn't a channel plan, or `theme` is unknown.
    """
    return plot_channel_plan(ChannelPlan.from_dict(values), theme)


def describe_channel_plan(values: Mapping[str, Any]) -> str:
    """Say in words what the picture of a plan shows.

    Args:
        values: Content of `channel_plan.json`.
    """
    plan = ChannelPlan.from_dict(values)
    narrowed = sum(row.kept < row.size for row in plan.groups)
    size, kept = (sum(getattr(row, name) for row in plan.groups) for name in ("size", "kept"))
    return (
        f"{narrowed} of {len(plan.groups)} groups lose channels; channels from "
        f"{count_text(size)} to {count_text(kept)}."
    )
