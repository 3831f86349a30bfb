"""Callbacks that train models whose `fit` is Keras' own stop what has diverged, unsaved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf.keras_internals.optimizers import optimizer_slots
from dprp_tf.training import comparisons
from dprp_tf.training.divergence import DivergenceError, broken_slots, broken_weights
from dprp_tf.training.guarded_callback import GuardedCallback
from dprp_tf.training.inner_training import InnerTraining
from dprp_tf.training.rank_regularization import RankRegularization

STEPS, BATCH = 3, 4


def _dense() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(5, name="first")(inputs))
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(x))


class Trainer(keras.Model):
    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.network = network

    def call(self, x: Any) -> Any:
        return self.network(x)


def _trainer() -> keras.Model:
    return Trainer(dprp.factorize(_dense()))


CALLBACKS: dict[str, tuple[Callable[[], keras.Model], Callable[[], keras.callbacks.Callback]]] = {
    "rank regularization": (_dense, lambda: RankRegularization("nuclear_norm")),
    "compression-aware": (_dense, comparisons.CompressionAware),
    "learning-compression": (_dense, comparisons.LearningCompression),
    "trained rank pruning": (_dense, comparisons.TrainedRankPruning),
    "inner training": (_trainer, InnerTraining),
    "rank pruning": (_trainer, dprp.RankPruning),
}


class _Plant(keras.callbacks.Callback):
    """Break something after the last step of the second epoch."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what, self._epoch = what, -1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if (self._epoch, batch) != (1, STEPS - 1):
            return
        network = getattr(self.model, "network", self.model)
        bias = network.get_layer("head").bias
        if self._what == "optimizer":
            (bias,) = optimizer_slots(self.model.optimizer, bias).values()
        elif self._what == "statistic":
            bias = network.get_layer("norm").moving_mean
        bias.assign(np.full(bias.shape, np.nan, "float32"))


# The guard is the same in all: the rest of what can break is tried where the models differ.
BREAKS = [(name, "weight") for name in CALLBACKS] + [
    pytest.param(name, what, marks=pytest.mark.slow)
    for name in ("rank regularization", "trained rank pruning", "inner training")
    for what in ("statistic", "optimizer")
]


@pytest.mark.parametrize(("name", "what"), BREAKS)
def test_the_last_good_checkpoint_stays(name: str, what: str, tmp_path: Path) -> None:
    make, callback = CALLBACKS[name]
    model = make()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    path = tmp_path / "model.weights.h5"
    saver = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((STEPS * BATCH, 6)).astype("float32")
    y = rng.standard_normal((STEPS * BATCH, 4)).astype("float32")
    with pytest.raises(DivergenceError, match="diverged in epoch 2"):
        model.fit(
            x,
            y,
            batch_size=BATCH,
            epochs=3,
            verbose=0,
            validation_data=(x, y),
            callbacks=[callback(), saver, _Plant(what)],
        )
    assert broken_weights(model) or broken_slots(model)
    model.load_weights(path)
    assert broken_weights(model) == []


def test_a_batch_hook_of_ones_own_is_not_called_beside_the_next_step() -> None:
    class Counting(GuardedCallback):
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            super().on_train_batch_end(batch, logs)

    assert not Counting().async_safe
    assert not comparisons.CompressionAware().async_safe
    assert InnerTraining().async_safe


def test_a_model_that_guards_itself_gets_no_second_guard() -> None:
    pruning = dprp.RankPruning()
    pruning.set_model(dprp.factorize(_dense()))
    assert pruning._guard is None
    pruning.set_model(_dense())
    assert pruning._guard is not None
