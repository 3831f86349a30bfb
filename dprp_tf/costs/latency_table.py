"""What each layer costs on a target at each rank: a table measured once, read without a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.files.tables import StoredTable, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MEASURED_WITH", "LatencyTable", "measured_with"]

_VERSION = 1

MEASURED_WITH = (
    "target",
    "runtime",
    "precision",
    "threads",
    "unit",
    "processor",
    "runtime_version",
)


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
            "dense": self.dense,
            **{name: getattr(self, name) for name in MEASURED_WITH},
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
            return cls(rows, float(values["dense"]), **measured_with(values))


def measured_with(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return where and how a stored table was measured.

    Args:
        values: What its `as_dict` returned, perhaps by way of JSON.

    Returns:
        A value for each name of `MEASURED_WITH`.

    Raises:
        KeyError: If one is missing.
    """
    return {
        name: int(values[name]) if name == "threads" else str(values[name])
        for name in MEASURED_WITH
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
