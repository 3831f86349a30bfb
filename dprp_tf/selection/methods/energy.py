"""Ranks by the energy that the singular values keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dprp_tf.costs.program import choose
from dprp_tf.costs.rank_space import Ranks
from dprp_tf.decomposition import energy_rank
from dprp_tf.files.arguments import check_number
from dprp_tf.selection.methods.common_level import at_common_level
from dprp_tf.selection.selector import Problem, Selection, Selector
from dprp_tf.selection.solving.filling import fill, losses, priced, require_feasible

__all__ = ["Energy", "EnergyProduct"]


@dataclass(frozen=True)
class Energy(Selector):
    """Keep the same share beta of the energy in every layer.

    r_l is the smallest rank with sum_(i<=r) s_i^2 >= beta sum_i s_i^2 (printed: the largest with
    at most that share, one less, which would keep less than asked for). For Tucker-2, by the
    spectra of both unfoldings. Under a budget beta is found by bisection.

    Args:
        share: beta, in (0, 1], where there is no budget on costs. Default 0.9.

    Raises:
        ValueError: If `share` is out of range.

    Source: BSR/LeSS thesis Eq. 2.1.

    Example:

    >>> Energy(share=0.95).share
    0.95
    """

    name: ClassVar[str] = "energy"
    share: float = 0.9

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0, maximum=1)

    def select(self, problem: Problem) -> Selection:
        """Choose ranks; see the class."""
        spectra = {name: layer.truncation.spectra for name, layer in problem.space.layers.items()}

        def ranks(share: float) -> dict[str, Ranks]:
            discarded = min(1.0 - share, 1.0 - 1e-12)
            return {
                name: tuple(energy_rank(s, discarded) if np.any(s) else 1 for s in row)
                for name, row in spectra.items()
            }

        return at_common_level(problem, ranks, self.share, "energy")


@dataclass(frozen=True)
class EnergyProduct(Selector):
    """Keep the largest product of energies under the bounds, exactly.

    Maximises prod_l E_l(r_l), with E_l the share of energy kept, subject to every bound on costs,
    by a mixed-integer program (see `program.choose`). Layers with more than 64 ranks have a
    geometric selection of them in the program; what that leaves of the budget is spent rank by
    rank.

    Source: BSR/LeSS thesis Eq. 2.2 and 2.3.

    Example:

    >>> EnergyProduct().name
    'energy_product'
    """

    name: ClassVar[str] = "energy_product"

    def select(self, problem: Problem) -> Selection:
        """Choose ranks; see the class."""
        space, budget = problem.space, problem.budget
        if budget is None or not budget.bounds:
            raise ValueError(
                f"`budget` must have a bound on a cost for the method {self.name!r}. Received: "
                f"{budget}; give one, such as Budget(parameters=0.5)."
            )
        require_feasible(space, budget)
        names = list(space.layers)
        options = [space.layers[name].options() for name in names]
        wanted = [losses(space, name, row) for name, row in zip(names, options, strict=True)]
        picks = choose(wanted, [*priced(space, options, budget).values()])
        # Where nothing keeps all bounds, what `fill` makes of rank 1 says how near they come.
        ranks: dict[str, Ranks] = (
            space.smallest(problem.metrics)
            if picks is None
            else {name: row[pick] for name, row, pick in zip(names, options, picks, strict=True)}
        )
        ranks = fill(space, ranks, budget)
        lost = sum(float(losses(space, name, [entry])[0]) for name, entry in ranks.items())
        return Selection(ranks, [{"product of energies": float(np.exp(-lost))}])
