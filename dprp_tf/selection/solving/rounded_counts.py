"""Whole widths and ranks of soft ones, within a budget and close to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dprp_tf.costs.budget import Budget
from dprp_tf.costs.rank_space import Ranks, RankSpace
from dprp_tf.selection.solving.filling import fill, require_feasible

__all__ = ["narrowed", "nearest_widths", "order_of_places", "scaled_ranks", "widened"]

_HALVINGS = 40


def nearest_widths(
    kept: Mapping[str, float], widths: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Return the width of each group that is nearest to what is left of it, the larger of two.

    Args:
        kept: By group the sum of what is left of its places.
        widths: By group the widths that it may have, the largest first.

    Returns:
        A width for each group.

    Example:

    >>> nearest_widths({"a": 11.9, "b": 2.0}, {"a": [20, 16, 8], "b": [16, 8]})
    {'a': 8, 'b': 8}
    """
    return {
        name: min(sizes, key=lambda width: abs(width - kept[name]))
        for name, sizes in widths.items()
    }


def narrowed(
    at: Mapping[str, int],
    widths: Mapping[str, Sequence[int]],
    left: Mapping[str, NDArray[np.float64]],
    cost: Callable[[Mapping[str, int]], float],
) -> dict[str, int] | None:
    """Return widths of which one is a step narrower: that which loses least for what it saves.

    Args:
        at: Widths by group.
        widths: By group the widths that it may have, the largest first.
        left: By group what is lost with the first k places to go, of shape (places + 1,).
        cost: From widths to a cost.

    Returns:
        The widths; None if none can be narrower.

    Example:

    >>> left = {"a": np.array([0, 1, 3]), "b": np.array([0, 2, 4])}
    >>> narrowed({"a": 2, "b": 2}, {"a": [2, 1], "b": [2, 1]}, left, lambda w: sum(w.values()))
    {'a': 1, 'b': 2}
    """
    steps = _steps(at, widths, left, cost, 1)
    return min(steps)[1] if steps else None


def widened(
    at: Mapping[str, int],
    widths: Mapping[str, Sequence[int]],
    left: Mapping[str, NDArray[np.float64]],
    cost: Callable[[Mapping[str, int]], float],
    *,
    most: float = np.inf,
) -> dict[str, int] | None:
    """Return widths of which one is a step wider: that which gains most for what it costs.

    Args:
        at: Widths by group.
        widths: By group the widths that it may have, the largest first.
        left: By group what is lost with the first k places to go, of shape (places + 1,).
        cost: From widths to a cost.
        most: The largest cost allowed. Default: any.

    Returns:
        The widths; None if none can be wider.

    Example:

    >>> left = {"a": np.array([0, 1, 3]), "b": np.array([0, 2, 4])}
    >>> widened({"a": 1, "b": 1}, {"a": [2, 1], "b": [2, 1]}, left, lambda w: sum(w.values()))
    {'a': 1, 'b': 2}
    """
    steps = [step for step in _steps(at, widths, left, cost, -1) if step[2] <= most]
    return max(steps)[1] if steps else None


def scaled_ranks(
    space: RankSpace, soft: Mapping[str, Sequence[float]], budget: Budget
) -> dict[str, Ranks]:
    """Return whole ranks in proportion to soft ones, as large as a budget allows.

    All are scaled by one factor and rounded down, at least to 1; layers that their rank would not
    make cheaper are dense. What the budget leaves goes where it keeps most energy; see `fill`.

    Args:
        space: The ranks that layers could have.
        soft: Soft ranks by layer, one or for Tucker-2 two; layers without any stay dense.
        budget: The bounds.

    Returns:
        Ranks by layer.

    Raises:
        BudgetError: If no ranks meet the budget.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> space = RankSpace(keras.Model(inputs, outputs), "channel")
    >>> scaled_ranks(space, {"a": (9.3,)}, Budget(parameters=0.5, tolerance=0.1))
    {'a': (7,)}
    """
    require_feasible(space, budget)
    metrics = tuple(budget.bounds)

    def at(factor: float) -> dict[str, Ranks]:
        ranks: dict[str, Ranks] = {
            name: tuple(
                int(np.clip(int(factor * rank), 1, full))
                for rank, full in zip(own, space.layers[name].full_ranks, strict=True)
            )
            for name, own in soft.items()
        }
        return space.settled(ranks, metrics)

    low = _largest(lambda factor: budget.kept(space.cost(at(factor)).shares))
    return fill(space, at(low), budget)


class _Widths(dict[str, int]):
    """Widths that can be sorted: of equal steps the first is as good as any."""

    def __lt__(self, other: object) -> bool:
        return False


def _steps(
    at: Mapping[str, int],
    widths: Mapping[str, Sequence[int]],
    left: Mapping[str, NDArray[np.float64]],
    cost: Callable[[Mapping[str, int]], float],
    direction: int,
) -> list[tuple[float, _Widths, float]]:
    """Each step to the next width: what it loses for what it saves, where it leads, that cost."""
    now = cost(at)
    found = []
    for name, sizes in widths.items():
        place = sizes.index(at[name]) + direction
        if not 0 <= place < len(sizes):
            continue
        then = _Widths({**at, name: sizes[place]})
        spent = cost(then)
        lost = abs(left[name][sizes[0] - at[name]] - left[name][sizes[0] - sizes[place]])
        if spent != now:
            found.append((float(lost) / abs(spent - now), then, spent))
    return found


def _largest(kept: Callable[[float], bool], high: float = 64.0) -> float:
    """The largest factor, up to a limit, with which something holds that holds for 0."""
    if kept(high):
        return high
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def order_of_places(masks: NDArray[np.float64], loose: NDArray[np.bool_]) -> list[int]:
    """Return the places of a group that may go, those first of which least is left.

    Args:
        masks: m of each place.
        loose: Whether it may go.

    Returns:
        Their numbers.

    Example:

    >>> order_of_places(np.array([0.9, 0.2, 0.5]), np.array([True, True, False]))
    [1, 0]
    """
    order = np.argsort(masks, kind="stable")
    return [int(place) for place in order if loose[place]]
