"""Channels that go and ranks of what is left, chosen together: a table, a file, what cuts take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from dprp_tf.costs.budget import bounds_text, metric_name
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.files.tables import StoredTable, lay_out

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["JointPlan"]

_VERSION = 1


@dataclass(frozen=True)
class JointPlan(StoredTable):
    """Channels that go and ranks of the layers that are left, chosen together.

    `cut(model, plan)` applies both: first it removes the channels, then it cuts the kernels of the
    smaller model. The costs of the two parts are those of their own step; those here are of both.

    Attributes:
        method: Name of the method.
        channels: The channels that go of the whole model.
        ranks: The ranks of the model without them; its layers have the whole model's names.
        budget: The bounds asked for, by name.
        cost: Cost by metric of the model cut by both.
        dense: Cost of the whole model by metric.
        accuracy: `"dense"` and `"planned"` accuracy on the data, not fine-tuned, where measured.

    Example:

    >>> from dprp_tf.costs.channel_plan import PlannedChannels
    >>> from dprp_tf.costs.rank_plan import PlannedRanks
    >>> group = PlannedChannels("a", 8, 6, 0.1, {"a": (0, 5)})
    >>> channels = ChannelPlan("l1", 2, {}, (group,), {"macs": 216.0}, {"macs": 288.0})
    >>> row = PlannedRanks("a", "channel", (3, 3, 4, 6), (6,), (2,), 0.1, 84, 216)
    >>> ranks = RankPlan("energy", "channel", "kernel", {}, (row,), {"macs": 84.0}, {"macs": 216.0})
    >>> plan = JointPlan("l1", channels, ranks, {"macs": 0.3}, {"macs": 84.0}, {"macs": 288.0})
    >>> plan.channels.removed, plan.ranks.ranks, round(plan.shares["macs"], 3)
    ({'a': [0, 5]}, {'a': 2}, 0.292)
    """

    kind: ClassVar[str] = "joint plan"
    method: str
    channels: ChannelPlan
    ranks: RankPlan
    budget: Mapping[str, float]
    cost: Mapping[str, float]
    dense: Mapping[str, float]
    accuracy: Mapping[str, float] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Cost as a share of the whole model's, by metric, of those that it has any of."""
        return {
            name: value / self.dense[name]
            for name, value in self.cost.items()
            if self.dense.get(name)
        }

    def table(self) -> Table:
        """Lay the plan out for `rich`: groups with the channels they keep, layers with ranks."""
        unit = self.ranks.unit
        groups = (
            ("channels", row.name, str(row.kept), str(row.size), f"{row.lost:.1%}")
            for row in self.channels.groups
        )
        layers = (
            (
                "rank",
                row.name,
                "dense" if row.ranks is None else ", ".join(map(str, row.ranks)),
                ", ".join(map(str, row.full_ranks)),
                "" if row.ranks is None else f"{row.lost:.1%}",
            )
            for row in self.ranks.layers
        )
        costs = ", ".join(
            f"{share:.1%} of the {metric_name(name, unit)}" for name, share in self.shares.items()
        )
        told = "".join(f"; {name} {value:.2%}" for name, value in self.accuracy.items())
        columns = {"what": "left", "of": "fold", "kept": "right", "out of": "right"}
        return lay_out(
            {**columns, "lost": "right"},
            (*groups, *layers),
            title=f"Channels in multiples of {self.channels.multiple} and "
            f"{self.ranks.decomposition} ranks by {self.method}: {bounds_text(self.budget, unit)}",
            caption=f"{costs}{told}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "version": _VERSION,
            "method": self.method,
            "channels": self.channels.as_dict(),
            "ranks": self.ranks.as_dict(),
            "budget": dict(self.budget),
            "cost": dict(self.cost),
            "dense": dict(self.dense),
            "accuracy": dict(self.accuracy),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JointPlan:
        """Return the plan that `as_dict` described.

        Args:
            values: What `as_dict` returned, perhaps by way of JSON.

        Returns:
            The plan.

        Raises:
            ValueError: If it is of another version, or a value is missing or unusable.
        """
        with cls._reading(values, _VERSION):
            figures = {
                name: {str(key): float(value) for key, value in values[name].items()}
                for name in ("budget", "cost", "dense", "accuracy")
            }
            if not all(math.isfinite(x) for found in figures.values() for x in found.values()):
                raise ValueError("finite costs")
            sums = [*figures["cost"].values(), *figures["dense"].values()]
            if set(figures["cost"]) != set(figures["dense"]) or min(sums, default=0.0) < 0:
                raise ValueError("costs of 0 or more, by the same names as the whole model's")
            return cls(
                str(values["method"]),
                ChannelPlan.from_dict(values["channels"]),
                RankPlan.from_dict(values["ranks"]),
                figures["budget"],
                figures["cost"],
                figures["dense"],
                figures["accuracy"],
            )
