"""The retraction of a model's factors after a train step, on the TensorFlow and the JAX backend."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.optimizers import (
    inner_optimizer,
    model_optimizers,
    momentum_slots,
    trains,
)
from dprp_tf.layers import low_rank_layers
from dprp_tf.training.replicas import chief_arrays, from_first_replica, replica_count
from dprp_tf.training.retraction import TrainedFactors, turn, turn_shapes, turns

__all__ = ["retract_after_step", "retract_now"]


def retract_after_step(model: Any, result: Any, network: Any = None) -> Any:
    """Retract the SVD layers that train if the step that was taken is one of those that do.

    Args:
        model: The compiled model whose step it was.
        result: What Keras' own train step returned: the logs, on JAX with the new state.
        network: The `DPRPModel` inside it whose layers train; its settings' `retraction_period`
            says which steps retract. Default: the model itself.

    Returns:
        The result, on JAX with the state retracted.

    Raises:
        ValueError: If the step trains with an optimizer that the model does not hold.
    """
    optimizer = model.optimizer if network is None else _optimizer_of(model, network)
    network = model if network is None else network
    variables = _factor_variables(network, optimizer)
    if not variables:
        return result
    iterations = inner_optimizer(optimizer).iterations
    period = network.settings.retraction_period
    if keras.backend.backend() == "tensorflow":
        _assign(variables, _retracted_if_due(_read(variables), iterations, period))
        return result
    logs, (trainable, non_trainable, optimizer, metrics) = result
    trainable, optimizer = list(trainable), list(optimizer)
    home = {id(v): (trainable, i) for i, v in enumerate(model.trainable_variables)}
    home.update({id(v): (optimizer, i) for i, v in enumerate(model.optimizer.variables)})
    places = [[home[id(v)] for v in group] for group in variables]
    groups = [[state[i] for state, i in group] for group in places]
    container, index = home[id(iterations)]
    values = _retracted_if_due(groups, container[index], period)
    for (state, i), value in zip([p for g in places for p in g], values, strict=True):
        state[i] = value
    return logs, (trainable, non_trainable, optimizer, metrics)


def retract_now(model: Any, network: Any = None) -> None:
    """Retract the SVD layers that train, whatever the step; several workers keep alike factors.

    Args:
        model: A model, compiled or not, inside `fit` between steps or outside.
        network: The `DPRPModel` inside it. Default: the model itself.

    Raises:
        ValueError: If it trains with an optimizer that the model does not hold.
    """
    sync(model)
    optimizer = model.optimizer if network is None else _optimizer_of(model, network)
    variables = _factor_variables(model if network is None else network, optimizer)
    groups = _read(variables)
    found = [ops.convert_to_numpy(matrix) for matrix in turns(_factors(groups))]
    matrices = [ops.convert_to_tensor(matrix) for matrix in chief_arrays(model, found)]
    _assign(variables, _turned(groups, matrices))


def _retracted_if_due(groups: list[list[Any]], iterations: Any, period: int) -> list[Any]:
    """Return the values of all groups in one list, retracted every `period` iterations."""
    if period == 1:
        return _retracted(groups)
    due = ops.equal(ops.mod(iterations, period), 0)

    def unchanged() -> list[Any]:
        return [value for group in groups for value in group]

    if replica_count() == 1:
        return ops.cond(due, lambda: _retracted(groups), unchanged)
    # Replicas can't exchange anything inside a branch.
    factors = _factors(groups)
    matrices = ops.cond(
        due,
        lambda: turns(factors),
        lambda: [ops.zeros(shape, "float32") for shape in turn_shapes(factors)],
    )
    matrices = from_first_replica(matrices)
    return ops.cond(due, lambda: _turned(groups, matrices), unchanged)


def _factor_variables(network: Any, optimizer: Any) -> list[list[keras.Variable]]:
    """Return per layer that trains its u, s, v, and their momentum slots where there are any."""
    groups = []
    for layer in low_rank_layers(network):
        if layer.trainable:
            factors = [layer.u, layer.s, layer.v]
            groups.append(factors + momentum_slots(optimizer, factors))
    return groups


def _optimizer_of(model: Any, network: Any) -> Any:
    """The optimizer with which a model trains a network inside it: one of those it holds."""
    trained = next((layer.u for layer in low_rank_layers(network) if layer.trainable), None)
    # The network's own, if it was compiled by itself, has nothing to do with this training.
    own = getattr(network, "optimizer", None)
    found = [o for o in model_optimizers(model) if o is not own and trains(o, trained)]
    # On JAX a step's state has the variables of the compiled optimizer alone.
    if keras.backend.backend() == "jax":
        found = [optimizer for optimizer in found if optimizer is model.optimizer]
    if trained is None or found:
        return found[0] if found else None
    raise ValueError(
        f"`{type(model).__name__}` must train {network.name!r} with an optimizer of its own, so "
        "that the factors' momentum can be carried along. Received: none that was built for them; "
        "give the optimizer to compile(), or on TensorFlow keep it as an attribute of the model."
    )


def _read(groups: list[list[keras.Variable]]) -> list[list[Any]]:
    # A cast to its own dtype turns a variable into a tensor on every backend.
    return [[ops.cast(variable, variable.dtype) for variable in group] for group in groups]


def _assign(groups: list[list[keras.Variable]], values: list[Any]) -> None:
    for variable, value in zip([v for group in groups for v in group], values, strict=True):
        variable.assign(value)


def _factors(groups: list[list[Any]]) -> list[TrainedFactors]:
    return [TrainedFactors(*group[:3]) for group in groups]


def _retracted(groups: list[list[Any]]) -> list[Any]:
    return _turned(groups, from_first_replica(turns(_factors(groups))))


def _turned(groups: list[list[Any]], matrices: list[Any]) -> list[Any]:
    momenta = [TrainedFactors(*group[3:]) if len(group) > 3 else None for group in groups]
    new, carried = turn(_factors(groups), momenta, matrices)
    values: list[Any] = []
    for factor, momentum in zip(new, carried, strict=True):
        values.extend(factor)
        values.extend(momentum or ())
    return values
