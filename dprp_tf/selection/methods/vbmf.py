"""Ranks by what stands out of each layer's own noise: variational Bayes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dprp_tf.costs.rank_space import LayerChoices, Ranks
from dprp_tf.decomposition import VariationalRank, matrix_shape, variational_rank
from dprp_tf.files.arguments import check_number
from dprp_tf.selection.methods.common_level import at_common_level
from dprp_tf.selection.selector import Problem, Selection, Selector

__all__ = ["VariationalBayes"]

_LEAST_SHARE = 1e-9


@dataclass(frozen=True)
class VariationalBayes(Selector):
    """Keep the singular values that stand out of the noise estimated in each layer.

    Empirical variational Bayesian matrix factorization (see `decomposition.variational_rank`)
    estimates the noise variance v_l of each layer's matrix and keeps what lies above the threshold
    that follows from it, at least one value; for Tucker-2 in both unfoldings, (C, L*S) and
    (S, L*C). Without a budget these are the ranks. Under a budget every v_l is taken kappa times,
    with one kappa for all layers, found by bisection; what is left is spent where it keeps most
    energy.

    Args:
        noise_scale: kappa where there is no budget on costs, above 0. Default 1.

    Raises:
        ValueError: If `noise_scale` is out of range.

    Source: Nakajima et al. 2013 (JMLR 14); Kim et al. 2016 (arXiv 1511.06530) for its use on the
    unfoldings of a kernel. The factor kappa is ours: the method by itself meets no budget.

    Example:

    >>> VariationalBayes().name
    'vbmf'
    """

    name: ClassVar[str] = "vbmf"
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("noise_scale", self.noise_scale, above=0)

    def select(self, problem: Problem) -> Selection:
        """Choose ranks; see the class."""
        layers = problem.space.layers
        found = {name: _found(layer) for name, layer in layers.items()}
        # Singular values over the threshold: those above sqrt(kappa) are kept.
        heights = {
            name: tuple(
                spectrum / result.threshold if result.threshold > 0 else np.zeros(1)
                for spectrum, result in zip(layers[name].truncation.spectra, results, strict=True)
            )
            for name, results in found.items()
        }

        def ranks(level: float) -> dict[str, Ranks]:
            bar = math.exp(-level / 2.0)
            return {
                name: tuple(max(1, int(np.sum(row >= bar))) for row in rows)
                for name, rows in heights.items()
            }

        chosen = at_common_level(
            problem, ranks, -math.log(self.noise_scale), "level", bracket=_bracket(heights)
        )
        (step,) = chosen.history
        history: list[dict[str, Any]] = [
            {
                "noise scale": math.exp(-step["level"]),
                "own ranks": {
                    name: [max(1, result.rank) for result in results]
                    for name, results in found.items()
                },
                "noise variances": {
                    name: [result.noise_variance for result in results]
                    for name, results in found.items()
                },
            }
        ]
        return Selection(chosen.ranks, history)


def _found(layer: LayerChoices) -> tuple[VariationalRank, ...]:
    """What variational Bayes finds in each matrix of a layer."""
    spectra = layer.truncation.spectra
    if layer.decomposition != "tucker":
        return (
            variational_rank(spectra[0], matrix_shape(layer.kernel_shape, layer.decomposition)),
        )
    *spatial, channels, filters = layer.kernel_shape
    positions = math.prod(spatial)
    shapes = ((channels, positions * filters), (filters, positions * channels))
    return tuple(variational_rank(s, shape) for s, shape in zip(spectra, shapes, strict=True))


def _bracket(heights: dict[str, tuple[NDArray[np.floating], ...]]) -> tuple[float, float]:
    """Return a level at which nothing stands out, and one at which everything does."""
    values = np.concatenate([row for rows in heights.values() for row in rows])
    largest = max(float(np.max(values)), 1.0)
    smallest = max(float(np.min(values)), _LEAST_SHARE * largest)
    return -2.0 * math.log(largest) - 1.0, max(-2.0 * math.log(smallest), 0.0) + 1.0
