"""Score of benchmarked files against their cost on every target, and against their size."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.costs.score_scale import ScoreScale
from dprp_tf.report.axes import (
    accuracy_axis,
    position_axis,
    score_axis,
    short_count_ticks,
    style_axes,
)
from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.formatting import clean_name, number
from dprp_tf.report.loading import records
from dprp_tf.report.pictures import save_picture
from dprp_tf.report.tables.benchmarks import run_label
from dprp_tf.report.tables.scores import bench_score, score_title
from dprp_tf.report.theme import FONT_SIZE, MARKERS, Theme, new_figure, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_bench", "plot_bench", "save_bench_plots"]

_PANELS_PER_ROW = 3
_NAME_LIMIT = 38
_CLOSE = 7.0


@dataclass(frozen=True)
class _Point:
    file: int
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    points: tuple[_Point, ...]
    # What follows a short count on the x axis; None for plain numbers.
    prefixed: str | None = None


def plot_bench(bench: Mapping[str, Any], theme: str = "light") -> Figure:
    """Draw the score, such as accuracy, against latency on each target, and against size.

    Up and to the left is better; of an error down and to the left. The bar below a point spans the
    10th to the 90th percentile of its samples. Emulated targets show instructions. Without scores
    the height is the size of the file, and down and to the left is better.

    Args:
        bench: Content of `bench.json`.
        theme: `"light"` or `"dark"`. Defaults to `"light"`.

    Returns:
        A figure with a panel for each target and number of threads, and one for size.

    Raises:
        NothingToPlotError: If nothing was measured.
        ValueError: If `theme` is unknown.

    Example:

    >>> figure = plot_bench({
    ...     "files": [{"name": "a.onnx", "size_bytes": 900, "accuracy": 0.9}],
    ...     "runs": [{"target": "local", "threads": 1, "results": [{"median_ms": 0.4}]}]})
    >>> [axes.lines[0].get_xdata().tolist() for axes in figure.axes]
    [[0.4], [900.0]]
    """
    colours = theme_named(theme)
    files = records(bench, "files")
    scale = bench_score(bench)
    heights, with_score = _heights(files, scale)
    panels = [_run_panel(run, heights) for run in records(bench, "runs")]
    if with_score:
        panels.append(_size_panel(files, heights))
    panels = [panel for panel in panels if panel.points]
    if not panels:
        raise NothingToPlotError("`bench` holds no file with a cost and a score or size.")
    columns = 2 if len(panels) == 4 else min(len(panels), _PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.1 * max(columns, 1.5), 3.3 * rows + 0.5, colours)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        title = clean_name(panel.title, _NAME_LIMIT)
        height = _height_title(scale) if with_score else "File size"
        style_axes(axes, colours, title, x=panel.unit, y=height, grid="both")
        position_axis(axes, _reach(panel), panel.prefixed)
        _height_axis(axes, heights, scale if with_score else None)
        _draw(axes, panel, colours)
    _legend(figure, files, sorted({point.file for p in panels for point in p.points}), colours)
    return figure


def describe_bench(bench: Mapping[str, Any]) -> str:
    """Say in words what `plot_bench` shows."""
    files, runs = (len(records(bench, key)) for key in ("files", "runs"))
    score = score_title(bench_score(bench))
    return f"Scatter plots of {score} against cost and size of {files} files in {runs} runs."


def save_bench_plots(bench: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Write `plot_bench` for light and for dark pages, as PNG at 150 dots per inch.

    Args:
        bench: Content of `bench.json`.
        folder: The run folder; the files go to `plots/` in it.

    Returns:
        The paths written, `bench.png` and `bench_dark.png`.

    Raises:
        NothingToPlotError: If nothing was measured.
        OSError: If the folder can't be written.

    Example:

    >>> import tempfile
    >>> bench = {"files": [{"size_bytes": 900}],
    ...          "runs": [{"target": "local", "results": [{"median_ms": 0.4}]}]}
    >>> [path.name for path in save_bench_plots(bench, tempfile.mkdtemp())]
    ['bench.png', 'bench_dark.png']
    """
    plots = Path(folder) / "plots"
    return [
        save_picture(plot_bench(bench, theme), plots / name)
        for theme, name in (("light", "bench.png"), ("dark", "bench_dark.png"))
    ]


def _heights(files: list[dict[str, Any]], scale: ScoreScale) -> tuple[list[float], bool]:
    """The score of every file and True; its size and False where no score is known."""
    scores = [number(file.get(scale.name)) for file in files]
    if any(not math.isnan(score) for score in scores):
        return scores, True
    return [number(file.get("size_bytes")) for file in files], False


def _height_title(scale: ScoreScale) -> str:
    unit = "%" if scale.unit == "share" else scale.unit
    if scale.less_is_better:
        unit = f"{unit}, less is better" if unit else "less is better"
    return f"{score_title(scale)} ({unit})" if unit else score_title(scale)


def _height_axis(axes: Axes, heights: list[float], scale: ScoreScale | None) -> None:
    # One scale for all panels: the same file stands at the same height.
    known = [value for value in heights if not math.isnan(value)]
    if scale is not None:
        (accuracy_axis if scale.unit == "share" else score_axis)(axes, known)
        return
    axes.set_ylim(0, max(known) * 1.18)
    short_count_ticks(axes.yaxis, "B")


def _size_panel(files: list[dict[str, Any]], heights: list[float]) -> _Panel:
    sizes = [number(file.get("size_bytes")) for file in files]
    points = [_Point(i, *pair) for i, pair in enumerate(zip(sizes, heights, strict=True))]
    return _Panel("File size", "File size", _known(points), "B")


def _run_panel(run: Mapping[str, Any], heights: list[float]) -> _Panel:
    timed = run.get("unit") != "instructions"
    points = []
    for index, result in enumerate(records(run, "results")[: len(heights)]):
        cost = number(result.get("median_ms" if timed else "instructions"))
        low, high = (number(result.get(key)) if timed else math.nan for key in ("p10_ms", "p90_ms"))
        points.append(_Point(index, cost, heights[index], low, high))
    unit = "Median latency (ms)" if timed else "Instructions per inference (proxy)"
    return _Panel(run_label(run), unit, _known(points), None if timed else "")


def _known(points: list[_Point]) -> tuple[_Point, ...]:
    return tuple(point for point in points if not math.isnan(point.x + point.y))


def _reach(panel: _Panel) -> list[float]:
    """What the x axis must hold: points and bars, but no bar far beyond every point."""
    points = [point.x for point in panel.points]
    return points + [
        min(point.high, 1.5 * max(points)) for point in panel.points if not math.isnan(point.high)
    ]


def _draw(axes: Axes, panel: _Panel, colours: Theme) -> None:
    from matplotlib.transforms import ScaledTranslation

    places = axes.transData.transform([(point.x, point.y) for point in panel.points])
    for index, point in enumerate(panel.points):
        colour, marker = _look(point.file, colours)
        x, y = places[index]
        # What later ones would cover is drawn larger, so that all can be seen.
        beside = [(abs(u - x), abs(v - y)) for u, v in places[index + 1 :]]
        level = sum(v < _CLOSE for _, v in beside)
        covered = sum(math.hypot(u, v) < _CLOSE for u, v in beside)
        axes.plot(
            [point.x],
            [point.y],
            marker=marker,
            markersize=8 + 5 * covered,
            color=colour,
            markeredgecolor=colours.background,
            markeredgewidth=0.8,
            linestyle="none",
            zorder=3,
        )
        if not math.isnan(point.low + point.high):
            # Under the points of one height, so that no bar hides another.
            down = ScaledTranslation(0, -(9 + 3.5 * level) / 72, axes.figure.dpi_scale_trans)
            axes.hlines(
                point.y,
                point.low,
                point.high,
                color=colour,
                linewidth=1.8,
                zorder=2,
                transform=axes.transData + down,
            )


def _look(file: int, colours: Theme) -> tuple[str, str]:
    """The first file, the reference, has the colour of dense models, the second that of DPRP."""
    palette = (colours.dense, colours.dprp, *colours.others)
    return palette[file % len(palette)], MARKERS[file % len(MARKERS)]


def _legend(figure: Figure, files: list[dict[str, Any]], shown: list[int], colours: Theme) -> None:
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for index in shown:
        colour, marker = _look(index, colours)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=7, linestyle="none"))
        name = files[index].get("name") or files[index].get("path") or f"file {index + 1}"
        labels.append(clean_name(name, _NAME_LIMIT))
    # As many columns as fit: about 13 characters to the inch.
    widest = max(map(len, labels)) + 5
    columns = max(1, int(figure.get_figwidth() * 13) // widest)
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=min(columns, len(labels)),
        frameon=False,
        fontsize=FONT_SIZE,
        labelcolor=colours.text,
        handletextpad=0.4,
        columnspacing=1.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
