"""The class of a converted model: the user's own where that can be, or none in silence."""

from __future__ import annotations

import functools
from typing import Any

import keras

from dprp_tf.keras_internals.model_classes import obstacle_to_class, own_behaviour
from dprp_tf.training.model import DPRPModel

__all__ = ["lowrank_class", "plain_class"]


def lowrank_class(model: keras.Model, model_class: Any = None) -> Any:
    """Return what makes the factorized version of a model.

    Args:
        model: The model to factorize.
        model_class: What the caller asked for: a class derived from `DPRPModel`, or a
            `functools.partial` of one. Default: `DPRPModel`, or the model's own class if it is
            such a one.

    Returns:
        A function of inputs, outputs and name.

    Raises:
        ValueError: If `model_class` is of another kind, or is needed to keep what the model's
            class does of its own.

    Example:

    >>> inputs = keras.Input((3,))
    >>> lowrank_class(keras.Model(inputs, keras.layers.Dense(2)(inputs))) is DPRPModel
    True
    """
    if model_class is not None:
        return _checked(model_class, DPRPModel)
    is_one = isinstance(model, DPRPModel)
    lost = own_behaviour(model, DPRPModel)
    if not lost:
        return DPRPModel
    obstacle = _obstacle(model) if is_one else "it is not derived from DPRPModel"
    if obstacle is None:
        return type(model)
    name = type(model).__name__
    raise ValueError(
        f"`model_class` must be given for a model whose class has {_listed(lost)} of its own, "
        f"which a DPRPModel would not have. Received: model_class=None for a {name}, which can't "
        f"be kept: {obstacle}. Write the class once more, as class LowRank{name}"
        "(dprp_tf.DPRPModel) whose methods call super(), and pass "
        f"model_class=LowRank{name}; or model_class=dprp_tf.DPRPModel to do without them."
    )


def plain_class(model: keras.Model, model_class: Any = None) -> Any:
    """Return what makes the version of a model that has plain layers alone.

    Args:
        model: The model to fold or to cut.
        model_class: What the caller asked for: `keras.Model`, a class derived from it, or a
            `functools.partial` of one. Default: the model's own class if it does something of its
            own and can be made from inputs and outputs, or `keras.Model`.

    Returns:
        A function of inputs, outputs and name.

    Raises:
        ValueError: If `model_class` is of another kind, or is needed to keep what the model's
            class does of its own.

    Example:

    >>> inputs = keras.Input((3,))
    >>> plain_class(keras.Model(inputs, keras.layers.Dense(2)(inputs))) is keras.Model
    True
    """
    if model_class is not None:
        return _checked(model_class, keras.Model)
    is_lowrank = isinstance(model, DPRPModel)
    lost = own_behaviour(model, DPRPModel if is_lowrank else None)
    if not lost:
        return keras.Model
    obstacle = "it is a DPRPModel" if is_lowrank else obstacle_to_class(model)
    if obstacle is None:
        return type(model)
    raise ValueError(
        f"`model_class` must be given for a model whose class has {_listed(lost)} of its own, "
        "which a plain keras.Model would not have. Received: model_class=None for a "
        f"{type(model).__name__}, which can't be kept: {obstacle}. Pass a class of yours, derived "
        "from keras.Model and made of inputs, outputs and name, as model_class=...; or "
        "model_class=keras.Model to do without them."
    )


def _obstacle(model: DPRPModel) -> str | None:
    inputs = keras.Input((1,))
    return obstacle_to_class(model, DPRPModel(inputs, keras.layers.Identity()(inputs)))


def _checked(model_class: Any, base: type) -> Any:
    kind = model_class.func if isinstance(model_class, functools.partial) else model_class
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(
            f"`model_class` must be {base.__name__}, a class derived from it, or a "
            f"functools.partial of one. Received: model_class={model_class!r}"
        )
    return model_class


def _listed(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
