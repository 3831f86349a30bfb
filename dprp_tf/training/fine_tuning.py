"""A short training after a model was cut: the same for every method, resumable in a folder."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf.data import Dataset, batches, reading_errors
from dprp_tf.files.atomic import read_json, remove_leftovers, write_json
from dprp_tf.files.setting_fields import check_settings, setting
from dprp_tf.keras_internals.graphs import graph_of
from dprp_tf.training.saving import save_model

__all__ = ["FineTuning", "Labelled", "classification_loss", "input_arrays", "labelled_arrays"]


Labelled = tuple[Any, Any] | Dataset
"""`(x, y)`, or a `Dataset`, of which the training split is meant."""

_SCHEDULES = ("cosine", "constant")
_STATE = "tuning.json"


@dataclass(frozen=True)
class FineTuning:
    """Settings of a short training with Nesterov's SGD.

    Args:
        epochs: Epochs in all, 0 or more; 0 changes nothing. Default 10.
        learning_rate: Rate at the start. Default 0.01.
        schedule: `"cosine"` to zero over all steps, or `"constant"`. Default `"cosine"`.
        batch_size: Samples per step. Default 128.
        momentum: Nesterov's momentum, in [0, 1). Default 0.9.
        weight_decay: Decoupled weight decay. Default 0.
        augment: Whether a `Dataset` is augmented in its own way. Default True.
        loss: A Keras loss. Default: cross-entropy for whole-number labels or one-hot rows, from
            logits unless the model ends in a softmax.
        seed: Seed of the order and of the augmentation.

    Raises:
        ValueError: If a value is out of range.

    Source: BSR/LeSS thesis 3.6.1 for the defaults.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> x, y = np.eye(2, dtype="float32"), np.array([0, 1])
    >>> len(FineTuning(epochs=2).fit(model, (x, y)))
    2
    """

    epochs: int = setting(10, "Epochs in all; 0 changes nothing.", minimum=0)
    learning_rate: float = setting(0.01, "Rate at the start.", above=0)
    schedule: str = setting("cosine", "cosine or constant.", choices=_SCHEDULES)
    batch_size: int = setting(128, "Samples per step.", minimum=1)
    momentum: float = setting(0.9, "Nesterov's momentum.", minimum=0, below=1)
    weight_decay: float = setting(0.0, "Decoupled weight decay.", minimum=0)
    augment: bool = setting(True, "Whether a `Dataset` is augmented in its own way.")
    loss: Any = None
    seed: int = setting(0, "Seed of the order and of the augmentation.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)

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
            data: Training data: `(x, y)`, or a `Dataset`, whose training split is used.
            validation_data: `(x, y)` to look at after each epoch.
            callbacks: Keras callbacks.
            folder: Where to write a checkpoint after every epoch; a training that was interrupted
                goes on from it. Default: none is written.

        Returns:
            The logs of every epoch, those before an interruption too.

        Raises:
            ValueError: If the folder is of another training.
        """
        if self.epochs == 0:
            return []
        source = _Images(data) if isinstance(data, Dataset) else _Arrays(data)
        samples = len(source.y_train)
        self._compile(model, math.ceil(samples / self.batch_size), source.y_train)
        state = _State(None if folder is None else Path(folder), self, samples, model)
        begun = state.restore(model)
        if begun >= self.epochs:
            return state.history
        with source.reading():
            model.fit(
                source.batches(self.batch_size, augment=self.augment, seed=self.seed, epoch=begun),
                epochs=self.epochs,
                initial_epoch=begun,
                validation_data=validation_data,
                callbacks=[*callbacks, _Keeper(state)],
                verbose=0,
                shuffle=False,
            )
        return state.history

    @property
    def identity(self) -> str:
        """The settings as text that is the same in every process, whatever the loss is."""
        loss = self.loss
        if isinstance(loss, keras.losses.Loss):
            config = loss.get_config()
            loss = f"{type(loss).__name__} {config if 'fn' not in config else config['name']}"
        elif callable(loss):
            loss = getattr(loss, "__qualname__", type(loss).__name__)
        return repr(replace(self, loss=loss))

    def _compile(self, model: keras.Model, steps: int, y: Any) -> None:
        rate: Any = self.learning_rate
        if self.schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, steps * self.epochs)
        model.compile(
            optimizer=keras.optimizers.SGD(
                rate,
                momentum=self.momentum,
                nesterov=self.momentum > 0,
                weight_decay=self.weight_decay or None,
            ),
            loss=classification_loss(model, y) if self.loss is None else self.loss,
            metrics=["accuracy"],
        )


def classification_loss(model: keras.Model, y: Any) -> keras.losses.Loss:
    """Return the cross-entropy that fits a model's outputs and its labels.

    Args:
        model: A classifier with one output.
        y: Labels: whole numbers `(samples,)`, or one-hot rows `(samples, classes)`.

    Returns:
        The loss; from logits unless the last layer's activation is a softmax.

    Raises:
        ValueError: If the model has several outputs, or a single class.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    >>> classification_loss(model, np.array([0, 1])).get_config()["from_logits"]
    False
    """
    graph = graph_of(model)
    shapes = [tuple(tensor.shape) for tensor in getattr(graph, "outputs", None) or ()]
    if len(shapes) > 1 or (shapes and shapes[0][-1] == 1):
        raise ValueError(
            "`loss` must be given for a model of several outputs or of a single class. "
            f"Received: loss=None for outputs of the shapes {shapes}"
        )
    last = (graph or model).layers[-1]
    while graph_of(last) is not None:
        last = graph_of(last).layers[-1]
    activation = getattr(last, "activation", None)
    softmax = activation is keras.activations.softmax or any(
        isinstance(entry, keras.layers.Softmax) for entry in (last, activation)
    )
    rows = np.ndim(y) == 2 and np.shape(y)[-1] > 1
    kind = keras.losses.CategoricalCrossentropy if rows else None
    return (kind or keras.losses.SparseCategoricalCrossentropy)(from_logits=not softmax)


def labelled_arrays(data: tuple[Any, Any]) -> tuple[Any, np.ndarray]:
    """Return labelled inputs as arrays.

    Args:
        data: `(x, y)`; x is an array, or a list, tuple or dict of arrays for several inputs.

    Returns:
        `(x, y)` of NumPy arrays, x as it is structured.

    Example:

    >>> labelled_arrays(([np.zeros((2, 3)), np.zeros((2, 1))], [0, 1]))[0][1].shape
    (2, 1)
    """
    x, y = data
    return input_arrays(x), np.asarray(y)


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

    def batches(self, batch_size: int, **options: Any) -> Any:
        return batches(self._dataset, batch_size, **options)

    def reading(self) -> AbstractContextManager[None]:
        return reading_errors(self._dataset.x_train, self._dataset.x_test)


class _Arrays:
    """`(x, y)` as a source of training data; nothing is augmented."""

    def __init__(self, data: tuple[Any, Any]) -> None:
        x, self.y_train = labelled_arrays(data)
        # A list Keras takes for one array.
        self.x_train = tuple(x) if isinstance(x, list) else x
        samples = len(self.y_train)
        counts = [len(array) for array in keras.tree.flatten(self.x_train)]
        if samples == 0 or set(counts) != {samples}:
            raise ValueError(
                "`data` must hold the same number of samples and labels, one or more. Received: "
                f"{', '.join(map(str, counts))} and {samples}"
            )

    def batches(self, batch_size: int, **options: Any) -> Any:
        seed, epoch = options["seed"], options["epoch"]
        return _Shuffled(self.x_train, self.y_train, batch_size, seed, epoch)

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Shuffled(keras.utils.PyDataset):
    """Arrays in an order that depends on (seed, epoch) alone."""

    def __init__(self, x: Any, y: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
        super().__init__()
        self._x, self._y, self._size = x, y, batch_size
        self._seed, self._epoch = seed, epoch
        self._order = self._drawn()

    def _drawn(self) -> np.ndarray:
        return np.random.default_rng((self._seed, self._epoch)).permutation(len(self._y))

    def __len__(self) -> int:
        return math.ceil(len(self._y) / self._size)

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        rows = self._order[index * self._size : (index + 1) * self._size]
        x = keras.tree.map_structure(lambda array: array[rows].astype("float32"), self._x)
        return x, self._y[rows]

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._order = self._drawn()


class _State:
    """The checkpoint of a tuning and its history, in a folder or in memory alone."""

    def __init__(
        self, folder: Path | None, settings: FineTuning, samples: int, model: keras.Model
    ) -> None:
        self.history: list[dict[str, float]] = []
        self._folder = folder
        shapes = repr([tuple(weight.shape) for weight in model.weights])
        of = hashlib.sha256(shapes.encode()).hexdigest()[:16]
        self._identity = f"{settings.identity} on {samples} samples, weights {of}"

    def restore(self, model: keras.Model) -> int:
        """Load what an interrupted tuning left into the model; return the epochs done."""
        if self._folder is None:
            return 0
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder)
        path = self._folder / _STATE
        if not path.exists():
            return 0
        found = read_json(path)
        if not isinstance(found, dict) or found.get("identity") != self._identity:
            raise ValueError(
                f"`folder` must hold a tuning of the same settings and model. Received: {path} of "
                "another; use another folder or remove it."
            )
        checkpoint = self._folder / found["checkpoint"]
        if not checkpoint.exists():
            raise ValueError(
                f"`folder` must hold the checkpoint that {path} names. Received: no "
                f"{checkpoint.name}; remove {path.name} to start again."
            )
        # With the optimizer's state; not as a model, whose loss and layers would have to be known.
        model.optimizer.build(model.trainable_variables)
        model.load_weights(checkpoint)
        self.history = list(found["history"])
        return len(self.history)

    def keep(self, model: keras.Model, logs: dict[str, Any]) -> None:
        self.history.append({name: float(value) for name, value in logs.items()})
        if self._folder is None:
            return
        name = f"tuning-{len(self.history):04d}.keras"
        save_model(model, self._folder / name)
        write_json(
            self._folder / _STATE,
            {"identity": self._identity, "checkpoint": name, "history": self.history},
        )
        for old in self._folder.glob("tuning-[0-9]*.keras"):
            if old.name != name:
                old.unlink()


class _Keeper(keras.callbacks.Callback):
    def __init__(self, state: _State) -> None:
        super().__init__()
        self._state = state

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._state.keep(self.model, logs or {})
