"""The states of a model's random layers, which Keras leaves out of its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.files.arguments import is_integer

__all__ = ["are_seed_states", "seed_anew", "seed_states", "set_seed_states"]


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


def are_seed_states(value: Any) -> bool:
    """Tell whether a value is what `seed_states` returns, perhaps by way of JSON.

    Args:
        value: Anything.

    Returns:
        True for a list of pairs of integers of 64 bits.

    Example:

    >>> are_seed_states([[3, 0]]), are_seed_states([[3]]), are_seed_states([[3, 1e99]])
    (True, False, False)
    """
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(is_integer(entry, -(2**63)) and entry < 2**63 for entry in pair)
        for pair in value
    )


def seed_anew(model: keras.Model, seed: int) -> None:
    """Begin the random streams of a model's layers at states that a seed decides.

    A layer that was made without a seed of its own has another one in every process.

    Args:
        model: A model.
        seed: The seed, 0 or more.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
    >>> seed_anew(model, 7)
    >>> before = seed_states(model)
    >>> seed_anew(model, 7)
    >>> seed_states(model) == before
    True
    """
    count = len(_states(model))
    drawn = np.random.default_rng(seed).integers(0, 2**31, count)
    set_seed_states(model, [(int(entry), 0) for entry in drawn])


def _states(model: keras.Model) -> list[Any]:
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
