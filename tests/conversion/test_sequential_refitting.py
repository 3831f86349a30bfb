"""Kernels fitted anew, layer by layer: held against least squares by hand and the outputs kept."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import dprp_tf as dprp
from dprp_tf.conversion.refitting import kernel_matrix
from dprp_tf.conversion.sequential_refitting import refit_in_sequence


def _chain(bias: bool = True) -> keras.Model:
    inputs = keras.Input((9, 9, 3))
    x = inputs
    for name, filters, strides in (("a", 10, 1), ("b", 8, 2), ("c", 6, 1)):
        x = layers.Conv2D(
            filters, 3, strides, padding="same", use_bias=bias, name=name, bias_initializer="normal"
        )(x)
        x = layers.BatchNormalization(name=f"{name}_normalization")(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def _ready(model: keras.Model) -> keras.Model:
    """With statistics and scales that are not those of a fresh layer."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        if "normalization" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def _inputs(count: int = 96, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Neighbouring pixels look alike, as in images.
    rough = rng.normal(size=(count, 3, 3, 3)).astype("float32")
    return np.repeat(np.repeat(rough, 3, axis=1), 3, axis=2) + 0.1 * rng.normal(
        size=(count, 9, 9, 3)
    ).astype("float32")


def _error(model: keras.Model, small: keras.Model, x: np.ndarray) -> float:
    difference = ops.convert_to_numpy(model(x)) - ops.convert_to_numpy(small(x))
    return float(np.mean(difference**2))


@pytest.mark.backend
@pytest.mark.parametrize("bias", [True, False])
def test_it_brings_the_outputs_back_nearer_than_the_readers_alone_do(bias: bool) -> None:
    model = _ready(_chain(bias))
    x, others = _inputs(), _inputs(64, seed=1)
    plan = dprp.select_channels(model, method="l1", budget=0.5, multiple=2)
    assert plan.removed
    errors = [
        _error(model, dprp.cut(model, plan), others),
        _error(model, dprp.cut(model, plan, calibration_data=x, refit=False), others),
        _error(model, dprp.cut(model, plan, calibration_data=x), others),
    ]
    assert errors[0] > errors[1] > 1.5 * errors[2] > 0


@pytest.mark.backend
@pytest.mark.parametrize("decomposition", ["separable", "spatial", "channel"])
def test_stages_of_low_rank_are_fitted_to_the_whole_layer(decomposition: str) -> None:
    model = _ready(_chain())
    x, others = _inputs(), _inputs(64, seed=1)
    plan = dprp.select_ranks(
        model,
        budget=dprp.Budget(parameters=0.5, tolerance=0.2),
        data=x,
        decomposition=decomposition,
    )
    alone = dprp.cut(model, plan, calibration_data=x, refit=False)
    fitted = dprp.cut(model, plan, calibration_data=x)
    assert [layer.name for layer in fitted.layers] == [layer.name for layer in alone.layers]
    assert _error(model, fitted, others) < 0.95 * _error(model, alone, others)


def test_a_dense_layer_gets_what_ridge_regression_gives() -> None:
    rng = np.random.default_rng(0)
    inputs = keras.Input((5,))
    hidden = layers.Dense(6, activation="tanh", name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="b")(hidden))
    small = dprp.remove_channels(model, {"a": [2, 4]})
    before = kernel_matrix(small.get_layer("b"))
    x = rng.normal(size=(2000, 5)).astype("float32")
    kept = np.array([True, True, False, True, False, True])
    assert refit_in_sequence(model, small, x, kept={"a": kept}) == ["a", "b"]
    # The first reads what it read: nothing changes but by rounding.
    np.testing.assert_allclose(
        kernel_matrix(small.get_layer("a")),
        kernel_matrix(model.get_layer("a"))[:, kept],
        atol=1e-5,
    )
    whole = np.tanh(x @ kernel_matrix(model.get_layer("a")))
    p = whole[:, kept]
    y = whole @ kernel_matrix(model.get_layer("b"))
    centred, wanted = p - p.mean(0), y - y.mean(0)
    square = centred.T @ centred / len(p)
    # 4 entries for each of 2,000 rows are more than the least ridge.
    ridge = 0.002 * np.trace(square) / 4 * np.eye(4)
    kernel = before + np.linalg.solve(square + ridge, centred.T @ wanted / len(p) - square @ before)
    np.testing.assert_allclose(kernel_matrix(small.get_layer("b")), kernel, atol=1e-4)
    bias = y.mean(0) - p.mean(0) @ kernel
    found = ops.convert_to_numpy(small.get_layer("b").bias)
    np.testing.assert_allclose(found, bias, atol=1e-4)


def test_a_model_that_lost_nothing_stays_what_it_was() -> None:
    model = _ready(_chain(bias=False))
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    x = _inputs()
    assert refit_in_sequence(model, copy, x) == ["a", "b", "c", "head"]
    assert _error(model, copy, _inputs(32, seed=2)) < 1e-8


def test_what_it_cannot_fit_stays_as_it_was() -> None:
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    x = shared(shared(inputs))
    grouped = layers.Reshape((2, 2))(x)
    # Two rows of the batch for each sample from here on.
    rows = ops.reshape(grouped, (-1, 2))
    model = keras.Model(inputs, layers.Dense(3, name="behind")(rows))
    copy = keras.models.clone_model(model)
    copy.set_weights([2 * weight for weight in model.get_weights()])
    before = copy.get_weights()
    assert refit_in_sequence(model, copy, np.ones((8, 4), "float32")) == []
    for first, second in zip(before, copy.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_several_inputs_half_precision_and_other_orders_of_axes() -> None:
    first, second = keras.Input((6, 3), name="first"), keras.Input((6, 3), name="second")
    x = layers.Concatenate()([layers.Conv1D(4, 3, name="a")(first), layers.Conv1D(4, 3)(second)])
    x = layers.Conv1D(4, 2, padding="causal", dtype="mixed_float16", name="b")(x)
    model = keras.Model([first, second], layers.Dense(2, name="c")(layers.Flatten()(x)))
    rng = np.random.default_rng(0)
    data: list[Any] = [rng.normal(size=(200, 6, 3)).astype("float32") for _ in range(2)]
    small = dprp.remove_channels(model, {"a": [1, 2]})
    before = np.mean(np.square(model.predict(data, verbose=0) - small.predict(data, verbose=0)))
    kept = {"a": np.array([True, False, False, True])}
    assert set(refit_in_sequence(model, small, data, kept=kept)) >= {"a", "b", "c"}
    after = np.mean(np.square(model.predict(data, verbose=0) - small.predict(data, verbose=0)))
    assert after < 0.8 * before
