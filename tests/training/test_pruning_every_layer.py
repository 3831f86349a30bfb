"""Ranks of every kind of layer fall inside one `fit`, and what is left folds and exports."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.training.saving import load_model

pytestmark = pytest.mark.backend


def _sequence() -> keras.Model:
    inputs = keras.Input((4, 3, 6))
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu", name="up")(
        inputs
    )
    x = layers.Reshape((8, 48))(x)
    x = layers.LSTM(6, return_sequences=True, dropout=0.1, name="each")(x)
    x = layers.GRU(5, name="last")(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


def _trained() -> tuple[dprp.DPRPModel, np.ndarray]:
    keras.utils.set_random_seed(0)
    model = _sequence()
    settings = dprp.DPRPSettings(threshold=0.5, compression_weight=40.0)
    lowrank = dprp.factorize(model, settings=settings)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 4, 3, 6)).astype("float32")
    np.testing.assert_allclose(
        np.asarray(lowrank.predict(x, verbose=0)), model.predict(x, verbose=0), atol=1e-5
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    lowrank.compile(keras.optimizers.Adam(0.02), loss)
    lowrank.fit(
        x,
        rng.integers(0, 3, 48),
        batch_size=16,
        epochs=6,
        callbacks=[dprp.RankPruning()],
        verbose=0,
    )
    return lowrank, x


@pytest.mark.slow
def test_ranks_of_transposed_and_recurrent_layers_fall(tmp_path: Path) -> None:
    lowrank, x = _trained()
    full = {key: lowrank.get_layer(key).full_rank for key in lowrank.ranks}
    assert all(lowrank.ranks[key] < full[key] for key in ("up", "each", "last"))
    for key in ("up", "each"):
        layer = lowrank.get_layer(key)
        u = np.asarray(keras.ops.convert_to_numpy(layer.u))
        np.testing.assert_allclose(u.T @ u, np.eye(layer.rank), atol=1e-4)
    expected = lowrank.predict(x, verbose=0)
    lowrank.save(tmp_path / "lowrank.keras")
    again = load_model(tmp_path / "lowrank.keras")
    assert again.ranks == lowrank.ranks
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, atol=1e-6)
    folded = dprp.fold(lowrank, form="two_stage")
    found = folded.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - _sequence().predict(x, verbose=0)).max() > 1e-2
    kinds = [type(layer).__name__ for layer in folded.layers]
    assert {"Conv2DTranspose", "Conv2D", "LSTM", "GRU"} <= set(kinds)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="files are made on TensorFlow")
@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_what_is_left_of_them_is_exported(tmp_path: Path, suffix: str) -> None:
    lowrank, x = _trained()
    folded = dprp.fold(lowrank, form="two_stage")
    report = deploy.export(folded, tmp_path / f"model{suffix}", verification_data=x)
    assert report.passed
    expected = lowrank.predict(x, verbose=0)
    np.testing.assert_allclose(deploy.run_file(tmp_path / f"model{suffix}", x), expected, atol=1e-4)
