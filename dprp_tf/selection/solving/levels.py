"""The largest level that every layer can reach within a budget, by few looks at each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dprp_tf.costs.budget import Budget
from dprp_tf.costs.rank_space import Ranks, RankSpace

__all__ = ["Levels", "RankCurve"]

_BISECTIONS = 30


class RankCurve:
    """A quality that rises with the ranks of a layer to 1, computed where it is asked for.

    Args:
        rows: The ranks, ascending.
        quality: The quality at ranks, -1 to 1, costly.
        slack: A level means a quality of 1 - slack (1 - level). Default 1, the level itself.

    Example:

    >>> curve = RankCurve([(1,), (2,), (3,)], lambda ranks: ranks[0] / 4)
    >>> curve.reaching(0.5), curve.reaching(0.9)
    ((2,), None)
    """

    def __init__(
        self,
        rows: Sequence[tuple[int, ...]],
        quality: Callable[[tuple[int, ...]], float],
        slack: float = 1.0,
    ) -> None:
        self._rows, self._quality, self._slack = list(rows), quality, slack
        # By position; less than anything before the first, the dense layer behind the last.
        self._known = {-1: -np.inf, len(self._rows): np.inf}

    def reaching(self, level: float) -> Ranks:
        """Return the smallest ranks at or over the level; None, dense, if none are."""
        first, last = self.bracket(level)
        while first < last:
            self.narrow(level)
            first, last = self.bracket(level)
        return self.ranks_at(last)

    def ranks_at(self, position: int) -> Ranks:
        """Return the ranks at a position; None, dense, behind the last."""
        return self._rows[position] if position < len(self._rows) else None

    def bracket(self, level: float) -> tuple[int, int]:
        """Return the first and the last position that may be the smallest to reach a level."""
        wanted = self._wanted(level)
        below = max(at for at, value in self._known.items() if value < wanted)
        above = min(at for at, value in self._known.items() if value >= wanted and at > below)
        return below + 1, above

    def narrow(self, level: float) -> None:
        """Compute the quality of one more rank, the one that narrows a level most."""
        first, above = self.bracket(level)
        below = first - 1
        low, high = max(self._known[below], -1.0), min(self._known[above], 1.0)
        # What is known tells where to look, but never far from one end alone: a curve that
        # bends would be walked step by step.
        guess = below + (above - below) * (self._wanted(level) - low) / max(high - low, 1e-12)
        margin = max(1, (above - below) // 8)
        at = min(max(round(guess), below + margin), above - margin)
        self._known[at] = self._quality(self._rows[at])

    def _wanted(self, level: float) -> float:
        return 1.0 - self._slack * (1.0 - level)


class Levels:
    """The ranks of all layers at a common level of quality.

    Args:
        space: The ranks they could have.
        curves: `RankCurve` by layer; a layer left out is dense.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> space = RankSpace(keras.Model(inputs, outputs), "channel")
    >>> levels = Levels(space, {"a": RankCurve([(r,) for r in range(1, 9)], lambda r: r[0] / 9)})
    >>> level = levels.largest(Budget(parameters=0.5))
    >>> levels.ranks(level), round(level, 4)
    ({'a': (7,)}, 0.7778)
    """

    def __init__(self, space: RankSpace, curves: Mapping[str, RankCurve]) -> None:
        self._space, self._curves = space, dict(curves)

    def ranks(self, level: float) -> dict[str, Ranks]:
        """Return the smallest ranks that reach a level."""
        return {name: curve.reaching(level) for name, curve in self._curves.items()}

    def largest(
        self,
        budget: Budget,
        progress: Callable[[float | None, str], None] = lambda share, text: None,
        name: str = "level",
    ) -> float:
        """Return the largest level, -1 to 1, whose ranks keep a budget.

        Args:
            budget: Bounds on costs; costs are taken to grow with the ranks.
            progress: Called with the share done and a text.
            name: What the level is called in that text.

        Returns:
            The level; -1 if none keeps the budget.
        """
        low, high = -1.0, 1.0
        for done in range(_BISECTIONS):
            middle = (low + high) / 2
            progress(done / _BISECTIONS, f"{name} {middle:.5f}")
            low, high = (middle, high) if self._kept(middle, budget) else (low, middle)
        return low

    def _kept(self, level: float, budget: Budget) -> bool:
        """Say whether the ranks at a level keep a budget, looking no closer than that needs."""
        while True:
            brackets = {name: curve.bracket(level) for name, curve in self._curves.items()}
            least, most = (
                {name: self._curves[name].ranks_at(at[end]) for name, at in brackets.items()}
                for end in (0, 1)
            )
            if budget.kept(self._space.cost(most).shares):
                return True
            open_ = [name for name, (first, last) in brackets.items() if first < last]
            if not open_ or not budget.kept(self._space.cost(least).shares):
                return False

            widths = {
                name: max(
                    (
                        self._space.layer_cost(name, most[name], metric)
                        - self._space.layer_cost(name, least[name], metric)
                    )
                    / bound
                    for metric, bound in self._space.bounds(budget).items()
                )
                for name in open_
            }
            self._curves[max(widths, key=lambda name: widths[name])].narrow(level)
