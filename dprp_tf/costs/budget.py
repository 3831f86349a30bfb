"""What a model may cost after its ranks are chosen: one bound or several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from dprp_tf.files.setting_fields import check_settings, setting

if TYPE_CHECKING:
    from dprp_tf.costs.latency_table import LatencyTable
    from dprp_tf.costs.width_table import WidthTable

__all__ = ["METRICS", "Budget", "BudgetError", "bounds_text", "metric_name"]

METRICS = ("parameters", "macs", "activations", "milliseconds")


class BudgetError(ValueError):
    """A budget that no ranks meet.

    Args:
        budget: What was asked for.
        least: The smallest cost there is, if that is above the budget.
        metric: The cost that is bounded, if it has a name.
        nearest: The nearest costs that can be had, below and above the budget, if the smallest
            one lies below it; None where there is none.
        unit: What a latency table counts, where the metric is its. Default `"ms"`.
        smallest: What has the smallest cost. Default: every layer at its smallest rank.
        remedy: What else can be done about a budget below it. Default: let more layers be cut.

    Attributes:
        budget: What was asked for.
        least: The smallest cost there is.
        metric: The cost that is bounded; None where it has no name.
    """

    def __init__(
        self,
        budget: float,
        least: float,
        *,
        metric: str | None = None,
        nearest: tuple[float | None, float | None] | None = None,
        unit: str = "ms",
        smallest: str = "with every layer at its smallest rank",
        remedy: str = "Raise it, or let more layers be cut.",
    ) -> None:
        named = "budget" if metric is None else metric
        of = f" {unit}" if metric == "milliseconds" else ""
        received = f"Received: {named}={budget:.10g}{of}"
        if nearest is None:
            # Rounded up, so that the figure told is a budget that works.
            told = math.ceil(least * 1e6) / 1e6 if least < 1e6 else float(math.ceil(least))
            super().__init__(
                f"`{named}` must be at least {told:.10g}{of}, the cost {smallest}. {received}. "
                f"{remedy}"
            )
        else:
            sides = zip(("below it", "above it"), nearest, strict=True)
            reached = " and ".join(
                f"{cost:.6g}{of} {side}" for side, cost in sides if cost is not None
            )
            found = f"the nearest found: {reached}" if reached else "none keep the other bounds too"
            super().__init__(
                f"`{named}` must be met by some ranks, within the tolerance. {received}; {found}. "
                "Ask for that, for a larger `tolerance`, or drop another bound."
            )
        self.budget = budget
        self.least = least
        self.metric, self._nearest = metric, nearest
        self._smallest, self._remedy = smallest, remedy

    def asked_as(self, budget: Budget, latency: LatencyTable | WidthTable | None) -> BudgetError:
        """Return the error in the words of the budget that was asked for.

        Args:
            budget: The budget before `Budget.on` made a time of a share.
            latency: The table it was made with.

        Returns:
            An error of `time` if it is one of a time that was asked for as a share; else itself.
        """
        if budget.time is None or latency is None or self.metric != "milliseconds":
            return self
        whole, sides = latency.dense, None
        if self._nearest is not None:
            below, above = (None if cost is None else cost / whole for cost in self._nearest)
            sides = below, above
        return BudgetError(
            self.budget / whole,
            self.least / whole,
            metric="time",
            nearest=sides,
            smallest=self._smallest,
            remedy=self._remedy,
        )


@dataclass(frozen=True)
class Budget:
    """Upper bounds that the chosen ranks must keep; at least one.

    Attributes:
        parameters: Weights of the folded model, as a share of the dense model's; 0.5 is half.
        macs: Its multiply-accumulates for one sample, likewise.
        activations: Entries of the feature maps it computes, likewise. A layer of two stages
            computes one map more than a dense one, so the share may exceed 1.
        milliseconds: Its time, in the unit of the latency table that goes with it.
        time: Its time, as a share of the dense model's in that table.
        accuracy_drop: Accuracy it may lose on the data, as a share: 0.015 is 1.5 points.
        tolerance: How far below the nearest bound the result may stay, relative to the bound.
            Default 0.01.

    Raises:
        ValueError: If no bound is given, or one is not a number above 0.

    Source: BSR/LeSS thesis Eq. 3.1, 4.10 and Appendix B for the first three.

    Example:

    >>> Budget(parameters=0.5, macs=0.6).bounds
    {'parameters': 0.5, 'macs': 0.6}
    >>> Budget.of(0.5) == Budget(parameters=0.5)
    True
    """

    parameters: float | None = setting(
        None, "Largest share of the dense model's parameters.", above=0
    )
    macs: float | None = setting(None, "Largest share of its MACs.", above=0)
    activations: float | None = setting(
        None, "Largest share of its activation volume; 1 or more.", above=0
    )
    milliseconds: float | None = setting(
        None, "Longest time, in the unit of the latency table.", above=0
    )
    time: float | None = setting(
        None, "Largest share of the dense model's time on the target.", above=0
    )
    accuracy_drop: float | None = setting(
        None, "Accuracy that may be lost; 0.015 is 1.5 points.", minimum=0
    )
    tolerance: float = setting(
        0.01, "How far below the nearest bound the result may stay.", minimum=0
    )

    def __post_init__(self) -> None:
        names = (*METRICS, "time", "accuracy_drop")
        given = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise ValueError(
                f"A budget must have a bound: {', '.join(f'`{name}`' for name in names)}. "
                "Received: none; time=0.5 is half of the dense model's time."
            )
        check_settings(self)
        for name in ("parameters", "macs", "time"):
            if given.get(name, 0.0) > 1.0:
                raise ValueError(
                    f"`{name}` must be a share of the dense model's, above 0 and at most 1. "
                    f"Received: {name}={given[name]}; half of them is 0.5."
                )
        if given.get("accuracy_drop", 0.0) >= 1.0:
            raise ValueError(
                "`accuracy_drop` must be a share below 1. "
                f"Received: accuracy_drop={self.accuracy_drop}; 1.5 points are 0.015."
            )

    @classmethod
    def of(cls, value: Budget | float | Mapping[str, float]) -> Budget:
        """Return the budget that a number (a share of the parameters) or a mapping stands for.

        Args:
            value: A `Budget`, a share of the parameters, or bounds by name.

        Returns:
            The budget.

        Raises:
            ValueError: If it is none of these.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, Mapping):
            known = {field.name for field in fields(cls)}
            unknown = sorted(set(value) - known)
            if unknown:
                raise ValueError(
                    f"`budget` must have bounds among {sorted(known)}. Received: {unknown}"
                )
            return cls(**value)
        if isinstance(value, Real) and not isinstance(value, bool):
            return cls(parameters=float(value))
        raise ValueError(
            "`budget` must be a Budget, a share of the parameters such as 0.5, or a mapping such "
            f"as {{'macs': 0.5}}. Received: {value!r}"
        )

    @property
    def of_time(self) -> bool:
        """Whether it bounds the time, which takes a latency table to tell."""
        return self.milliseconds is not None or self.time is not None

    def on(self, latency: LatencyTable | WidthTable | None) -> Budget:
        """Return the same budget with a share of the time as the time that it is on a target.

        Args:
            latency: The latency table of the model, or its width table; None if there is none.

        Returns:
            A budget without `time`.

        Raises:
            ValueError: If a share of the time is asked for without a table.

        Example:

        >>> from dprp_tf.costs.latency_table import LatencyTable
        >>> table = LatencyTable((), 5.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
        >>> Budget(time=0.5).on(table).bounds
        {'milliseconds': 2.5}
        """
        if self.time is None:
            return self
        if latency is None:
            raise ValueError(
                "`time` must come with a latency table, which says what the dense model takes. "
                f"Received: time={self.time} alone; give latency=deploy.measure_latency(...)."
            )
        allowed = self.time * latency.dense
        if self.milliseconds is not None:
            allowed = min(allowed, self.milliseconds)
        return replace(self, milliseconds=allowed, time=None)

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds on costs, by metric; of the time only that in the table's unit."""
        return {name: getattr(self, name) for name in METRICS if getattr(self, name) is not None}

    def excess(self, shares: Mapping[str, float]) -> float:
        """Return how far the costs exceed the bound they are nearest to, relative to it.

        Args:
            shares: Cost by metric: shares of the dense model, and milliseconds as they are.

        Returns:
            max over the bounds of cost / bound - 1: at most 0 when every bound is kept; minus
            infinity without a bound on a cost.

        Example:

        >>> round(Budget(parameters=0.5, macs=0.6).excess({"parameters": 0.4, "macs": 0.59}), 4)
        -0.0167
        """
        over = [shares[name] / bound - 1.0 for name, bound in self.bounds.items()]
        return max(over, default=-math.inf)

    def kept(self, shares: Mapping[str, float]) -> bool:
        """Say whether every bound on a cost is kept, but for rounding."""
        return self.excess(shares) <= 1e-9

    def met(self, shares: Mapping[str, float]) -> bool:
        """Say whether every bound is kept and the nearest one used up to the tolerance."""
        return self.kept(shares) and self.excess(shares) >= -self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Return the bounds and the tolerance that are given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def metric_name(metric: str, unit: str = "ms") -> str:
    """Return what a metric is called where people read it.

    Args:
        metric: One of `METRICS`, or a bound's name.
        unit: What the latency table counts that goes with it. Default `"ms"`.

    Returns:
        Its name; of what a latency table costs in another unit than milliseconds that unit's.

    Example:

    >>> metric_name("milliseconds"), metric_name("milliseconds", "instructions")
    ('milliseconds', 'instructions')
    """
    return unit if metric == "milliseconds" and unit != "ms" else metric


def bounds_text(bounds: Mapping[str, float], unit: str = "ms") -> str:
    """Return the bounds that were asked for as a heading says them.

    Args:
        bounds: Bounds by name, as `Budget.as_dict` gives them.
        unit: What the latency table counts that goes with them. Default `"ms"`.

    Returns:
        Names and values, without the tolerance.

    Example:

    >>> bounds_text({"macs": 0.5, "milliseconds": 3297000.0, "tolerance": 0.01}, "instructions")
    'macs 0.5, instructions 3.297e+06'
    """
    return ", ".join(
        f"{metric_name(name, unit)} {value:.4g}"
        for name, value in bounds.items()
        if name != "tolerance"
    )
