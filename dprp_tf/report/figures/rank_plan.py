"""A picture of chosen ranks: how much of each layer is kept, and what it weighs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.costs.budget import bounds_text
from dprp_tf.costs.rank_plan import PlannedRanks, RankPlan
from dprp_tf.report.axes import percent_ticks, short_count_ticks, style_axes, title_legend
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, count_text
from dprp_tf.report.pictures import save_picture
from dprp_tf.report.theme import FONT_SIZE, Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["describe_rank_plan", "draw_rank_plan", "plot_rank_plan", "save_rank_plan_plot"]

_NAME_LIMIT = 30
_TALLEST = 40.0


def plot_rank_plan(plan: RankPlan, theme: str = "light") -> Figure:
    """Draw each layer's rank as a share of its full rank, and its weights dense and folded.

    For Tucker-2 the two shares stand one above the other. Layers that stay dense are named so.

    Args:
        plan: What `select_ranks` returned.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with two panels.

    Raises:
        NothingToPlotError: If the plan has no layers.
        ValueError: If `theme` is unknown.

    Example:

    >>> from dprp_tf.selection import PlannedRanks, RankPlan
    >>> row = PlannedRanks("a", "channel", (3, 3, 4, 8), (8,), (2,), 0.1, 88, 288)
    >>> plan = RankPlan("energy", "channel", "kernel", {}, (row,), {"parameters": 96.0},
    ...     {"parameters": 296.0})
    >>> [axes.get_xlabel() for axes in plot_rank_plan(plan).axes]
    ['Rank, % of the full rank', 'Kernel weights']
    """
    colours = theme_named(theme)
    rows = plan.layers
    if not rows:
        raise NothingToPlotError("`plan` holds no layer.")
    figure = new_figure(9.6, min(1.6 + 0.27 * len(rows), _TALLEST), colours)
    left = figure.add_subplot(1, 2, 1)
    right = figure.add_subplot(1, 2, 2, sharey=left)
    asked = bounds_text(plan.budget, plan.unit)
    title = f"{plan.method}, {plan.decomposition}" + (f", asked: {asked}" if asked else "")
    style_axes(left, colours, title, x="Rank, % of the full rank", grid="x")
    style_axes(right, colours, " ", x="Kernel weights", grid="x")
    for place, row in enumerate(rows):
        _draw_shares(left, place, row, colours)
        _draw_weights(right, place, row, colours)
    names = [clean_name(row.name, _NAME_LIMIT) for row in rows]
    left.set_yticks(range(len(rows)), names, parse_math=False)
    left.set(xlim=(0, 1.35), ylim=(len(rows) - 0.4, -0.6))
    percent_ticks(left.xaxis)
    left.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    short_count_ticks(right.xaxis)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0, labelcolor=colours.text)
        axes.spines["left"].set_visible(False)
    right.tick_params(axis="y", labelleft=False)
    title_legend(right, *right.get_legend_handles_labels(), colours)
    return figure


def save_rank_plan_plot(plan: RankPlan, path: str | os.PathLike[str]) -> Path:
    """Write the picture of a plan as PNG at 150 dots per inch, whole or not at all.

    Args:
        plan: What `select_ranks` returned.
        path: The file, such as `rank_plan.png`.

    Returns:
        The path.
    """
    return save_picture(plot_rank_plan(plan), path)


def draw_rank_plan(values: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw a plan from the content of its file, as `plot_rank_plan` does.

    Args:
        values: Content of `rank_plan.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Raises:
        NothingToPlotError: If the plan has no layers.
        ValueError: If it isn't a rank plan, or `theme` is unknown.
    """
    return plot_rank_plan(RankPlan.from_dict(values), theme)


def describe_rank_plan(values: Mapping[str, Any]) -> str:
    """Say in words what the picture of a plan shows.

    Args:
        values: Content of `rank_plan.json`.
    """
    plan = RankPlan.from_dict(values)
    dense, chosen = (
        sum(getattr(row, name) for row in plan.layers)
        for name in ("dense_parameters", "parameters")
    )
    return (
        f"{len(plan.ranks)} of {len(plan.layers)} layers are cut; kernel weights from "
        f"{count_text(dense)} to {count_text(chosen)}."
    )


def _draw_shares(axes: Axes, place: int, row: PlannedRanks, colours: Theme) -> None:
    """Draw a bar for each rank of the layer, and say the ranks behind them."""
    shares, said, colour = [1.0], "dense", colours.before
    if row.ranks is not None:
        shares = [rank / full for rank, full in zip(row.ranks, row.full_ranks, strict=True)]
        said = f"{', '.join(map(str, row.ranks))} of {' x '.join(map(str, row.full_ranks))}"
        colour = colours.dprp
    height = 0.72 / len(shares)
    for index, share in enumerate(shares):
        middle = place + (index - (len(shares) - 1) / 2) * height
        axes.barh(middle, share, height=0.92 * height, color=colour)
    axes.annotate(
        said,
        xy=(max(shares), place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=FONT_SIZE - 1,
        color=colours.muted,
    )


def _draw_weights(axes: Axes, place: int, row: PlannedRanks, colours: Theme) -> None:
    for shift, weights, colour, label in (
        (-0.19, row.dense_parameters, colours.before, "Dense"),
        (0.19, row.parameters, colours.dprp, "Chosen"),
    ):
        # The legend names each colour once.
        label = label if place == 0 else ""
        axes.barh(place + shift, weights, height=0.36, color=colour, label=label)
