"""Spend what a choice of ranks leaves of its budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.program import Bound, choose
from dprp_tf.costs.rank_space import Ranks, RankSpace

__all__ = ["fill", "least_cost", "losses", "priced", "require_feasible"]

_EMPTY = 1e-30
_ROUNDING = 1e-9
# Distances from the choice that `fill` was given, where it has to be changed, weigh this much.
_STAY = 1e-3


def losses(space: RankSpace, name: str, options: list[Ranks]) -> np.ndarray:
    """Return -log of the share of energy a layer keeps at each option.

    Args:
        space: The space.
        name: The layer.
        options: Ranks; None for dense, which keeps all.

    Returns:
        One number per option, 0 or more.
    """
    truncation = space.layers[name].truncation
    lost = [0.0 if option is None else truncation.lost(option) for option in options]
    return -np.log(np.maximum(1.0 - np.asarray(lost), _EMPTY))


def require_feasible(space: RankSpace, budget: Budget) -> None:
    """Refuse a budget that the smallest ranks exceed.

    Args:
        space: The space.
        budget: The bounds.

    Raises:
        BudgetError: If a bound, taken by itself, can't be met; it names the bound and the least.
    """
    for metric, bound in space.bounds(budget).items():
        least = least_cost(space, metric)
        if least > bound * (1 + _ROUNDING):
            unit = 1.0 if metric == "milliseconds" else space.cost({}).dense[metric]
            raise BudgetError(bound / unit, least / unit, metric=metric, unit=space.unit)


def least_cost(space: RankSpace, metric: str) -> float:
    """Return the smallest cost of the model: each layer at rank 1, or dense where that is less.

    Args:
        space: The space.
        metric: One of `METRICS`.

    Returns:
        The cost, in its own unit.
    """
    return space.cost(space.smallest((metric,))).values[metric]


def priced(space: RankSpace, options: Sequence[list[Ranks]], budget: Budget) -> dict[str, Bound]:
    """Return the bounds of a budget on the layers' options, as a program takes them.

    Args:
        space: The space.
        options: Ranks to choose among, for each layer of the space in its order.
        budget: The bounds.

    Returns:
        By metric the cost of every option, and what the rest of the model leaves of the bound.
    """
    dense = space.cost({}).dense
    found = {}
    for metric, upper in space.bounds(budget).items():
        costs = [
            np.asarray([space.layer_cost(name, option, metric) for option in row])
            for name, row in zip(space.layers, options, strict=True)
        ]
        own = sum(space.layer_cost(name, None, metric) for name in space.layers)
        found[metric] = Bound(costs, upper - (dense[metric] - own))
    return found


def fill(
    space: RankSpace, ranks: Mapping[str, Ranks], budget: Budget, *, evenly: bool = False
) -> dict[str, Ranks]:
    """Raise ranks one by one while the budget lasts.

    Each time the raise that keeps most log energy for its share of the budget is taken. If then
    more than the tolerance is left, because every single raise costs more than that, ranks are
    exchanged between layers: an exact program looks for ranks within the tolerance, close to
    those found.

    Args:
        space: The space.
        ranks: Ranks that keep every bound.
        budget: The bounds on costs.
        evenly: Whether to raise the layer with the smallest share of its full rank instead, for
            methods that don't look at energies. Default False.

    Returns:
        Ranks of all layers of the space, that meet the budget.

    Raises:
        BudgetError: If none do; it names the nearest costs that can be had.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> space = RankSpace(keras.Model(inputs, outputs), "channel")
    >>> fill(space, {"a": (3,)}, Budget(parameters=0.5, tolerance=0.1))
    {'a': (7,)}
    """
    metrics = tuple(budget.bounds)
    current = space.settled(ranks, metrics)
    bounds = space.bounds(budget)
    totals = {metric: space.cost(current).values[metric] for metric in metrics}
    while True:
        best: tuple[float, str, Ranks, dict[str, float]] | None = None
        for name, option in _raises(space, current, metrics):
            deltas = {
                metric: space.layer_cost(name, option, metric)
                - space.layer_cost(name, current[name], metric)
                for metric in metrics
            }
            if any(totals[m] + deltas[m] > bounds[m] * (1 + _ROUNDING) for m in metrics):
                continue
            value = _value(space, name, current[name], option, evenly)
            if not evenly:
                value /= max(*(deltas[m] / bounds[m] for m in metrics), _EMPTY)
            if best is None or value > best[0]:
                best = (value, name, option, deltas)
        if best is None:
            break
        _, name, option, deltas = best
        current[name] = option
        totals = {metric: totals[metric] + deltas[metric] for metric in metrics}
    shares = space.cost(current).shares
    all_dense = all(entry is None for entry in current.values())
    if budget.met(shares) or all_dense:
        return current
    return _exchanged(space, current, budget)


def _raises(
    space: RankSpace, ranks: Mapping[str, Ranks], metrics: tuple[str, ...]
) -> Iterator[tuple[str, Ranks]]:
    """Yield the next larger ranks of each layer, and dense where those don't pay."""
    for name, entry in ranks.items():
        if entry is None:
            continue
        layer = space.layers[name]
        for axis, rank in enumerate(entry):
            if rank < layer.full_ranks[axis]:
                larger = (*entry[:axis], rank + 1, *entry[axis + 1 :])
                yield name, space.settled({name: larger}, metrics)[name]
        if all(rank == full for rank, full in zip(entry, layer.full_ranks, strict=True)):
            yield name, None


def _value(space: RankSpace, name: str, now: Ranks, then: Ranks, evenly: bool) -> float:
    layer = space.layers[name]
    if not evenly:
        before, after = losses(space, name, [now, then])
        return float(before - after)
    assert now is not None
    return -math.prod(rank / full for rank, full in zip(now, layer.full_ranks, strict=True))


def _exchanged(space: RankSpace, ranks: Mapping[str, Ranks], budget: Budget) -> dict[str, Ranks]:
    """Ranks within the tolerance, by an exact program; of several bounds one is used up."""
    names = list(space.layers)
    options = [_with(space.layers[name].options(), ranks[name]) for name in names]
    limits = priced(space, options, budget)
    bounds = space.bounds(budget)
    wanted = [
        losses(space, name, row)
        + _STAY * np.asarray([option != ranks[name] for option in row], dtype=float)
        for name, row in zip(names, options, strict=True)
    ]
    found = []
    for tight, limit in limits.items():
        lower = limit.upper - budget.tolerance * bounds[tight]
        picks = choose(wanted, [*(limits | {tight: replace(limit, lower=lower)}).values()])
        if picks is not None:
            found.append(picks)
    if found:
        best = min(found, key=lambda picks: _total(wanted, picks))
        return {name: row[pick] for name, row, pick in zip(names, options, best, strict=True)}
    tight = max(bounds, key=lambda metric: space.cost(ranks).values[metric] / bounds[metric])
    unit = 1.0 if tight == "milliseconds" else space.cost({}).dense[tight]
    limit = limits[tight]
    above = replace(limit, lower=limit.upper, upper=np.inf)
    sides = (
        choose([-row for row in limit.costs], [*limits.values()]),
        choose(limit.costs, [*(limits | {tight: above}).values()]),
    )
    nearest = [
        None if picks is None else bounds[tight] + _total(limit.costs, picks) - limit.upper
        for picks in sides
    ]
    below, beyond = (None if cost is None else cost / unit for cost in nearest)
    raise BudgetError(
        bounds[tight] / unit,
        least_cost(space, tight) / unit,
        metric=tight,
        nearest=(below, beyond),
        unit=space.unit,
    )


def _total(rows: Sequence[np.ndarray], picks: list[int]) -> float:
    return sum(float(row[pick]) for row, pick in zip(rows, picks, strict=True))


def _with(options: list[Ranks], own: Ranks) -> list[Ranks]:
    return options if own in options else [own, *options]
