"""Learning-rate schedules of a training run."""

from __future__ import annotations

import math
from typing import Any

import keras

from dprp_tf.runs.settings import TrainSettings

__all__ = ["Plateau", "schedule"]


def schedule(settings: TrainSettings, plateau: dict[str, Any] | None) -> keras.callbacks.Callback:
    """Return the callback that sets the learning rate of a run.

    Args:
        settings: The run's settings: `schedule`, `learning_rate`, `warmup_epochs` and `patience`.
        plateau: Where the plateau schedule of an interrupted run was; None at the start.

    Returns:
        A callback.

    Example:

    >>> schedule(TrainSettings(schedule="plateau", patience=3), None).patience
    3
    """
    if settings.schedule == "plateau":
        return Plateau(settings.patience, plateau)

    def rate(epoch: int, _: float) -> float:
        if epoch < settings.warmup_epochs:
            return settings.learning_rate * (epoch + 1) / (settings.warmup_epochs + 1)
        if settings.schedule == "constant":
            return settings.learning_rate
        done = (epoch - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    return keras.callbacks.LearningRateScheduler(rate)


class Plateau(keras.callbacks.ReduceLROnPlateau):
    """The papers' schedule on the application loss, able to go on where it was."""

    KEPT = ("best", "wait", "cooldown_counter")

    def __init__(self, patience: int, state: dict[str, Any] | None) -> None:
        super().__init__(monitor="app_loss", factor=0.1, patience=patience, mode="min")
        self._restored = state

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        for name, value in (self._restored or {}).items():
            # No best yet is infinite, which no JSON holds.
            setattr(self, name, math.inf if value is None else value)

    def state(self) -> dict[str, float]:
        """Return what a later run must be given to go on: JSON-ready values by name."""
        return {name: float(getattr(self, name)) for name in self.KEPT}
