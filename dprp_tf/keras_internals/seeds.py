"""The states of a model's random layers, which Keras leaves out of its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["seed_states", "set_seed_states"]


def seed_states(model: keras.Model) -> list[list[int]]:
    """Return the state of every seed generator of a model, such as those of dropout layers.

    A model saved and loaded begins its random streams anew; with these it goes on in them.

    Args:
        model: A model.

    Returns:
        Pairs (seed, numbers drawn) in model order.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=3)])
    >>> seed_states(model)
    [[3, 0]]
    """
    return [
        [int(value) for value in np.asarray(ops.convert_to_numpy(variable))]
        for variable in _states(model)
    ]


def set_seed_states(model: keras.Model, states: Sequence[Sequence[int]]) -> None:
    """Set the random states of a model to those that `seed_states` returned for the same network.

    Args:
        model: A model.
        states: What `seed_states` gave for a model of the same network.

    Raises:
        ValueError: If the model has another number of seed generators.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=3)])
    >>> set_seed_states(model, [[3, 7]])
    >>> seed_states(model)
    [[3, 7]]
    """
    variables = _states(model)
    if len(variables) != len(states):
        raise ValueError(
            f"`states` must hold one pair for each of the {len(variables)} seed generators of the "
            f"model. Received: {len(states)}; use those of the same network."
        )
    for variable, state in zip(variables, states, strict=True):
        # TensorFlow keeps seeds in 64 bits with a sign, JAX in 32 without.
        variable.assign(np.asarray(state, dtype=np.int64).astype(variable.dtype))


def _states(model: keras.Model) -> list[Any]:
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
