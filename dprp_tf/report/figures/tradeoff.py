"""Accuracy of every file against its latency and its size, each joined to the dense one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dprp_tf.report.axes import accuracy_axis, position_axis, style_axes, title_legend
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, number
from dprp_tf.report.loading import mapping, records
from dprp_tf.report.point_labels import place_labels
from dprp_tf.report.tables.files import files_by_format
from dprp_tf.report.tables.models import model_label
from dprp_tf.report.theme import MARKERS, Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_tradeoff", "plot_tradeoff"]

_NAME_LIMIT = 26


@dataclass(frozen=True)
class _Panel:
    """What stands on the x axis, and model, x and accuracy of every file by format."""

    title: str
    unit: str
    prefixed: str | None
    formats: dict[str, list[tuple[str, float, float]]]


def plot_tradeoff(results: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw accuracy against latency and size of every file.

    A line joins the dense file of a format to each other one; up and to the left is better.

    Args:
        results: Content of `results.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with one panel for latency and one for size, as far as they were measured.

    Raises:
        NothingToPlotError: If no file has an accuracy and a latency or size.
        ValueError: If `theme` is unknown.

    Example:

    >>> figure = plot_tradeoff({"files": [
    ...     {"model": "dense", "format": "ONNX", "accuracy": 0.98, "size_bytes": 4000},
    ...     {"model": "dprp", "format": "ONNX", "accuracy": 0.97, "size_bytes": 1000}]})
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [4000.0, 1000.0]
    """
    colours = theme_named(theme)
    panels = [panel for panel in _panels(results) if panel.formats]
    # Many files of one search have a picture of their own.
    if not panels or records(results, "front"):
        raise NothingToPlotError("`results` holds no file with an accuracy and a latency or size.")
    markers = dict(zip(_in_order(panels), itertools.cycle(MARKERS), strict=False))
    palette = _palette(panels, colours)
    figure = new_figure(5.6 * max(len(panels), 1.3), 4.0, colours)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        style_axes(axes, colours, panel.title, x=panel.unit, y="Accuracy (%)", grid="both")
        _draw(axes, panel, markers, palette, colours)
    _legend(axes, results, palette, colours)
    return figure


def describe_tradeoff(results: Mapping[str, Any]) -> str:
    """Say in words what `plot_tradeoff` shows."""
    count = len(records(results, "files"))
    return f"Scatter plots of accuracy against latency and size of {count} files."


def _panels(results: Mapping[str, Any]) -> list[_Panel]:
    panels = [
        _Panel("Accuracy and latency", "Median latency (ms)", None, {}),
        _Panel("Accuracy and file size", "File size", "B", {}),
    ]
    for name, files in files_by_format(results).items():
        for file in files:
            accuracy = number(file.get("accuracy"))
            latency = number(mapping(file, "latency_ms").get("median"))
            for panel, x in zip(panels, (latency, number(file.get("size_bytes"))), strict=True):
                if not math.isnan(x + accuracy):
                    point = str(file.get("model")), x, accuracy
                    panel.formats.setdefault(name, []).append(point)
    return panels


def _in_order(panels: Sequence[_Panel]) -> list[str]:
    return list(dict.fromkeys(name for panel in panels for name in panel.formats))


def _palette(panels: Sequence[_Panel], colours: Theme) -> dict[str, str]:
    """A colour for every model, the dense one first, then DPRP."""
    points = [p for panel in panels for points in panel.formats.values() for p in points]
    models = list(dict.fromkeys(model for model, _, _ in points))
    others = [name for name in models if name not in ("dense", "dprp")]
    known = [name for name in ("dense", "dprp") if name in models]
    return {
        name: colours.model(name, others.index(name) if name in others else 0)
        for name in (*known, *others)
    }


def _draw(
    axes: Axes,
    panel: _Panel,
    markers: Mapping[str, str],
    palette: Mapping[str, str],
    colours: Theme,
) -> None:
    labels = []
    for name, points in panel.formats.items():
        first, *others = [(x, y) for _, x, y in points]
        # By way of the first between two others: all hang on the dense file.
        corners = [first, *(corner for other in others for corner in (other, first))]
        corners = corners[: 2 * len(others) or 1]
        axes.plot(
            *zip(*corners, strict=True),
            color=colours.muted,
            linewidth=1,
            alpha=0.7,
            label=name,
            zorder=2,
        )
        for model, x, y in points:
            axes.plot(
                x,
                y,
                marker=markers[name],
                markersize=8,
                color=palette[model],
                markeredgecolor=colours.background,
                markeredgewidth=0.8,
                linestyle="none",
                zorder=3,
            )
        labels.append((corners[::-1], clean_name(name, _NAME_LIMIT), colours.text))
    everything = [corner for corners, _, _ in labels for corner in corners]
    position_axis(axes, [x for x, _ in everything], panel.prefixed)
    accuracy_axis(axes, [y for _, y in everything])
    place_labels(axes, labels)


def _legend(
    axes: Axes, results: Mapping[str, Any], palette: Mapping[str, str], colours: Theme
) -> None:
    from matplotlib.lines import Line2D

    names = {str(model.get("name")): model_label(model) for model in records(results, "models")}
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=7, linestyle="none")
        for colour in palette.values()
    ]
    labels = [names.get(name) or model_label({"name": name}) for name in palette]
    title_legend(axes, handles, [clean_name(label, _NAME_LIMIT) for label in labels], colours)
