"""Labels written straight into a figure that keep out of each other's way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dprp_tf.report.theme import FONT_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["end_labels", "place_labels"]

_NEAR = 6
_Box = tuple[float, float, float, float]


def end_labels(axes: Axes, labels: list[tuple[float, str, str]]) -> list[Any]:
    """Write labels to the right of axes at data heights, spread so that none overlap.

    Args:
        axes: Axes whose limits are final.
        labels: Height in data units, text and colour of each label.

    Returns:
        The annotations, in the order of `labels`.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
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
    if not notes:
        return notes
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    heights = [axes.transData.transform((0, value))[1] for value, _, _ in labels]
    sizes = [note.get_window_extent().height * 1.2 for note in notes]
    for note, y in zip(notes, _spread(heights, sizes, box.y0, box.y1), strict=True):
        note.xy = (1.0, (y - box.y0) / box.height)
    return notes


def _spread(centres: list[float], sizes: list[float], low: float, high: float) -> list[float]:
    """Move intervals apart with their order kept, inside [low, high] while there is room."""
    order = sorted(range(len(centres)), key=lambda index: centres[index])
    groups: list[tuple[list[int], float]] = []
    for index in order:
        members = [index]
        centre = _inside(centres[index], sizes[index], low, high)
        while groups:
            before, middle = groups[-1]
            reach = (sum(sizes[i] for i in before) + sum(sizes[i] for i in members)) / 2
            if centre - middle >= reach - 1e-6:
                break
            groups.pop()
            members = before + members
            wanted = sum(min(max(centres[i], low), high) for i in members) / len(members)
            centre = _inside(wanted, sum(sizes[i] for i in members), low, high)
        groups.append((members, centre))
    placed = [0.0] * len(centres)
    for members, centre in groups:
        edge = centre - sum(sizes[i] for i in members) / 2
        for index in members:
            placed[index] = edge + sizes[index] / 2
            edge += sizes[index]
    return placed


def _inside(centre: float, size: float, low: float, high: float) -> float:
    return max(min(centre, high - size / 2), low + size / 2)


def place_labels(axes: Axes, labels: list[tuple[list[tuple[float, float]], str, str]]) -> list[Any]:
    """Write a label beside each polyline, where it covers no point, line or other label.

    Args:
        axes: Axes whose limits are final.
        labels: Corners in data units (the preferred one to label first), text and colour.

    Returns:
        The annotations, in the order of `labels`.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    shown = [axes.transData.transform(line).tolist() for line, _, _ in labels]
    points = [_box(x, y, 11 * scale, 11 * scale) for line in shown for x, y in line]
    traces = [
        [
            _box(x, y, scale, scale)
            for start, end in itertools.pairwise(line)
            for x, y in _steps(start, end, 4 * scale)
        ]
        for line in shown
    ]
    taken: list[_Box] = []
    notes = []
    for index, (line, text, colour) in enumerate(labels):
        corners, own = shown[index], traces[index]
        foreign = [
            point
            for i, other in enumerate(shown)
            if i != index and not _coincide(corners, other, 12 * scale)
            for point in other
        ]
        inked = [box for i, trace in enumerate(traces) if i != index for box in trace]
        note = axes.annotate(
            text,
            xy=line[0],
            xytext=(0, 0),
            textcoords="offset points",
            color=colour,
            fontsize=FONT_SIZE - 0.5,
            va="center",
            ha="center",
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "alpha": 0.6,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 5,
            },
        )
        size = note.get_window_extent()
        best: tuple[float, int, float, float] | None = None
        for anchor, (px, py) in enumerate(corners):
            for distance, dx, dy in _offsets(size.width / scale, size.height / scale):
                x, y = px + dx * scale, py + dy * scale
                box = _box(x, y, size.width, size.height)
                cost = 0.03 * anchor + distance / 400
                if best is not None and cost >= best[0]:
                    continue
                cost += 3.0 * (not _holds(frame, box)) + _overlaps(box, points + taken)
                cost += 0.4 * (_overlaps(box, inked) > 0) + 0.15 * (_overlaps(box, own) > 0)
                # A label that stands nearer to another line's point would be read as its name.
                nearest = min((_gap(box, point) for point in foreign), default=math.inf)
                cost += 0.35 * (nearest < _gap(box, (px, py)) + 2 * scale)
                if distance > _NEAR:
                    leader = [_box(*p, scale, scale) for p in _steps((px, py), (x, y), 4 * scale)]
                    free = [part for part in leader if not _overlaps(part, [box])][2:]
                    cost += 0.3 * any(_overlaps(part, inked + points + taken) for part in free)
                if best is None or cost < best[0]:
                    best = (cost, anchor, dx, dy)
        assert best is not None
        _, anchor, dx, dy = best
        note.xy = line[anchor]
        note.set_position((dx, dy))
        note.set_bbox(
            {"facecolor": axes.get_facecolor(), "edgecolor": "none", "alpha": 0.75, "pad": 0}
        )
        leader_line = note.arrow_patch
        assert leader_line is not None
        reach = max(abs(dx) - size.width / scale / 2, abs(dy) - size.height / scale / 2)
        leader_line.set_visible(reach > _NEAR + 8)
        x, y = corners[anchor]
        taken.append(_box(x + dx * scale, y + dy * scale, size.width, size.height))
        notes.append(note)
    return notes


def _offsets(width: float, height: float) -> Iterator[tuple[float, float, float]]:
    """Yield distance and offset of a label's centre, in points, nearest first."""
    for distance in (0.0, 6.0, 14.0, 24.0, 36.0, 50.0):
        side, rise = width / 2 + 8 + distance, height / 2 + 7 + distance
        for right, up in ((1.0, 0.0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            yield distance, right * side, up * rise
        for right, up in ((0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1)):
            yield distance, right * side, up * rise


def _steps(
    start: tuple[float, float], end: tuple[float, float], length: float
) -> list[tuple[float, float]]:
    (x0, y0), (x1, y1) = start, end
    count = max(int(max(abs(x1 - x0), abs(y1 - y0)) / length), 1)
    return [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count + 1)]


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


def _holds(frame: Any, box: _Box) -> bool:
    return bool(
        frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
    )
