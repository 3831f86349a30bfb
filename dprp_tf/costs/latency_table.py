"""What each layer costs on a target at each rank: a table measured once, read without a target."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dprp_tf.files.tables import StoredTable, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LatencyTable", "LayerLatency"]

_VERSION = 1


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


@dataclass(frozen=True)
class LatencyTable(StoredTable):
    """Cost of a model on a target as a function of its ranks.

    The model's cost is what is left when every low-rank layer is taken out of the measured dense
    model, plus the cost of each layer at its rank.

    Attributes:
        layers: One `LayerLatency` per SVD layer.
        dense: Cost of the whole model with every layer dense, measured.
        target: Where it was measured.
        runtime: `"litert"` or `"onnxruntime"`.
        precision: `"float32"`, `"float16"` or `"int8"`.
        threads: Threads of the runtime.
        unit: `"ms"`, or `"instructions"`, a proxy.
        processor: Name of the processor.
        runtime_version: Version of the runtime.

    Example:

    >>> layer = LayerLatency("a", "spatial", 9, 1.0, (1, 3), (0.2, 0.6), ("summed",) * 2)
    >>> table = LatencyTable((layer,), 5.0, "local", "litert", "float32", 1, "ms", "some", "2.3")
    >>> table.model_cost({"a": 3})
    4.6
    """

    kind: ClassVar[str] = "latency table"
    layers: tuple[LayerLatency, ...]
    dense: float
    target: str
    runtime: str
    precision: str
    threads: int
    unit: str
    processor: str
    runtime_version: str

    def layer(self, name: str) -> LayerLatency:
        """Return the row of a layer.

        Args:
            name: The layer's name.

        Returns:
            Its costs.

        Raises:
            ValueError: If the table has no such layer.
        """
        for row in self.layers:
            if row.name == name:
                return row
        raise ValueError(
            f"The latency table must have the layer {name!r}. Received: a table of "
            f"{[row.name for row in self.layers]}; make the table anew for this model."
        )

    def model_cost(self, ranks: Mapping[str, int]) -> float:
        """Return the predicted cost of the model at the given ranks.

        Args:
            ranks: Rank by layer name; a layer left out is dense.

        Returns:
            The cost, in the table's unit.

        Raises:
            ValueError: If a name is unknown or a rank out of range.
        """
        rows = [self.layer(name) for name in ranks]
        return self.dense + sum(row.cost(ranks[row.name]) - row.dense for row in rows)

    def forms(self, ranks: Mapping[str, int | tuple[int, ...]]) -> dict[str, str]:
        """Return the forms that the predicted cost assumes, for `fold(model, forms=...)`.

        Args:
            ranks: Rank by layer name, such as a `DPRPModel`'s `ranks`. Pairs of ranks, those of
                Tucker layers, are passed over: a table knows SVD layers alone.

        Returns:
            Kind of form by layer name.

        Raises:
            ValueError: If a name is unknown.
        """
        single = {name: rank for name, rank in ranks.items() if not isinstance(rank, tuple)}
        return {name: self.layer(name).form(rank) for name, rank in single.items()}

    @property
    def least(self) -> float:
        """The predicted cost with every layer at rank 1."""
        return self.model_cost({row.name: 1 for row in self.layers})

    def table(self) -> Table:
        """Lay the table out for `rich`: per layer its dense cost and the costs by rank."""
        unit = "ms" if self.unit == "ms" else "instructions (proxy)"
        rows = (
            (
                row.name,
                f"{row.dense:.4g}",
                ", ".join(
                    f"{rank}: {cost / row.dense:.2f} {form}"
                    for rank, cost, form in zip(row.ranks, row.costs, row.forms, strict=True)
                ),
            )
            for row in self.layers
        )
        return lay_out(
            {
                "layer": "fold",
                f"dense {unit}": "right",
                f"rank: share of the dense {unit}, quickest form": "fold",
            },
            rows,
            title=f"{self.target}, {self.runtime} {self.runtime_version}, {self.precision}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}: {self.dense:.4g} {unit} "
            f"with every layer dense, {self.least:.4g} at rank 1 (predicted)",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "version": _VERSION,
            **{name: getattr(self, name) for name in _PLAIN},
            "layers": [
                {name: _plain(getattr(row, name)) for name in LayerLatency.__annotations__}
                for row in self.layers
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyTable:
        """Return the table that `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The table.

        Raises:
            ValueError: If it is of another version, or a value is missing or unusable.
        """
        with cls._reading(values, _VERSION):
            rows = tuple(
                LayerLatency(
                    name=str(row["name"]),
                    decomposition=str(row["decomposition"]),
                    full_rank=int(row["full_rank"]),
                    dense=float(row["dense"]),
                    ranks=tuple(map(int, row["ranks"])),
                    costs=tuple(map(float, row["costs"])),
                    forms=tuple(map(str, row["forms"])),
                )
                for row in values["layers"]
            )
            for row in rows:
                row.check()
            if not 0 < float(values["dense"]) < math.inf:
                raise ValueError(f"a cost of the dense model above 0: {values['dense']}")
            names = [row.name for row in rows]
            if len(set(names)) < len(names):
                raise ValueError(f"one row per layer: {names}")
            kinds: dict[str, Callable[[Any], Any]] = {"dense": float, "threads": int}
            return cls(rows, **{name: kinds.get(name, str)(values[name]) for name in _PLAIN})


_PLAIN = (
    "dense",
    "target",
    "runtime",
    "precision",
    "threads",
    "unit",
    "processor",
    "runtime_version",
)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
