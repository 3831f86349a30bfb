"""One option per layer, chosen exactly: a mixed-integer program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bound", "choose"]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bound:
    """Bounds on one cost, summed over the layers.

    Attributes:
        costs: Per layer the cost of each of its options.
        upper: Largest sum.
        lower: Smallest sum. Default: none.
    """

    costs: Sequence[NDArray[np.floating]]
    upper: float
    lower: float = -np.inf


def choose(
    losses: Sequence[NDArray[np.floating]], bounds: Sequence[Bound], *, gap: float = 1e-4
) -> list[int] | None:
    """Pick one option per layer so that the losses sum to the least within the bounds.

    Minimises sum_l sum_j m_lj loss_lj over m_lj in {0, 1} with sum_j m_lj = 1 for every layer l and
    lower_k <= sum_lj m_lj cost_klj <= upper_k for every bound k, by SciPy's HiGHS.

    Args:
        losses: Per layer the loss of each of its options, finite.
        bounds: Bounds on costs.
        gap: How far the result may be from the optimum, relative to it. Default 1e-4.

    Returns:
        The position of each layer's option; None if nothing keeps the bounds.

    Source: BSR/LeSS thesis Eq. 2.3.

    Example:

    >>> losses = [np.array([2.0, 0.0]), np.array([1.0, 0.0])]
    >>> costs = [np.array([1.0, 3.0]), np.array([1.0, 3.0])]
    >>> choose(losses, [Bound(costs, upper=4.0)])
    [1, 0]
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(row) for row in losses]
    starts = np.cumsum([0, *sizes])
    layers = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(starts[-1]), (layers, np.arange(starts[-1]))))
    # The solver allows itself a violation of 1e-6: bounds that it exceeds are drawn in by more.
    for margin in (0.0, 1e-5):
        constraints = [LinearConstraint(one_each, 1.0, 1.0)]
        for bound in bounds:
            row = np.concatenate(bound.costs)
            # Relative to the bound: the solver's tolerances are absolute.
            scale = _scale(bound)
            lower, upper = bound.lower / scale + margin, bound.upper / scale - margin
            constraints.append(LinearConstraint(row[None, :] / scale, lower, upper))
        found = milp(
            np.concatenate(losses),
            constraints=constraints,
            integrality=np.ones(starts[-1]),
            bounds=Bounds(0.0, 1.0),
            options={"mip_rel_gap": gap},
        )
        if found.x is None:
            return None
        picks = [int(np.argmax(found.x[a:b])) for a, b in pairwise(starts)]
        if all(_kept(bound, picks) for bound in bounds):
            return picks
    return None


def _kept(bound: Bound, picks: list[int]) -> bool:
    total = sum(float(row[pick]) for row, pick in zip(bound.costs, picks, strict=True))
    slack = _ROUNDING * _scale(bound)
    return bound.lower - slack <= total <= bound.upper + slack


def _scale(bound: Bound) -> float:
    finite = [abs(edge) for edge in (bound.lower, bound.upper) if np.isfinite(edge)]
    return max(*finite, 1e-30) if finite else 1.0
