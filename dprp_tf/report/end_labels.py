"""Labels at the right end of lines, in place of a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dprp_tf.report.theme import FONT_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["end_labels"]


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> list[Any]:
    """Write labels to the right of axes at data heights, spread so that none overlap.

    Args:
        axes: Axes whose limits are final.
        labels: Height in data units, text and colour of each label.

    Returns:
        The annotations, in the order of `labels`.
    """
    notes = [
        axes.annotate(
            text,
            xy=(1.0, 0.5),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            fontsize=FONT_SIZE,
            va="center",
            ha="left",
            annotation_clip=False,
            parse_math=False,
        )
        for _, text, colour in labels
    ]
    figure = axes.get_figure(root=True)
    if not notes or figure is None:
        return notes
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    heights = [axes.transData.transform((0, value))[1] for value, _, _ in labels]
    sizes = [note.get_window_extent().height * 1.2 for note in notes]
    for note, y in zip(notes, _spread(heights, sizes, box.y0, box.y1), strict=True):
        note.xy = (1.0, (y - box.y0) / box.height)
    return notes


def _spread(
    centres: Sequence[float], sizes: Sequence[float], low: float, high: float
) -> list[float]:
    """Move intervals apart, as little as possible in sum of squares, inside [low, high].

    Packed below each other in their order, every interval has an offset; what remains of its
    centre must not fall from one to the next: an isotonic regression, by its bounds clipped.
    """
    import numpy as np
    from scipy.optimize import isotonic_regression

    order = np.argsort(centres, kind="stable")
    heights = np.asarray(sizes)[order]
    offsets = np.cumsum(heights) - heights / 2
    wanted = np.clip(np.asarray(centres)[order], low, high) - offsets
    # Where there is no room for all, they begin at the foot.
    top = max(high - float(np.sum(heights)), low)
    placed = np.empty(len(order))
    placed[order] = np.clip(isotonic_regression(wanted).x, low, top) + offsets
    return placed.tolist()
