"""What a cut is going to be worth at the end of its training, by what was seen of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np

from dprp_tf.compression.goal import Goal
from dprp_tf.compression.outcome import Outcome

__all__ = ["Forecast", "planned_cost"]

# What is lost by the cut that is still lost after a little training, and of that at the end, before
# any of both was seen.
_AFTER_LITTLE, _AFTER_ALL = 0.15, 0.5
# How far forecasts lie beside what comes out: a part of what is lost, and accuracy besides.
_SPREAD, _DOUBT = 0.3, 0.002
_LEAST_LOSS = 1e-3


class Forecast:
    """Tells what cuts will lose at the end of their training.

    Losses count from the best that any training reached, which may be above the model's own score.
    Of what a cut loses by itself, a part is still lost after a little training, and of that a part
    at the end; both parts are those that were seen, the second together with one that is assumed,
    so that a single lucky end says little. What costs more than something that was finished loses
    no more than that, and what costs less no less.

    Args:
        goal: The wish.
        cuts: Cuts that are done.
        tuned: Those that were trained a little.
        finished: Those that were trained to the end, with the scores that they come to.

    Example:

    >>> from dprp_tf.compression.outcome import Candidate, Dense
    >>> from dprp_tf.compression.settings import CompressionSettings
    >>> goal = Goal(CompressionSettings(), Dense(0.9, 2.0, 1000.0, 1.0, 500))
    >>> cut = Outcome(0, "cut", Candidate("both", 0.5), "complete", 0.8, 0.5, 0.6)
    >>> round(Forecast(goal, [cut], [], []).lost(cut), 4)
    0.0075
    """

    def __init__(
        self,
        goal: Goal,
        cuts: Sequence[Outcome],
        tuned: Sequence[Outcome],
        finished: Sequence[Outcome],
    ) -> None:
        self._goal = goal
        tuned = [one for one in tuned if one.done]
        finished = [one for one in finished if one.done]
        self.top = max(goal.dense.score, *(one.score for one in (*tuned, *finished)), 0.0)
        self._by_cut = {one.number: max(self.top - one.score, _LEAST_LOSS) for one in cuts}
        self._tuned: dict[int, float] = {}
        for one in tuned:
            if one.origin in self._by_cut:
                before = self._tuned.get(one.origin, math.inf)
                self._tuned[one.origin] = min(before, self.top - one.score)
        little = [lost / self._by_cut[number] for number, lost in self._tuned.items()]
        self._little = median(little) if little else _AFTER_LITTLE
        ends = [
            min(1.5, (self.top - one.score) / self._tuned[one.origin])
            for one in finished
            if self._tuned.get(one.origin, 0.0) > _LEAST_LOSS
        ]
        self._all = (_AFTER_ALL + sum(ends)) / (1 + len(ends))
        # Costs as they were predicted are those that can be compared.
        self._ends = [(planned_cost(goal, one), self.top - one.score) for one in finished]

    def lost(self, cut: Outcome) -> float:
        """Return the accuracy that a cut will have lost at the end, beside the best reached.

        Args:
            cut: A cut that is done.

        Returns:
            0 or more.
        """
        lost = self._tuned.get(cut.number, self._by_cut[cut.number] * self._little)
        cost = self._goal.cost(cut.time, cut.size)
        return self._between(cost, lost * self._all)

    def lost_at(self, cost: float, cuts: Sequence[Outcome]) -> float:
        """Return what the best cut of some cost would lose, by those on both sides of it.

        Args:
            cost: A cost that no cut has.
            cuts: Cuts that none beats.

        Returns:
            0 or more; infinite beyond all of them.
        """
        known = sorted((self._goal.cost(cut.time, cut.size), self.lost(cut)) for cut in cuts)
        if not known or not known[0][0] <= cost <= known[-1][0]:
            return math.inf
        # Losses grow by factors, so that lines are drawn through their logarithms.
        logarithms = [math.log(max(lost, _LEAST_LOSS)) for _, lost in known]
        lost = math.exp(float(np.interp(cost, [place for place, _ in known], logarithms)))
        return self._between(cost, lost)

    def chance(self, lost: float) -> float:
        """Return how likely what loses so much is to keep the accuracy that is wished.

        Args:
            lost: What `lost` returned.

        Returns:
            0 to 1; 1 where no accuracy is wished.
        """
        if self._goal.least_score is None:
            return 1.0
        if math.isinf(lost):
            return 0.0
        room = self.top - self._goal.least_score - lost
        return 0.5 * (1 + math.erf(room / (_DOUBT + _SPREAD * lost) / math.sqrt(2)))

    def _between(self, cost: float, lost: float) -> float:
        """A loss as far as those that were finished on both sides allow."""
        above = min((end for end in self._ends if end[0] >= cost), default=None)
        below = max((end for end in self._ends if end[0] <= cost), default=None)
        if above is not None:
            lost = max(lost, above[1])
        if below is not None:
            lost = min(lost, below[1])
        if above is not None and below is not None:
            # A curve that bends as losses do lies below the line between two of its points.
            line = float(np.interp(cost, (below[0], above[0]), (below[1], above[1])))
            lost = min(lost, line)
        return lost


def planned_cost(goal: Goal, one: Outcome) -> float:
    """Return what was predicted of the cost of a cut or file, to hold against other predictions.

    Args:
        goal: The wish.
        one: The cut or file.

    Returns:
        The share of the dense file's cost.

    Example:

    >>> from dprp_tf.compression.outcome import Candidate, Dense
    >>> from dprp_tf.compression.settings import CompressionSettings
    >>> goal = Goal(CompressionSettings(), Dense(0.9, 2.0, 1000.0, 1.0, 500))
    >>> file = Outcome(4, "finished", Candidate("both", 0.5), "complete", 0.9, 0.52, 0.6,
    ...                values={"planned_time": 0.5})
    >>> planned_cost(goal, file)
    0.5
    """
    known = one.values
    time, size = known.get("planned_time", one.time), known.get("planned_size", one.size)
    return goal.cost(float(time), float(size))
