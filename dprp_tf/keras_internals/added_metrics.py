"""Metrics that a model carries beside the compiled ones, whose variables train steps take along."""

from __future__ import annotations

import keras

__all__ = ["add_metric", "added_metrics", "remove_metric"]


def added_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the metrics that a model carries beside the compiled ones.

    Args:
        model: A Keras model.

    Returns:
        The metrics, in a list of its own.
    """
    return list(model._metrics)


def add_metric(model: keras.Model, metric: keras.metrics.Metric) -> None:
    """Add a metric to a model, so that compiled steps of every backend carry its variables.

    The metric's variables are neither weights of the model nor in its files. Compiled functions
    know of it once they are made anew.

    Args:
        model: A Keras model.
        metric: The metric.

    Example:

    >>> model, metric = keras.Sequential([keras.Input((2,))]), keras.metrics.Mean(name="mine")
    >>> add_metric(model, metric)
    >>> [found.name for found in added_metrics(model)], len(model.weights)
    (['mine'], 0)
    """
    model._metrics.append(metric)


def remove_metric(model: keras.Model, metric: keras.metrics.Metric) -> None:
    """Remove a metric that `add_metric` added to a model.

    Args:
        model: A Keras model.
        metric: The metric; nothing happens if the model does not carry it.
    """
    model._metrics[:] = [known for known in model._metrics if known is not metric]
