"""Recurrent layers in int8: unrolled, or refused by name: on a loop the calibrator crashes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.keras_internals.unrolling import has_loops, unrolled

LAYERS: dict[str, Callable[[Any], Any]] = {
    "gru": lambda x: layers.GRU(6)(x),
    "lstm": lambda x: layers.LSTM(6, return_sequences=True)(x),
    "simple": lambda x: layers.SimpleRNN(6)(x),
    "bidirectional": lambda x: layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x),
    "cells": lambda x: layers.RNN([layers.LSTMCell(4), layers.GRUCell(5)])(x),
    "nested": lambda x: keras.Sequential([keras.Input((8, 5)), layers.GRU(4)])(x),
    "over time": lambda x: layers.TimeDistributed(layers.LSTM(3))(layers.Reshape((2, 4, 5))(x)),
    "convolutional": lambda x: layers.Flatten()(
        layers.ConvLSTM1D(3, 3)(layers.Reshape((4, 10, 1))(x))
    ),
}


def _model(kind: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    steps = keras.Input((8, 5), name="steps")
    return keras.Model(steps, layers.Dense(3, name="it")(LAYERS[kind](steps)))


def _steps(seed: int, samples: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(samples, 8, 5)).astype("float32")


@pytest.mark.parametrize("kind", LAYERS)
def test_an_unrolled_copy_computes_the_same(kind: str) -> None:
    model = _model(kind)
    copy = unrolled(model)
    assert has_loops(model)
    assert not has_loops(copy)
    x = _steps(1)
    found = copy.predict(x, verbose=0)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    assert np.abs(found).max() > 0.1


@pytest.mark.parametrize("kind", LAYERS)
def test_int8_files_of_recurrent_layers_are_written_and_right(kind: str, tmp_path: Path) -> None:
    model, path = _model(kind), tmp_path / "a.tflite"
    report = deploy.export(
        model, path, quantization="int8", calibration_data=_steps(1), verification_data=_steps(2)
    )
    assert report.passed
    assert "recurrent layers are unrolled, step after step, as int8 needs them" in report.notes
    assert "WHILE" not in report.operators
    x = _steps(2)
    difference = np.abs(deploy.run_file(path, x) - model.predict(x, verbose=0)).max()
    assert 1e-4 < difference < 0.5
    # Other precisions keep the loop: their files stay small however many steps there are.
    plain = deploy.export(model, path, verification_data=x)
    assert plain.notes == ()
    assert plain.outputs[0].relative_error < 1e-4


def test_what_can_not_be_unrolled_is_refused_by_name(tmp_path: Path) -> None:
    steps = keras.Input((8, 5), name="steps")
    grown = keras.ops.fori_loop(0, 4, lambda index, value: value * 1.1, steps)
    model = keras.Model(steps, layers.Dense(3)(grown))
    with pytest.raises(ValueError, match=r"no loop for quantization='int8'.*while.*unroll=True"):
        deploy.export(model, tmp_path / "a.tflite", quantization="int8", calibration_data=_steps(1))
    assert not list(tmp_path.iterdir())
    assert deploy.export(model, tmp_path / "a.tflite", verification_data=_steps(1)).passed


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_network_with_a_gru_is_planned_in_every_precision(precision: str) -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", name="first")(image)
    x = layers.Conv2D(16, 3, padding="same", name="second")(x)
    model = keras.Model(image, layers.Dense(4)(layers.GRU(6)(layers.Reshape((8, 128))(x))))
    low = dprp.factorize(model, ranks=2)
    plan = deploy.plan_fold(low, precision=precision, rounds=3, cache=tempfile.mkdtemp())
    assert {layer.name for layer in plan.layers} >= {"first", "second"}
