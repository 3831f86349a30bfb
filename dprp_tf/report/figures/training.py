"""Losses and accuracy of the dense and the DPRP run by epoch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dprp_tf.report.axes import epoch_axis, loss_axis, percent_ticks, style_axes
from dprp_tf.report.end_labels import end_labels
from dprp_tf.report.epochs import epochs_of_run, last_known
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, number
from dprp_tf.report.loading import mapping
from dprp_tf.report.tables.models import model_label
from dprp_tf.report.theme import FONT_SIZE, Theme, new_figure, theme_named
from dprp_tf.training.log_names import name_in_logs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_training", "plot_training"]

_NAME_LIMIT = 26
_LOSS_TERMS = (
    ("loss", "Total"),
    ("app_loss", "Application"),
    ("orth_loss", "Orthogonality"),
    ("sort_loss", "Sorting"),
    ("comp_loss", "Compression"),
)


def plot_training(history: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw losses and accuracy of both runs, and the loss terms of DPRP.

    The application loss of DPRP stands beside the loss of the dense run. An axis turns
    logarithmic where its values span a factor above 50; zeros then sit at its foot.

    Args:
        history: Content of `history.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with up to three panels.

    Raises:
        NothingToPlotError: If no run has an epoch with a loss or an accuracy.
        ValueError: If `theme` is unknown.

    Example:

    >>> figure = plot_training({"runs": {"dense": [{"epoch": 1, "loss": 0.5}]}})
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [0.5]
    """
    colours = theme_named(theme)
    losses, accuracies, terms = _all_series(mapping(history, "runs"), colours)
    upper = [group for group in (losses, accuracies) if group]
    if not upper:
        raise NothingToPlotError("`history` holds no epoch with a loss or an accuracy.")
    rows = 2 if terms else 1
    figure = new_figure(5.6 * max(len(upper), 1.5), 3.5 * rows, colours)
    layout = figure.add_gridspec(rows, len(upper))
    for index, group in enumerate(upper):
        axes = figure.add_subplot(layout[0, index])
        if group is losses:
            _style_losses(axes, "Loss of the application", group, colours)
        else:
            style_axes(axes, colours, "Accuracy", x="Epoch", y="Accuracy (%)")
            percent_ticks(axes.yaxis)
        _draw(axes, group, colours)
    if terms:
        axes = figure.add_subplot(layout[1, :])
        _style_losses(axes, "Loss terms of DPRP", terms, colours)
        _draw(axes, terms, colours, wide=True)
    return figure


def describe_training(history: Mapping[str, Any]) -> str:
    """Say in words what `plot_training` shows."""
    ends = []
    for name, entries in mapping(history, "runs").items():
        last = entries[-1] if entries else {}
        accuracy = number(last.get("val_accuracy", last.get("accuracy")))
        if not math.isnan(accuracy):
            ends.append(f"{model_label({'name': name})} {100 * accuracy:.2f} %")
    ended = f" Accuracy at the end: {', '.join(ends)}." if ends else ""
    return f"Line plots of losses and accuracy by epoch.{ended}"


class _Series:
    """One line: its known values, and the epochs where it is not finite."""

    def __init__(
        self,
        label: str,
        entries: Sequence[tuple[int, dict[str, Any]]],
        key: str,
        colour: str,
        style: str,
    ) -> None:
        present = [(epoch, entry[key]) for epoch, entry in entries if key in entry]
        self.label, self.colour, self.style = label, colour, style
        self.epochs = [epoch for epoch, _ in present]
        self.values = [number(value) for _, value in present]
        self.broken = [e for e, v in zip(self.epochs, self.values, strict=True) if math.isnan(v)]
        self.known = [value for value in self.values if not math.isnan(value)]
        if self.known and not any(self.known):
            self.label += " (always 0)"


def _all_series(
    runs: Mapping[str, Any], colours: Theme
) -> tuple[list[_Series], list[_Series], list[_Series]]:
    """Losses and accuracies of every run, the dense one first, and the loss terms of DPRP."""
    names = sorted(runs, key=lambda name: name != "dense")
    others = [name for name in names if name not in ("dense", "dprp")]
    losses, accuracies, terms = [], [], []
    for name in names:
        entries = epochs_of_run(runs, name)
        colour = colours.model(name, others.index(name) if name in others else 0)
        label = clean_name(model_label({"name": name}), _NAME_LIMIT)
        keys = {key for _, entry in entries for key in entry}
        for prefix, word, style in (("", "training", "-"), ("val_", "validation", "--")):
            said = f"{label} {word}"
            loss = name_in_logs("app_loss", keys, prefix)
            loss = loss if loss in keys else f"{prefix}loss"
            losses.append(_Series(said, entries, loss, colour, style))
            accuracies.append(_Series(said, entries, f"{prefix}accuracy", colour, style))
        # A dense run logs its application loss too; only a run with pressed ranks has terms.
        if name != "dense" and name_in_logs("comp_loss", keys) in keys:
            palette = (colours.text, colours.dprp, *colours.others)
            terms += [
                _Series(
                    title,
                    entries,
                    key if key == "loss" else name_in_logs(key, keys),
                    colour,
                    ":" if key == "loss" else "-",
                )
                for (key, title), colour in zip(_LOSS_TERMS, palette, strict=False)
            ]
    losses, accuracies, terms = (
        [series for series in group if series.known] for group in (losses, accuracies, terms)
    )
    return losses, accuracies, terms


def _style_losses(axes: Axes, title: str, group: Sequence[_Series], colours: Theme) -> None:
    style_axes(axes, colours, title, x="Epoch", y="Loss")
    loss_axis(axes, [value for series in group for value in series.known])


def _draw(axes: Axes, group: Sequence[_Series], colours: Theme, wide: bool = False) -> None:
    for series in group:
        axes.plot(
            series.epochs,
            series.values,
            color=series.colour,
            linestyle=(0, (4, 2)) if series.style == "--" else series.style,
            linewidth=1.8,
            marker="o" if len(series.epochs) <= 12 or series.broken else None,
            markersize=4,
            markerfacecolor=colours.background if series.style == "--" else series.colour,
            label=series.label,
            zorder=3,
        )
    epoch_axis(axes, [epoch for series in group for epoch in series.epochs])
    _name_broken_epochs(axes, [series for series in group if series.broken], colours, wide)
    end_labels(axes, [(last_known(s.values), s.label, s.colour) for s in group])


def _name_broken_epochs(axes: Axes, broken: Sequence[_Series], colours: Theme, wide: bool) -> None:
    if not broken:
        return
    said = "; ".join(
        f"{s.label} {', '.join(map(str, s.broken[:4]))}{', …' * (len(s.broken) > 4)}"
        for s in broken
    )
    axes.annotate(
        textwrap.fill(f"Not finite in epoch: {said}", 110 if wide else 56),
        xy=(0, 0),
        xycoords="axes fraction",
        xytext=(0, -36),
        textcoords="offset points",
        va="top",
        fontsize=FONT_SIZE - 0.5,
        color=colours.text,
        annotation_clip=False,
        parse_math=False,
    )
