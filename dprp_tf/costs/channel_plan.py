"""The channels chosen to go: a table, a file, and what `cut` takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from dprp_tf.costs.budget import bounds_text, metric_name
from dprp_tf.files.arguments import is_integer
from dprp_tf.files.tables import StoredTable, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ChannelPlan", "PlannedChannels"]

_VERSION = 1


@dataclass(frozen=True)
class PlannedChannels:
    """What was chosen for one group of channels.

    Attributes:
        name: The group's name; see `dprp_tf.channel_groups`.
        size: How many places it has, each one filter or several that are tied.
        kept: How many of them stay.
        lost: Share that goes of what the method looks at, 0 to 1.
        removed: Filters that go, by name of a layer; those tied to them go too.
    """

    name: str
    size: int
    kept: int
    lost: float
    removed: Mapping[str, tuple[int, ...]]

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            ValueError: If a number is out of range or a filter is named twice.
        """
        filters = list(self.removed.values())
        sound = (
            1 <= self.kept <= self.size
            and 0.0 <= self.lost <= 1.0
            and bool(filters) == (self.kept < self.size)
            and all(is_integer(at, minimum=0) for named in filters for at in named)
            and all(len(set(named)) == len(named) > 0 for named in filters)
        )
        if not sound:
            raise ValueError(f"channels within their limits for group {self.name!r}: {self}")


@dataclass(frozen=True)
class ChannelPlan(StoredTable):
    """Channels that go, what the smaller model costs, and how they were chosen.

    `cut(model, plan)` applies it, and so does `remove_channels(model, plan.removed)`.

    Attributes:
        method: Name of the method.
        multiple: Multiples in which places of a group stay.
        budget: The bounds asked for, by name.
        groups: One `PlannedChannels` per group that could lose some, in model order.
        cost: Cost of the smaller model by metric.
        dense: Cost of the whole model by metric.
        accuracy: `"dense"` and `"planned"` accuracy on the data, not fine-tuned, where measured.
        unit: What the costs in milliseconds count: `"ms"`, or what the latency table counts.

    Example:

    >>> group = PlannedChannels("a", 8, 6, 0.1, {"a": (0, 5)})
    >>> plan = ChannelPlan("l1", 2, {"macs": 0.8}, (group,), {"macs": 75.0}, {"macs": 100.0})
    >>> plan.removed, plan.shares["macs"]
    ({'a': [0, 5]}, 0.75)
    """

    kind: ClassVar[str] = "channel plan"
    method: str
    multiple: int
    budget: Mapping[str, float]
    groups: tuple[PlannedChannels, ...]
    cost: Mapping[str, float]
    dense: Mapping[str, float]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    unit: str = "ms"

    @property
    def removed(self) -> dict[str, list[int]]:
        """Filters that go by name of a layer, as `remove_channels` takes them."""
        found: dict[str, list[int]] = {}
        for group in self.groups:
            for name, filters in group.removed.items():
                found.setdefault(name, []).extend(filters)
        return found

    @property
    def shares(self) -> dict[str, float]:
        """Cost as a share of the whole model's, by metric."""
        return {name: value / self.dense[name] for name, value in self.cost.items()}

    def table(self) -> Table:
        """Lay the plan out for `rich`."""
        rows = (
            (row.name, str(row.size), str(row.kept), f"{row.lost:.1%}", ", ".join(row.removed))
            for row in self.groups
        )
        costs = ", ".join(
            f"{share:.1%} of the {metric_name(name, self.unit)}"
            for name, share in self.shares.items()
        )
        told = "".join(f"; {name} {value:.2%}" for name, value in self.accuracy.items())
        return lay_out(
            {"group": "fold", "channels": "right", "kept": "right", "lost": "right", "in": "fold"},
            rows,
            title=f"Channels by {self.method}, in multiples of {self.multiple}: "
            f"{bounds_text(self.budget, self.unit)}",
            caption=f"{costs}{told}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        rows = [
            {**asdict(row), "removed": {name: list(at) for name, at in row.removed.items()}}
            for row in self.groups
        ]
        return {
            "version": _VERSION,
            "method": self.method,
            "multiple": self.multiple,
            "budget": dict(self.budget),
            "groups": rows,
            "cost": dict(self.cost),
            "dense": dict(self.dense),
            "accuracy": dict(self.accuracy),
            "unit": self.unit,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChannelPlan:
        """Return the plan that `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The plan.

        Raises:
            ValueError: If it is of another version, or a value is missing or unusable.
        """
        with cls._reading(values, _VERSION):
            rows = tuple(
                PlannedChannels(
                    name=str(row["name"]),
                    size=int(row["size"]),
                    kept=int(row["kept"]),
                    lost=float(row["lost"]),
                    removed={str(name): tuple(at) for name, at in row["removed"].items()},
                )
                for row in values["groups"]
            )
            for row in rows:
                row.check()
            figures = {
                name: {str(key): float(value) for key, value in values[name].items()}
                for name in ("budget", "cost", "dense", "accuracy")
            }
            if not all(
                map(math.isfinite, (x for found in figures.values() for x in found.values()))
            ):
                raise ValueError("finite costs")
            if (
                set(figures["cost"]) != set(figures["dense"])
                or min(figures["dense"].values(), default=1.0) <= 0
            ):
                raise ValueError("costs of the whole model above 0, by the same names")
            return cls(
                str(values["method"]),
                int(values["multiple"]),
                figures["budget"],
                rows,
                figures["cost"],
                figures["dense"],
                figures["accuracy"],
                str(values["unit"]),
            )
