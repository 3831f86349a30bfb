"""What files are calibrated on and checked on: refused where it says nothing, else told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf import deploy

EVERY = pytest.mark.parametrize("suffix", [".tflite", ".onnx"])


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(6, 3), layers.Flatten(), layers.Dense(4)]
    )


def _images(seed: int, samples: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).random((samples, 8, 8, 3), dtype=np.float32)


def _int8(model: keras.Model, path: Path, calibration: Any, **options: Any) -> deploy.ExportReport:
    options = {"quantization": "int8", "calibration_data": calibration} | options
    return deploy.export(model, path, **options)


@EVERY
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_calibration_data_is_refused(
    model: keras.Model, value: float, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"`calibration_data` must be typical.*but {value}"):
        _int8(model, tmp_path / f"a{suffix}", np.full((64, 8, 8, 3), value, "float32"))
    assert not list(tmp_path.iterdir())


@EVERY
def test_samples_that_are_all_alike_are_refused(
    model: keras.Model, suffix: str, tmp_path: Path
) -> None:
    same = np.repeat(_images(0, 1), 40, axis=0)
    with pytest.raises(ValueError, match=r"`calibration_data` must make the model's outputs vary"):
        _int8(model, tmp_path / f"a{suffix}", same)
    with pytest.raises(ValueError, match=r"`verification_data` must make the model's outputs"):
        _int8(model, tmp_path / f"a{suffix}", _images(0), verification_data=same)
    assert not list(tmp_path.iterdir())


def test_one_constant_input_among_others_is_told(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    image, temperature = keras.Input((8,), name="image"), keras.Input((1,), name="temperature")
    outputs = layers.Dense(3)(layers.Concatenate()([image, temperature]))
    both = keras.Model([image, temperature], outputs)
    x = np.random.default_rng(0).random((64, 8), dtype=np.float32)
    report = _int8(both, tmp_path / "a.tflite", [x, np.ones((64, 1), "float32")])
    assert "input temperature is constant in the calibration data" in report.notes


@EVERY
def test_what_was_calibrated_on_is_not_what_is_checked_or_the_report_says_so(
    model: keras.Model, suffix: str, tmp_path: Path
) -> None:
    path, x = tmp_path / f"a{suffix}", _images(0)
    alone = "checked on the samples it was calibrated on: give `verification_data` of its own"
    assert alone in _int8(model, path, x).notes
    # The same samples are the same, whatever they are called and in whatever order.
    assert alone in _int8(model, path, x, verification_data=x[::-1].copy()).notes
    some = _int8(model, path, x, verification_data=np.concatenate([x[:3], _images(1, 29)])).notes
    assert "3 of the 32 samples it was checked on were calibrated on" in some
    assert _int8(model, path, x, verification_data=_images(1)).notes == ()


@EVERY
def test_few_samples_are_told(model: keras.Model, suffix: str, tmp_path: Path) -> None:
    notes = _int8(model, tmp_path / f"a{suffix}", _images(0, 8), verification_data=_images(1)).notes
    assert notes == ("calibrated on 8 samples: 100 or more give ranges that last",)
    single = deploy.export(model, tmp_path / f"b{suffix}", verification_data=_images(1, 1))
    assert single.notes == ("checked on a single sample",)


@EVERY
@pytest.mark.parametrize("scale", [255.0, 0.05])
def test_data_of_another_scale_than_the_check_are_told_and_the_file_refused(
    model: keras.Model, scale: float, suffix: str, tmp_path: Path
) -> None:
    x, y = _images(0), _images(1)
    with pytest.raises(deploy.ParityError, match="are both scaled as in training") as caught:
        _int8(model, tmp_path / f"a{suffix}", x * scale, verification_data=y)
    low, high = float((x * scale).min()), float((x * scale).max())
    expected = f"was calibrated on {low:.4g} to {high:.4g} and checked on {y.min():.4g}"
    assert any(expected in note for note in caught.value.report.notes)
    assert not list(tmp_path.iterdir())
    # Float files have no ranges: no word about them.
    assert deploy.export(model, tmp_path / f"a{suffix}", verification_data=y).notes == ()
