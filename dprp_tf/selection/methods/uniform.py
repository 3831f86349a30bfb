"""One share of the full rank for every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dprp_tf.costs.rank_space import Ranks
from dprp_tf.files.arguments import check_number
from dprp_tf.selection.methods.common_level import at_common_level
from dprp_tf.selection.selector import Problem, Selection, Selector

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(Selector):
    """Give every layer the same share q of its full rank: r_l = max(1, round(q R_l)).

    The share is found by bisection; what is left of the budget raises the layers with the
    smallest shares.

    Args:
        share: q, in (0, 1], where there is no budget on costs. Default 0.5.

    Raises:
        ValueError: If `share` is out of range.

    Source: BSR/LeSS thesis 2.2.1, the same treatment of all layers.

    Example:

    >>> Uniform().name
    'uniform'
    """

    name: ClassVar[str] = "uniform"
    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0, maximum=1)

    def select(self, problem: Problem) -> Selection:
        """Choose ranks; see the class."""
        layers = problem.space.layers

        def ranks(share: float) -> dict[str, Ranks]:
            return {
                name: tuple(max(1, round(share * full)) for full in layer.full_ranks)
                for name, layer in layers.items()
            }

        return at_common_level(problem, ranks, self.share, "share", evenly=True)
