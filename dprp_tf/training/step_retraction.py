"""The retraction of a model's factors after a train step, on the TensorFlow and the JAX backend."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.optimizers import inner_optimizer, momentum_slots
from dprp_tf.layers import low_rank_layers
from dprp_tf.training.replicas import chief_arrays, from_first_replica, replica_count
from dprp_tf.training.retraction import TrainedFactors, turn, turn_shapes, turns

__all__ = ["retract_after_step", "retract_now"]


def retract_after_step(model: Any, result: Any) -> Any:
    """Retract the SVD layers that train if the step that was taken is one of those that do.

    Args:
        model: A compiled `DPRPModel`; its settings' `retraction_period` says which steps do.
        result: What Keras' own train step returned: the logs, on JAX with the new state.

    Returns:
        The result, on JAX with the state retracted.
    """
    variables = _factor_variables(model)
    if not variables:
        return result
    iterations = inner_optimizer(model.optimizer).iterations
    period = model.settings.retraction_period
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


def retract_now(model: Any) -> None:
    """Retract the SVD layers that train, whatever the step; several workers keep alike factors.

    Args:
        model: A `DPRPModel`, compiled or not, inside `fit` between steps or outside.
    """
    sync(model)
    variables = _factor_variables(model)
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


def _factor_variables(model: Any) -> list[list[keras.Variable]]:
    """Return per layer that trains its u, s, v, and their momentum slots where there are any."""
    groups = []
    for layer in low_rank_layers(model):
        if layer.trainable:
            factors = [layer.u, layer.s, layer.v]
            groups.append(factors + momentum_slots(model.optimizer, factors))
    return groups


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
