"""The rank of every layer before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dprp_tf.report.axes import integer_ticks, style_axes, title_legend
from dprp_tf.report.epochs import epochs_of_ranks, layer_names
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, count_text, number
from dprp_tf.report.loading import mapping
from dprp_tf.report.theme import FONT_SIZE, Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_ranks_by_layer", "plot_ranks_by_layer"]

_NAME_LIMIT = 26
_LAYERS_PER_COLUMN = 30
# name, initial and final rank; NaN where a rank is not known
_Row = tuple[str, float, float]


def plot_ranks_by_layer(ranks: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw the initial and the final rank of every layer as paired bars.

    Args:
        ranks: Content of `ranks.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with one panel, or several beside each other from 31 layers up.

    Raises:
        NothingToPlotError: If there is no layer with a rank.
        ValueError: If `theme` is unknown.

    Source: the figure of ranks by layer in the DPRP paper (Fig. 5).

    Example:

    >>> figure = plot_ranks_by_layer({"layers": ["conv"], "epochs": [
    ...     {"epoch": 0, "ranks": {"conv": 9}}, {"epoch": 1, "ranks": {"conv": 3}}]})
    >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
    [9.0, 3.0]
    """
    colours = theme_named(theme)
    rows = _rows(ranks)
    panels = math.ceil(len(rows) / _LAYERS_PER_COLUMN)
    per_panel = math.ceil(len(rows) / panels)
    figure = new_figure(8.4 if panels == 1 else 5.4 * panels, 1.35 + 0.3 * per_panel, colours)
    widest = max(rank for _, *pair in rows for rank in pair if not math.isnan(rank))
    top = None
    for panel in range(panels):
        axes = figure.add_subplot(1, panels, panel + 1, sharex=top)
        top = top or axes
        title = "Initial and final rank" if panel == 0 else " "
        style_axes(axes, colours, title, x="Rank", grid="x")
        _draw(axes, rows[panel * per_panel : (panel + 1) * per_panel], colours)
        # A short last panel keeps the bar height of the others.
        axes.set_ylim(per_panel - 0.4, -0.6)
        axes.set_xlim(0, widest * (1.22 if panels == 1 else 1.4) or 1)
        integer_ticks(axes.xaxis)
    epochs = epochs_of_ranks(ranks)[-1][0]
    after = f"After {epochs} epoch{'s' * (epochs != 1)}"
    handles, _ = axes.get_legend_handles_labels()
    title_legend(axes, handles, ["Before training", after], colours)
    return figure


def describe_ranks_by_layer(ranks: Mapping[str, Any]) -> str:
    """Say in words what `plot_ranks_by_layer` shows."""
    epochs = epochs_of_ranks(ranks)
    first, last = (count_text(epochs[place][1].get("total_rank")) for place in (0, -1))
    return (
        "Paired bars of the rank of each layer before training and after "
        f"{len(epochs) - 1} epochs; the total went from {first} to {last}."
    )


def _rows(ranks: Mapping[str, Any]) -> list[_Row]:
    entries = epochs_of_ranks(ranks)
    first, last = (mapping(entries[place][1], "ranks") for place in (0, -1))
    full = mapping(ranks, "full_ranks")
    rows = [
        (name, number(first.get(name, full.get(name))), number(last.get(name)))
        for name in layer_names(ranks, first or full)
    ]
    rows = [row for row in rows if not (math.isnan(row[1]) and math.isnan(row[2]))]
    if not rows:
        raise NothingToPlotError("`ranks` holds no layer with a rank.")
    return rows


def _draw(axes: Axes, rows: Sequence[_Row], colours: Theme) -> None:
    places = list(range(len(rows)))
    for shift, column, colour, label in (
        (-0.2, 1, colours.before, "Initial"),
        (0.2, 2, colours.dprp, "Final"),
    ):
        ranks = [float(row[column]) for row in rows]
        axes.barh(
            [place + shift for place in places],
            [0.0 if math.isnan(rank) else rank for rank in ranks],
            height=0.38,
            color=colour,
            label=label,
        )
    for place, (_, initial, final) in enumerate(rows):
        axes.annotate(
            f"{count_text(initial)} → {count_text(final)}",
            xy=(max(rank for rank in (initial, final, 0.0) if not math.isnan(rank)), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT_SIZE - 1,
            color=colours.muted,
            bbox={"facecolor": colours.background, "edgecolor": "none", "pad": 1},
        )
    axes.set_yticks(places, [clean_name(name, _NAME_LIMIT) for name, *_ in rows], parse_math=False)
    axes.tick_params(axis="y", length=0, labelcolor=colours.text)
    axes.spines["left"].set_visible(False)
