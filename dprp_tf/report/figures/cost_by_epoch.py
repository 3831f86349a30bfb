"""Parameters and MACs of the network after every epoch, beside the dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dprp_tf.report.axes import epoch_axis, short_count_ticks, style_axes
from dprp_tf.report.end_labels import end_labels
from dprp_tf.report.epochs import epochs_of_ranks, last_known
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import change_text, count_text, number, short_count_text
from dprp_tf.report.theme import Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_cost_by_epoch", "plot_cost_by_epoch"]


@dataclass(frozen=True)
class _Cost:
    """One count by epoch: of the factors in training, of the folded network, of the dense one."""

    title: str
    unit: str
    epochs: list[int]
    values: list[float]
    folded: list[float]
    baseline: float


def plot_cost_by_epoch(ranks: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw parameters and MACs by epoch beside the dense baseline.

    The counts of the factors in training can lie above the baseline; where the record has the
    counts of the folded network, the one that is exported, they are drawn too.

    Args:
        ranks: Content of `ranks.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with two panels.

    Raises:
        NothingToPlotError: If there is no epoch with a count.
        ValueError: If `theme` is unknown.

    Source: the figure of cost by epoch in the DPRP paper (Fig. 4).

    Example:

    >>> figure = plot_cost_by_epoch({"baseline_parameters": 100, "epochs": [
    ...     {"epoch": 0, "parameters": 101}, {"epoch": 1, "parameters": 60}]})
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [101.0, 60.0]
    """
    colours = theme_named(theme)
    costs = [
        cost
        for key, title, unit in (
            ("parameters", "Parameters", "Parameters in training"),
            ("macs", "Multiply-accumulates", "MACs per image"),
        )
        if not math.isnan(last_known((cost := _cost(ranks, key, title, unit)).values))
    ]
    if not costs:
        raise NothingToPlotError("`ranks` holds no epoch with parameters or MACs.")
    figure = new_figure(5.2 * len(costs), 3.5, colours)
    for index, cost in enumerate(costs):
        _draw(figure.add_subplot(1, len(costs), index + 1), cost, colours)
    return figure


def describe_cost_by_epoch(ranks: Mapping[str, Any]) -> str:
    """Say in words what `plot_cost_by_epoch` shows."""
    epochs = epochs_of_ranks(ranks)
    first, last = epochs[0][1], epochs[-1][1]
    return (
        f"Line plots over {len(epochs) - 1} epochs: parameters from "
        f"{count_text(first.get('parameters'))} to {count_text(last.get('parameters'))}, MACs from "
        f"{count_text(first.get('macs'))} to {count_text(last.get('macs'))}, each beside the dense "
        "network."
    )


def _cost(ranks: Mapping[str, Any], key: str, title: str, unit: str) -> _Cost:
    entries = epochs_of_ranks(ranks)
    return _Cost(
        title,
        unit,
        epochs=[epoch for epoch, _ in entries],
        values=[number(entry.get(key)) for _, entry in entries],
        folded=[number(entry.get(f"folded_{key}")) for _, entry in entries],
        baseline=number(ranks.get(f"baseline_{key}")),
    )


def _draw(axes: Axes, cost: _Cost, colours: Theme) -> None:
    style_axes(axes, colours, cost.title, x="Epoch", y=cost.unit)
    axes.plot(
        cost.epochs,
        cost.values,
        color=colours.dprp,
        linewidth=2,
        marker="o",
        markersize=_marker_size(len(cost.epochs)),
        label="DPRP",
        clip_on=False,
        zorder=3,
    )
    lines = [("DPRP", cost.values)]
    if not math.isnan(last_known(cost.folded)):
        axes.plot(
            cost.epochs,
            cost.folded,
            color=colours.dprp,
            linewidth=1.4,
            linestyle=(0, (1, 1.5)),
            label="Folded",
            clip_on=False,
            zorder=2,
        )
        lines = [("Factors", cost.values), ("Folded", cost.folded)]
    labels = [
        (end := last_known(values), f"{name} {_wrapped_change(end, cost.baseline)}", colours.dprp)
        for name, values in lines
    ]
    if not math.isnan(cost.baseline):
        axes.axhline(
            cost.baseline, color=colours.dense, linewidth=1.6, linestyle=(0, (5, 3)), label="Dense"
        )
        labels.append((cost.baseline, f"Dense {short_count_text(cost.baseline)}", colours.dense))
    drawn = [*cost.values, *cost.folded, cost.baseline]
    top = max(value for value in drawn if not math.isnan(value))
    axes.set_ylim(0, (top or 1) * 1.08)
    short_count_ticks(axes.yaxis)
    epoch_axis(axes, cost.epochs)
    end_labels(axes, labels)


def _wrapped_change(value: float, baseline: float) -> str:
    change = change_text(value, baseline)
    return short_count_text(value) + (f"\n{change}" if change else "")


def _marker_size(count: int) -> float:
    return 4.5 if count <= 25 else 2.5 if count <= 60 else 0.0
