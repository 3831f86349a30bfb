"""The singular values of up to three layers over the epochs, as heat maps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dprp_tf.report.axes import integer_ticks, style_axes, title_legend, value_ticks
from dprp_tf.report.epochs import epochs_of_ranks, layer_names
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, number
from dprp_tf.report.loading import mapping
from dprp_tf.report.theme import FONT_SIZE, Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_singular_values", "plot_singular_values"]

_NAME_LIMIT = 22
_Values = list[tuple[int, dict[str, Any]]]


def plot_singular_values(
    ranks: Mapping[str, Any], layers: Sequence[str] | None = None, theme: str = "light"
) -> Figure:
    """Draw the magnitude of singular values over the epochs as heat maps.

    Removed singular values are hatched, so a falling rank shows as a front moving left.

    Args:
        ranks: Content of `ranks.json`.
        layers: Names of one to three layers. Defaults to the first, the middle and the last one.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with one panel and one colour bar for each layer.

    Raises:
        NothingToPlotError: If there are no singular values.
        ValueError: If a layer is unknown or more than three are given.

    Source: the figure of singular values over epochs in the DPRP paper (Fig. 6).

    Example:

    >>> figure = plot_singular_values({"layers": ["conv"], "epochs": [
    ...     {"epoch": 0, "singular_values": {"conv": [2.0, 1.0]}},
    ...     {"epoch": 1, "singular_values": {"conv": [2.5]}}]})
    >>> figure.axes[0].collections[0].get_array().filled(-1).tolist()
    [[2.0, 1.0], [2.5, -1.0]]
    """
    colours = theme_named(theme)
    values = _values(ranks)
    chosen = _chosen(ranks, values, layers)
    figure = new_figure(3.9 * max(len(chosen), 1.4), 4.0, colours)
    for index, name in enumerate(chosen):
        axes = figure.add_subplot(1, len(chosen), index + 1)
        title = clean_name(name, _NAME_LIMIT)
        style_axes(axes, colours, title, x="Index of the singular value", grid=None)
        axes.set_ylabel("Epoch" if index == 0 else "", fontsize=FONT_SIZE, color=colours.muted)
        _draw(axes, values, name, colours)
    from matplotlib.patches import Patch

    removed = Patch(facecolor=colours.removed, edgecolor=colours.muted, hatch="////", linewidth=0)
    title_legend(axes, [removed], ["Removed"], colours)
    return figure


def describe_singular_values(ranks: Mapping[str, Any]) -> str:
    """Say in words what `plot_singular_values` shows."""
    epochs = len(epochs_of_ranks(ranks)) - 1
    return f"Heat maps of the singular values of up to three layers over {epochs} epochs."


def _values(ranks: Mapping[str, Any]) -> _Values:
    return [(epoch, mapping(entry, "singular_values")) for epoch, entry in epochs_of_ranks(ranks)]


def _chosen(ranks: Mapping[str, Any], values: _Values, layers: Sequence[str] | None) -> list[str]:
    """The layers asked for, else the first, the middle and the last that have singular values."""
    known = [
        name
        for name in layer_names(ranks, {key: None for _, part in values for key in part})
        if any(part.get(name) for _, part in values)
    ]
    if not known:
        raise NothingToPlotError("`ranks` holds no singular values.")
    if layers is None:
        return list(dict.fromkeys([known[0], known[len(known) // 2], known[-1]]))
    if not 1 <= len(layers) <= 3 or any(name not in known for name in layers):
        raise ValueError(
            f"`layers` must name one to three layers with singular values. Received: "
            f"layers={list(layers)}. Choose among {known}."
        )
    return list(layers)


def _draw(axes: Axes, values: _Values, name: str, colours: Theme) -> None:
    import numpy as np
    from matplotlib.ticker import FuncFormatter

    lists = [part.get(name) or [] for _, part in values]
    # (epochs, singular values), NaN where a singular value is removed or not finite
    grid = np.full((len(lists), max(len(row) for row in lists)), np.nan)
    for row, entry in enumerate(lists):
        grid[row, : len(entry)] = [abs(number(value)) for value in entry]
    axes.set_facecolor(colours.removed)
    axes.patch.set(hatch="////", edgecolor=colours.grid, linewidth=0)
    mesh = axes.pcolormesh(
        np.arange(grid.shape[1] + 1) + 0.5,
        _edges([epoch for epoch, _ in values]),
        np.ma.masked_invalid(grid),
        cmap="viridis",
        vmin=0,
        vmax=float(np.nanmax(grid)) if np.isfinite(grid).any() else 1.0,
    )
    integer_ticks(axes.xaxis, most=7)
    integer_ticks(axes.yaxis, most=9)
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", aspect=28, pad=0.04)
    bar.set_label("Magnitude", fontsize=FONT_SIZE, color=colours.muted)
    bar.ax.tick_params(labelsize=FONT_SIZE, labelcolor=colours.muted, color=colours.grid)
    value_ticks(bar.ax.xaxis, most=5)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.outline.set_visible(False)


def _edges(epochs: list[int]) -> list[float]:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(epochs)]
    return [epochs[0] - 0.5, *middles, epochs[-1] + 0.5]
