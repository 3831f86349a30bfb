"""Channels that go inside `fit`: what is left trains on, is validated, and goes back in."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_latency import CostGrid, WidthLatency
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.keras_internals.optimizers import optimizer_slots
from dprp_tf.selection.channel_pruning import ChannelPruning

# Rounding of sums in another order, of outputs scaled to 1; what is wrong shows as 1e-2 or more.
TOLERANCE = 2e-5


def _np(value: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))


def _error(outputs: Any, expected: Any) -> float:
    a, b = _np(outputs), _np(expected)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((32, 8, 8, 1)).astype("float32"), rng.integers(0, 4, 32)


def _model(optimizer: Any = None) -> keras.Model:
    keras.utils.set_random_seed(5)
    model = zoo.resnet_small((8, 8, 1), 4, widths=(8, 16))
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _plain(optimizer: Any = None) -> keras.Model:
    """A quick one: a chain of two convolutions."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", name="a"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Conv2D(12, 3, padding="same", strides=2, activation="relu", name="b"),
            layers.Flatten(),
            layers.Dense(4, name="out"),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _fit(model: keras.Model, epochs: int, *callbacks: Any, **options: Any) -> Any:
    x, y = _data()
    return model.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0,
        callbacks=list(callbacks), **options,
    )  # fmt: skip


class _Around(ChannelPruning):
    """Note the model before and after each removal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[keras.Model, np.ndarray, np.ndarray]] = []
        self.weights: list[dict[str, np.ndarray]] = []

    def _prune_once(self) -> None:
        if self._done or self._epoch is None:
            return
        x, _ = _data()
        whole = keras.models.clone_model(self.model)
        whole.set_weights(self.model.get_weights())
        count = len(self.shrinks)
        super()._prune_once()
        if len(self.shrinks) > count:
            outputs = [_np(network(x, training=False)) for network in (whole, self.model)]
            self.seen.append((whole, *outputs))
            self.weights.append({v.path: _np(v) for v in self.model.trainable_variables})


@pytest.mark.backend
@pytest.mark.slow_on_jax
def test_a_fit_ends_with_a_smaller_model_that_trained_on(tmp_path: Path) -> None:
    model = _model()
    x, y = _data()
    held = [model, *model.layers, *model.variables]
    whole = model_cost(model)
    pruning = _Around({"macs": 0.55, "parameters": 0.6}, method="l1", multiple=2, stop_epoch=2)
    history = _fit(model, 3, pruning, validation_data=(x, y))
    assert len(pruning.shrinks) == 2
    for shrink, (before, was, now) in zip(pruning.shrinks, pruning.seen, strict=True):
        small = dprp.remove_channels(before, shrink["removed"])
        assert _error(now, small(x, training=False)) < TOLERANCE
        assert _error(now, was) > 1e-2
    # The line falls from the whole to the budget in two steps.
    first, second = (shrink["cost"] for shrink in pruning.shrinks)
    assert 0.55 * whole.macs < first["macs"] <= 0.775 * whole.macs
    left = model_cost(model)
    assert left.macs <= 0.55 * whole.macs
    assert left.parameters <= 0.6 * whole.parameters
    assert second["macs"] == left.macs
    assert history.history["parameters"][-1] == sum(
        int(np.prod(v.shape)) for v in model.trainable_variables
    )
    # What the optimizer trains are the variables that the model has now.
    for path, before in pruning.weights[-1].items():
        now = next(_np(v) for v in model.trainable_variables if v.path == path)
        assert np.abs(now - before).max() > 0, path
    for variable in model.trainable_variables:
        for slot in optimizer_slots(model.optimizer, variable).values():
            assert slot.shape == variable.shape
    assert all(a is b for a, b in zip(held, [model, *model.layers, *model.variables], strict=True))
    fresh = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    for name, value in fresh.items():
        assert history.history[f"val_{name}"][-1] == pytest.approx(value, abs=1e-5)
    model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert _error(loaded(x, training=False), model(x, training=False)) < TOLERANCE
    assert _error(model.predict(x, verbose=0), model(x, training=False)) < TOLERANCE
    again = loaded.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert again == pytest.approx(fresh, abs=1e-5)
    folded = dprp.fold(model)
    assert _error(folded(x, training=False), model(x, training=False)) < TOLERANCE
