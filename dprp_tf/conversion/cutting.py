"""A model cut as a plan says, as plain layers: to lower ranks, to fewer channels, or to both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.conversion.chosen_forms import ChosenForms, remember_choice
from dprp_tf.conversion.compilation import compiled_like
from dprp_tf.conversion.factorizing import factorize
from dprp_tf.conversion.folding import fold
from dprp_tf.conversion.model_class import plain_class
from dprp_tf.conversion.refitting import refit_readers
from dprp_tf.conversion.removing import Removal
from dprp_tf.conversion.sequential_refitting import refit_in_sequence
from dprp_tf.conversion.times_by_rank import times_by_rank
from dprp_tf.costs.channel_plan import ChannelPlan
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.rank_plan import RankPlan
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.keras_internals.rewriting import require_graph, rewrite
from dprp_tf.training.model import DPRPModel

__all__ = ["cut"]


def cut(
    model: keras.Model,
    plan: RankPlan | ChannelPlan | JointPlan,
    *,
    calibration_data: Any = None,
    refit: bool = True,
    latency: LatencyTable | WidthTable | None = None,
    model_class: Any = None,
) -> keras.Model:
    """Return a model of plain layers cut as a plan says: to lower ranks, fewer channels, or both.

    Args:
        model: The dense model.
        plan: Ranks for its layers, channels that go, or both: the channels go first, and the ranks
            are those of what is left.
        calibration_data: Inputs, a few hundred, on which the outputs are kept instead of the
            kernels: by factors that lose least of them, by the kernels of what reads removed
            channels, and by `refit`. Default: the kernels are kept.
        refit: Whether each layer is then fitted anew, from the inputs to the outputs, so that it
            gives on those inputs what it gave in the whole model; see `refit_in_sequence`. Default
            True; without `calibration_data` nothing is fitted.
        latency: For ranks, the table whose times the plan was chosen by: each layer gets the form
            that was the quickest there, of a width table at the channels that are left. Default:
            the form of fewest weights.
        model_class: As `fold` takes it; the model's own class is kept where it can be.

    Returns:
        `fold(factorize(model, ranks=plan))` in those forms, or `remove_channels(model,
        plan.removed)`, or the one after the other, fitted anew where data are given; a copy of the
        model if the plan cuts nothing. Compiled as `fold` says.

    Raises:
        ValueError: As `factorize`; if the model's class has methods of its own, can't be kept, and
            no `model_class` was given.

    Example:

    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> model = keras.Model(inputs, outputs)
    >>> from dprp_tf.selection import Budget, select_ranks
    >>> plan = select_ranks(model, method="energy", budget=Budget(parameters=0.6, tolerance=0.2))
    >>> cut(model, plan).count_params() == plan.cost["parameters"]
    True
    """
    require_graph(model)
    small, kept = _cut(model, plan, calibration_data, latency, model_class)
    if refit and calibration_data is not None:
        refit_in_sequence(model, small, calibration_data, kept=kept)
    return small


_Kept = Mapping[str, NDArray[np.bool_]]


def _cut(
    model: keras.Model,
    plan: RankPlan | ChannelPlan | JointPlan,
    calibration_data: Any,
    latency: LatencyTable | WidthTable | None,
    model_class: Any,
) -> tuple[keras.Model, _Kept | None]:
    """The smaller model, and by layer which of its output channels are left; None for all."""
    if isinstance(plan, JointPlan):
        # Fitted once, at the end: a fit of what was fitted before to the same samples loses more
        # on others than it gains.
        fewer, kept = _cut(model, plan.channels, calibration_data, None, model_class)
        return _cut(fewer, plan.ranks, calibration_data, latency, model_class)[0], kept
    if isinstance(plan, ChannelPlan):
        removal = Removal(model, plan.removed)
        small = removal.smaller(model_class)
        if calibration_data is not None:
            refit_readers(model, small, removal.masks, calibration_data)
        return small, removal.kept()
    result_class = plain_class(model, model_class)
    if not plan.ranks:
        return compiled_like(rewrite(model, lambda layer: None, result_class), model), None
    lowrank = factorize(model, ranks=plan, calibration_data=calibration_data, model_class=DPRPModel)
    if isinstance(latency, WidthTable):
        latency = times_by_rank(model, latency)
    forms = None if latency is None else latency.forms(plan.ranks)
    small = fold(lowrank, forms=forms, model_class=result_class)
    if forms is not None and set(forms.values()) != {"dense"}:
        remember_choice(small, ChosenForms.by(latency))
    return compiled_like(small, model), None
