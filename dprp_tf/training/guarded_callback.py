"""A callback that takes part in a training and stops it once it has diverged."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.training.divergence import DivergenceGuard

__all__ = ["GuardedCallback"]


class GuardedCallback(keras.callbacks.Callback):
    """A callback with a `DivergenceGuard` inside, which looks before the callback itself acts.

    For callbacks that train models whose `fit` is Keras' own; that of a `DPRPModel` has its guard
    already, and there none is added. A subclass calls `super()` first in the methods it overrides.

    Example:

    >>> GuardedCallback().async_safe
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._guard: DivergenceGuard | None = None

    @property
    def async_safe(self) -> bool:
        """Whether Keras may call the batch hooks beside the next step: the guard's alone, yes."""
        return type(self).on_train_batch_end is GuardedCallback.on_train_batch_end

    def set_model(self, model: keras.Model) -> None:
        """Take the model that trains, as Keras calls it before a training."""
        super().set_model(model)
        self._guard = None
        if not hasattr(model, "training_callbacks"):
            self._guard = DivergenceGuard()
            self._guard.set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._guard is not None:
            self._guard.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._guard is not None:
            self._guard.on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._guard is not None:
            self._guard.on_train_batch_end(batch, logs)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._guard is not None:
            self._guard.on_test_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._guard is not None:
            self._guard.on_epoch_end(epoch, logs)
