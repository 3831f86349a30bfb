"""The channels and ranks of a selection in a folder that are learned: gone on with, then kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.runs.choosing_channels import groups_left
from dprp_tf.runs.kept_plans import KeptPlan, kept_plan, plan_path, require_same_choice
from dprp_tf.runs.settings import SelectionSettings
from dprp_tf.selection.learning_channels_and_ranks import (
    CALIBRATION_SAMPLES,
    learn_channels_and_ranks,
)
from dprp_tf.selection.methods.less import LeSS

__all__ = ["LEARNING", "learn_plan", "learning_data", "learning_of", "samples_of_cuts"]

LEARNING = "less"


def learning_of(settings: SelectionSettings) -> LeSS:
    """Return the settings of LeSS for a selection.

    Args:
        settings: The selection's settings: what is cut says whether masks, thresholds or both are
            learned.

    Returns:
        The settings.

    Example:

    >>> from dprp_tf.costs.budget import Budget
    >>> found = learning_of(SelectionSettings(Budget(macs=0.5), cut="channels", method="less"))
    >>> found.masks, found.thresholds, found == LeSS(thresholds=False)
    (True, False, True)
    """
    return LeSS(
        steps=settings.steps,
        most_steps=settings.most_steps,
        learning_rate=settings.adam_rate,
        data_share=settings.data_share,
        masks=settings.cut != "ranks",
        thresholds=settings.cut != "channels",
    )


def learning_data(rest: Dataset, seed: int) -> Dataset:
    """Return training data in an order of chance, so that the first samples stand for all.

    Args:
        rest: The data that are left for training, perhaps sorted by class.
        seed: Seed of the order.

    Returns:
        The same data; images on disk stay there.
    """
    return rest.with_rows(np.random.default_rng(seed).permutation(len(rest.y_train)))


def samples_of_cuts(data: Dataset) -> np.ndarray:
    """Return the inputs on which the cuts of what is learned keep the outputs.

    Args:
        data: What `learning_data` returned.

    Returns:
        The inputs, float32.
    """
    return np.asarray(data.x_train[:CALIBRATION_SAMPLES], dtype=np.float32)


def learn_plan(
    place: Path,
    model: keras.Model,
    held_out: tuple[np.ndarray, np.ndarray],
    data: Dataset,
    settings: SelectionSettings,
    latency: WidthTable | None,
    layers: Callable[[keras.layers.Layer], bool] | None,
    progress: Callable[[float | None, str], None],
) -> KeptPlan:
    """Return the plan of a selection's folder, learned and written if it is not there.

    Args:
        place: The folder; what is learned is kept in its folder `less`, and gone on with.
        model: The dense model.
        held_out: Labelled samples that the plan is scored on, none of them learned from.
        data: What is learned from, as `learning_data` returns it.
        settings: The selection's settings, whose `method` is `"less"`.
        latency: The model's width table; None to know no times.
        layers: Says which layers may be cut; None for all.
        progress: Called with the share done and a text.

    Returns:
        A rank plan where thresholds alone are learned, a channel plan where masks alone are, and
        for both a joint plan.

    Raises:
        BudgetError: If nothing meets the budget.
        DivergenceError: If the loss is no longer finite.
        ValueError: If the folder's plan is of another model or other data.
    """
    groups = None if settings.cut == "ranks" else groups_left(model, layers)
    require_same_choice(place, model, held_out)
    kept = kept_plan(place, settings.cut)
    if kept is not None:
        return kept
    able = layers is not None and settings.cut != "channels"
    joint = learn_channels_and_ranks(
        model,
        data,
        budget=settings.budget,
        learning=learning_of(settings),
        # Of what has no ranks it is not asked which.
        decomposition="channel" if settings.cut == "channels" else settings.decomposition,
        groups=groups,
        layers=list(factorizable(model, layers)[0]) if able else None,
        multiple=settings.multiple,
        truncation=settings.truncation or "output",
        latency=latency,
        validation_data=held_out,
        score="accuracy",
        folder=place / LEARNING,
        progress=progress,
        seed=settings.seed,
    )
    plan = _part(joint, settings.cut)
    plan.save(plan_path(place, settings.cut))
    return plan


def _part(joint: JointPlan, cut: str) -> KeptPlan:
    """The plan of what is cut, with the costs and the accuracy of the whole."""
    if cut == "both":
        return joint
    part = joint.channels if cut == "channels" else joint.ranks
    known = {name: joint.cost[name] for name in joint.cost if name in part.cost}
    cost = {**part.cost, **known}
    return replace(part, budget=joint.budget, cost=cost, accuracy=joint.accuracy)
