"""What one low-rank layer costs on a target at each rank."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["LayerLatency"]


@dataclass(frozen=True)
class LayerLatency:
    """Cost of one layer by rank.

    Attributes:
        name: The layer's name.
        decomposition: How its kernel is unfolded.
        full_rank: Its full rank.
        dense: Cost of its dense form, which it can have at every rank.
        ranks: Ranks measured, ascending.
        costs: Cost of the quickest form at each of them.
        forms: Kind of that form.
    """

    name: str
    decomposition: str
    full_rank: int
    dense: float
    ranks: tuple[int, ...]
    costs: tuple[float, ...]
    forms: tuple[str, ...]

    def cost(self, rank: int) -> float:
        """Return the cost at a rank: between measured ones by a straight line, at most dense.

        A smaller rank never costs more: where noise says so, the cheaper larger rank counts.
        Above the largest rank measured the layer is dense; below the smallest it costs as much as
        there, for nothing less was seen.

        Args:
            rank: 1 to the full rank.

        Returns:
            The cost, in the table's unit.

        Raises:
            ValueError: If the rank is out of range.

        Example:

        >>> LayerLatency("a", "spatial", 9, 1.0, (1, 3), (0.2, 0.6), ("summed",) * 2).cost(2)
        0.4
        """
        if not 1 <= rank <= self.full_rank:
            raise ValueError(
                f"`rank` of layer {self.name!r} must lie in 1..{self.full_rank}. Received: {rank}"
            )
        costs = self._falling()
        position = bisect_left(self.ranks, rank)
        if position == len(self.ranks):
            return self.dense
        if self.ranks[position] == rank or position == 0:
            return costs[position]
        below, above = self.ranks[position - 1], self.ranks[position]
        share = (rank - below) / (above - below)
        return costs[position - 1] + share * (costs[position] - costs[position - 1])

    def check(self) -> None:
        """Refuse a row with costs that no measurement can have given.

        Raises:
            ValueError: If ranks do not ascend within 1..full rank, lengths differ, or a cost is
                not finite and above 0.
        """
        ascending = list(self.ranks) == sorted(set(self.ranks))
        within = bool(self.ranks) and self.ranks[0] >= 1 and self.ranks[-1] <= self.full_rank
        equal = len(self.ranks) == len(self.costs) == len(self.forms)
        costs = all(0 < cost < math.inf for cost in (self.dense, *self.costs))
        if not (ascending and within and equal and costs):
            raise ValueError(
                f"Layer {self.name!r} must have ascending ranks in 1..{self.full_rank}, and a cost "
                f"above 0 and a form for each. Received: {self}"
            )

    def form(self, rank: int) -> str:
        """Return the kind of form that is quickest at the measured rank next above.

        Args:
            rank: 1 to the full rank.

        Returns:
            A kind; `"dense"` where no other form is quicker.
        """
        position = bisect_left(self.ranks, rank)
        if position == len(self.ranks) or self.costs[position] >= self.dense:
            return "dense"
        return self.forms[position]

    def _falling(self) -> list[float]:
        costs: list[float] = []
        least = self.dense
        for cost in reversed(self.costs):
            least = min(least, cost)
            costs.append(least)
        return costs[::-1]
