"""The callbacks that a `DPRPModel` adds to those of a `fit`."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.training.divergence import DivergenceGuard
from dprp_tf.training.log_names import LOG_PREFIX
from dprp_tf.training.loss_terms import TERM_LOGS

__all__ = ["with_own_callbacks"]

# What a `DPRPModel` and `Distillation` log beside the compiled metrics; lower is better.
_FALLING = (*TERM_LOGS, "distillation_loss", "total_rank", "parameters")


def with_own_callbacks(
    callbacks: list[keras.callbacks.Callback],
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a `DPRPModel`'s training with the model's own around them.

    Args:
        callbacks: The user's. `mode="auto"` of those that monitor one of the model's own logs
            becomes `"min"`.

    Returns:
        First one that sets the pressure and logs the ranks, so that every callback finds them,
        and a `DivergenceGuard`, before any that could write a broken state; last one that copies
        the learning rate, when a schedule has set it.

    Example:

    >>> stopping = keras.callbacks.EarlyStopping("total_rank")
    >>> len(with_own_callbacks([stopping])), stopping.mode
    (4, 'min')
    """
    for callback in callbacks:
        # Keras asks the compiled metrics alone for a direction.
        monitored = str(getattr(callback, "monitor", "")).removeprefix("val_")
        monitored = monitored.removeprefix(LOG_PREFIX)
        if monitored in _FALLING and getattr(callback, "mode", None) == "auto":
            callback.mode = "min"
    guards = [c for c in callbacks if isinstance(c, DivergenceGuard)]
    others = [c for c in callbacks if not isinstance(c, DivergenceGuard)]
    if not guards:
        # Who asks Keras to end the training quietly gets that.
        quiet = any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks)
        guards = [DivergenceGuard(raise_error=not quiet)]
    guards[0].watch(others)
    return [_PressureAndRanks(), *guards, *others, _LearningRateCopy()]


class _PressureAndRanks(keras.callbacks.Callback):
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.model.pressure = 1.0
        self.model.name_rank_logs_anew()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model.pressure = 1.0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            self.model.log_ranks(logs)


class _LearningRateCopy(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.copy_learning_rate()
