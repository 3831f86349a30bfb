"""The channels that have gone out of a model since it was whole, and every shape on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from dprp_tf.conversion.removing_in_place import Shape, remove_channels_in_place
from dprp_tf.training.model_archives import check_weights
from dprp_tf.training.resizing import start_averages

__all__ = ["ShapeHistory"]

# Beside what Keras keeps in a file of weights, which it neither reads nor minds.
_RECORD = "dprp_removed_channels"
_METHODS = ("set_weights", "save_weights", "load_weights")

Channels = dict[str, list[int]]


class ShapeHistory:
    """What was removed from a model in place, so that weights of any shape it had go back in.

    While it is attached, `set_weights` and `load_weights` of the model give it the shape of what
    they are given first, and `save_weights` tells in an `.h5` file what has gone. So
    `EarlyStopping(restore_best_weights=True)` gives back the channels of the best epoch, and
    `BackupAndRestore` goes on with those of the epoch that was interrupted.

    Args:
        model: A built Functional or Sequential model of plain layers, which counts as whole.

    Attributes:
        model: The model.
        removed: What has gone, step by step, each in the numbers of filters before that step.

    Example:

    >>> inputs = keras.Input((4,))
    >>> hidden = keras.layers.Dense(3, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    >>> history, whole = ShapeHistory(model), model.get_weights()
    >>> history.attach()
    >>> history.remove({"a": [1]})
    >>> model.count_params(), history.removed
    (16, [{'a': [1]}])
    >>> model.set_weights(whole)
    >>> model.count_params(), history.removed
    (23, [])
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.removed: list[Channels] = []
        self._shapes = [Shape(model)]

    def remove(self, channels: Mapping[str, Iterable[int]], **fitting: Any) -> None:
        """Remove channels from the model, as `remove_channels_in_place`, and remember it.

        Args:
            channels: As `remove_channels` takes them.
            **fitting: What else `remove_channels_in_place` takes.
        """
        gone = {name: [int(at) for at in filters] for name, filters in channels.items()}
        remove_channels_in_place(self.model, gone, **fitting)
        self.removed.append(gone)
        self._shapes.append(Shape(self.model))

    def go_to(self, removed: Sequence[Mapping[str, Iterable[int]]]) -> None:
        """Give the model the shape that it has after given steps, for weights to be assigned.

        Args:
            removed: What has gone, step by step, as `removed`.

        Raises:
            ValueError: If such channels can't go out of the whole model.
        """
        wanted = [{name: list(at) for name, at in step.items()} for step in removed]
        if wanted == self.removed:
            return
        common = 0
        while wanted[: common + 1] == self.removed[: common + 1] and common < len(wanted):
            common += 1
        if common < len(self.removed):
            self._return_to(common)
        for step in wanted[common:]:
            self.remove(step)

    @property
    def attached(self) -> bool:
        """Whether the model's methods are this history's."""
        return all(
            getattr(vars(self.model).get(name), "__self__", None) is self for name in _METHODS
        )

    def attach(self) -> None:
        """Let the model take weights of any shape that it had; in place of another history."""
        self.detach()
        # Not through the setter, which would track it as a part of the model.
        vars(self.model).update({name: getattr(self, f"_{name}") for name in _METHODS})

    def detach(self) -> None:
        """Let the model's methods be its class's own again, whichever history is attached."""
        for name in _METHODS:
            found = getattr(vars(self.model).get(name), "__self__", None)
            if isinstance(found, ShapeHistory):
                del vars(self.model)[name]

    def _return_to(self, step: int) -> list[keras.Variable]:
        changed = self._shapes[step].restore()
        del self._shapes[step + 1 :], self.removed[step:]
        return changed

    def _set_weights(self, weights: Sequence[Any]) -> None:
        changed: list[keras.Variable] = []
        if not self._shapes[-1].fits(weights):
            found = [at for at, shape in enumerate(self._shapes) if shape.fits(weights)]
            if found:
                changed = self._return_to(found[0])
        type(self.model).set_weights(self.model, weights)
        start_averages(self.model, changed)

    def _save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        type(self.model).save_weights(self.model, filepath, *args, **kwargs)
        if _is_h5(filepath):
            record = {"whole": self._shapes[0].described, "removed": self.removed}
            with h5py.File(filepath, "a") as file:
                file[_RECORD] = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)

    def _load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        record, before = _record_in(filepath), [tuple(w.shape) for w in self.model.weights]
        if record is not None:
            if record["whole"] != self._shapes[0].described:
                raise ValueError(
                    "`filepath` must hold weights of a model that was of this one's shape before "
                    f"channels went. Received: {os.fspath(filepath)!r}, of a model of other "
                    "shapes; load them into the model that the training began with."
                )
            self.go_to(record["removed"])
        type(self.model).load_weights(self.model, filepath, *args, **kwargs)
        # A file need not hold an optimizer.
        start_averages(
            self.model,
            [
                weight
                for weight, shape in zip(self.model.weights, before, strict=True)
                if tuple(weight.shape) != shape
            ],
        )


def _is_h5(filepath: Any) -> bool:
    return str(filepath).endswith(".weights.h5") and Path(filepath).is_file()


def _record_in(filepath: Any) -> dict[str, Any] | None:
    """What a file of weights tells of removed channels; None if it tells nothing."""
    if not _is_h5(filepath):
        return None
    check_weights(Path(filepath))
    with h5py.File(filepath, "r") as file:
        if _RECORD not in file:
            return None
        try:
            record: dict[str, Any] = json.loads(np.asarray(file[_RECORD]).tobytes())
            whole = [[int(size) for size in shape] for shape in record["whole"]]
            removed = [
                {str(name): [int(at) for at in filters] for name, filters in step.items()}
                for step in record["removed"]
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`filepath` must tell the channels that went before it was saved. Received: "
                f"{os.fspath(filepath)!r}, whose {_RECORD!r} is damaged; use an earlier file."
            ) from error
    return {"whole": whole, "removed": removed}
