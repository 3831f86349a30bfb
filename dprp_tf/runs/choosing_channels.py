"""The channels of a selection in a folder, with ranks or without: chosen once, then read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from dprp_tf.channels import channel_groups
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.runs.kept_plans import KeptPlan, kept_plan, plan_path, require_same_choice
from dprp_tf.runs.settings import SelectionSettings
from dprp_tf.selection.selecting_both import select_channels_and_ranks
from dprp_tf.selection.selecting_channels import select_channels

__all__ = ["choose_channels", "groups_left"]


def groups_left(
    model: keras.Model, layers: Callable[[keras.layers.Layer], bool] | None
) -> list[str] | None:
    """Return the groups that may lose channels when some layers keep all their filters.

    Args:
        model: The dense model.
        layers: Says which layers may be cut; None for all.

    Returns:
        Names of groups; None for all.

    Raises:
        ValueError: If none are left.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(8, 3, name="a")(inputs)
    >>> x = keras.layers.Conv2D(8, 3, name="b")(x)
    >>> model = keras.Model(inputs, keras.layers.Conv2D(8, 3, name="c")(x))
    >>> groups_left(model, lambda layer: layer.name != "a")
    ['b']
    """
    if layers is None:
        return None
    keys = layer_keys(model)
    able = channel_groups(model).able()
    left = [group.name for group in able if all(layers(keys[name]) for name in group.layers)]
    if not left:
        raise ValueError(
            "`exclude` must leave layers of which channels may go. Received: one that names a "
            f"layer of every group: {[list(group.layers) for group in able]}"
        )
    return left


def choose_channels(
    place: Path,
    model: keras.Model,
    held_out: tuple[np.ndarray, np.ndarray],
    settings: SelectionSettings,
    latency: WidthTable | None,
    layers: Callable[[keras.layers.Layer], bool] | None,
    progress: Callable[[float | None, str], None],
) -> KeptPlan:
    """Return the plan of a selection's folder, chosen and written if it is not there.

    Args:
        place: The folder.
        model: The dense model.
        held_out: Labelled samples to choose with.
        settings: The selection's settings, whose `cut` is `"channels"` or `"both"`.
        latency: The model's width table; None to know no times.
        layers: Says which layers may be cut; None for all.
        progress: Called with the share done and a text.

    Returns:
        A channel plan, or for both a joint plan.

    Raises:
        BudgetError: If nothing meets the budget.
        ValueError: If the folder's plan is of another model or other data.
    """
    groups = groups_left(model, layers)
    require_same_choice(place, model, held_out)
    kept = kept_plan(place, settings.cut)
    if kept is not None:
        return kept
    plan: KeptPlan
    if settings.cut == "both":
        plan = select_channels_and_ranks(
            model,
            budget=settings.budget,
            data=held_out,
            latency=latency,
            decomposition=settings.decomposition,
            groups=groups,
            layers=None if layers is None else list(factorizable(model, layers)[0]),
            multiple=settings.multiple,
            score="accuracy",
            progress=progress,
            seed=settings.seed,
        )
    else:
        plan = select_channels(
            model,
            method=settings.method,
            budget=settings.budget,
            data=held_out,
            groups=groups,
            multiple=settings.multiple,
            latency=latency,
            score="accuracy",
            progress=progress,
            seed=settings.seed,
        )
    plan.save(plan_path(place, settings.cut))
    return plan
