"""What an optimizer holds for each variable: slots, keys and who is left out of weight decay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from dprp_tf.keras_internals.graphs import layers_inside
from dprp_tf.keras_internals.strategies import strategy_scope

__all__ = [
    "AVERAGE_SLOTS",
    "LINEAR_SLOTS",
    "averages_weights",
    "build_optimizers",
    "exclude_from_weight_decay",
    "inner_optimizer",
    "model_optimizers",
    "model_slots",
    "momentum_slots",
    "optimizer_slots",
    "rekey",
    "require_slots_like",
    "trains",
    "variable_keys",
]

# Slots that hold values of their variable: a zero in them is a wrong value, no fresh start.
AVERAGE_SLOTS = ("_model_variables_moving_average",)

# Slots that follow a variable linearly change sign with it; the others hold squares or sizes.
LINEAR_SLOTS = (
    "momentums",
    "_momentums",
    "_m",
    "_average_gradients",
    "_linears",
    "_accumulated_gradients",
    *AVERAGE_SLOTS,
)


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that holds the slots, inside a loss-scaling wrapper or not.

    Args:
        optimizer: A Keras optimizer.

    Returns:
        The inner optimizer, or `optimizer` itself.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)


def model_optimizers(model: keras.Model) -> list[Any]:
    """Return the optimizers of a model: the compiled one, others it keeps, those of models inside.

    Args:
        model: A Keras model, such as a trainer that holds networks and an optimizer for each.

    Returns:
        The optimizers, the model's own first; empty if it has none.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", loss="mse")
    >>> [type(optimizer).__name__ for optimizer in model_optimizers(model)]
    ['SGD']
    """
    found: dict[int, Any] = {}
    for part in layers_inside(model):
        if isinstance(part, keras.Model):
            for value in vars(part).values():
                if isinstance(value, keras.optimizers.Optimizer):
                    found[id(value)] = value
    return list(found.values())


def trains(optimizer: Any, variable: keras.Variable) -> bool:
    """Return whether an optimizer was built for a variable.

    Args:
        optimizer: A Keras optimizer.
        variable: A variable.

    Returns:
        Whether it was.
    """
    inner = inner_optimizer(optimizer)
    return inner.built and any(known is variable for known in inner._trainable_variables)


def averages_weights(optimizer: Any) -> bool:
    """Return whether an optimizer puts averages of the weights in their place.

    Args:
        optimizer: A Keras optimizer, one with others inside included; None has no average.

    Returns:
        Whether it, or one inside it, was made with `use_ema=True`.

    Example:

    >>> averages_weights(keras.optimizers.SGD(use_ema=True)), averages_weights("sgd")
    (True, False)
    """
    inner = inner_optimizer(optimizer)
    parts = [inner, *getattr(inner, "optimizers", ())]
    return any(getattr(part, "use_ema", False) for part in parts)


def optimizer_slots(optimizer: Any, variable: keras.Variable) -> dict[str, keras.Variable]:
    """Return the optimizer's slots of one variable, by the attribute that holds them.

    Args:
        optimizer: A built Keras optimizer, or one not built yet (no slots).
        variable: A trainable variable of the model.

    Returns:
        Slots by attribute name, such as `{"momentums": ...}`; empty for plain SGD.
    """
    inner = inner_optimizer(optimizer)
    if inner is None or not inner.built:
        return {}
    index = next(
        (i for i, known in enumerate(inner._trainable_variables) if known is variable), None
    )
    if index is None:
        return {}
    count = len(inner._trainable_variables)
    return {
        name: slots[index]
        for name, slots in vars(inner).items()
        if name != "_trainable_variables"
        and isinstance(slots, (list, tuple))
        and len(slots) == count
        and isinstance(slots[index], keras.Variable)
    }


def model_slots(
    model: keras.Model, variables: Sequence[keras.Variable]
) -> Iterator[tuple[keras.Variable, keras.Variable, str]]:
    """Yield the slots that all optimizers of a model keep for some of its variables.

    Args:
        model: A Keras model.
        variables: Variables of it.

    Yields:
        The slot, its variable, and the name of the attribute that holds it.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.compile(keras.optimizers.SGD(momentum=0.9), loss="mse")
    >>> model.optimizer.build(model.trainable_variables)
    >>> [(tuple(slot.shape), name) for slot, _, name in model_slots(model, model.variables)]
    [((2, 1), 'momentums')]
    """
    for optimizer in model_optimizers(model):
        for variable in variables:
            for name, slot in optimizer_slots(optimizer, variable).items():
                yield slot, variable, name


def require_slots_like(
    model: keras.Model, variables: Sequence[keras.Variable], purpose: str
) -> None:
    """Refuse optimizers whose slots would not follow when variables get other shapes.

    Args:
        model: A Keras model.
        variables: Variables of it whose shapes are to change.
        purpose: What they change for, as the message begins.

    Raises:
        ValueError: If a slot has another shape than its variable, or an optimizer hands variables
            on to others.
    """
    remedy = "Use SGD, Adam, AdamW or RMSprop; or compile the model anew before loading."
    for optimizer in model_optimizers(model):
        inner = inner_optimizer(optimizer)
        if hasattr(inner, "_inner_optimizers"):
            raise ValueError(
                f"{purpose} needs one optimizer for all variables. Received: "
                f"{type(inner).__name__}, which hands them on to others. {remedy}"
            )
    for optimizer in model_optimizers(model):
        for variable in variables:
            for name, slot in optimizer_slots(optimizer, variable).items():
                if tuple(slot.shape) != tuple(variable.shape):
                    raise ValueError(
                        f"{purpose} needs an optimizer whose slots have their variable's shape. "
                        f"Received: {type(inner_optimizer(optimizer)).__name__}, whose {name!r} "
                        f"has shape {tuple(slot.shape)} for a variable of shape "
                        f"{tuple(variable.shape)}. {remedy}"
                    )


def momentum_slots(optimizer: Any, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Return the first-moment slots of these variables, in their order.

    Args:
        optimizer: A Keras optimizer.
        variables: Trainable variables.

    Returns:
        One slot per variable, or an empty list if the optimizer keeps no momentum.
    """
    found = []
    for variable in variables:
        slots = optimizer_slots(optimizer, variable)
        slot = next((slots[n] for n in ("momentums", "_momentums", "_m") if n in slots), None)
        if slot is None:
            return []
        found.append(slot)
    return found


def build_optimizers(model: keras.Model) -> None:
    """Let a model's optimizer make its slots, if it has none yet, as its first step would.

    Args:
        model: A built Keras model, compiled or not.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("adam", loss="mse")
    >>> build_optimizers(model)
    >>> model.optimizer.built
    True
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with strategy_scope(model):
            optimizer.build(model.trainable_variables)


def exclude_from_weight_decay(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    """Leave variables out of the optimizer's decoupled weight decay, beside those left out before.

    Args:
        optimizer: A Keras optimizer.
        variables: Variables to leave out.
    """
    inner = inner_optimizer(optimizer)
    if not getattr(inner, "weight_decay", None):
        return
    known: set[Any] = getattr(inner, "_exclude_from_weight_decay", set())
    inner._exclude_from_weight_decay = set(known) | {inner._var_key(v) for v in variables}
    if not hasattr(inner, "_exclude_from_weight_decay_pattern"):
        inner._exclude_from_weight_decay_pattern = None
    inner._exclude_from_weight_decay_cache = {}


def variable_keys(optimizer: Any, variables: Sequence[keras.Variable]) -> list[Any]:
    """Return the keys by which an optimizer finds variables; on TensorFlow they follow the payload.

    Args:
        optimizer: A Keras optimizer, or None.
        variables: The variables.

    Returns:
        One key per variable; none without an optimizer.
    """
    inner = inner_optimizer(optimizer) if optimizer is not None else None
    return [] if inner is None else [inner._var_key(variable) for variable in variables]


def rekey(optimizer: Any, variables: Sequence[keras.Variable], old_keys: list[Any]) -> None:
    """Let the optimizer find its variables again after some of them got other payloads.

    Args:
        optimizer: A Keras optimizer, or None.
        variables: The variables that `variable_keys` was asked for.
        old_keys: What it returned before the payloads changed.
    """
    if not old_keys:
        return
    inner = inner_optimizer(optimizer)
    if inner.built:
        inner._trainable_variables_indices = {
            inner._var_key(known): i for i, known in enumerate(inner._trainable_variables)
        }
    excluded = getattr(inner, "_exclude_from_weight_decay", None)
    if excluded:
        renamed = dict(zip(old_keys, variable_keys(optimizer, variables), strict=True))
        inner._exclude_from_weight_decay = {renamed.get(key, key) for key in excluded}
    inner._exclude_from_weight_decay_cache = {}
