"""The `tf.distribute` strategy under which a model was made."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

__all__ = ["distribute_strategy", "strategy_scope"]


def distribute_strategy(model: keras.Model) -> Any:
    """Return the `tf.distribute.Strategy` under which a model was made.

    Args:
        model: A Keras model.

    Returns:
        The strategy; None if the model was made outside of one, and on other backends.

    Example:

    >>> distribute_strategy(keras.Sequential([keras.Input((4,))])) is None
    True
    """
    return getattr(model, "_distribute_strategy", None)


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a model's further variables are to be made.

    Args:
        model: A Keras model.

    Returns:
        The scope of the model's `tf.distribute.Strategy`; without one, a context that does nothing.
    """
    strategy = distribute_strategy(model)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
