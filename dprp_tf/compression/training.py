"""How the candidates of a search are trained: in the quicker precision, in the time there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import dprp_tf.deploy as deploy
from dprp_tf.compression.clock import Clock, Deadline
from dprp_tf.compression.schedule import Step
from dprp_tf.compression.settings import CompressionSettings
from dprp_tf.compression.study import MissedError
from dprp_tf.data import Dataset
from dprp_tf.keras_internals.precision import in_bfloat16, in_float32
from dprp_tf.keras_internals.rewriting import rewrite
from dprp_tf.training.fine_tuning import FineTuning

__all__ = ["CandidateTraining"]

# Steps by which the length of an epoch is told.
_STEPS = 14
_WEIGHT_DECAY = {"sgd": 5e-4, "adam": 0.0}
# Bytes of the images, all in memory as float32, that training with rounding takes at most.
_MOST_BYTES = 500_000_000
# Steps that leave a model nearly as it is, to be timed.
_STILL = Step("tuned", learning_rate=1e-6)
# The share of an epoch's time in float32 that one in bfloat16 may take to be worth it.
_QUICKER = 0.9


class CandidateTraining:
    """Trains what is left of a model, towards the model's own outputs if that is wished.

    Args:
        model: The model as it was given.
        dataset: Its data, of which the training split is used.
        settings: What is wished.
        clock: The search's clock.
        show: Makes a callback that shows a training, of its name and epochs.
    """

    def __init__(
        self,
        model: keras.Model,
        dataset: Dataset,
        settings: CompressionSettings,
        clock: Clock,
        show: Callable[[str, int], keras.callbacks.Callback],
    ) -> None:
        self._model, self._dataset, self._settings = model, dataset, settings
        self._clock, self._show = clock, show
        self._half: keras.Model | None = None

    def quickest(self) -> dict[str, Any]:
        """Time steps in float32 and bfloat16.

        Returns:
            `trained_in`, the precision in which an epoch takes less, and its `epoch_seconds`.
        """
        import tensorflow as tf

        whole = self._epoch_seconds(rewrite(self._model, lambda layer: None), self._model)
        try:
            quick = self._epoch_seconds(in_bfloat16(self._model), in_bfloat16(self._model))
        except (ValueError, TypeError, tf.errors.OpError):
            # Not every layer can be copied so, and not every operation is there.
            quick = math.inf
        if quick < _QUICKER * whole:
            return {"epoch_seconds": quick, "trained_in": "bfloat16"}
        return {"epoch_seconds": whole, "trained_in": "float32"}

    def train(
        self,
        model: keras.Model,
        step: Step,
        folder: Path,
        told: str,
        precision: str,
        reserve: float,
    ) -> tuple[keras.Model, float | None]:
        """Train for the epochs of a step, or for a part of one on a part of the data.

        A narrower network is trained towards the labels alone.

        Args:
            model: What is trained; it may be changed.
            step: The step.
            folder: Where its training is kept, and gone on with after an interruption.
            told: What it is called where it is shown.
            precision: `"float32"` or `"bfloat16"`.
            reserve: Seconds that must be left on the clock when it ends.

        Returns:
            The trained model in float32, and the seconds of an epoch of all the data; None where
            that was not seen.
        """
        if step.epochs <= 0:
            return model, None
        dataset = self._dataset
        if step.epochs < 1:
            count = len(dataset.y_train)
            rows = np.random.default_rng(self._settings.seed).permutation(count)
            dataset = dataset.with_rows(np.sort(rows[: max(1, int(step.epochs * count))]))
        epochs, halved = max(1, int(step.epochs)), precision == "bfloat16"
        teacher: keras.Model | None = self._model
        if halved:
            self._half = self._half or in_bfloat16(self._model)
            teacher = self._half
        trained = in_bfloat16(model) if halved else model
        if step.stage == "narrow":
            # What it is to be compared with has no teacher.
            teacher = None
        deadline = Deadline(self._clock, reserve)
        self._tuning(epochs, step, teacher).fit(
            trained, dataset, callbacks=[deadline, self._show(told, epochs)], folder=folder
        )
        seconds = deadline.epoch_seconds
        whole = None if seconds is None else round(seconds / min(1.0, step.epochs), 3)
        return in_float32(trained) if halved else trained, whole

    def train_rounded(
        self, model: keras.Model, step: Step, reserve: float
    ) -> deploy.QuantizedModel:
        """Train on with the rounding of int8 inside, for a few epochs or a part of one.

        It begins anew after an interruption.

        Args:
            model: A model that was trained to the end; it stays as it is.
            step: The step.
            reserve: Seconds that must be left on the clock when it ends.

        Returns:
            The trained model, which is written as an int8 file.

        Raises:
            MissedError: If the extra `[qat]` is not installed, or a layer can't be trained so.
        """
        count = len(self._dataset.y_train)
        most = max(1, _MOST_BYTES // (4 * math.prod(self._dataset.image_shape)))
        samples = min(most, max(1, int(min(1.0, step.epochs) * count)))

        def over() -> bool:
            self._clock.tick()
            return self._clock.left < reserve

        x, y = self._dataset.sample("train", samples, self._settings.seed)
        try:
            return deploy.train_quantized(
                model,
                x,
                y,
                # As many steps as that many epochs of all the data.
                epochs=max(1, int(step.epochs * count / samples)),
                learning_rate=step.learning_rate,
                loss=FineTuning().for_model(self._model, y).loss,
                seed=self._settings.seed,
                stop=over,
            )
        except (ImportError, ValueError) as error:
            raise MissedError(str(error)) from error

    def _epoch_seconds(self, model: keras.Model, teacher: keras.Model) -> float:
        deadline = Deadline(self._clock, 0.0, _STEPS)
        self._tuning(1, _STILL, teacher).fit(model, self._dataset, callbacks=[deadline])
        # Of an epoch of few steps all is timed at once.
        return deadline.epoch_seconds or 1.0

    def _tuning(self, epochs: int, step: Step, teacher: keras.Model | None) -> FineTuning:
        settings = self._settings
        tuning = FineTuning(
            epochs=epochs,
            optimizer=step.optimizer,
            learning_rate=step.learning_rate,
            weight_decay=_WEIGHT_DECAY[step.optimizer],
            seed=settings.seed,
            teacher=teacher if settings.distill else None,
        )
        return tuning.for_model(self._model, self._dataset.y_train)
