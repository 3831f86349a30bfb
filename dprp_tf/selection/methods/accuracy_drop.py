"""The cheapest ranks of a method that lose no more accuracy than allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dprp_tf.costs.budget import BudgetError
from dprp_tf.selection.selector import Problem, Selection, Selector
from dprp_tf.selection.solving.filling import least_cost

__all__ = ["smallest_within_drop"]

_BISECTIONS = 10


def smallest_within_drop(problem: Problem, selector: Selector) -> Selection:
    """Find by bisection the smallest share of the cost that keeps the accuracy.

    The cost is the time where a latency table tells it, else the parameters.

    The accuracy is that of the cut model on the problem's data, not fine-tuned. It is taken to
    fall with the share, as it does but for noise.

    Args:
        problem: The problem, whose budget has an `accuracy_drop`, perhaps other bounds besides.
        selector: A method that keeps bounds on costs alone.

    Returns:
        Its ranks at that share, and what was tried.

    Raises:
        BudgetError: If the other bounds leave no ranks that keep the accuracy.
        ValueError: If there is no data.
    """
    budget, space = problem.budget, problem.space
    if budget is None or budget.accuracy_drop is None:
        raise ValueError(f"`budget` must have an `accuracy_drop`. Received: {budget}")
    problem.require_data(selector.name)
    evaluator = problem.evaluator
    dense = next(iter(evaluator.evaluate([space.dense()]))).score
    whole, metric = space.cost({}).dense[space.metric], space.metric
    # Time is bounded as it is, weights as a share of the dense model's.
    unit = whole if metric == "milliseconds" else 1.0
    low = least_cost(space, metric) / whole
    high = (getattr(budget, metric) or unit) / unit
    best = None if budget.bounds else Selection(space.dense())
    least_drop = 1.0
    history: list[dict[str, Any]] = []
    for step in range(_BISECTIONS):
        # The largest share first: if that is not enough, none is.
        share = high if step == 0 and budget.bounds else (low + high) / 2
        of = "time" if metric == "milliseconds" else metric
        problem.progress(step / _BISECTIONS, f"{share:.1%} of the {of}")
        # Any cost below the share will do: where ranks are coarse, none may lie close to it.
        bounds = replace(budget, **{metric: share * unit}, accuracy_drop=None, tolerance=1.0)
        try:
            found = selector.select(replace(problem, budget=bounds))
        except BudgetError:
            if step == 0 and budget.bounds:
                raise
            low = share  # no ranks keep the other bounds as well
            continue
        known = problem.log.known(found.ranks)
        if known is None:
            known = {"accuracy": next(iter(evaluator.evaluate([found.ranks]))).score}
            problem.log.candidate(found.ranks, **known)
        drop = dense - known["accuracy"]
        least_drop = min(least_drop, drop)
        kept = drop <= budget.accuracy_drop + 1e-9
        history.append({of: share, "accuracy": known["accuracy"], "kept": kept})
        if kept:
            best, high = found, share
        elif step == 0 and budget.bounds:
            break
        else:
            low = share
    if best is None:
        raise BudgetError(
            budget.accuracy_drop, 0.0, metric="accuracy_drop", nearest=(None, least_drop)
        )
    return Selection(best.ranks, [*history, *best.history])
