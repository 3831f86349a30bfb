"""The ranks chosen for a model: a table, a file, and what `factorize` takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from dprp_tf.costs.budget import METRICS, bounds_text, metric_name
from dprp_tf.decomposition import DECOMPOSITIONS
from dprp_tf.files.tables import StoredTable, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["PlannedRanks", "RankPlan"]

_VERSION = 1


@dataclass(frozen=True)
class PlannedRanks:
    """What was chosen for one layer.

    Attributes:
        name: The layer's key in the model.
        decomposition: The decomposition of its kernel.
        kernel_shape: Shape of its kernel.
        full_ranks: The largest ranks, one number, or two for Tucker-2.
        ranks: The ranks chosen; None for a layer that stays dense.
        lost: Share of its energy that the cut loses, 0 to 1.
        parameters: Kernel weights as folded.
        dense_parameters: Kernel weights of the dense layer.
    """

    name: str
    decomposition: str
    kernel_shape: tuple[int, ...]
    full_ranks: tuple[int, ...]
    ranks: tuple[int, ...] | None
    lost: float
    parameters: int
    dense_parameters: int

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            ValueError: If ranks are out of range or numbers make no sense.
        """
        count = 2 if self.decomposition == "tucker" else 1
        known = self.decomposition in DECOMPOSITIONS and len(self.full_ranks) == count
        limits = known and all(rank >= 1 for rank in self.full_ranks)
        within = self.ranks is None or (
            len(self.ranks) == count
            and all(1 <= r <= full for r, full in zip(self.ranks, self.full_ranks, strict=True))
        )
        sound = 0.0 <= self.lost <= 1.0 and min(self.parameters, self.dense_parameters) >= 0
        if not (limits and within and sound and len(self.kernel_shape) >= 2):
            raise ValueError(f"ranks within their limits for layer {self.name!r}: {self}")


@dataclass(frozen=True)
class RankPlan(StoredTable):
    """Ranks per layer, what they are predicted to cost, and how they were found.

    `factorize(model, ranks=plan)` applies it; layers without ranks stay dense. Costs are those of
    the model folded with `fold(..., form="smallest")`.

    Attributes:
        method: Name of the method.
        decomposition: The decomposition asked for.
        truncation: `"kernel"`, or `"output"` where the cuts are meant to keep the outputs on
            calibration data: pass those to `factorize(..., calibration_data=...)`.
        budget: The bounds asked for, by name.
        layers: One `PlannedRanks` per layer that could be cut, in model order.
        cost: Predicted cost by metric.
        dense: Cost of the dense model by metric.
        accuracy: `"dense"` and `"planned"` accuracy on the data, where measured: of the cuts alone,
            neither refitted nor fine-tuned.
        history: What the method did, step by step.
        unit: What `"milliseconds"` among the costs counts: `"ms"`, or `"instructions"` where the
            latency table counts those.

    Example:

    >>> row = PlannedRanks("a", "channel", (3, 3, 4, 8), (8,), (2,), 0.1, 88, 288)
    >>> plan = RankPlan("energy", "channel", "kernel", {"parameters": 0.4}, (row,),
    ...     {"parameters": 96.0}, {"parameters": 296.0})
    >>> plan.ranks, round(plan.shares["parameters"], 3)
    ({'a': 2}, 0.324)
    """

    kind: ClassVar[str] = "rank plan"
    method: str
    decomposition: str
    truncation: str
    budget: Mapping[str, float]
    layers: tuple[PlannedRanks, ...]
    cost: Mapping[str, float]
    dense: Mapping[str, float]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    unit: str = "ms"

    @property
    def ranks(self) -> dict[str, int | tuple[int, int]]:
        """Ranks of the layers that are cut: one number, or a pair for Tucker-2."""
        found: dict[str, int | tuple[int, int]] = {}
        for row in self.layers:
            if row.ranks is not None:
                pair = len(row.ranks) == 2
                found[row.name] = (row.ranks[0], row.ranks[1]) if pair else row.ranks[0]
        return found

    @property
    def shares(self) -> dict[str, float]:
        """Costs relative to the dense model's, those left out that the dense model has none of."""
        return {
            name: value / self.dense[name]
            for name, value in self.cost.items()
            if self.dense.get(name)
        }

    def table(self) -> Table:
        """Lay the plan out for `rich`: per layer its ranks, energy lost and weights."""
        shares = self.shares
        asked = bounds_text(self.budget, self.unit)
        costs = ", ".join(
            f"{metric_name(name, self.unit)} {value:.4g}"
            + (f" ({shares[name]:.1%} of dense)" if name in shares else "")
            for name, value in self.cost.items()
        )
        caption = f"predicted: {costs}"
        if self.accuracy:
            caption += "\naccuracy on the data before fine-tuning: " + ", ".join(
                f"{name} {value:.2%}" for name, value in self.accuracy.items()
            )
        rows = (
            (
                row.name,
                "dense" if row.ranks is None else row.decomposition,
                "" if row.ranks is None else ", ".join(map(str, row.ranks)),
                ", ".join(map(str, row.full_ranks)),
                "" if row.ranks is None else f"{row.lost:.1%}",
                f"{row.parameters:,}",
                f"{row.dense_parameters:,}",
            )
            for row in self.layers
        )
        figures = dict.fromkeys(("rank", "of", "energy lost", "weights", "dense"), "right")
        return lay_out(
            {"layer": "fold", "form": "left", **figures},
            rows,
            title=f"{self.method}, {self.decomposition}" + (f", asked: {asked}" if asked else ""),
            caption=caption,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RankPlan:
        """Return the plan that `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The plan.

        Raises:
            ValueError: If a value is missing or unusable.
        """
        try:
            if values["version"] != _VERSION:
                raise ValueError(f"version {values['version']}")
            rows = tuple(
                PlannedRanks(
                    name=str(row["name"]),
                    decomposition=str(row["decomposition"]),
                    kernel_shape=tuple(map(int, row["kernel_shape"])),
                    full_ranks=tuple(map(int, row["full_ranks"])),
                    ranks=None if row["ranks"] is None else tuple(map(int, row["ranks"])),
                    lost=float(row["lost"]),
                    parameters=int(row["parameters"]),
                    dense_parameters=int(row["dense_parameters"]),
                )
                for row in values["layers"]
            )
            for row in rows:
                row.check()
            if len({row.name for row in rows}) < len(rows):
                raise ValueError("one row per layer")
            if values["decomposition"] not in DECOMPOSITIONS:
                raise ValueError(f"a known decomposition: {values['decomposition']}")
            if values["truncation"] not in ("kernel", "output"):
                raise ValueError(f"a known truncation: {values['truncation']}")
            return cls(
                method=str(values["method"]),
                decomposition=str(values["decomposition"]),
                truncation=str(values["truncation"]),
                budget=_numbers(values["budget"]),
                layers=rows,
                cost=_costs(values["cost"]),
                dense=_costs(values["dense"]),
                accuracy=_numbers(values["accuracy"]),
                history=tuple(dict(entry) for entry in values["history"]),
                unit=str(values.get("unit", "ms")),  # plans of 0.1.0 do not say it
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"A rank plan must have what RankPlan.as_dict gives, version {_VERSION}. Received "
                f"one without: {error}"
            ) from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    found = {str(name): float(value) for name, value in values.items()}
    if not all(map(math.isfinite, found.values())):
        raise ValueError(f"finite numbers: {found}")
    return found


def _costs(values: Mapping[str, Any]) -> dict[str, float]:
    found = _numbers(values)
    if set(found) - set(METRICS) or any(value < 0 for value in found.values()):
        raise ValueError(f"costs of 0 or more among {METRICS}: {found}")
    return found
