"""What is called good: a score of predictions against labels, larger is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from dprp_tf.costs.accuracy import class_labels, top_1_accuracy
from dprp_tf.costs.compiled_loss import (
    are_classes,
    compiled_loss,
    described,
    is_binary,
    is_categorical,
    loss_weights_by_output,
    losses_by_output,
    names_of_outputs,
)
from dprp_tf.costs.score_scale import ACCURACY, ScoreScale
from dprp_tf.keras_internals.graphs import graph_of

__all__ = [
    "SCORES",
    "Score",
    "ScoreFunction",
    "binary_accuracy",
    "mean_absolute_error",
    "mean_iou",
    "mean_squared_error",
    "peak_signal_to_noise",
    "resolve_score",
    "score_scale",
]

ScoreFunction: TypeAlias = Callable[[Any, Any], float]
"""(labels, predictions) -> float, larger is better."""

Score: TypeAlias = str | ScoreFunction | keras.metrics.Metric
"""A name of `SCORES` or of a Keras metric, a Keras metric, or a function."""

# Keras metrics of which less is better, by words in their names.
_LESS_IS_BETTER = ("error", "entropy", "crossentropy", "hinge", "divergence", "poisson", "loss")


def mean_iou(y: Any, predictions: Any) -> float:
    """Return the mean over the classes of intersection over union of maps of classes.

    IoU_c = |{y = c and p = c}| / |{y = c or p = c}|, over the classes that occur in either.

    Args:
        y: Labels, whole numbers `(samples, ...)` or one-hot.
        predictions: Scores `(samples, ..., classes)`.

    Returns:
        The mean, 0 to 1.

    Example:

    >>> mean_iou([[0, 0, 1, 1]], np.eye(2)[[[0, 1, 1, 1]]])
    0.5833333333333333
    """
    labels = class_labels(np.asarray(y), predictions).ravel()
    chosen = np.argmax(predictions, axis=-1).ravel()
    classes = np.asarray(predictions).shape[-1]
    both = np.bincount(labels[labels == chosen], minlength=classes)
    either = np.bincount(labels, minlength=classes) + np.bincount(chosen, minlength=classes) - both
    return float((both[either > 0] / either[either > 0]).mean())


def binary_accuracy(y: Any, predictions: Any) -> float:
    """Return the share of labels that are right on their own, at a threshold of 0.5.

    Args:
        y: Labels of 0 and 1, of the predictions' shape.
        predictions: Probabilities, as a sigmoid gives them.

    Returns:
        The share, 0 to 1.

    Example:

    >>> binary_accuracy([[1, 0]], np.array([[0.9, 0.7]]))
    0.5
    """
    labels = _of_shape(y, predictions)
    return float(np.mean((np.asarray(predictions) > 0.5) == (labels > 0.5)))


def mean_squared_error(y: Any, predictions: Any) -> float:
    """Return minus the mean of (p - y)^2, so that larger is better.

    Args:
        y: Values, of the predictions' shape.
        predictions: What the model gives.

    Returns:
        At most 0.

    Example:

    >>> mean_squared_error([1.0, 2.0], np.array([1.0, 4.0]))
    -2.0
    """
    return -float(np.mean((np.asarray(predictions, np.float64) - _of_shape(y, predictions)) ** 2))


def mean_absolute_error(y: Any, predictions: Any) -> float:
    """Return minus the mean of |p - y|, so that larger is better.

    Args:
        y: Values, of the predictions' shape.
        predictions: What the model gives.

    Returns:
        At most 0.

    Example:

    >>> mean_absolute_error([1.0, 2.0], np.array([1.0, 4.0]))
    -1.0
    """
    return -float(np.mean(np.abs(np.asarray(predictions, np.float64) - _of_shape(y, predictions))))


def peak_signal_to_noise(y: Any, predictions: Any, peak: float = 1.0) -> float:
    """Return the mean over the images of 10 log10(peak^2 / mean((p - y)^2)), in decibels.

    Args:
        y: Images `(samples, ...)`, from 0 to `peak`.
        predictions: What the model gives, of the same shape.
        peak: The largest value of an image: 255 for bytes. Default 1.

    Returns:
        Decibels; infinite for an image that is equal.

    Raises:
        ValueError: If a value of `y` is above the peak.

    Example:

    >>> round(peak_signal_to_noise(np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.1)), 6)
    20.0
    """
    images = _of_shape(y, predictions)
    if images.max(initial=0) > peak * (1 + 1e-6):
        raise ValueError(
            f"`y` must lie within 0 to the peak. Received: values up to {images.max():g} at "
            f"peak={peak}. For bytes pass score=functools.partial(peak_signal_to_noise, peak=255)."
        )
    squared = (np.asarray(predictions, np.float64) - images) ** 2
    errors = squared.reshape(len(squared), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(peak**2 / errors)))


SCORES: Mapping[str, ScoreFunction] = {
    "accuracy": top_1_accuracy,
    "binary_accuracy": binary_accuracy,
    "mean_absolute_error": mean_absolute_error,
    "mean_iou": mean_iou,
    "mean_squared_error": mean_squared_error,
    "psnr": peak_signal_to_noise,
}


_SCALES = {
    scale.name: scale
    for scale in (
        ACCURACY,
        ScoreScale("binary_accuracy", "share"),
        ScoreScale("mean_absolute_error", less_is_better=True),
        ScoreScale("mean_iou", "share"),
        ScoreScale("mean_squared_error", less_is_better=True),
        ScoreScale("psnr", "dB"),
    )
}


def score_scale(score: Score | None) -> ScoreScale:
    """Return what a score is called, its unit, and which way is better.

    Args:
        score: As `resolve_score` takes it; None for top-1 accuracy.

    Returns:
        The scale; a function is called by its name, and more of it is better.

    Raises:
        ValueError: If the name is unknown.

    Example:

    >>> score_scale("mean_squared_error").less_is_better, score_scale("psnr").unit
    (True, 'dB')
    """
    if score is None:
        return ACCURACY
    if isinstance(score, str) and score in _SCALES:
        return _SCALES[score]
    if isinstance(score, (str, keras.metrics.Metric)):
        metric = _keras_metric(score) if isinstance(score, str) else score
        name = score if isinstance(score, str) else str(metric.name)
        return ScoreScale(name, less_is_better=_less_is_better(metric))
    named = getattr(score, "func", score)  # of a functools.partial the function
    return ScoreScale(getattr(named, "__name__", type(named).__name__))


def resolve_score(score: Score | None, model: keras.Model | None = None, y: Any = None) -> Any:
    """Return the function that a score means; without one, what the model was compiled for.

    | the model was compiled with | score |
    |---|---|
    | a categorical cross-entropy or hinge | top-1 accuracy |
    | a binary cross-entropy, behind a sigmoid | the share of labels that are right |
    | any other loss | minus that loss |
    | nothing, and the labels are classes | top-1 accuracy |

    Args:
        score: A name of `SCORES` or of a Keras metric, whose value counts negatively where its
            name says error, loss or entropy; a Keras metric; a function (y, predictions) -> float,
            larger is better. Default: by the table.
        model: The model that predicts.
        y: Labels, to see whether they are classes where the model was not compiled.

    Returns:
        The function; `top_1_accuracy` itself where that is meant.

    Raises:
        ValueError: If the name is unknown, or nothing says what the labels are.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> resolve_score(None, model)(np.ones((1, 2)), np.zeros((1, 2)))
    -1.0
    >>> resolve_score("mean_absolute_error")([1.0], np.array([3.0]))
    -2.0
    """
    if isinstance(score, str):
        return SCORES[score] if score in SCORES else _of_metric(_keras_metric(score))
    if isinstance(score, keras.metrics.Metric):
        return _of_metric(score)
    if score is not None:
        return score
    loss = None if model is None else compiled_loss(model)
    if loss is None and len(_outputs(model)) > 1:
        raise ValueError(
            "`score` must be given, a function (y, predictions) -> float, larger is better, for "
            "labels of a model of several outputs that was not compiled. Received: score=None and "
            f"outputs {names_of_outputs(model)}; where the method needs no labels, give data=x "
            "alone."
        )
    if loss is None:
        channels = _channels(model)
        if y is None or (channels is not None and are_classes(y, channels)):
            return top_1_accuracy
        raise ValueError(
            "`score` must be given where a model was not compiled and its labels are not classes: "
            f"a name of {sorted(SCORES)} or of a Keras metric, or a function (y, predictions) -> "
            f"float, larger is better. Received: score=None, labels {_described(y)}"
        )
    if is_categorical(loss):
        return top_1_accuracy
    if is_binary(loss) and not _from_logits(loss):
        return binary_accuracy
    return _of_losses(loss, model)


def _keras_metric(name: str) -> keras.metrics.Metric:
    try:
        found = keras.metrics.get(name)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`score` must be one of {sorted(SCORES)}, the name of a Keras metric, such as 'AUC', "
            f"a Keras metric, or a function (y, predictions) -> float. Received: score={name!r}"
        ) from error
    if isinstance(found, keras.metrics.Metric):
        return found
    return keras.metrics.MeanMetricWrapper(found, name=name)


def _of_metric(metric: keras.metrics.Metric) -> ScoreFunction:
    sign = -1.0 if _less_is_better(metric) else 1.0

    def score(y: Any, predictions: Any) -> float:
        metric.reset_state()
        metric.update_state(y, predictions)
        return sign * float(keras.ops.convert_to_numpy(metric.result()))

    score.__qualname__ = f"metric {metric.name}"
    return score


def _less_is_better(metric: keras.metrics.Metric) -> bool:
    words = f"{type(metric).__name__} {metric.name}".lower()
    return any(word in words for word in _LESS_IS_BETTER)


def _of_losses(loss: Any, model: Any) -> ScoreFunction:
    """Minus a loss; of several outputs minus the weighted sum of theirs, as `compile` was told."""
    names = names_of_outputs(model)
    weights = loss_weights_by_output(model)

    def score(y: Any, predictions: Any) -> float:
        given, found = _by_output(y, names), _by_output(predictions, names)
        total = 0.0
        for name, each in losses_by_output(loss, names).items():
            if each is None:
                continue
            function = each if isinstance(each, keras.losses.Loss) else keras.losses.get(each)
            value = function(given[name], found[name])
            total += weights.get(name, 1.0) * float(np.mean(keras.ops.convert_to_numpy(value)))
        return -total

    score.__qualname__ = f"minus {described(loss)} {weights}"
    return score


def _by_output(values: Any, names: list[str]) -> dict[str, Any]:
    if isinstance(values, dict):
        return {name: values[name] for name in names if name in values}
    if isinstance(values, (list, tuple)) and len(values) == len(names) > 1:
        return dict(zip(names, values, strict=True))
    return dict.fromkeys(names, values) if len(names) == 1 else {}


def _from_logits(loss: Any) -> bool:
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    return bool(config.get("from_logits"))


def _outputs(model: keras.Model | None) -> list[Any]:
    return list(getattr(graph_of(model), "outputs", None) or [])


def _channels(model: keras.Model | None) -> int | None:
    outputs = _outputs(model)
    return outputs[0].shape[-1] if len(outputs) == 1 else None


def _of_shape(y: Any, predictions: Any) -> np.ndarray:
    labels = np.asarray(y)
    shape: tuple[int, ...] = np.shape(predictions)
    # (samples,) and (samples, 1) hold the same.
    if (*labels.shape, 1) == shape or labels.shape == (*shape, 1):
        labels = labels.reshape(shape)
    if labels.shape != shape:
        raise ValueError(
            f"`y` must have the shape of the predictions, {shape}. Received: shape {labels.shape}"
        )
    return labels


def _described(y: Any) -> str:
    arrays = keras.tree.flatten(y)
    return ", ".join(f"{np.asarray(a).dtype} of shape {np.shape(a)}" for a in arrays)
