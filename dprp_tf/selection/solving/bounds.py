"""The bounds of a budget that channels can be chosen or learned for."""

from __future__ import annotations

from collections.abc import Mapping

from dprp_tf.costs.budget import METRICS, Budget
from dprp_tf.costs.width_table import WidthTable

__all__ = ["as_shares", "bounds_of"]


def bounds_of(
    budget: Budget, latency: WidthTable | None, *, decomposition: str | None = None
) -> dict[str, float]:
    """Return the bounds of a budget, a time as what it is on the target.

    Args:
        budget: The budget.
        latency: The model's width table; None to know no times.
        decomposition: Whose ranks the table is to know besides, for the advice. Default: none.

    Returns:
        Bounds by metric.

    Raises:
        ValueError: If it bounds an accuracy, or a time without a table.

    Example:

    >>> bounds_of(Budget(macs=0.5), None)
    {'macs': 0.5}
    """
    if budget.accuracy_drop is not None:
        raise ValueError(
            f"`budget` must bound {', '.join(METRICS)} or time where channels go. Received: "
            f"accuracy_drop={budget.accuracy_drop}"
        )
    if budget.of_time and latency is None:
        also = "" if decomposition is None else f'decomposition="{decomposition}", '
        raise ValueError(
            "`latency` must be given for a budget of time: deploy.measure_widths(model, "
            f"{also}target=...). Received: latency=None"
        )
    return budget.on(latency).bounds


def as_shares(bounds: Mapping[str, float], latency: WidthTable | None) -> dict[str, float]:
    """Return bounds as shares of the whole model's costs.

    Args:
        bounds: What `bounds_of` returned.
        latency: The width table that a time is of.

    Returns:
        Shares by metric.

    Example:

    >>> table = WidthTable((), 4.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "2.3")
    >>> as_shares({"macs": 0.5, "milliseconds": 1.0}, table)
    {'macs': 0.5, 'milliseconds': 0.25}
    """
    whole = 1.0 if latency is None else latency.dense
    return {
        name: bound / whole if name == "milliseconds" else bound for name, bound in bounds.items()
    }
