"""A converted model knows what the original was compiled for."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from dprp_tf.costs.compiled_loss import compiled_loss

__all__ = ["compiled_like"]


def compiled_like(model: keras.Model, original: keras.Model) -> keras.Model:
    """Compile a converted model with the loss and the metrics of the original, if they are Keras'.

    What it evaluates to, and which outputs are scores of classes, is then known of it and of its
    file. It gets plain SGD, which keeps no state: another optimizer's would be allocated wherever
    the file is loaded. A loss of one's own would make a file that only its code can load: such a
    model stays as it is, as does one whose class has a `compile` of its own.

    Args:
        model: The converted model, whose outputs have the names of the original's.
        original: The model it was made of, compiled or not.

    Returns:
        `model` itself.

    Example:

    >>> original = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> original.compile("adam", "mse", metrics=["mae"])
    >>> model = compiled_like(keras.models.clone_model(original), original)
    >>> model.loss, type(model.optimizer).__name__
    ('mse', 'SGD')
    """
    loss = compiled_loss(original)
    leaves = [leaf for leaf in keras.tree.flatten(loss) if leaf is not None]
    if (
        not leaves
        or not all(map(_is_of_keras, leaves))
        or type(model).compile is not keras.Model.compile
    ):
        return model
    with warnings.catch_warnings():
        # Serializing a metric that is a lambda warns, and it is left out.
        warnings.simplefilter("ignore")
        config = original.get_compile_config() or {}
    metrics = {
        name: keras.saving.deserialize_keras_object(config[name])
        for name in ("metrics", "weighted_metrics")
        if config.get(name) and _can_be_loaded(config[name])
    }
    model.compile(
        optimizer="sgd",
        loss=keras.tree.map_structure(_copied, loss),
        loss_weights=config.get("loss_weights"),
        auto_scale_loss=False,
        **metrics,
    )
    return model


def _is_of_keras(loss: Any) -> bool:
    owner = loss if callable(loss) and hasattr(loss, "__name__") else type(loss)
    return isinstance(loss, str) or str(owner.__module__).startswith("keras.")


def _copied(loss: Any) -> Any:
    return type(loss).from_config(loss.get_config()) if hasattr(loss, "get_config") else loss


def _can_be_loaded(metrics: Any) -> bool:
    """Whether metrics, as a configuration, are names and classes of Keras alone."""
    if isinstance(metrics, dict) and "class_name" in metrics:
        return str(metrics.get("module")).startswith("keras")
    parts = metrics.values() if isinstance(metrics, dict) else metrics
    return isinstance(metrics, str) or metrics is None or all(map(_can_be_loaded, parts))
