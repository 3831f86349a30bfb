"""Which of two files is the better one for a wish, and whether one will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dprp_tf.compression.outcome import Dense, Outcome
from dprp_tf.compression.settings import CompressionSettings

__all__ = ["Goal", "Point", "front", "no_worse"]

Point = tuple[float, float, float]
"""Score, time and size."""


class Goal:
    """A wish beside the model that it is about.

    Args:
        settings: The wish.
        dense: The model as it was given.

    Example:

    >>> goal = Goal(CompressionSettings(max_drop=0.01), Dense(0.9, 2.0, 1000.0, 1.0, 500))
    >>> goal.meets(0.895, 0.5, 0.5), goal.meets(0.88, 0.5, 0.5)
    (True, False)
    >>> goal.rank(0.895, 0.5, 0.5) > goal.rank(0.90, 0.6, 0.5) > goal.rank(0.88, 0.4, 0.5)
    True
    """

    def __init__(self, settings: CompressionSettings, dense: Dense) -> None:
        self.settings, self.dense = settings, dense
        drop = settings.max_drop
        # Less than one sample can't be told.
        told = None if drop is None else max(drop, 1 / dense.samples) if drop else 0.0
        self.least_score = None if told is None else dense.score - told - 1e-9
        # Shares of the dense file's.
        self.most_time = (
            None if settings.milliseconds is None else settings.milliseconds / dense.milliseconds
        )
        self.most_size = (
            None if settings.kilobytes is None else 1000 * settings.kilobytes / dense.size_bytes
        )

    @property
    def by_score(self) -> bool:
        """Whether the most accurate file is wished."""
        return self.least_score is None

    @property
    def by_size(self) -> bool:
        """Whether cuts are bounded by parameters instead of time."""
        return self.settings.metric == "parameters"

    def cost(self, time: float, size: float) -> float:
        """Return what is to be small, as a share of the dense file's.

        Args:
            time: Share of the time.
            size: Share of the bytes.

        Returns:
            One of them, by the wish; where the score is wished the one nearest its bound, as a
            share of that.
        """
        if self.by_score:
            bounds = ((time, self.most_time), (size, self.most_size))
            return max(value / bound for value, bound in bounds if bound is not None)
        return size if self.settings.smallest else time

    def allows(self, time: float, size: float) -> bool:
        """Say whether bounds of time and size are kept.

        Args:
            time: Share of the dense file's time.
            size: Share of its bytes.

        Returns:
            Whether both are.
        """
        return all(
            bound is None or value <= bound
            for value, bound in ((time, self.most_time), (size, self.most_size))
        )

    def meets(self, score: float, time: float, size: float) -> bool:
        """Say whether a file will do.

        Args:
            score: Its accuracy.
            time: Share of the dense file's time.
            size: Share of its bytes.

        Returns:
            Whether it keeps all bounds.
        """
        accurate = self.least_score is None or score >= self.least_score
        return accurate and self.allows(time, size)

    def rank(self, score: float, time: float, size: float) -> tuple[float, ...]:
        """Return what is larger the better a file is.

        Args:
            score: Its accuracy.
            time: Share of the dense file's time.
            size: Share of its bytes.

        Returns:
            Numbers to compare: files that will do come before all others; of those that will not,
            the one that misses least.
        """
        if self.meets(score, time, size):
            cost = self.cost(time, size)
            return (1.0, score, -cost) if self.by_score else (1.0, -cost, score)
        missed = 0.0 if self.least_score is None else max(0.0, self.least_score - score)
        # A file that takes twice the time misses as much as one that is always wrong.
        for value, bound in ((time, self.most_time), (size, self.most_size)):
            missed += 0.0 if bound is None else max(0.0, value / bound - 1)
        return (0.0, -missed, score)

    def best(self, files: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the best of measured files.

        Args:
            files: Rows with `score`, `time` and `size`; one or more.

        Returns:
            The one of the highest rank.
        """
        return max(files, key=lambda row: self.rank(row["score"], row["time"], row["size"]))


def front(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes that no other beats in score, time and size at once.

    Args:
        outcomes: Any outcomes that are done.

    Returns:
        Those that are not dominated, the fastest first; of equal ones the earliest.

    Example:

    >>> from dprp_tf.compression.outcome import Candidate
    >>> a, b, c = (Outcome(at, "cut", Candidate("both", 0.5), "complete", score, time, 0.5)
    ...            for at, (score, time) in enumerate([(0.9, 0.5), (0.8, 0.4), (0.7, 0.45)]))
    >>> [found.number for found in front([a, b, c])]
    [1, 0]
    """
    kept: list[Outcome] = []
    for one in sorted(
        outcomes, key=lambda found: (found.time, -found.score, found.size, found.number)
    ):
        if not any(no_worse(_point(other), _point(one)) for other in kept):
            kept.append(one)
    return kept


def no_worse(one: Point, other: Point) -> bool:
    """Say whether something is worse than another in nothing.

    Args:
        one: Its score, time and size.
        other: Those of the other.

    Returns:
        Whether its score is no smaller, and its time and its size are no larger.

    Example:

    >>> no_worse((0.9, 0.5, 0.4), (0.8, 0.5, 0.4)), no_worse((0.9, 0.6, 0.4), (0.8, 0.5, 0.4))
    (True, False)
    """
    return one[0] >= other[0] and one[1] <= other[1] and one[2] <= other[2]


def _point(one: Outcome) -> Point:
    return one.score, one.time, one.size
