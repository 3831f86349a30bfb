"""Labels beside points that keep out of each other's way.

adjustText does this less well. On the trade-offs of a real run, of the tests and of ten formats
(ten panels, 58 labels), with the best of 27 settings and told of points and lines as boxes,
5 of its labels covered a point, 5 a line, and 22 stood nearer to another format's point than to
their own; here it is none, none and 10, at half the distance. It knows one anchor for each
label where a line offers two, and does not ask whose point is near.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dprp_tf.report.theme import FONT_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["place_labels"]

_NEAR = 6
_Point = tuple[float, float]
_Box = tuple[float, float, float, float]


def place_labels(
    axes: Axes, labels: Sequence[tuple[Sequence[tuple[float, float]], str, str]]
) -> list[Any]:
    """Write a label beside each polyline, where it covers no point, line or other label.

    Args:
        axes: Axes whose limits are final.
        labels: Corners in data units (the preferred one to label first), text and colour.

    Returns:
        The annotations, in the order of `labels`.
    """
    panel = _Panel(axes, [line for line, _, _ in labels])
    notes = []
    for index, (line, text, colour) in enumerate(labels):
        note = _note(axes, line[0], text, colour)
        size = note.get_window_extent()
        anchor, dx, dy = panel.best_place(index, size.width, size.height)
        note.xy = line[anchor]
        note.set_position((dx, dy))
        leader = note.arrow_patch
        assert leader is not None
        reach = max(abs(dx) - size.width / panel.scale / 2, abs(dy) - size.height / panel.scale / 2)
        leader.set_visible(reach > _NEAR + 8)
        notes.append(note)
    return notes


def _note(axes: Axes, corner: _Point, text: str, colour: str) -> Any:
    leader = {
        "arrowstyle": "-",
        "color": colour,
        "alpha": 0.6,
        "linewidth": 0.7,
        "shrinkA": 1,
        "shrinkB": 5,
    }
    return axes.annotate(
        text,
        xy=corner,
        xytext=(0, 0),
        textcoords="offset points",
        color=colour,
        fontsize=FONT_SIZE - 0.5,
        va="center",
        ha="center",
        parse_math=False,
        arrowprops=leader,
        bbox={"facecolor": axes.get_facecolor(), "edgecolor": "none", "alpha": 0.75, "pad": 0},
    )


class _Panel:
    """What a panel holds, in pixels: its points, lines and the labels placed so far."""

    def __init__(self, axes: Axes, polylines: Sequence[Sequence[_Point]]) -> None:
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.draw_without_rendering()
        self.scale = figure.dpi / 72
        self.frame = axes.get_window_extent()
        self.lines = [axes.transData.transform(line).tolist() for line in polylines]
        side = 11 * self.scale
        self.points = [_box(x, y, side, side) for line in self.lines for x, y in line]
        self.traces = [
            [part for start, end in itertools.pairwise(line) for part in self._trace(start, end)]
            for line in self.lines
        ]
        self.labels: list[_Box] = []

    def best_place(self, index: int, width: float, height: float) -> tuple[int, float, float]:
        """Choose corner and offset, in points, of a label of a size in pixels, and take it."""
        best, place = math.inf, (0, 0.0, 0.0)
        for anchor, corner in enumerate(self.lines[index]):
            for distance, dx, dy in _offsets(width / self.scale, height / self.scale):
                cost = 0.03 * anchor + distance / 400
                if cost >= best:
                    continue
                x, y = corner[0] + dx * self.scale, corner[1] + dy * self.scale
                cost += self._cost(index, corner, _box(x, y, width, height), distance > _NEAR)
                if cost < best:
                    best, place = cost, (anchor, dx, dy)
        x, y = self.lines[index][place[0]]
        centre = x + place[1] * self.scale, y + place[2] * self.scale
        self.labels.append(_box(*centre, width, height))
        return place

    def _cost(self, index: int, corner: _Point, box: _Box, has_leader: bool) -> float:
        """Weigh what a label at a place would cover, cross, or be mistaken for."""
        frame, own = self.frame, self.traces[index]
        inked = [part for i, trace in enumerate(self.traces) if i != index for part in trace]
        inside = frame.x0 <= box[0] and box[2] <= frame.x1
        inside = inside and frame.y0 <= box[1] and box[3] <= frame.y1
        cost = 3.0 * (not inside) + _overlaps(box, self.points + self.labels)
        cost += 0.4 * (_overlaps(box, inked) > 0) + 0.15 * (_overlaps(box, own) > 0)
        # A label that stands nearer to another line's point would be read as its name.
        nearest = min((_gap(box, point) for point in self._foreign(index)), default=math.inf)
        cost += 0.35 * (nearest < _gap(box, corner) + 2 * self.scale)
        if has_leader:
            centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            leader = [part for part in self._trace(corner, centre) if not _overlaps(part, [box])]
            others = inked + self.points + self.labels
            cost += 0.3 * any(_overlaps(part, others) for part in leader[2:])
        return cost

    def _foreign(self, index: int) -> list[_Point]:
        """The points of other lines, but for a line that coincides with this one."""
        line = self.lines[index]
        return [
            point
            for i, other in enumerate(self.lines)
            if i != index and not _coincide(line, other, 12 * self.scale)
            for point in other
        ]

    def _trace(self, start: _Point, end: _Point) -> list[_Box]:
        """A straight line as boxes a point wide, four points apart."""
        (x0, y0), (x1, y1) = start, end
        count = max(int(max(abs(x1 - x0), abs(y1 - y0)) / (4 * self.scale)), 1)
        steps = [i / count for i in range(count + 1)]
        return [_box(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t, self.scale, self.scale) for t in steps]


def _offsets(width: float, height: float) -> Iterator[tuple[float, float, float]]:
    """Yield distance and offset of a label's centre, in points, nearest first."""
    for distance in (0.0, 6.0, 14.0, 24.0, 36.0, 50.0):
        side, rise = width / 2 + 8 + distance, height / 2 + 7 + distance
        for right, up in ((1.0, 0.0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            yield distance, right * side, up * rise
        for right, up in ((0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1)):
            yield distance, right * side, up * rise


def _box(x: float, y: float, width: float, height: float) -> _Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _gap(box: _Box, point: tuple[float, float]) -> float:
    across = max(box[0] - point[0], point[0] - box[2], 0.0)
    return math.hypot(across, max(box[1] - point[1], point[1] - box[3], 0.0))


def _overlaps(box: _Box, others: list[_Box]) -> int:
    x0, y0, x1, y1 = box
    return sum(x0 < c and a < x1 and y0 < d and b < y1 for a, b, c, d in others)


def _coincide(
    line: list[tuple[float, float]], other: list[tuple[float, float]], tolerance: float
) -> bool:
    return len(line) == len(other) and all(
        math.dist(a, b) <= tolerance for a, b in zip(line, other, strict=True)
    )
