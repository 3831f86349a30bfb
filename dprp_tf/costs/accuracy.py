"""Top-1 accuracy: what may be lost while costs fall."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["class_labels", "only_output", "top_1_accuracy"]


def top_1_accuracy(y: ArrayLike, predictions: Any) -> float:
    """Return the share of samples whose largest prediction is at the label.

    Args:
        y: Labels, whole numbers `(samples, ...)`, or one-hot `(samples, ..., classes)`.
        predictions: Scores or probabilities, `(samples, ..., classes)`.

    Returns:
        The accuracy, 0 to 1; 0 for predictions that are not finite.

    Raises:
        ValueError: If the shapes do not fit or there is a single class.

    Example:

    >>> top_1_accuracy([1, 0], np.array([[0.1, 0.9], [0.2, 0.8]]))
    0.5
    """
    labels = class_labels(np.asarray(y), predictions)
    finite = np.isfinite(predictions).all(axis=-1)
    return float(np.mean((np.argmax(predictions, axis=-1) == labels) & finite))


def class_labels(y: NDArray[Any], predictions: Any) -> NDArray[Any]:
    """Return labels as whole numbers, whichever way they are given.

    Args:
        y: Labels, whole numbers `(samples, ...)` or `(samples, ..., 1)`, or one-hot.
        predictions: What they are held against, `(samples, ..., classes)`.

    Returns:
        Whole numbers `(samples, ...)`.

    Raises:
        ValueError: If the shapes do not fit, there is a single class, or the labels are no classes.

    Example:

    >>> class_labels(np.eye(3)[[2, 0]], np.zeros((2, 3))).tolist()
    [2, 0]
    """
    shape = getattr(predictions, "shape", None)
    if shape is None or len(shape) < 2 or shape[-1] < 2:
        received = "several outputs" if shape is None else f"predictions of shape {shape}"
        raise ValueError(
            "Top-1 accuracy needs one output with two classes or more. Received: "
            f"{received}. Pass `score`, a function (y, predictions) -> float, larger is better, "
            "or inputs alone to a method that needs no labels."
        )
    if y.shape == shape:
        if y.min(initial=0) < 0 or not np.allclose(y.sum(axis=-1), 1.0, atol=1e-3):
            raise ValueError(
                f"`y` must hold whole numbers of shape {shape[:-1]} or one-hot rows of shape "
                f"{shape}. Received: rows that do not sum to 1; for labels that do not exclude "
                "each other or for values pass `score`, such as score='binary_accuracy' or "
                "score='mean_squared_error'."
            )
        return np.asarray(np.argmax(y, axis=-1))
    if y.shape == (*shape[:-1], 1):
        y = y[..., 0]
    if y.shape != shape[:-1]:
        raise ValueError(
            f"`y` must hold whole numbers of shape {shape[:-1]} or one-hot rows of shape {shape}. "
            f"Received: shape {y.shape}"
        )
    if y.dtype.kind not in "iub" and (y != np.round(y)).any():
        raise ValueError(
            "`y` must hold whole numbers, the labels of classes. Received: fractions; for values "
            "pass `score`, such as score='mean_squared_error'."
        )
    if len(shape) == 2 and y.size and (y.min() < 0 or y.max() >= shape[-1]):
        raise ValueError(
            f"`y` must hold labels from 0 to {shape[-1] - 1}, one for each output. Received: "
            f"labels from {y.min():g} to {y.max():g}; give the classes that the model knows."
        )
    return y.astype(np.int64)


def only_output(predictions: Any) -> Any:
    """Return the predictions of a model's one output, out of the list or dict they may be in.

    Args:
        predictions: What a model predicts.

    Returns:
        The one array; of several outputs all of them as they are.

    Example:

    >>> only_output({"classes": np.zeros((4, 3))}).shape
    (4, 3)
    """
    if isinstance(predictions, dict) and len(predictions) == 1:
        return only_output(next(iter(predictions.values())))
    if isinstance(predictions, (list, tuple)) and len(predictions) == 1:
        return only_output(predictions[0])
    return predictions
