"""What a figure shows, read back from its axes."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from dprp_tf.report.theme import THEMES

DENSE, DPRP = THEMES["light"].dense, THEMES["light"].dprp


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


def assert_nothing_clipped(figure: Figure) -> None:
    """Every visible text lies inside the page."""
    figure.canvas.draw()
    page = figure.bbox
    for axes in figure.axes:
        texts = [
            axes.title,
            axes._left_title,  # type: ignore[attr-defined]
            axes.xaxis.label,
            axes.yaxis.label,
            *axes.texts,
            *axes.get_xticklabels(),
            *axes.get_yticklabels(),
        ]
        low_x, high_x = sorted(axes.get_xlim())
        low_y, high_y = sorted(axes.get_ylim())
        for text in texts:
            if not text.get_visible() or not text.get_text().strip():
                continue
            x, y = text.get_position()
            if text in axes.get_xticklabels() and not low_x <= x <= high_x:
                continue
            if text in axes.get_yticklabels() and not low_y <= y <= high_y:
                continue
            box = text.get_window_extent()
            beyond = max(-box.x0, -box.y0, box.x1 - page.x1, box.y1 - page.y1)
            assert beyond <= 1, f"{text.get_text()!r} is cut off"


def label_boxes(axes: Any) -> list[Any]:
    from matplotlib.text import Text

    axes.figure.canvas.draw()
    return [Text.get_window_extent(text) for text in axes.texts]
