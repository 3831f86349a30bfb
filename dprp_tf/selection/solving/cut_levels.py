"""How far each part of a model is cut: the least lost for a cost that depends on all parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

__all__ = ["Levels", "descend", "exchange", "penalty"]

Levels = Mapping[str, int]
"""By part how far it is cut: 0 is whole, and each level more is cut further."""

Cost = Callable[[Levels], Mapping[str, float]]
Damage = Callable[[Sequence[Levels], Levels], Sequence[float]]

# Least share kept that counts.
_FLOOR = 1e-9
# Levels that are looked ahead.
_AHEAD = 8
# Moves that are combined, those that gain most; and combinations that are tried for real.
_COMBINED, _TRIED = 12, 16


def penalty(lost: float) -> float:
    """Return -log of the share that is kept, so that sums of penalties are products of shares.

    Args:
        lost: The share lost, 0 to 1.

    Returns:
        0 or more; of nothing kept that of 1e-9.

    Example:

    >>> round(penalty(0.5), 4)
    0.6931
    """
    return -float(np.log(max(1 - lost, _FLOOR)))


def descend(
    penalties: Mapping[str, Sequence[float]], cost: Cost, bounds: Mapping[str, float]
) -> dict[str, int] | None:
    """Return levels that meet all bounds for a small sum of penalties.

    Step by step, the part is cut further whose penalty grows least for what that saves of the bound
    that is exceeded most. A step that pays only together with those behind it counts by the best of
    them. Then parts come back as far as the bounds allow, those first that gain most.

    Args:
        penalties: By part its penalty at each level, the first 0.
        cost: From levels to costs by name.
        bounds: The largest costs allowed, by name.

    Returns:
        A level for each part; None if no more can be saved and the bounds are not met.

    Example:

    >>> descend({"a": [0, 0.1, 0.5], "b": [0, 0.01, 0.05]},
    ...         lambda at: {"macs": 6 - sum(at.values())}, {"macs": 4})
    {'a': 0, 'b': 2}
    """
    at = dict.fromkeys(penalties, 0)
    spent = cost(at)
    while True:
        over = {name: spent[name] / bound for name, bound in bounds.items() if spent[name] > bound}
        if not over:
            break
        metric = max(over, key=over.__getitem__)
        best: tuple[float, str, int] | None = None
        for name, row in penalties.items():
            for to in range(at[name] + 1, min(at[name] + 1 + _AHEAD, len(row))):
                saved = spent[metric] - cost({**at, name: to})[metric]
                if saved > 0:
                    found = ((row[to] - row[at[name]]) / saved, name, to)
                    best = found if best is None or found[0] < best[0] else best
        if best is None:
            return None
        at[best[1]] = _first_step(best, at, penalties, spent[metric], cost, metric)
        spent = cost(at)
    # The last steps may have saved more than was needed: what fits again comes back.
    while True:
        gains = []
        for name, row in penalties.items():
            for to in range(at[name]):
                if _meets(cost({**at, name: to}), bounds):
                    gains.append((row[at[name]] - row[to], name, to))
                    break
        if not gains or max(gains)[0] <= 0:
            return at
        _, name, to = max(gains)
        at[name] = to


def _first_step(
    best: tuple[float, str, int],
    at: Levels,
    penalties: Mapping[str, Sequence[float]],
    spent: float,
    cost: Cost,
    metric: str,
) -> int:
    """The nearest level on the way to the best one that saves anything."""
    _, name, to = best
    for level in range(at[name] + 1, to):
        if cost({**at, name: level})[metric] < spent:
            return level
    return to


class _Move(NamedTuple):
    """One part to another level, and what that alone adds to the damage."""

    part: str
    to: int
    added: float


def exchange(
    start: Levels,
    counts: Mapping[str, int],
    cost: Cost,
    bounds: Mapping[str, float],
    damage: Damage,
    *,
    rounds: int = 8,
    told: Callable[[int, float], None] = lambda done, found: None,
) -> dict[str, int]:
    """Return levels of less damage than those given, within the same bounds.

    Each round measures what every part adds to or takes from the damage when it alone goes a level
    up or down from where all are, combines what pays for each other - a part that comes back with
    one or two that go further, or the other way - and tries the combinations that promise most. The
    best of them is taken if it really damages less; else it ends.

    Args:
        start: Levels that meet the bounds.
        counts: By part how many levels it has.
        cost: From levels to costs by name.
        bounds: The largest costs allowed, by name.
        damage: From levels, and those that they differ little from, to damages.
        rounds: Most rounds. Default 8.
        told: Called after each round with their number and the damage.

    Returns:
        A level for each part.

    Example:

    >>> def damage(rows, near):
    ...     return [3 * row["a"] + 1 * row["b"] for row in rows]
    >>> exchange({"a": 1, "b": 0}, {"a": 2, "b": 2}, lambda at: {"macs": 2 - sum(at.values())},
    ...          {"macs": 1}, damage)
    {'a': 0, 'b': 1}
    """
    at = dict(start)
    (now,) = damage([at], at)
    for done in range(rounds):
        ups = [(name, to) for name in at for to in sorted({0, at[name] - 1}) if 0 <= to < at[name]]
        downs = [
            (name, to)
            for name in at
            for to in range(at[name] + 1, min(at[name] + 3, counts[name]))
            if _saves(cost({**at, name: to}), cost(at))
        ]
        singles = [{**at, name: to} for name, to in (*ups, *downs)]
        found = [value - now for value in damage(singles, at)]
        moves = [_Move(*pair, added) for pair, added in zip((*ups, *downs), found, strict=True)]
        promising = sorted(
            _combined(moves[: len(ups)], moves[len(ups) :], at, cost, bounds),
            key=lambda pair: pair[0],
        )[:_TRIED]
        tried = [{**at, **changed} for promised, changed in promising if promised < 0]
        if not tried:
            break
        values = list(damage(tried, at))
        best = int(np.argmin(values))
        if not values[best] < now:
            break
        at, now = dict(tried[best]), values[best]
        told(done + 1, now)
    return at


def _combined(
    ups: Sequence[_Move],
    downs: Sequence[_Move],
    at: Levels,
    cost: Cost,
    bounds: Mapping[str, float],
) -> Iterator[tuple[float, dict[str, int]]]:
    """What some moves together promise, and the levels they change, where the bounds hold."""
    gaining = sorted(ups, key=lambda move: move.added)
    least = sorted(downs, key=lambda move: move.added)
    few_up, few_down = gaining[:_COMBINED], least[:_COMBINED]
    sets = (
        ((move,) for move in (*gaining, *least)),
        product(gaining, least),
        ((up, *pair) for up in few_up for pair in combinations(few_down, 2)),
        ((*pair, down) for down in least for pair in combinations(few_up, 2)),
    )
    for group in sets:
        for moves in group:
            changed = {move.part: move.to for move in moves}
            promised = sum(move.added for move in moves)
            if len(changed) < len(moves) or promised >= 0:
                continue
            if _meets(cost({**at, **changed}), bounds):
                yield promised, changed


def _meets(costs: Mapping[str, float], bounds: Mapping[str, float]) -> bool:
    return all(costs[name] <= bound for name, bound in bounds.items())


def _saves(costs: Mapping[str, float], before: Mapping[str, float]) -> bool:
    return any(value < before[name] for name, value in costs.items())
