"""Models as people have them: .h5 of Keras 3 and of Keras 2, weights alone, SavedModel folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf.cli.main import app
from dprp_tf.training.saving import load_model


def _model() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(image)
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x))
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _images() -> np.ndarray:
    return np.random.default_rng(0).random((8, 8, 8, 3), dtype=np.float32)


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".H5"])
def test_h5_files_of_this_keras(suffix: str, tmp_path: Path) -> None:
    model, path = _model(), tmp_path / f"model{suffix}"
    model.save(tmp_path / "model.h5")
    (tmp_path / "model.h5").rename(path)
    if suffix == ".H5":  # Keras reads it by its suffix in small letters alone
        with pytest.raises(ValueError, match="must be a Keras model this version can load"):
            load_model(path)
        return
    found = load_model(path)
    np.testing.assert_array_equal(
        found.predict(_images(), verbose=0), model.predict(_images(), verbose=0)
    )
    low = dprp.factorize(found, ranks=2)
    assert low.ranks
    assert np.abs(low.predict(_images(), verbose=0) - found.predict(_images(), verbose=0)).max() > 0


def test_h5_files_of_keras_2(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    tf_keras.utils.set_random_seed(0)
    old = tf_keras.Sequential(
        [
            tf_keras.layers.Conv2D(6, 3, activation="relu", input_shape=(8, 8, 3)),
            tf_keras.layers.BatchNormalization(),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(4, activation="softmax"),
        ]
    )
    old.save(tmp_path / "old.h5")
    found = load_model(tmp_path / "old.h5")
    np.testing.assert_allclose(
        found.predict(_images(), verbose=0), old.predict(_images(), verbose=0), atol=1e-6
    )
    assert dprp.factorize(found).ranks


def test_weights_alone_say_what_to_do(tmp_path: Path) -> None:
    _model().save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(ValueError, match=r"Of weights alone, build the model and call"):
        load_model(tmp_path / "only.weights.h5")


def test_a_damaged_h5_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    _model().save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="must be a Keras model this version can load") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_code_in_an_h5_file_is_not_run(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "code.h5")
    with pytest.raises(ValueError, match="must be a Keras model this version can load"):
        load_model(tmp_path / "code.h5")


def test_saved_models_say_what_to_do(tmp_path: Path) -> None:
    _model().export(tmp_path / "saved", verbose=False)
    with pytest.raises(ValueError, match=r"a SavedModel: .*from_saved_model converts it"):
        load_model(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*empty\.$"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_the_command_line_takes_them(name: str, tmp_path: Path) -> None:
    _model().save(tmp_path / name)
    run: Any = CliRunner().invoke(
        app, ["export", str(tmp_path / name), str(tmp_path / "small.tflite")]
    )
    assert run.exit_code == 0, run.output
    assert (tmp_path / "small.tflite").exists()


def test_the_command_line_says_what_a_saved_model_is(tmp_path: Path) -> None:
    _model().export(tmp_path / "saved", verbose=False)
    run = CliRunner().invoke(
        app, ["export", str(tmp_path / "saved"), str(tmp_path / "small.tflite")]
    )
    assert run.exit_code != 0
    assert "SavedModel" in run.output
