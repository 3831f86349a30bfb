"""Methods with one level for all layers: the level that a budget allows."""

from __future__ import annotations

from collections.abc import Callable

from dprp_tf.costs.rank_space import Ranks
from dprp_tf.selection.selector import Problem, Selection
from dprp_tf.selection.solving.filling import fill, require_feasible

__all__ = ["at_common_level"]

_BISECTIONS = 40


def at_common_level(
    problem: Problem,
    ranks: Callable[[float], dict[str, Ranks]],
    default: float,
    name: str,
    *,
    evenly: bool = False,
    bracket: tuple[float, float] = (0.0, 1.0),
) -> Selection:
    """Find the largest level whose ranks keep the budget, and spend what is left.

    Args:
        problem: The problem; without bounds on costs, `default` is the level.
        ranks: Ranks at a level; a larger level never has a smaller rank.
        default: The level without a budget.
        name: What the level is called, for the history.
        evenly: As `fill` takes it.
        bracket: A level that is too small or just fits, and one that may be too large.

    Returns:
        The ranks, and the level as the history.

    Raises:
        BudgetError: If no ranks meet the budget.
    """
    space, budget = problem.space, problem.budget
    if budget is None or not budget.bounds:
        found = space.settled(ranks(default), problem.metrics)
        return Selection(found, [{name: default}])
    require_feasible(space, budget)

    def at(level: float) -> dict[str, Ranks]:
        return space.settled(ranks(level), problem.metrics)

    low, high = bracket
    if budget.kept(space.cost(at(high)).shares):
        low = high
    for _ in range(_BISECTIONS):
        if low == high:
            break
        middle = (low + high) / 2
        kept = budget.kept(space.cost(at(middle)).shares)
        low, high = (middle, high) if kept else (low, middle)
    chosen = at(low)
    if not budget.kept(space.cost(chosen).shares):
        # Levels can't say what each layer may do by itself, such as stay dense.
        chosen = space.smallest(problem.metrics)
    return Selection(fill(space, chosen, budget, evenly=evenly), [{name: low}])
