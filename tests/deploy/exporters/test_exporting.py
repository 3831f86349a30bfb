"""One door for every format: the suffix decides, and each format's own options reach it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from dprp_tf import deploy
from dprp_tf.deploy.exporters.exporting import EXPORTERS


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    )


@pytest.mark.parametrize("suffix", list(EXPORTERS))
def test_the_suffix_says_the_format(model: keras.Model, suffix: str, tmp_path: Path) -> None:
    report = deploy.export(model, tmp_path / f"it{suffix}")
    assert report.passed
    assert report.format == suffix.removeprefix(".")
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    outputs = deploy.run_file(tmp_path / f"it{suffix}", x)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    assert float(np.ptp(outputs)) > 0.1


def test_an_unknown_suffix_is_refused_and_nothing_written(
    model: keras.Model, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"must end in one of \['.onnx', '.tflite'\]"):
        deploy.export(model, tmp_path / "it.pb")
    assert list(tmp_path.iterdir()) == []


def test_an_option_of_another_format_is_refused(model: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to .onnx must be given options .* integer_io"):
        deploy.export(model, tmp_path / "it.onnx", integer_io=True)
    with pytest.raises(ValueError, match=r"to .tflite .* opset"):
        deploy.export(model, tmp_path / "it.tflite", opset=17)


def test_an_option_of_the_format_reaches_it(model: keras.Model, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100, 6, 6, 3)).astype("float32")
    report = deploy.export(
        model,
        tmp_path / "it.tflite",
        quantization="int8",
        calibration_data=x,
        integer_io=True,
    )
    assert "QUANTIZE" not in report.operators
