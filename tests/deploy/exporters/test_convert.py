"""ONNX in 8 and 16 bits, and conversion without verification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import numpy_helper

from dprp_tf.deploy import evaluate_file, run_file
from dprp_tf.deploy.exporters.flatbuffer import read_operators
from dprp_tf.deploy.exporters.onnx import convert_onnx, export_onnx
from dprp_tf.deploy.exporters.tflite import convert_tflite, export_tflite
from dprp_tf.deploy.running.runtime import load_file

Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits(small_digits: Data) -> Data:
    return small_digits


@pytest.fixture(scope="module")
def network(trained_on_digits: Callable[[tuple[int, int]], keras.Model]) -> keras.Model:
    return trained_on_digits((12, 24))


def _accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.asarray(model.predict(x, verbose=0)).argmax(1) == y))


# ONNX


def test_onnx_int8_agrees_and_runs_in_int8(
    network: keras.Model, digits: Data, tmp_path: Path
) -> None:
    x, y = digits[0][1200:], digits[1][1200:]
    path = tmp_path / "int8.onnx"
    report = export_onnx(
        network, path, quantization="int8", calibration_data=digits[0][:200], verification_data=x
    )
    assert report.precision == "int8"
    assert report.inputs == "verification_data"
    assert report.top1_agreement is not None
    assert report.top1_agreement >= 0.97
    assert report.minimum_agreement == 0.95
    assert report.max_error > 1e-3, "not lossy, so not int8"
    assert report.notes == (), "the runtime computes convolutions in float32"
    wanted = _accuracy(network, x, y)
    assert wanted > 0.85
    assert abs(evaluate_file(path, x, y) - wanted) <= 0.02
    graph = onnx.load(str(path)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name for name, values in constants.items() if values.ndim == 4}
    kernels = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    ]
    assert len(kernels) == 5
    for node in kernels:
        kernel, scale = (constants[name] for name in node.input[:2])
        assert kernel.dtype == np.int8
        assert scale.shape == (len(kernel),), "no scale per channel"


def test_onnx_float16_halves_the_weights_and_computes_in_float32(
    digits: Data, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(2)
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(32, 3, activation="relu")(image)
    x = layers.Conv2D(48, 3, activation="relu")(x)
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(x)))
    export_onnx(model, tmp_path / "float32.onnx")
    path = tmp_path / "float16.onnx"
    report = export_onnx(model, path, quantization="float16", verification_data=digits[0][:100])
    assert report.precision == "float16"
    assert 1e-6 < report.max_error / report.reference_scale < 2e-3
    assert path.stat().st_size < 0.55 * (tmp_path / "float32.onnx").stat().st_size
    outputs = run_file(path, digits[0][:3])
    assert isinstance(outputs, np.ndarray)
    assert outputs.dtype == np.float32


def test_onnx_int8_takes_several_inputs(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    picture, hints = keras.Input((6, 6, 2), name="picture"), keras.Input((3,), name="hints")
    features = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(picture))
    joined = layers.Concatenate()([features, layers.Dense(5)(hints)])
    model = keras.Model([picture, hints], layers.Dense(2, name="box")(joined))
    generator = np.random.default_rng(3)
    data = {
        "hints": generator.normal(size=(50, 3)).astype("float32"),
        "picture": generator.normal(size=(50, 6, 6, 2)).astype("float32"),
    }
    path = tmp_path / "two.onnx"
    report = export_onnx(
        model, path, quantization="int8", calibration_data=data, minimum_agreement=0.8
    )
    assert report.inputs == "calibration_data"
    tflite = convert_tflite(model, quantization="int8", calibration_data=data)
    (tmp_path / "two.tflite").write_bytes(tflite)
    wanted = model.predict([data["picture"], data["hints"]], verbose=0)
    for file in (path, tmp_path / "two.tflite"):
        outputs = run_file(file, data)
        assert isinstance(outputs, np.ndarray)
        np.testing.assert_allclose(outputs, wanted, atol=0.05 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int8"}, "`calibration_data` must be given"),
        ({"quantization": "int4"}, "`quantization` must be one of"),
        ({"quantization": "dynamic"}, "`quantization` must be one of"),
        ({"minimum_agreement": 1.5}, "`minimum_agreement` must be .*at least 0 and at most 1"),
    ],
)
def test_onnx_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "a.onnx", **options)
    assert list(tmp_path.iterdir()) == []


# Conversion without verification


@pytest.mark.parametrize("quantization", [None, "float16", "dynamic", "int8"])
def test_convert_tflite_gives_what_the_export_gives(
    quantization: Any, network: keras.Model, digits: Data, tmp_path: Path
) -> None:
    calibration = digits[0][:32]
    report = export_tflite(
        network, tmp_path / "a.tflite", quantization=quantization, calibration_data=calibration
    )
    content = convert_tflite(network, quantization=quantization, calibration_data=calibration)
    (tmp_path / "b.tflite").write_bytes(content)
    assert read_operators(content).counts == report.operators
    outputs = [run_file(tmp_path / name, digits[0][:20]) for name in ("a.tflite", "b.tflite")]
    np.testing.assert_array_equal(*outputs)


def test_convert_tflite_keeps_the_order_of_outputs(tmp_path: Path) -> None:
    x = keras.Input((4,))
    model = keras.Model(x, [layers.Dense(3, name="z")(x), layers.Dense(2, name="a")(x)])
    path = tmp_path / "a.tflite"
    path.write_bytes(convert_tflite(model))
    assert [tensor.shape for tensor in load_file(path).outputs] == [(1, 3), (1, 2)]


def test_convert_onnx_gives_what_the_export_gives(
    network: keras.Model, digits: Data, tmp_path: Path
) -> None:
    for quantization in ("int8", "float16", None):
        calibration = digits[0][:32] if quantization == "int8" else None
        export_onnx(
            network,
            tmp_path / "a.onnx",
            quantization=quantization,  # type: ignore[arg-type]
            calibration_data=calibration,
        )
        (tmp_path / "b.onnx").write_bytes(
            convert_onnx(network, quantization=quantization, calibration_data=calibration)
        )  # type: ignore[arg-type]
        outputs = [run_file(tmp_path / name, digits[0][:20]) for name in ("a.onnx", "b.onnx")]
        np.testing.assert_array_equal(*outputs)


def test_conversions_refuse_what_the_exports_refuse() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    for convert in (convert_tflite, convert_onnx):
        with pytest.raises(ValueError, match="`calibration_data` must be given"):
            convert(model, quantization="int8")
        with pytest.raises(ValueError, match="`quantization` must be one of"):
            convert(model, quantization="int2")  # type: ignore[arg-type]
    volume = keras.Sequential([keras.Input((4, 4, 4, 1)), layers.Conv3D(2, 2)])
    with pytest.raises(ValueError, match="computes in int8"):
        convert_tflite(
            volume, quantization="int8", calibration_data=np.zeros((2, 4, 4, 4, 1), "float32")
        )
