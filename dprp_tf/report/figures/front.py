"""Where a search for the best file ended: accuracy against time, with the bytes as areas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dprp_tf.report.axes import accuracy_axis, position_axis, style_axes, title_legend
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, number
from dprp_tf.report.loading import mapping, records
from dprp_tf.report.point_labels import place_labels
from dprp_tf.report.theme import Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_front", "plot_front"]

_NAME_LIMIT = 34
# Square points of the largest file, and of what is no file.
_LARGEST, _SMALLEST, _CANDIDATE = 420.0, 24.0, 14.0


@dataclass(frozen=True)
class _Point:
    label: str
    x: float
    y: float
    size: float
    colour: str
    best: bool
    beaten: bool
    named: bool = False


def plot_front(results: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw the accuracy of every file against its time, its bytes as the area of its point.

    Up and to the left is better. A line joins the files that no other beats; small points are
    candidates that were left before they became files; a dashed line is the accuracy that was
    wished at least. Labels say what the best file is, what no other beats, the dense files, and a
    narrower network.

    Args:
        results: Content of `results.json`, of a search for the best file.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        The figure.

    Raises:
        NothingToPlotError: If the run was no such search.
        ValueError: If `theme` is unknown.

    Example:

    >>> figure = plot_front({"front": [
    ...     {"label": "TFLite int8, dense", "score": 0.98, "time": 1.0, "size": 1.0, "dense": True},
    ...     {"label": "channels, 0.50", "score": 0.97, "time": 0.5, "size": 0.4, "best": True}]})
    >>> figure.axes[0].get_xlabel()
    "Time, as a share of the dense file's"
    """
    colours = theme_named(theme)
    files = _files(results, colours)
    if not files:
        raise NothingToPlotError("`results` holds no files of a search.")
    figure = new_figure(7.6, 4.8, colours)
    axes = figure.add_subplot(1, 1, 1)
    style_axes(
        axes,
        colours,
        "Accuracy, time and size",
        x="Time, as a share of the dense file's",
        y="Accuracy on the validation samples (%)",
        grid="both",
    )
    # Far below what is asked they would only press the rest together.
    lowest = min(point.y for point in files) - 0.04
    candidates = [point for point in _candidates(results, colours) if point.y >= lowest]
    least = number(mapping(results, "wish").get("least_score"))
    everything = [point.y for point in (*files, *candidates)]
    if not math.isnan(least):
        everything.append(least)
        axes.axhline(least, color=colours.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    position_axis(axes, [point.x for point in (*files, *candidates)], factor=3)
    accuracy_axis(axes, everything)
    _draw(axes, files, candidates, colours)
    # Labels of all that others beat would cover what they don't.
    told = [point for point in files if point.named or not point.beaten]
    place_labels(axes, [([(point.x, point.y)], _label(point), colours.text) for point in told])
    _legend(axes, colours, bool(candidates), not math.isnan(least))
    return figure


def describe_front(results: Mapping[str, Any]) -> str:
    """Say in words what `plot_front` shows."""
    rows = records(results, "front")
    best = [clean_name(row.get("label") or "") for row in rows if row.get("best")]
    named = f" The best is {best[0]}." if best else ""
    return f"Scatter plot of accuracy against time of {len(rows)} files.{named}"


def _files(results: Mapping[str, Any], colours: Theme) -> list[_Point]:
    rows = records(results, "front")
    found = []
    for row in rows:
        x, y, size = (number(row.get(name)) for name in ("time", "score", "size"))
        if math.isnan(x + y + size):
            continue
        best, dense = bool(row.get("best")), bool(row.get("dense"))
        colour = colours.dense if dense else colours.dprp if best else colours.others[0]
        label = clean_name(row.get("label") or "", _NAME_LIMIT)
        # What a user would do instead is named in any case.
        named = best or dense or bool(row.get("narrow"))
        found.append(_Point(label, x, y, size, colour, best, bool(row.get("beaten")), named))
    return found


def _candidates(results: Mapping[str, Any], colours: Theme) -> list[_Point]:
    found = []
    for row in records(results, "search"):
        x, y = number(row.get("time")), number(row.get("score"))
        if row.get("stage") != "finished" and not math.isnan(x + y):
            found.append(_Point("", x, y, 0.0, colours.before, False, True))
    return found


def _draw(
    axes: Axes, files: Sequence[_Point], candidates: Sequence[_Point], colours: Theme
) -> None:
    axes.scatter(
        [point.x for point in candidates],
        [point.y for point in candidates],
        s=_CANDIDATE,
        color=colours.before,
        zorder=2,
    )
    kept = sorted((point for point in files if not point.beaten), key=lambda point: point.x)
    axes.plot(
        [point.x for point in kept],
        [point.y for point in kept],
        color=colours.muted,
        linewidth=1,
        alpha=0.7,
        zorder=2,
    )
    largest = max(point.size for point in files)
    for point in files:
        axes.scatter(
            [point.x],
            [point.y],
            s=max(_SMALLEST, _LARGEST * point.size / largest),
            color=point.colour,
            alpha=0.45 if point.beaten else 0.85,
            edgecolor=colours.text if point.best else colours.background,
            linewidth=1.8 if point.best else 0.8,
            zorder=4 if point.best else 3,
        )


def _label(point: _Point) -> str:
    return f"best: {point.label}" if point.best else point.label


def _legend(axes: Axes, colours: Theme, candidates: bool, wished: bool) -> None:
    from matplotlib.lines import Line2D

    def dot(colour: str, size: float) -> Line2D:
        return Line2D([], [], color=colour, marker="o", markersize=size, linestyle="none")

    entries = [
        (dot(colours.dense, 8), "dense file"),
        (dot(colours.dprp, 8), "best file"),
        (dot(colours.others[0], 8), "other file"),
    ]
    if candidates:
        entries.append((dot(colours.before, 4), "candidate, no file"))
    if wished:
        dashes = Line2D([], [], color=colours.muted, linewidth=1, linestyle=(0, (4, 3)))
        entries.append((dashes, "wished at least"))
    title_legend(axes, [handle for handle, _ in entries], [text for _, text in entries], colours)
