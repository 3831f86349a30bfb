"""Axes of the figures: quiet frames, whole epochs, units, and a log scale where values need it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from dprp_tf.report.formatting import short_count_text
from dprp_tf.report.theme import FONT_SIZE, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "accuracy_axis",
    "epoch_axis",
    "integer_ticks",
    "loss_axis",
    "percent_ticks",
    "position_axis",
    "score_axis",
    "short_count_ticks",
    "style_axes",
    "title_legend",
    "value_ticks",
]


def style_axes(
    axes: Axes,
    theme: Theme,
    title: str,
    x: str = "",
    y: str = "",
    grid: Literal["x", "y", "both"] | None = "y",
) -> None:
    """Give axes their title, units, light grid and quiet frame."""
    axes.set_facecolor(theme.background)
    axes.set_title(
        title,
        loc="left",
        fontsize=FONT_SIZE + 1.5,
        fontweight="bold",
        color=theme.text,
        pad=9,
        parse_math=False,
    )
    axes.set_xlabel(x, fontsize=FONT_SIZE, color=theme.muted)
    axes.set_ylabel(y, fontsize=FONT_SIZE, color=theme.muted)
    axes.tick_params(
        which="both", labelsize=FONT_SIZE, labelcolor=theme.muted, color=theme.grid, length=3
    )
    axes.tick_params(which="minor", length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, axis=grid, color=theme.grid, linewidth=0.8)


def loss_axis(axes: Axes, values: Sequence[float]) -> None:
    """Choose the scale of a loss axis: linear, logarithmic, or with a place for zero.

    Args:
        axes: Axes to set.
        values: Every finite value drawn; at least one.
    """
    from matplotlib.ticker import FuncFormatter

    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 50 * min(positive):
        low, high = min(0.0, *values), max(0.0, *values)
        pad = 0.06 * (high - low) or 0.5
        axes.set_ylim(low - pad if low < 0 else 0.0, high + pad)
        value_ticks(axes.yaxis)
        return
    if min(values) > 0:
        axes.set_yscale("log")
        return
    # Zero has a place of its own below the smallest power of ten that is worth a decade.
    least = max(min(positive), max(positive) * 1e-6)
    foot = 10.0 ** math.floor(math.log10(least))
    axes.set_yscale("symlog", linthresh=foot, linscale=0.6)
    if min(values) < 0:
        axes.set_ylim(min(values) * 2, max(positive) * 2)
        return
    axes.set_ylim(-foot * 0.15, max(positive) * 2)
    axes.yaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: f"$10^{{{math.log10(value):.0f}}}$" if value > 0 else f"{value:g}"
        )
    )


def epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    """Give the x axis whole epochs; a single epoch stands in the middle."""
    low, high = min(epochs), max(epochs)
    pad = 0.5 if low == high else (high - low) * 0.03
    axes.set_xlim(low - pad, high + pad)
    integer_ticks(axes.xaxis)


def integer_ticks(axis: Any, most: int = 9) -> None:
    """Put ticks at whole, round numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def value_ticks(axis: Any, most: int = 6) -> None:
    """Put ticks at round numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def short_count_ticks(axis: Any, unit: str = "") -> None:
    """Write ticks as counts with a decimal prefix, such as `250 k`."""
    from matplotlib.ticker import FuncFormatter

    value_ticks(axis)
    axis.set_major_formatter(FuncFormatter(lambda value, _: _bare(short_count_text(value, unit))))


def percent_ticks(axis: Any) -> None:
    """Write ticks of a fraction in percent."""
    from matplotlib.ticker import FuncFormatter

    # Round steps of the fraction are round steps of the percentage.
    value_ticks(axis)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}"))


def position_axis(
    axes: Axes, values: Sequence[float], unit: str | None = None, *, factor: float = 20
) -> None:
    """Start the x axis at zero, or make it logarithmic where values span a large factor.

    Args:
        axes: Axes to set.
        values: Every value drawn; at least one.
        unit: Written behind short counts, such as `"B"` in `250 kB`. Defaults to plain numbers.
        factor: Above which span it is logarithmic. Default 20.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if low > 0 and high > factor * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        if high < 20 * low:
            # Powers of ten alone would be one number or none.
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, (high or 1.0) * 1.18)
        value_ticks(axes.xaxis)
    axes.xaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: f"{value:g}" if unit is None else _bare(short_count_text(value, unit))
        )
    )


def accuracy_axis(axes: Axes, values: Sequence[float]) -> None:
    """Span at least two points, so that noise of a tenth never looks like a cliff."""
    low, high = min(values), max(values)
    pad = max((high - low) * 0.3, (0.02 - (high - low)) / 2)
    axes.set_ylim(max(low - pad, -0.02), min(high + pad, 1.004))
    percent_ticks(axes.yaxis)


def score_axis(axes: Axes, values: Sequence[float]) -> None:
    """Span at least a hundredth of the values, so that their noise never looks like a cliff."""
    low, high = min(values), max(values)
    least = max(abs(low), abs(high), 1e-6) / 100
    pad = max((high - low) * 0.3, (least - (high - low)) / 2)
    axes.set_ylim(low - pad, high + pad)


def title_legend(axes: Axes, handles: Sequence[Any], labels: list[str], theme: Theme) -> None:
    """Write a legend at the right end of the title's line, or below the figure if it is long."""
    look: dict[str, Any] = {
        "ncols": len(labels),
        "frameon": False,
        "fontsize": FONT_SIZE,
        "labelcolor": theme.text,
        "handlelength": 1.4,
        "handletextpad": 0.6,
        "columnspacing": 1.4,
    }
    figure = axes.get_figure(root=True)
    assert figure is not None
    if sum(map(len, labels)) > 34:
        legend = figure.legend(handles, labels, loc="outside lower center", **look)
    else:
        legend = axes.legend(
            handles,
            labels,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
            borderpad=0.3,
            **look,
        )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _bare(text: str) -> str:
    """Drop zeros that say nothing: 50.0 k becomes 50 k."""
    figure, space, prefix = text.partition(" ")
    return (figure.rstrip("0").rstrip(".") if "." in figure else figure) + space + prefix
