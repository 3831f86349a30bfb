"""A file that version 0.1.0 wrote, before the modules moved, loads and computes what it did."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

import dprp_tf as dprp
from dprp_tf.layers import SVDConv2D, SVDDense, TuckerConv2D
from dprp_tf.training.regularizers import FunnelPenalty

FILES = Path(__file__).resolve().parents[1] / "files"


def _load() -> dprp.DPRPModel:
    model = dprp.load_model(FILES / "version_0_1_0.keras")
    assert isinstance(model, dprp.DPRPModel)
    return model


def test_it_computes_what_it_did() -> None:
    with np.load(FILES / "version_0_1_0.npz", allow_pickle=False) as stored:
        inputs, outputs = stored["inputs"], stored["outputs"]
    model = _load()
    np.testing.assert_allclose(model.predict(inputs, verbose=0), outputs, rtol=1e-5, atol=1e-6)
    assert float(np.ptp(outputs)) > 0.1


def test_classes_ranks_and_settings_are_those_that_were_saved() -> None:
    model = _load()
    assert model.ranks == {"first": 3, "tucker": (3, 2), "logits": 2}
    kinds = {layer.name: type(layer) for layer in model.layers}
    assert (kinds["first"], kinds["tucker"], kinds["logits"]) == (SVDConv2D, TuckerConv2D, SVDDense)
    settings = model.settings
    assert isinstance(settings.compression, FunnelPenalty)
    assert settings.compression.delta == 0.3
    found = (settings.compression_weight, settings.threshold, settings.retraction_period)
    assert found == (0.7, 0.05, 2)


def test_its_training_goes_on_with_the_optimizers_state() -> None:
    model = _load()
    assert int(model.optimizer.iterations) == 4
    assert any(np.any(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables[2:])
    x = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype("float32")
    y = np.arange(16) % 4
    history = model.fit(x, y, batch_size=8, epochs=1, verbose=0, callbacks=[dprp.RankPruning()])
    assert np.isfinite(history.history["loss"][0])
    assert int(model.optimizer.iterations) == 6
