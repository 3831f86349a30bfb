"""The data and the trained network that tests of selections in folders begin from."""

from __future__ import annotations

import keras
import pytest

import dprp_tf as dprp
from dprp_tf.data import Dataset
from dprp_tf.data import load as load_data


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", image_size=8)


@pytest.fixture(scope="module")
def dense(digits: Dataset) -> keras.Model:
    keras.utils.set_random_seed(5)
    inputs = keras.Input(digits.image_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(x)
    x = keras.layers.Conv2D(24, 3, strides=2, activation="relu", name="second")(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="classes")(x))
    dprp.FineTuning(epochs=6, learning_rate=0.05, batch_size=64).fit(
        model, (digits.x_train, digits.y_train)
    )
    return model
