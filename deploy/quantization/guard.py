"""Stop a training of a `tf_keras` model once its loss, a weight or its optimizer is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from dprp_tf.deploy.quantization.keras2 import load_keras2
from dprp_tf.training.divergence import DivergenceError

__all__ = ["keras2_guard"]


def keras2_guard(learning_rate: float) -> Any:
    """Return a callback for `tf_keras`, as `DivergenceGuard` is one for Keras.

    The loss is looked at after every batch; weights, the ranges of quantizers and the optimizer
    at the end of every epoch, before its validation.

    Args:
        learning_rate: The training's, for the message.

    Returns:
        The callback, which raises a `DivergenceError`.

    Raises:
        ImportError: If tf-keras is not installed.

    Example:

    >>> type(keras2_guard(0.1)).__name__
    'Guard'
    """

    class Guard(load_keras2().callbacks.Callback):  # type: ignore[misc]
        epoch, step = 0, 0

        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            self.epoch, self.step = epoch, 0

        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            self.step = batch + 1
            if not np.all(np.isfinite((logs or {}).get("loss", 0.0))):
                self.stop("the loss")

        def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
            self.look()

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            self.look()

        def look(self) -> None:
            for variable in [*self.model.variables, *self.model.optimizer.variables]:
                if variable.dtype.is_floating and not np.all(np.isfinite(variable.numpy())):
                    self.stop(f"`{variable.name}`")

        def stop(self, what: str) -> None:
            raise DivergenceError(
                f"Training diverged in epoch {self.epoch + 1}, at or before step {self.step}: "
                f"{what} is not finite. `learning_rate` must be one at which training stays "
                f"finite. Received: learning_rate={learning_rate}; lower it, or look for NaN in "
                "the data.",
                epoch=self.epoch + 1,
                step=self.step,
            )

    return Guard()
