"""Channels, ranks and quantization one behind the other, each on what the one before left."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf import deploy, zoo
from dprp_tf.channels import channel_groups
from dprp_tf.data import load
from dprp_tf.layers import low_rank_layers

_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load("digits", image_size=8)
    x, y = data.sample("train", 600)
    return np.asarray(x, "float32") / 16, np.asarray(y)


@pytest.fixture(scope="module")
def trained(digits: tuple[np.ndarray, np.ndarray]) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = zoo.resnet_small((8, 8, 1), classes=10, widths=(16, 32, 48))
    model.compile(keras.optimizers.Adam(2e-3), loss=_LOSS, metrics=["accuracy"])
    model.fit(*digits, epochs=12, batch_size=32, verbose=0)
    return model


def _accuracy(model: keras.Model, data: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.mean(model.predict(data[0], verbose=0).argmax(-1) == data[1]))


@pytest.mark.slow
def test_channels_then_falling_ranks_then_int8_and_quantization_aware_training(
    trained: keras.Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    x, y = digits
    assert _accuracy(trained, digits) > 0.95
    plan = dprp.select_channels(trained, budget={"macs": 0.6}, data=(x[:200], y[:200]))
    narrow = dprp.cut(trained, plan, calibration_data=x[:200])
    lowrank = dprp.factorize(narrow, decomposition="separable")
    lowrank.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss=_LOSS)
    pruning = dprp.RankPruning(discarded_energy=0.1, stop_epoch=2)
    lowrank.fit(
        x, y, epochs=4, batch_size=32, verbose=0, callbacks=[pruning, dprp.Distillation(trained)]
    )
    before = low_rank_layers(dprp.factorize(narrow, decomposition="separable"))
    after = low_rank_layers(lowrank)
    assert sum(layer.rank for layer in after) < sum(layer.rank for layer in before)
    small = dprp.fold(lowrank)
    assert small.count_params() < narrow.count_params() < trained.count_params()
    assert _accuracy(small, digits) > 0.9
    path = tmp_path / "small.tflite"
    deploy.export(small, path, quantization="int8", calibration_data=x[:200], class_scores=True)
    assert deploy.evaluate_file(path, x, y) > 0.88
    quantized = deploy.train_quantized(small, x, y, epochs=1, batch_size=32, learning_rate=1e-3)
    report = quantized.export_tflite(tmp_path / "trained.tflite", x[:200])
    assert report.precision == "int8"
    assert deploy.evaluate_file(tmp_path / "trained.tflite", x, y) > 0.88


@pytest.mark.slow
def test_filters_go_of_what_has_low_ranks_already(
    trained: keras.Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    x, y = digits
    ranks = dprp.select_ranks(trained, budget={"macs": 0.7}, data=(x[:200], y[:200]))
    lowrank = dprp.factorize(trained, ranks=ranks, calibration_data=x[:200])
    # The last convolutions, and the dense layer behind them.
    groups = channel_groups(lowrank)
    last = next(group for group in groups.values() if "logits" in group.readers)
    gone: dict[str, list[int]] = {}
    for place in range(0, last.size, 3):
        if last.reasons[place] is None:
            name, filters = last.filters_at(place)
            gone.setdefault(name, []).extend(filters)
    fewer = dprp.remove_channels(lowrank, gone)
    assert fewer.get_layer("logits").kernel.shape[0] < lowrank.get_layer("logits").kernel.shape[0]
    small = dprp.fold(fewer)
    assert small.count_params() < dprp.fold(lowrank).count_params()
    np.testing.assert_allclose(
        small.predict(x[:32], verbose=0), fewer.predict(x[:32], verbose=0), atol=1e-3, rtol=1e-3
    )
    dprp.FineTuning(epochs=2, teacher=trained).fit(small, (x, y))
    assert _accuracy(small, digits) > 0.9
    path = tmp_path / "small.tflite"
    deploy.export(small, path, quantization="int8", calibration_data=x[:200], class_scores=True)
    assert deploy.evaluate_file(path, x, y) > 0.88
