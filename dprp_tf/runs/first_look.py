"""A trained model and data seen together for the first time: whether they fit, what looks wrong."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf.data import Dataset
from dprp_tf.deploy.running.runtime import load_file
from dprp_tf.files.arguments import check_integer
from dprp_tf.keras_internals.graphs import layer_keys

__all__ = [
    "FirstLook",
    "FirstLookWarning",
    "Scaling",
    "first_look",
    "first_looks",
    "input_size",
    "require_fit",
]

# Of the way from guessing to all right: below the first, accuracies count as those of guessing;
# below the second, another scaling of the images is tried.
_GUESSING, _POOR = 0.2, 0.5
_CONFIDENT = 0.5
_BATCH = 100
# Means and deviations for red, green and blue, as most pretrained networks have them.
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CAFFE = (123.68, 116.779, 103.939)


class FirstLookWarning(UserWarning):
    """Something about a trained model and its data that makes accuracies wrong or too high."""


@dataclass(frozen=True)
class Scaling:
    """Another scaling of the images, with which a model is right more often.

    Attributes:
        means: What the values become.
        mean: What is subtracted from the images as they are loaded, one number or one per channel.
        std: What they are then divided by, likewise.
        accuracy: The accuracy on the samples with it, 0 to 1.
        reversed_channels: Whether the channels are reversed too, blue first.
    """

    means: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float
    reversed_channels: bool = False

    @property
    def call(self) -> str:
        """The call that applies it; the command line turns it into its options."""
        if self.mean == (0.0,) and self.std == (1.0,):
            return "without `mean` and `std`"
        mean, std = ([float(f"{value:.6g}") for value in part] for part in (self.mean, self.std))
        return f"with `dataset.normalized(mean={mean}, std={std})`"


@dataclass(frozen=True)
class FirstLook:
    """What a first look at a trained model and its data found.

    Attributes:
        samples: How many test images were looked at.
        classes: Number of classes.
        accuracy: Top-1 accuracy on them, 0 to 1.
        confidence: Mean of the largest probability of each.
        scaling: A scaling that the images seem to lack; None for none.
        warnings: Sentences for a reader: a word or two, a colon, what was seen, what to do.
    """

    samples: int
    classes: int
    accuracy: float
    confidence: float
    scaling: Scaling | None
    warnings: tuple[str, ...]

    def warn(self) -> None:
        """Show every warning as Python's `FirstLookWarning`."""
        for text in self.warnings:
            warnings.warn(text, FirstLookWarning, stacklevel=3)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values, to stand in the description of the data."""
        found = self.scaling
        return {
            "warnings": list(self.warnings),
            "first_look": {
                "samples": self.samples,
                "accuracy": self.accuracy,
                "confidence": self.confidence,
                "scaling": None
                if found is None
                else {**vars(found), "mean": list(found.mean), "std": list(found.std)},
            },
        }


@dataclass(frozen=True)
class _Network:
    """What a Keras model and an exported file have in common."""

    name: str
    inputs: list[tuple[int | None, ...]]
    outputs: list[tuple[int | None, ...]]
    predict: Callable[[np.ndarray], np.ndarray]
    scales_itself: bool


def first_look(
    model: keras.Model | str | os.PathLike[str], dataset: Dataset, samples: int = 300
) -> FirstLook:
    """Look at some test images before hours are spent: are these the images that the model knows?

    Warned about are a test split that was drawn when the data were loaded (a model trained
    elsewhere may know its images), accuracies like those of guessing, and a scaling that the
    images seem to lack: the usual ones (0..1, -1..1, those of ImageNet, the data's own mean and
    standard deviation) are tried unless the model has a Rescaling or Normalization of its own.
    Nothing is chosen by these images: they only warn.

    Args:
        model: A trained classifier, or a `.tflite` or `.onnx` file.
        dataset: Its data.
        samples: Test images to look at, of every class alike, 1 or more. Default 300.

    Returns:
        What was found; `warn()` shows it.

    Raises:
        ValueError: If image shape or number of classes do not fit the model.

    Example:

    >>> from dprp_tf.data import load
    >>> digits = load("digits", image_size=8)
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10, "softmax", kernel_initializer="zeros")])
    >>> first_look(model, digits).warnings[0].split(":")[0]
    'Guessing'
    """
    network = _network(model)
    _require_fit(network, dataset)
    x, y = dataset.sample("test", check_integer("samples", samples))
    scores = network.predict(x)
    accuracy, confidence = _accuracy(scores, y), _confidence(scores)
    found = None
    if _skill(accuracy, len(dataset.classes)) < _POOR:
        found = _better_scaling(network, dataset, x, y, accuracy)
    said = [_drawn_split(dataset)] if dataset.drawn_test_split else []
    doubt = _doubt(network, dataset, scores, y, accuracy, confidence, found)
    return FirstLook(
        samples=len(y),
        classes=len(dataset.classes),
        accuracy=accuracy,
        confidence=confidence,
        scaling=found,
        warnings=tuple(said + doubt),
    )


def first_looks(paths: Sequence[str | os.PathLike[str]], dataset: Dataset) -> dict[str, Any]:
    """Look at several files and data, and show each warning once.

    Args:
        paths: `.tflite` or `.onnx` files.
        dataset: Data for all of them.

    Returns:
        The description of the data, with the warnings.

    Raises:
        ValueError: If image shape or number of classes do not fit a file.

    Example:

    >>> from dprp_tf.data import load
    >>> first_looks([], load("digits"))["warnings"]
    []
    """
    said: dict[str, None] = {}
    for path in paths:
        for text in first_look(path, dataset).warnings:
            of_all = len(paths) == 1 or text == _drawn_split(dataset)
            said[text if of_all else f"{text} ({os.fspath(path)})"] = None
    for text in said:
        warnings.warn(text, FirstLookWarning, stacklevel=2)
    return {**dataset.description, "warnings": list(said)}


def require_fit(model: keras.Model | str | os.PathLike[str], dataset: Dataset) -> None:
    """Refuse data whose images or classes are not those of a model, in one sentence.

    Args:
        model: A classifier, or a `.tflite` or `.onnx` file.
        dataset: The data.

    Raises:
        ValueError: If image shape or number of classes do not fit.

    Example:

    >>> from dprp_tf.data import load
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> require_fit(model, load("digits", image_size=8))
    """
    _require_fit(_network(model), dataset)


def input_size(model: keras.Model | str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return the height and width of the images that a model takes.

    Args:
        model: A model, or a `.tflite` or `.onnx` file.

    Returns:
        Both, in pixels; None for a model of any size, of several inputs or of something else.

    Example:

    >>> input_size(keras.Sequential([keras.Input((24, 32, 3)), keras.layers.Flatten()]))
    (24, 32)
    """
    shapes = _network(model).inputs
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return None
    height, width = shapes[0][1:3]
    return None if height is None or width is None else (height, width)


def _network(model: keras.Model | str | os.PathLike[str]) -> _Network:
    if not isinstance(model, keras.Model):
        path = Path(model)
        file = load_file(path, os.cpu_count() or 1)
        return _Network(
            str(path),
            [tensor.shape for tensor in file.inputs],
            [tensor.shape for tensor in file.outputs],
            lambda x: next(iter(file.run(x, "data").values())),
            scales_itself=False,
        )
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    return _Network(
        repr(model.name),
        [tuple(tensor.shape) for tensor in model.inputs],
        [tuple(tensor.shape) for tensor in model.outputs],
        lambda x: np.asarray(
            keras.tree.flatten(model.predict(x, batch_size=_BATCH, verbose=0))[0], np.float32
        ),
        scales_itself=any(isinstance(layer, scaling) for layer in layer_keys(model).values()),
    )


def _require_fit(network: _Network, dataset: Dataset) -> None:
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ValueError(
            "`model` must have one input, of images, and one output, of class scores. Received: "
            f"{network.name} with {len(network.inputs)} inputs and {len(network.outputs)} outputs."
        )
    wanted, images = network.inputs[0][1:], dataset.image_shape
    if len(wanted) != len(images) or any(
        size not in (None, given) for size, given in zip(wanted, images, strict=True)
    ):
        pixels = wanted[0] if len(set(wanted[:-1])) == 1 else "..."
        advice = (
            f"Load them with `image_size={pixels}`."
            if len(wanted) == len(images) and wanted[-1] in (None, images[-1])
            else "Gray images have 1 channel, color images 3: give images of the model's kind."
        )
        raise ValueError(
            f"`data` must hold what the model takes, {_times(wanted)}. Received: images of "
            f"{_times(images)} in {dataset.name} for {network.name}. {advice}"
        )
    output = network.outputs[0]
    if len(output) == 2 and output[-1] in (None, len(dataset.classes)):
        return
    scores = f"{output[-1]} output{'s' if output[-1] != 1 else ''}"
    if len(output) != 2:
        scores = f"an output of the shape {output}"
    raise ValueError(
        f"`data` must have the classes of the model, one for each output. Received: "
        f"{len(dataset.classes)} classes in {dataset.name} ({_listed(dataset.classes)}) for "
        f"{network.name}, which has {scores}. Give the data that the model was trained on, with a "
        "folder for each class."
    )


def _times(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape)


def _listed(classes: tuple[str, ...]) -> str:
    shown = [name if len(name) <= 24 else name[:23] + "…" for name in classes[:6]]
    return ", ".join(shown) + (", …" if len(classes) > 6 else "")


def _accuracy(scores: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.argmax(scores, axis=-1) == y))


def _confidence(scores: np.ndarray) -> float:
    """The mean of the largest probability, whether the scores are such or logits."""
    values = np.nan_to_num(np.asarray(scores, np.float64))
    # Quantized probabilities sum to 1 but roughly.
    if values.min() < 0 or not np.allclose(values.sum(axis=-1), 1.0, atol=0.05):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    return float(values.max(axis=-1).mean())


def _skill(share: float, classes: int) -> float:
    """How far a share is from guessing, 0, to all, 1."""
    return (share - 1 / classes) / (1 - 1 / classes)


def _better_scaling(
    network: _Network, dataset: Dataset, x: np.ndarray, y: np.ndarray, accuracy: float
) -> Scaling | None:
    """The usual scaling with which far more of the samples are right, if there is one."""
    images = x
    if dataset.normalization is not None:
        before, by = (np.asarray(part, np.float32) for part in dataset.normalization)
        images = x * by + before
    low, high = float(images.min()), float(images.max())
    # What 0 and the step between two values of a pixel are here.
    zero, step = (0.0, 1.0) if high > 1.5 else (-1.0, 1 / 127.5) if low < 0 else (0.0, 1 / 255)
    if network.scales_itself and dataset.normalization is None and step == 1.0:
        return None
    best: Scaling | None = None
    # What chance alone would hardly give.
    enough = accuracy + max(0.1, 2 / math.sqrt(len(y)))
    for means, mean, std, backwards in _usual(dataset, zero, step):
        shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        tried = (images - shift) / scale
        found = _accuracy(network.predict(tried[..., ::-1] if backwards else tried), y)
        if found >= enough and (best is None or found > best.accuracy):
            best = Scaling(means, mean, std, found, backwards)
    return best


def _usual(
    dataset: Dataset, zero: float, step: float
) -> Iterator[tuple[str, tuple[float, ...], tuple[float, ...], bool]]:
    """Usual scalings, as means and deviations of images whose pixels count in those steps."""

    def scaled(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(value * step for value in values)

    def shifted(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(zero + value * step for value in values)

    if dataset.normalization is not None:
        yield "the values as they are loaded", (0.0,), (1.0,), False
    ranges: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
        ("values of 0 to 255", (0.0,), (1.0,)),
        ("values of 0 to 1", (0.0,), (255.0,)),
        ("values of -1 to 1", (127.5,), (127.5,)),
    )
    for means, mean, std in ranges:
        if shifted(mean) != (0.0,) or scaled(std) != (1.0,):
            yield means, shifted(mean), scaled(std), False
    if dataset.image_shape[-1] == 3:
        mean, std = _IMAGENET
        yield "ImageNet's mean and standard deviation", shifted(mean), scaled(std), False
        yield "ImageNet's mean", shifted(_CAFFE), scaled((1.0,)), False
        # Applied before the channels are reversed.
        yield "ImageNet's mean, blue first (caffe)", shifted(_CAFFE), scaled((1.0,)), True
    if dataset.normalization is None:
        yield "the data's own mean and standard deviation", dataset.mean, dataset.std, False


def _drawn_split(dataset: Dataset) -> str:
    return (
        f"Test split: {dataset.name} has no test/ folder, so {len(dataset.x_test):,} of its images "
        "were drawn at random to test with. A model that was trained on this folder knows them, "
        "and every accuracy may be far too high. Put the images that it never saw into "
        "test/<class>/ and the others into train/<class>/."
    )


def _doubt(
    network: _Network,
    dataset: Dataset,
    scores: np.ndarray,
    y: np.ndarray,
    accuracy: float,
    confidence: float,
    found: Scaling | None,
) -> list[str]:
    """What to say of an accuracy that is poor."""
    classes = len(dataset.classes)
    seen = f"{accuracy:.0%} of {len(y)} test images are right on {classes} classes"
    if found is not None:
        advice = (
            f"{found.call} {found.accuracy:.0%} are. The model seems to take {found.means}."
            if not found.reversed_channels
            else f"with {found.means} {found.accuracy:.0%} are. No option reverses channels: build "
            "the preprocessing into the model."
        )
        return [f"Preprocessing: {seen}; {advice}"]
    if _skill(accuracy, classes) >= _GUESSING:
        return []
    seen = f"Guessing: {seen}, and guessing gives {1 / classes:.0%}"
    if _skill(confidence, classes) <= _CONFIDENT:
        return [
            f"{seen}. Is preprocessing missing (`mean`, `std`), and was the model trained on these "
            "classes?"
        ]
    told = f"{seen}, though the model is sure of itself ({confidence:.0%} on average)"
    renumbered = _renumbered(scores, y, classes)
    if renumbered is not None and _skill(renumbered, classes) >= _POOR:
        return [
            f"{told}. Its classes seem to stand in another order: renumbered, {renumbered:.0%} are "
            f"right. Here they are {_listed(dataset.classes)}, folders in sorted order."
        ]
    missing = "" if network.scales_itself else "Is preprocessing missing (`mean`, `std`)? "
    return [
        f"{told}. {missing}Are the classes those of the model, in its order? Here they are "
        f"{_listed(dataset.classes)}."
    ]


def _renumbered(scores: np.ndarray, y: np.ndarray, classes: int) -> float | None:
    """The accuracy with each class called by the number that it is mostly given."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (y, np.argmax(scores, axis=-1)), 1)
    given = counts.argmax(axis=-1)
    if len(y) < 5 * classes or len(set(given.tolist())) < classes:
        return None
    return float(counts.max(axis=-1).sum() / len(y))
