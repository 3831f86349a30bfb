"""Variables that get a payload of another shape while everything that knows them goes on.

A `keras.Variable` is kept and given new values of a new shape, so that order, names and tracking
stay as they are. TensorFlow's optimizers know a variable by its payload, and compiled functions
hold it: both are brought up to date when the exchange is over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from numpy.typing import NDArray

from dprp_tf.keras_internals.compiled import renew_functions
from dprp_tf.keras_internals.graphs import layers_inside
from dprp_tf.keras_internals.optimizers import model_optimizers, rekey, variable_keys
from dprp_tf.keras_internals.strategies import strategy_scope

__all__ = ["exchange_payloads", "set_payload"]


@contextlib.contextmanager
def exchange_payloads(model: keras.Model) -> Iterator[None]:
    """Let variables of a model get new payloads inside; optimizers and compiled functions follow.

    Args:
        model: The model, compiled or not, inside `fit` or not; those inside it follow as well.

    Yields:
        Nothing; call `set_payload` inside.
    """
    optimizers = model_optimizers(model)
    variables = list(model.trainable_variables)
    old_keys = [variable_keys(optimizer, variables) for optimizer in optimizers]
    with strategy_scope(model):
        yield
    for optimizer, keys in zip(optimizers, old_keys, strict=True):
        rekey(optimizer, variables, keys)
    for part in layers_inside(model):
        if isinstance(part, keras.Model):
            renew_functions(part)


def set_payload(variable: keras.Variable, values: NDArray[Any]) -> None:
    """Give a variable values of another shape; the variable itself stays the same object.

    Args:
        variable: A Keras variable, of a model or of an optimizer.
        values: Its new values, of any shape.

    Example:

    >>> import numpy as np
    >>> variable = keras.Variable(np.zeros((3, 2), "float32"))
    >>> set_payload(variable, np.ones((3, 1), "float32"))
    >>> tuple(variable.shape)
    (3, 1)
    """
    variable._shape = tuple(values.shape)
    variable._initialize(ops.convert_to_tensor(values, dtype=variable.dtype))
