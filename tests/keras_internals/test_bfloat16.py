"""Copies that compute in bfloat16, to train more quickly."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.keras_internals.precision import in_bfloat16, in_float32, other_precisions


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return zoo.resnet_small((8, 8, 1), 10, widths=(8, 16))


def test_all_but_the_outputs_compute_in_it_and_weights_stay(model: keras.Model) -> None:
    copy = in_bfloat16(model)
    assert other_precisions(copy) == ["bfloat16"]
    assert other_precisions(model) == []
    assert {str(weight.dtype) for weight in copy.weights} == {"float32"}
    for weight, same in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    x = np.random.default_rng(0).uniform(0, 255, (16, 8, 8, 1)).astype("float32")
    exact, near = (np.asarray(network(x)) for network in (model, copy))
    assert near.dtype == np.float32
    # Eight bits of mantissa.
    assert 0 < np.abs(exact - near).max() < 0.1 * np.abs(exact).max()


def test_it_learns_and_is_the_same_model_in_float32_again(model: keras.Model) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (64, 8, 8, 1)).astype("float32"), np.arange(64) % 10
    copy = in_bfloat16(model)
    tuning = dprp.FineTuning(epochs=2, learning_rate=0.05, teacher=in_bfloat16(model))
    logs = tuning.fit(copy, (x, y))
    assert logs[-1]["loss"] < logs[0]["loss"]
    back = in_float32(copy)
    assert other_precisions(back) == []
    for trained, same in zip(copy.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(trained, same)
    assert any(
        np.abs(trained - weight).max() > 1e-4
        for trained, weight in zip(copy.get_weights(), model.get_weights(), strict=True)
    )


def test_layers_of_another_precision_and_inner_models_are_looked_at_too() -> None:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="inner")])
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, dtype="float16", name="half")(inner(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(x))
    assert other_precisions(in_bfloat16(model)) == ["bfloat16", "float16"]
    assert in_bfloat16(model).get_layer("out").compute_dtype == "float32"
