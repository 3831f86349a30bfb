"""A dense model with its kernels cut to chosen ranks, as plain layers."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.conversion.factorizing import factorize
from dprp_tf.conversion.folding import fold
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.keras_internals.rewriting import rewrite

__all__ = ["cut"]


def cut(model: keras.Model, plan: RankPlan, *, calibration_data: Any = None) -> keras.Model:
    """Return a model of plain layers with a dense model's kernels cut to the ranks of a plan.

    Args:
        model: The dense model.
        plan: Ranks for its layers.
        calibration_data: Inputs on which the outputs are kept instead of the kernels. Default:
            the kernels are kept.

    Returns:
        `fold(factorize(model, ranks=plan))`; a copy of the model if the plan cuts nothing.

    Example:

    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, outputs)
    >>> from dprp_tf.selection import Budget, select_ranks
    >>> plan = select_ranks(model, method="energy", budget=Budget(parameters=0.6, tolerance=0.2))
    >>> cut(model, plan).count_params() == plan.cost["parameters"]
    True
    """
    if not plan.ranks:
        return rewrite(model, lambda layer: None, keras.Model)
    return fold(factorize(model, ranks=plan, calibration_data=calibration_data))
