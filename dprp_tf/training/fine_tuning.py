"""A short training after a model was cut: the same for every method, resumable in a folder."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf.costs.compiled_loss import (
    are_classes,
    compiled_loss,
    described,
    is_binary,
    is_categorical,
)
from dprp_tf.data import Dataset, batches, reading_errors
from dprp_tf.data.gathering import gather, is_stream
from dprp_tf.files.setting_fields import check_settings, setting
from dprp_tf.keras_internals.graphs import graph_of, layers_inside
from dprp_tf.training.distillation import Distillation
from dprp_tf.training.divergence import DivergenceError, DivergenceGuard
from dprp_tf.training.tuning_state import TuningState

__all__ = [
    "FineTuning",
    "Labelled",
    "classification_loss",
    "input_arrays",
    "labelled",
    "labels_of",
]


Labelled = tuple[Any, Any] | Dataset | Any
"""`(x, y)`; a `Dataset`, of which the training split is meant; or a `tf.data.Dataset`, `PyDataset`
or loader of batches `(x, y)`."""

# Samples per step by default, and the steps of an epoch below which it is fewer.
_MOST_PER_STEP, _LEAST_PER_STEP, _STEPS = 128, 16, 80
_SCHEDULES = ("cosine", "constant")
# The rate at the start of each optimizer, unless another one is given.
_RATES = {"sgd": 0.01, "adam": 0.003}


@dataclass(frozen=True)
class FineTuning:
    """Settings of a short training.

    Args:
        epochs: Epochs in all, 0 or more; 0 changes nothing. Default 10.
        optimizer: `"sgd"`, with Nesterov's momentum, or `"adam"`. Default: Adam for a model with
            `LayerNormalization` or `RMSNormalization`, such as a transformer, which the steps of
            SGD unsettle; else SGD.
        learning_rate: Rate at the start. Default 0.01 of SGD, 0.003 of Adam.
        schedule: `"cosine"` to zero over all steps, or `"constant"`. Default `"cosine"`.
        batch_size: Samples per step. Default 128; where an epoch would then have fewer than 80
            steps, a half, a quarter or an eighth of that: a network tuned on few samples needs
            steps more than it needs large ones.
        momentum: SGD's momentum, in [0, 1); Adam has its own. Default 0.9.
        weight_decay: Decoupled weight decay. Default 0.
        augment: Whether a `Dataset` is augmented in its own way. Default True.
        loss: What `compile` takes as a loss. Default: what the model was compiled with; else
            cross-entropy, for labels that are classes (whole numbers, one-hot rows), from logits
            unless the model ends in a softmax.
        metrics: What `compile` takes as metrics. Default: the accuracy where the loss is one for
            classes, the binary accuracy where it is one for labels, else none.
        seed: Seed of the order, of the augmentation and of the model's random layers, such as
            dropout: equal seeds train equally, interrupted or not. Default 0.
        teacher: The dense model whose outputs the model trains towards besides, or a
            `Distillation` of it, which has the weight and the temperature. Default: none.

    Raises:
        ValueError: If a value is out of range.

    Source: BSR/LeSS thesis 3.6.1 for the defaults of SGD; Adam is that of Kingma and Ba (arXiv
        1412.6980), with the weight decay of Loshchilov and Hutter (arXiv 1711.05101).

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> x, y = np.eye(2, dtype="float32"), np.array([0, 1])
    >>> len(FineTuning(epochs=2).fit(model, (x, y)))
    2
    """

    epochs: int = setting(10, "Epochs in all; 0 changes nothing.", minimum=0)
    optimizer: str | None = setting(
        None, "sgd or adam.", choices=tuple(_RATES), none_means="adam for transformers, else sgd"
    )
    learning_rate: float | None = setting(
        None, "Rate at the start.", above=0, none_means="0.01 of sgd, 0.003 of adam"
    )
    schedule: str = setting("cosine", "cosine or constant.", choices=_SCHEDULES)
    batch_size: int | None = setting(
        None, "Samples per step.", minimum=1, none_means="128, of few images 64 to 16"
    )
    momentum: float = setting(0.9, "Momentum of sgd, Nesterov's.", minimum=0, below=1)
    weight_decay: float = setting(0.0, "Decoupled weight decay.", minimum=0)
    augment: bool = setting(True, "Whether a `Dataset` is augmented in its own way.")
    loss: Any = None
    metrics: Any = None
    seed: int = setting(0, "Seed of order, augmentation and random layers.", minimum=0)
    teacher: Any = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.teacher is not None and not isinstance(self.teacher, Distillation):
            object.__setattr__(self, "teacher", Distillation(self.teacher))

    def __repr__(self) -> str:
        names = [entry.name for entry in fields(self)]
        told = [name for name in names if name != "teacher" or self.teacher is not None]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in told)
        return f"FineTuning({values})"

    def fit(
        self,
        model: keras.Model,
        data: Labelled,
        *,
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        folder: str | os.PathLike[str] | None = None,
    ) -> list[dict[str, float]]:
        """Compile the model and train it in place.

        Args:
            model: A built model.
            data: Training data: `(x, y)`; a `Dataset`, whose training split is used; or a
                `tf.data.Dataset`, `PyDataset` or loader of batches `(x, y)`, in whose order and
                batch size the model trains.
            validation_data: `(x, y)` to look at after each epoch.
            callbacks: Keras callbacks.
            folder: Where to write a checkpoint after every epoch; a training that was interrupted
                goes on from it. Default: none is written.

        Returns:
            The logs of every epoch, those before an interruption too.

        Raises:
            DivergenceError: If the loss, a weight or the optimizer is no longer finite; the last
                good checkpoint stays.
            ValueError: If the folder is of another training or its files are unsound, the data have
                no labels, or a label stands for no output of the model; if the teacher takes or
                gives something else than the model. The model stays as it is.
        """
        if self.epochs == 0:
            return []
        source: _Images | _Stream | _Arrays
        if isinstance(data, Dataset):
            source = _Images(data)
        else:
            source = _Stream(data) if is_stream(data) else _Arrays(data)
        samples = source.samples
        settings = self.for_model(model, source.y_train)
        _require_known_classes(model, settings.loss, source.y_train)
        teaching = [] if self.teacher is None else [self.teacher.renewed()]
        for each in teaching:
            each.require_fit(model)
        size = _batch_size(samples) if self.batch_size is None else self.batch_size
        settings._compile(model, source.steps(size))
        place = None if folder is None else Path(folder)
        state = TuningState(place, settings.identity, self.epochs, samples, model)
        begun = state.restore(model, self.seed)
        if begun >= self.epochs:
            return state.history
        guard = DivergenceGuard()
        guard.watch(callbacks)
        try:
            with source.reading():
                model.fit(
                    source.batches(size, augment=self.augment, seed=self.seed, epoch=begun),
                    epochs=self.epochs,
                    initial_epoch=begun,
                    validation_data=validation_data,
                    # First, so that no checkpoint of a diverged model replaces a good one.
                    callbacks=[guard, *teaching, *callbacks, _Keeper(state)],
                    verbose=0,
                    shuffle=False,
                )
        except DivergenceError as error:
            raise error.completed() from error.__cause__
        finally:
            for each in teaching:
                each.detach()
        return state.history

    def for_model(self, model: keras.Model, y: Any = None) -> FineTuning:
        """Return these settings with the loss that is meant for a model.

        A model that is cut or folded is compiled with the loss of the one it was made of only where
        that is a loss of Keras.

        Args:
            model: A model, compiled or not.
            y: Labels: for a model that is not compiled, and for one that was compiled for one-hot
                rows where these are whole numbers, or the other way. Default: not looked at.

        Returns:
            The settings; themselves where they have a loss.

        Raises:
            ValueError: If nothing says what the labels are: they are no classes, and neither the
                settings nor the model have a loss.

        Example:

        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> FineTuning().for_model(model).loss
        'mse'
        """
        if self.loss is not None or self.epochs == 0:
            return self
        loss = compiled_loss(model)
        if y is not None and (loss is None or _other_form(loss, y)):
            loss = classification_loss(model, y)
        return replace(self, loss=loss)

    @property
    def identity(self) -> str:
        """The settings as text that is the same in every process, whatever the loss is."""
        told = {name: described(getattr(self, name)) for name in ("loss", "metrics")}
        return repr(replace(self, **told))

    def _compile(self, model: keras.Model, steps: int) -> None:
        parts = layers_inside(model)
        kind = self.optimizer or ("adam" if any(map(_is_of_transformers, parts)) else "sgd")
        rate: Any = self.learning_rate or _RATES[kind]
        if self.schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, steps * self.epochs)
        metrics = self.metrics
        if metrics is None:
            # "accuracy" would take several labels for one-hot rows.
            metrics = ["accuracy"] if is_categorical(self.loss) else []
            metrics += ["binary_accuracy"] if is_binary(self.loss) else []
        decay = self.weight_decay or None
        optimizer: keras.optimizers.Optimizer
        if kind == "adam":
            optimizer = keras.optimizers.Adam(rate, weight_decay=decay)
        else:
            optimizer = keras.optimizers.SGD(
                rate, self.momentum, nesterov=self.momentum > 0, weight_decay=decay
            )
        model.compile(optimizer=optimizer, loss=self.loss, metrics=metrics)


def _is_of_transformers(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, (keras.layers.LayerNormalization, keras.layers.RMSNormalization))


def _batch_size(samples: int) -> int:
    size = _MOST_PER_STEP
    while size > _LEAST_PER_STEP and samples < _STEPS * size:
        size //= 2
    return size


def labels_of(data: Labelled) -> Any:
    """Return the labels of training data.

    Args:
        data: `(x, y)`, or a `Dataset`.

    Returns:
        y, the labels of the training split, or those of a first sample.

    Example:

    >>> labels_of((np.zeros((2, 3)), [0, 1]))
    [0, 1]
    """
    if isinstance(data, Dataset):
        return data.y_train
    return gather(data, limit=1)[1] if is_stream(data) else labelled(data)[1]


def _other_form(loss: Any, y: Any) -> bool:
    """Whether a categorical loss is for one-hot rows and the labels are numbers, or vice versa."""
    if not is_categorical(loss) or isinstance(y, (dict, list, tuple)):
        return False
    labels = np.asarray(y)
    rows = labels.ndim > 1 and labels.shape[-1] > 1 and bool((labels.sum(axis=-1) == 1).all())
    return rows == ("sparse" in str(described(loss)).lower())


def _require_known_classes(model: keras.Model, loss: Any, y: Any) -> None:
    """Refuse numbers of classes beyond the outputs, which a loss would turn into NaN or worse."""
    outputs = list(getattr(graph_of(model), "outputs", None) or ())
    sparse = is_categorical(loss) and "sparse" in str(described(loss)).lower()
    if not sparse or len(outputs) != 1 or isinstance(y, (dict, list, tuple)):
        return
    count, labels = outputs[0].shape[-1], np.asarray(y)
    if count is None or len(outputs[0].shape) != 2 or not labels.size:
        return
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(
            f"`data` must hold labels from 0 to {count - 1}, one for each output of the model. "
            f"Received: labels from {labels.min()} to {labels.max()} for {model.name!r}. Give the "
            "classes that the model was trained on."
        )


def classification_loss(model: keras.Model, y: Any) -> keras.losses.Loss:
    """Return the cross-entropy that fits a model's outputs and its labels.

    Args:
        model: A classifier with one output.
        y: Labels: whole numbers `(samples,)`, or one-hot rows `(samples, classes)`.

    Returns:
        The loss; from logits unless the last layer's activation is a softmax.

    Raises:
        ValueError: If the model has several outputs, or the labels are not classes.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    >>> classification_loss(model, np.array([0, 1])).get_config()["from_logits"]
    False
    """
    graph = graph_of(model)
    shapes = [tuple(tensor.shape) for tensor in getattr(graph, "outputs", None) or ()]
    if len(shapes) > 1 or (shapes and not are_classes(y, shapes[0][-1])):
        raise ValueError(
            "`loss` must be given, here or to `compile`, for a model of several outputs and for "
            "labels that are not classes (whole numbers or one-hot rows). Received: loss=None for "
            f"outputs of the shapes {shapes} and labels of dtype {np.asarray(y).dtype}, shape "
            f"{np.shape(y)}"
        )
    last = (graph or model).layers[-1]
    while graph_of(last) is not None:
        last = graph_of(last).layers[-1]
    activation = getattr(last, "activation", None)
    softmax = activation is keras.activations.softmax or any(
        isinstance(entry, keras.layers.Softmax) for entry in (last, activation)
    )
    rows = bool(shapes) and np.ndim(y) == len(shapes[0]) and np.shape(y)[-1] == shapes[0][-1]
    kind = keras.losses.CategoricalCrossentropy if rows else None
    return (kind or keras.losses.SparseCategoricalCrossentropy)(from_logits=not softmax)


def labelled(data: Any, argument: str = "data") -> tuple[Any, Any]:
    """Return inputs and labels that are given as a pair.

    Args:
        data: `(x, y)`.
        argument: What a user calls it. Default `"data"`.

    Returns:
        x and y.

    Raises:
        ValueError: If it is something else, such as inputs without labels.

    Example:

    >>> labelled(np.zeros((4, 3)))
    Traceback (most recent call last):
      ...
    ValueError: `data` must be inputs with their labels, (x, y). Received: an array of the shape \
(4, 3), inputs without labels. Give (x, y) with a label for each sample.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and data[1] is not None:
        return data[0], data[1]
    received = type(data).__name__
    if isinstance(data, (tuple, list)):
        received += f" of {len(data)}"
    elif hasattr(data, "shape"):
        received = f"an array of the shape {tuple(data.shape)}"
    raise ValueError(
        f"`{argument}` must be inputs with their labels, (x, y). Received: {received}, inputs "
        "without labels. Give (x, y) with a label for each sample."
    )


def input_arrays(x: Any) -> Any:
    """Return inputs as arrays.

    Args:
        x: An array, or a list, tuple or dict of arrays for several inputs.

    Returns:
        NumPy arrays, structured as x is.

    Example:

    >>> input_arrays([[1.0, 2.0], [3.0, 4.0]]).shape, len(input_arrays([np.ones(2), np.ones(2)]))
    ((2, 2), 2)
    """
    parts = x.values() if isinstance(x, dict) else x
    several = isinstance(x, dict) or (
        isinstance(x, (list, tuple)) and all(np.ndim(part) and hasattr(part, "shape") for part in x)
    )
    return keras.tree.map_structure(np.asarray, x) if several and parts else np.asarray(x)


class _Images:
    """The training split of a data set as a source of training data, augmented in its own way."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self.y_train = dataset, dataset.y_train
        self.samples = len(dataset.y_train)

    def steps(self, batch_size: int) -> int:
        return math.ceil(self.samples / batch_size)

    def batches(self, batch_size: int, **options: Any) -> Any:
        return batches(self._dataset, batch_size, **options)

    def reading(self) -> AbstractContextManager[None]:
        return reading_errors(self._dataset.x_train, self._dataset.x_test)


class _Arrays:
    """`(x, y)` as a source of training data; nothing is augmented."""

    def __init__(self, data: tuple[Any, Any]) -> None:
        x, y = labelled(data)
        x, self.y_train = input_arrays(x), input_arrays(y)
        # A list TensorFlow takes for one array.
        self.x_train = tuple(x) if isinstance(x, list) else x
        if isinstance(self.y_train, list):
            self.y_train = tuple(self.y_train)
        lengths, counts = (
            [len(array) for array in keras.tree.flatten(part)]
            for part in (self.y_train, self.x_train)
        )
        self.samples = lengths[0]
        if self.samples == 0 or {*lengths, *counts} != {self.samples}:
            raise ValueError(
                "`data` must hold the same number of samples and labels, one or more. Received: "
                f"{', '.join(map(str, counts))} and {', '.join(map(str, lengths))}"
            )

    def steps(self, batch_size: int) -> int:
        return math.ceil(self.samples / batch_size)

    def batches(self, batch_size: int, **options: Any) -> Any:
        seed, epoch = options["seed"], options["epoch"]
        return _Shuffled(self.x_train, self.y_train, batch_size, seed, epoch)

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Stream:
    """Batches `(x, y)` that come in an order and a size of their own."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.samples = self._steps()
        self.y_train = gather(data, limit=1)[1]

    def _steps(self) -> int:
        found: Any = None
        if hasattr(self._data, "cardinality"):
            found = int(self._data.cardinality())
        elif hasattr(self._data, "__len__"):
            found = len(self._data)
        if found is None or found <= 0:
            raise ValueError(
                "`data` must come round again and say how many batches it has: arrays, a `Dataset`,"
                " a `PyDataset`, a loader, or a tf.data.Dataset that ends (with "
                "apply(tf.data.experimental.assert_cardinality(n)) where TensorFlow can't tell). "
                f"Received: {type(self._data).__name__}"
            )
        return found

    def steps(self, batch_size: int) -> int:
        return self.samples

    def batches(self, batch_size: int, **options: Any) -> Any:
        return self._data

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Shuffled(keras.utils.PyDataset):
    """Arrays in an order that depends on (seed, epoch) alone."""

    def __init__(self, x: Any, y: Any, batch_size: int, seed: int, epoch: int) -> None:
        super().__init__()
        self._x, self._y, self._size = x, y, batch_size
        self._seed, self._epoch = seed, epoch
        self._count = len(keras.tree.flatten(y)[0])
        self._order = self._drawn()

    def _drawn(self) -> np.ndarray:
        return np.random.default_rng((self._seed, self._epoch)).permutation(self._count)

    def __len__(self) -> int:
        return math.ceil(self._count / self._size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rows = self._order[index * self._size : (index + 1) * self._size]
        x = keras.tree.map_structure(lambda array: array[rows].astype("float32"), self._x)
        return x, keras.tree.map_structure(lambda array: array[rows], self._y)

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._order = self._drawn()


class _Keeper(keras.callbacks.Callback):
    def __init__(self, state: TuningState) -> None:
        super().__init__()
        self._state = state

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._state.keep(self.model, epoch, logs or {})
