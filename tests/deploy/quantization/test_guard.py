"""A training with quantizers, clusters or zeros that diverges is stopped where it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from dprp_tf.deploy.quantization.guard import keras2_guard
from dprp_tf.deploy.quantization.keras2 import load_keras2
from dprp_tf.deploy.quantization.training import cluster_weights, sparsify, train_quantized
from dprp_tf.training.divergence import DivergenceError

STEPS, BATCH = 3, 4


def _data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((STEPS * BATCH, 5)).astype("float32")
    return x, np.arange(STEPS * BATCH) % 3


def _first(variables: Any, name: str) -> Any:
    return next(variable for variable in variables if name in variable.name)


@pytest.mark.parametrize(
    ("chosen", "value"),
    [
        (lambda model: _first(model.variables, "kernel"), np.nan),
        (lambda model: _first(model.variables, "moving_variance"), np.inf),
        (lambda model: _first(model.optimizer.variables, "v/"), np.inf),
    ],
    ids=["weight", "statistic", "optimizer"],
)
@pytest.mark.parametrize("validated", [False, True])
def test_what_is_broken_after_a_last_step_ends_the_epoch(
    chosen: Callable[[Any], Any], value: float, validated: bool
) -> None:
    keras2 = load_keras2()
    layers = [keras2.layers.Dense(4), keras2.layers.BatchNormalization(), keras2.layers.Dense(3)]
    model = keras2.Sequential([keras2.Input((5,)), *layers])
    loss = keras2.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras2.optimizers.Adam(1e-3), loss)
    seen: list[str] = []

    class Plant(keras2.callbacks.Callback):  # type: ignore[misc]
        epoch = 0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if (self.epoch, batch) == (1, STEPS - 1):
                variable = chosen(self.model)
                variable.assign(np.full(variable.shape, value, "float32"))
                seen.append(variable.name)

        def on_test_begin(self, logs: Any = None) -> None:
            seen.append("validation")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append("end")

    x, y = _data()
    with pytest.raises(DivergenceError, match=r"epoch 2, at or before step 3.*is not finite"):
        model.fit(
            x,
            y,
            batch_size=BATCH,
            epochs=3,
            verbose=0,
            shuffle=False,
            validation_data=(x, y) if validated else None,
            callbacks=[keras2_guard(1e-3), Plant()],
        )
    # Nothing came after the broken step that could have saved it.
    assert seen[-1] not in ("validation", "end")
    assert seen.count("end") == 1


@pytest.mark.parametrize("train", [train_quantized, cluster_weights, sparsify])
@pytest.mark.parametrize("cause", ["rate", "labels"])
def test_every_training_is_guarded(train: Callable[..., Any], cause: str) -> None:
    keras.utils.set_random_seed(3)
    hidden = keras.layers.Dense(6, "relu")
    model = keras.Sequential([keras.Input((5,)), hidden, keras.layers.Dense(3)])
    before = model.get_weights()
    x, labels = _data()
    y = np.eye(3, dtype="float32")[labels]
    if cause == "labels":
        y[5] = np.nan
    rate = 1e38 if cause == "rate" else 1e-3
    with pytest.raises(DivergenceError, match="`learning_rate` must be one at which"):
        train(model, x, y, epochs=2, batch_size=BATCH, learning_rate=rate, loss="mse")
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
