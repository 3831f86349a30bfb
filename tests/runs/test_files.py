"""Models as files: what int8 breaks is refused, or kept and told."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf import deploy
from dprp_tf.data import load
from dprp_tf.runs.files import FileSamples, write_file


def _broken_by_int8() -> keras.Model:
    """One channel of the first convolution is so large that int8 leaves the others no steps."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="first")(x)
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    outputs = layers.Dense(10, activation="softmax", name="head")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    first, second = model.get_layer("first"), model.get_layer("second")
    kernel = np.array(first.kernel)
    kernel[..., 0] = 3000 * np.abs(kernel[..., 0])
    first.kernel.assign(kernel)
    kernel = np.array(second.kernel)
    kernel[:, :, 0] /= 3000
    second.kernel.assign(kernel)
    head = model.get_layer("head")
    head.kernel.assign(20 * head.kernel)
    return model


def test_a_file_that_int8_broke_is_refused_or_kept_and_told(tmp_path: Path) -> None:
    model, samples = _broken_by_int8(), FileSamples(load("digits", image_size=8))
    with pytest.raises(deploy.ParityError):
        write_file(tmp_path, "TFLite int8", "a", model, samples)
    assert not (tmp_path / "a_int8.tflite").exists()
    row = write_file(tmp_path, "TFLite int8", "a", model, samples, keep_unverified=True)
    assert row["verified"] is False
    assert row["top1_agreement"] < 0.95
    x, y = samples.dataset.x_test, samples.dataset.y_test
    assert deploy.evaluate_file(tmp_path / "a_int8.tflite", x, y) == row["accuracy"]
    sound = write_file(tmp_path, "TFLite float32", "a", model, samples, keep_unverified=True)
    assert sound["verified"] is True
