"""A step that is refused while it is traced, which must not cost the model its weights."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["keep_state_of_a_refused_step"]


def keep_state_of_a_refused_step(model: keras.Model) -> None:
    """Let a model keep its values if the next step it traces raises a `ValueError`.

    Keras' JAX trainer takes the values out of the variables for a step; on other backends there is
    nothing to do. Holds for the train function as it is now.

    Args:
        model: A compiled model whose train function has been made.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> model.make_train_function()
    >>> keep_state_of_a_refused_step(model)
    """
    if keras.backend.backend() != "jax":
        return
    function = model.train_function

    def guarded(state: Any, iterator: Any) -> Any:
        try:
            return function(state, iterator)
        except ValueError:
            # Refused while it was traced: nothing was computed, and no buffer given away.
            groups = (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
            for variables, values in zip(groups, state, strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)
            raise

    model.train_function = guarded
