"""What a run says of one model: its accuracy, its costs, and how its layers are folded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import keras

from dprp_tf.conversion.folding import choose_forms, fold
from dprp_tf.conversion.summaries import summarize
from dprp_tf.costs.accuracy import top_1_accuracy
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset, StreamedImages, evaluation_batches, reading_errors
from dprp_tf.layers import factorized_layers

__all__ = ["accuracy", "layer_rows", "model_row", "plain_model"]


def accuracy(model: keras.Model, dataset: Dataset, batch_size: int = 500) -> float:
    """Return the top-1 accuracy of a model on the test split.

    Args:
        model: A classifier, compiled or not.
        dataset: Its data.
        batch_size: Images per batch.

    Returns:
        The share of test images whose largest output is their class, 0 to 1.

    Example:

    >>> accuracy.__name__
    'accuracy'
    """
    if isinstance(dataset.x_test, StreamedImages):
        with reading_errors(dataset.x_test):
            outputs = model.predict(evaluation_batches(dataset, min(batch_size, 128)), verbose=0)
    else:
        outputs = model.predict(dataset.x_test.astype("float32"), batch_size=batch_size, verbose=0)
    return top_1_accuracy(dataset.y_test, outputs)


def plain_model(model: keras.Model) -> keras.Model:
    """Return the model folded to plain layers if it has low-rank layers, else the model itself.

    Args:
        model: Any Keras model.

    Returns:
        A model that exports.
    """
    return fold(model) if factorized_layers(model) else model


def model_row(
    name: str,
    label: str,
    model: keras.Model,
    top_1: float,
    trained_parameters: int | None = None,
) -> dict[str, Any]:
    """Return a model's row in `results.json`.

    Args:
        name: What its row and its files are called, such as `"dense"` or `"dprp"`.
        label: What a reader sees.
        model: The model, whose parameters and MACs are counted.
        top_1: Its accuracy, 0 to 1.
        trained_parameters: Parameters of the model in training, if that was another. Default None.

    Returns:
        JSON-ready values.
    """
    cost = model_cost(model)
    return {
        "name": name,
        "label": label,
        "accuracy": top_1,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "trained_parameters": trained_parameters,
    }


def layer_rows(model: keras.Model, **forms: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the `layers` and `skipped` of `results.json`: how each layer is folded, or why not.

    Args:
        model: A model with low-rank layers.
        **forms: `plan` or `forms`, as `choose_forms` takes them.

    Returns:
        JSON-ready values.
    """
    return {
        "layers": [asdict(row) for row in choose_forms(model, **forms)],
        "skipped": [{"name": row.name, "reason": row.skipped} for row in summarize(model).skipped],
    }
