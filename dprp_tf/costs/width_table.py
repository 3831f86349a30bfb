"""What a model costs on a target at each width and rank of its layers, measured once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from dprp_tf.costs.latency_table import MEASURED_WITH, LatencyTable, measured_with
from dprp_tf.costs.width_latency import WidthLatency
from dprp_tf.files.tables import StoredTable, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["WidthTable"]

_VERSION = 1


@dataclass(frozen=True)
class WidthTable(StoredTable):
    """Cost of a model on a target as a function of how many channels its layers read and make.

    With c the channels that a layer l reads and makes, and m the share of the entries of feature
    maps that is left, the cost is

        fixed + m * rest + sum over l of T_l(c_l),  rest = dense - fixed - sum over l of T_l(whole)

    for what is neither a layer of the table nor there without a model at all, such as additions and
    pooling, works on the maps.

    Attributes:
        layers: One `WidthLatency` per layer whose channels may go.
        dense: Cost of the whole model, measured.
        fixed: Cost of a model that computes next to nothing.
        target: Where it was measured.
        runtime: `"litert"` or `"onnxruntime"`.
        precision: `"float32"`, `"float16"` or `"int8"`.
        threads: Threads of the runtime.
        unit: `"ms"`, or `"instructions"`, a proxy.
        processor: Name of the processor.
        runtime_version: Version of the runtime.

    Source: BSR/LeSS thesis 4.7 has the time as a budget; the sum over measured layers is ours.

    Example:

    >>> from dprp_tf.costs.width_latency import CostGrid
    >>> row = WidthLatency("a", (3, 3), CostGrid((8, 16), (16,), ((1.0,), (2.0,))))
    >>> table = WidthTable((row,), 5.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
    >>> table.model_cost({"a": (8, 16)}, maps=0.5)
    3.0
    """

    kind: ClassVar[str] = "width table"
    layers: tuple[WidthLatency, ...]
    dense: float
    fixed: float
    target: str
    runtime: str
    precision: str
    threads: int
    unit: str
    processor: str
    runtime_version: str

    @cached_property
    def by_name(self) -> dict[str, WidthLatency]:
        """The rows by layer name."""
        return {row.name: row for row in self.layers}

    @property
    def rest(self) -> float:
        """Cost of what works on feature maps and is no layer of the table."""
        return max(self.dense - self.fixed - sum(row.whole for row in self.layers), 0.0)

    def model_cost(
        self, channels: Mapping[str, tuple[float, float]], *, maps: float = 1.0
    ) -> float:
        """Return the predicted cost of the model at the given widths.

        Args:
            channels: Channels read and made by layer name; a layer left out is whole.
            maps: Share of the entries of feature maps that is left, 0 to 1. Default 1.

        Returns:
            The cost, in the table's unit.

        Raises:
            ValueError: If a name is unknown.
        """
        self._require(channels)
        saved = sum(
            self.by_name[name].whole - self.by_name[name].dense.cost(*at)
            for name, at in channels.items()
        )
        return self.dense - saved - (1.0 - maps) * self.rest

    def by_rank(
        self, channels: Mapping[str, tuple[int, int]], *, maps: float = 1.0
    ) -> LatencyTable:
        """Return the costs by rank of the model at the given widths, as `select_ranks` takes them.

        Args:
            channels: Channels read and made by layer name; a layer left out is whole.
            maps: Share of the entries of feature maps that is left, 0 to 1. Default 1.

        Returns:
            The table of the layers of which the cost of two stages is known.

        Raises:
            ValueError: If a name is unknown.
        """
        self._require(channels)
        rows = []
        for row in self.layers:
            whole = row.dense.reads[-1], row.dense.makes[-1]
            found = row.by_rank(*channels.get(row.name, whole))
            if found is not None:
                rows.append(found)
        return LatencyTable(
            tuple(rows),
            self.model_cost(channels, maps=maps),
            **{name: getattr(self, name) for name in MEASURED_WITH},
        )

    def narrowed(self, channels: Mapping[str, tuple[int, int]], *, maps: float = 1.0) -> WidthTable:
        """Return the table of the model at the given widths, which are then the whole ones.

        Args:
            channels: Channels read and made by layer name; a layer left out is whole.
            maps: Share of the entries of feature maps that is left, 0 to 1. Default 1.

        Returns:
            The table, without the costs of two stages: what it predicts of further cuts is what
            this one predicts.

        Raises:
            ValueError: If a name is unknown.

        Example:

        >>> from dprp_tf.costs.width_latency import CostGrid
        >>> row = WidthLatency("a", (3, 3), CostGrid((8, 16), (16,), ((1.0,), (2.0,))))
        >>> table = WidthTable((row,), 5.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
        >>> smaller = table.narrowed({"a": (12, 16)}, maps=0.5)
        >>> smaller.dense, smaller.model_cost({"a": (8, 16)}), table.model_cost({"a": (8, 16)},
        ...                                                                     maps=0.5)
        (3.5, 3.0, 3.0)
        """
        self._require(channels)
        rows = []
        for row in self.layers:
            whole = row.dense.reads[-1], row.dense.makes[-1]
            grid = row.dense.up_to(*channels.get(row.name, whole))
            rows.append(WidthLatency(row.name, row.window, grid))
        return replace(self, layers=tuple(rows), dense=self.model_cost(channels, maps=maps))

    def _require(self, names: Mapping[str, Any]) -> None:
        unknown = sorted(set(names) - set(self.by_name))
        if unknown:
            raise ValueError(
                f"`channels` must name layers of the table: {list(self.by_name)}. Received: "
                f"{unknown}; make the table anew for this model."
            )

    def table(self) -> Table:
        """Lay the table out for `rich`: per layer its cost, whole and at its least width."""
        unit = "ms" if self.unit == "ms" else "instructions (proxy)"
        rows = (
            (
                row.name,
                f"{row.dense.reads[-1]} to {row.dense.makes[-1]}",
                f"{row.whole:.4g}",
                ", ".join(
                    f"{reads} to {makes}: {row.dense.cost(reads, makes) / row.whole:.2f}"
                    for reads, makes in _diagonal(row)
                ),
                row.decomposition or "",
            )
            for row in self.layers
        )
        return lay_out(
            {
                "layer": "fold",
                "channels": "right",
                unit: "right",
                f"channels: share of the {unit}": "fold",
                "ranks": "fold",
            },
            rows,
            title=f"{self.target}, {self.runtime} {self.runtime_version}, {self.precision}, "
            f"threads: {self.threads}. {self.dense:.4g} {unit} whole",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "version": _VERSION,
            "dense": self.dense,
            "fixed": self.fixed,
            **{name: getattr(self, name) for name in MEASURED_WITH},
            "layers": [row.as_dict() for row in self.layers],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WidthTable:
        """Return the table that `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The table.

        Raises:
            ValueError: If it is of another version, or a value is missing or unusable.
        """
        with cls._reading(values, _VERSION):
            rows = tuple(map(WidthLatency.from_dict, values["layers"]))
            names = [row.name for row in rows]
            if len(set(names)) < len(names):
                raise ValueError(f"one row per layer: {names}")
            dense, fixed = float(values["dense"]), float(values["fixed"])
            if not 0 < dense < math.inf or not 0 <= fixed <= dense:
                raise ValueError(f"a cost of the whole above the fixed one: {dense}, {fixed}")
            return cls(rows, dense, fixed, **measured_with(values))


def _diagonal(row: WidthLatency) -> list[tuple[int, int]]:
    """The least width, one between and those only that are not whole."""
    reads, makes = row.dense.reads, row.dense.makes
    count = max(len(reads), len(makes))
    pairs = [
        (
            reads[min(at * len(reads) // count, len(reads) - 1)],
            makes[min(at * len(makes) // count, len(makes) - 1)],
        )
        for at in range(count)
    ]
    return [pair for pair in dict.fromkeys(pairs) if pair != (reads[-1], makes[-1])]
