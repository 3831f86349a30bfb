"""What one layer costs on a target by the channels that it reads and makes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.decomposition import full_rank, resolve

__all__ = ["CostGrid", "WidthLatency"]


@dataclass(frozen=True)
class CostGrid:
    """A cost measured at several counts on each of two axes.

    Attributes:
        reads: Counts on the first axis, ascending.
        makes: Counts on the second axis, ascending.
        costs: A row of costs for each count of the first axis, of shape (reads, makes).

    Example:

    >>> CostGrid((8, 16), (8, 16), ((1.0, 2.0), (2.0, 4.0))).cost(12, 16)
    3.0
    """

    reads: tuple[int, ...]
    makes: tuple[int, ...]
    costs: tuple[tuple[float, ...], ...]

    def cost(self, reads: float, makes: float) -> float:
        """Return the cost at two counts: between measured ones by straight lines on either axis.

        Less never costs more: where noise says so, the cheaper larger count counts. Below the
        smallest count measured it costs as much as there, above the largest as much as there.

        Args:
            reads: Count on the first axis, above 0; soft counts may be fractions.
            makes: Count on the second axis, likewise.

        Returns:
            The cost.
        """
        row, down = _place(self.reads, reads)
        column, right = _place(self.makes, makes)
        total = 0.0
        for step, part in ((0, 1 - down), (1, down)):
            for side, share in ((0, 1 - right), (1, right)):
                if part and share:
                    total += part * share * self._falling[row + step][column + side]
        return total

    def up_to(self, reads: int, makes: int) -> CostGrid:
        """Return the same costs as a grid that ends at two counts.

        Args:
            reads: The last count on the first axis, 1 or more.
            makes: The last count on the second axis, likewise.

        Returns:
            The grid, which between its counts says what this one says.

        Example:

        >>> grid = CostGrid((8, 16), (8, 16), ((1.0, 2.0), (2.0, 4.0)))
        >>> grid.up_to(12, 16)
        CostGrid(reads=(8, 12), makes=(8, 16), costs=((1.0, 2.0), (1.5, 3.0)))
        """
        axes = [
            (*(count for count in axis if count < last), last)
            for axis, last in ((self.reads, reads), (self.makes, makes))
        ]
        costs = tuple(tuple(self.cost(one, other) for other in axes[1]) for one in axes[0])
        return CostGrid(axes[0], axes[1], costs)

    @cached_property
    def _falling(self) -> tuple[tuple[float, ...], ...]:
        """The costs with each at most those of the larger counts."""
        rows: list[list[float]] = []
        for row in reversed(self.costs):
            least: list[float] = []
            for column in reversed(range(len(row))):
                limits = [row[column]]
                if least:
                    limits.append(least[-1])
                if rows:
                    limits.append(rows[-1][column])
                least.append(min(limits))
            rows.append(least[::-1])
        return tuple(map(tuple, reversed(rows)))

    def check(self) -> None:
        """Refuse a grid that no measurement can have given.

        Raises:
            ValueError: If counts do not ascend from 1, lengths differ, or a cost is not finite and
                above 0.
        """
        counts = all(
            list(axis) == sorted(set(axis)) and axis and axis[0] >= 1
            for axis in (self.reads, self.makes)
        )
        lengths = len(self.costs) == len(self.reads) and all(
            len(row) == len(self.makes) for row in self.costs
        )
        sound = all(0 < cost < math.inf for row in self.costs for cost in row)
        if not (counts and lengths and sound):
            raise ValueError(f"ascending counts, and a cost above 0 for each pair: {self}")

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "reads": list(self.reads),
            "makes": list(self.makes),
            "costs": [list(row) for row in self.costs],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CostGrid:
        """Return the grid that `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The grid.

        Raises:
            ValueError: As `check`.
        """
        found = cls(
            tuple(map(int, values["reads"])),
            tuple(map(int, values["makes"])),
            tuple(tuple(map(float, row)) for row in values["costs"]),
        )
        found.check()
        return found


@dataclass(frozen=True)
class WidthLatency:
    """Cost of one layer by the channels it reads and makes, and by its rank where that is known.

    A layer of rank r in a decomposition of two stages is two plain layers, one from c_in channels
    to r and one from r to c_out: their costs, added up, are its own.

    Attributes:
        name: The layer's name.
        window: Sizes of its kernel but the channels; none for a dense layer.
        dense: Cost of the layer as it is.
        decomposition: How its kernel is unfolded, where stages were measured; else None.
        first: Cost of the first stage by channels read and rank; None where none was measured.
        second: Cost of the second stage by rank and channels made; likewise.

    Example:

    >>> dense = CostGrid((8, 16), (8, 16), ((1.0, 2.0), (2.0, 4.0)))
    >>> stage = CostGrid((8, 16), (8, 16), ((0.5, 0.9), (0.9, 1.5)))
    >>> row = WidthLatency("a", (3, 3), dense, "channel", stage, stage)
    >>> row.by_rank(16, 16).cost(8)
    1.8
    """

    name: str
    window: tuple[int, ...]
    dense: CostGrid
    decomposition: str | None = None
    first: CostGrid | None = None
    second: CostGrid | None = None

    @property
    def whole(self) -> float:
        """Its cost with all its channels, dense."""
        return self.dense.cost(self.dense.reads[-1], self.dense.makes[-1])

    def by_rank(self, reads: int, makes: int) -> LayerLatency | None:
        """Return the costs by rank at a width, as tables by rank hold them.

        Args:
            reads: Channels that the layer reads then.
            makes: Channels that it makes.

        Returns:
            The row; None where no stages were measured.
        """
        if self.decomposition is None or self.first is None or self.second is None:
            return None
        kernel = (*self.window, reads, makes)
        full = full_rank(kernel, self.decomposition)
        form = resolve(kernel, self.decomposition)
        ranks = [rank for rank in self.first.makes if rank <= full] or [full]
        return LayerLatency(
            name=self.name,
            decomposition=self.decomposition,
            full_rank=full,
            dense=self.dense.cost(reads, makes),
            ranks=tuple(ranks),
            costs=tuple(self.first.cost(reads, r) + self.second.cost(r, makes) for r in ranks),
            forms=(form,) * len(ranks),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "name": self.name,
            "window": list(self.window),
            "decomposition": self.decomposition,
            **{
                name: None if grid is None else grid.as_dict()
                for name, grid in (
                    ("dense", self.dense),
                    ("first", self.first),
                    ("second", self.second),
                )
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WidthLatency:
        """Return the row that `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The row.

        Raises:
            ValueError: If a value is missing or unusable.
        """
        stages = [
            None if values[name] is None else CostGrid.from_dict(values[name])
            for name in ("first", "second")
        ]
        decomposition = values["decomposition"]
        window = tuple(map(int, values["window"]))
        if (decomposition is None) != (None in stages):
            raise ValueError(f"stages with a decomposition, or neither: {values['name']!r}")
        if decomposition is not None:
            resolve((*window, 1, 1), str(decomposition))
        return cls(
            str(values["name"]),
            window,
            CostGrid.from_dict(values["dense"]),
            None if decomposition is None else str(decomposition),
            *stages,
        )


def _place(axis: Sequence[int], count: float) -> tuple[int, float]:
    """The measured count at or below one, and how far towards the next it lies."""
    if count >= axis[-1]:
        return len(axis) - 1, 0.0
    if count <= axis[0]:
        return 0, 0.0
    at = bisect_right(axis, count) - 1
    return at, (count - axis[at]) / (axis[at + 1] - axis[at])
