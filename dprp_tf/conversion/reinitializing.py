"""A model with new weights, to be trained from scratch."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.keras_internals.graphs import graph_of
from dprp_tf.keras_internals.rewriting import rewrite

__all__ = ["reinitialized"]


def reinitialized(model: keras.Model) -> keras.Model:
    """Return a copy of a model whose weights that train are drawn anew.

    Layers that train nothing keep their state: statistics that inputs are normalized by, what is
    frozen. `keras.utils.set_random_seed` beforehand makes the weights the same in every process.

    Args:
        model: A built Functional or Sequential model; it stays as it is.

    Returns:
        The copy, not compiled.

    Raises:
        ValueError: If the model has no graph, or a layer's configuration does not make it anew.

    Example:

    >>> import numpy as np
    >>> dense = keras.layers.Dense(2, name="a")
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Normalization(mean=1.0,
    ...     variance=4.0), dense])
    >>> new = reinitialized(model)
    >>> bool((np.array(new.get_layer("a").kernel) != np.array(dense.kernel)).all())
    True
    """

    def anew(layer: Any) -> Any:
        if graph_of(layer) is not None or not getattr(layer, "trainable_weights", None):
            return None
        try:
            return type(layer).from_config(layer.get_config())
        # What Keras raises of a class that has no `get_config`, or one that leaves arguments out.
        except (TypeError, NotImplementedError) as error:
            raise ValueError(
                "`model` must hold layers that can be made anew from `get_config()`. Received: "
                f"{type(layer).__name__} {layer.name!r}, which can't ({error})"
            ) from error

    return rewrite(model, anew)
