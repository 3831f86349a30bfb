"""Spend a budget over the layers so that as much energy as possible is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dprp_tf.costs.budget import BudgetError
from dprp_tf.costs.program import Bound, choose

__all__ = ["Allocation", "allocate_ranks"]

_EMPTY = 1e-30
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Allocation:
    """Ranks that meet a budget.

    Attributes:
        ranks: Rank by layer.
        cost: Their cost.
        kept: Product over the layers of the share of energy kept, 0 to 1.
    """

    ranks: dict[str, int]
    cost: float
    kept: float


def allocate_ranks(
    spectra: Mapping[str, ArrayLike],
    cost: Callable[[str, int], float],
    budget: float,
    *,
    fixed_cost: float = 0.0,
    minimum_rank: int = 1,
) -> Allocation:
    """Choose the ranks that keep the largest product of energies within a budget.

    With E_l(r) = sum_(i<=r) s_i^2 / sum_i s_i^2, maximises sum_l log E_l(r_l) subject to
    fixed_cost + sum_l cost(l, r_l) <= budget as a mixed-integer program,
    to within a ten-thousandth of the optimum; see `dprp_tf.costs.program.choose`.

    Args:
        spectra: Singular values by layer, descending; their number is the largest rank.
        cost: Cost of a layer at a rank; larger ranks cost as much or more.
        budget: Largest total cost, in the same unit.
        fixed_cost: Cost of everything else. Default 0.
        minimum_rank: Smallest rank of any layer, 1 or more. Default 1.

    Returns:
        The ranks, what they cost and the energy they keep.

    Raises:
        BudgetError: If the smallest ranks cost more than the budget.
        ValueError: If a spectrum is empty or not finite.

    Source: BSR/LeSS thesis Eq. 2.2 and 2.3.

    Example:

    >>> spectra = {"a": [4.0, 1.0], "b": [3.0, 3.0]}
    >>> allocate_ranks(spectra, lambda name, rank: float(rank), budget=3.0).ranks
    {'a': 1, 'b': 2}
    """
    names = list(spectra)
    losses, costs, starts = [], [], []
    for name in names:
        loss = _losses(name, spectra[name])
        first = min(max(minimum_rank, 1), len(loss))
        starts.append(first)
        losses.append(loss[first - 1 :])
        ranks = range(first, len(loss) + 1)
        costs.append(np.asarray([cost(name, rank) for rank in ranks], dtype=float))
    allowed = budget - fixed_cost
    least = float(sum(row[0] for row in costs))
    # The same numbers summed in another order differ by rounding.
    if least > allowed + _ROUNDING * max(abs(budget), 1.0):
        raise BudgetError(budget, least + fixed_cost)
    allowed = max(allowed, least)

    picks = choose(losses, [Bound(costs, allowed)])
    # A price near the bound may be beyond the program's own tolerance.
    positions = [0] * len(names) if picks is None else picks
    # Of ranks that keep as much, such as a zero kernel's, the smallest.
    positions = [int(np.argmax(loss <= loss[p])) for loss, p in zip(losses, positions, strict=True)]
    total = float(sum(c[p] for c, p in zip(costs, positions, strict=True)))
    kept = math.exp(-sum(loss[p] for loss, p in zip(losses, positions, strict=True)))
    return Allocation(
        {name: start + p for name, start, p in zip(names, starts, positions, strict=True)},
        total + fixed_cost,
        kept,
    )


def _losses(name: str, spectrum: ArrayLike) -> NDArray[np.floating]:
    """-log E(r) for r = 1, 2, ...; all zero for a zero kernel, which loses nothing."""
    s = np.asarray(spectrum, dtype=np.float64)
    if s.ndim != 1 or not len(s) or not np.all(np.isfinite(s)):
        raise ValueError(
            f"`spectra` must hold finite singular values, one or more. Received for {name!r}: {s}"
        )
    energies = np.cumsum(np.square(s))
    if energies[-1] == 0:
        return np.zeros(len(s))
    shares: NDArray[np.floating] = -np.log(np.maximum(energies / energies[-1], _EMPTY))
    return shares
