"""A small network that was trained on digits, as tests of selections and searches begin from."""

from __future__ import annotations

import keras

import dprp_tf as dprp
from dprp_tf.data import Dataset


def digits_network(digits: Dataset, first: int = 16, second: int = 24) -> keras.Model:
    """Two convolutions of some widths and a dense layer, right on most digits."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input(digits.image_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(first, 3, padding="same", activation="relu", name="first")(x)
    x = keras.layers.Conv2D(second, 3, strides=2, activation="relu", name="second")(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="classes")(x))
    dprp.FineTuning(epochs=6, learning_rate=0.05, batch_size=64).fit(
        model, (digits.x_train, digits.y_train)
    )
    return model
