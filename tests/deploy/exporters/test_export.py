"""Exports of whole networks: figures, operators, refusals, and nothing left after a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

from dprp_tf.deploy import (
    ParityError,
    evaluate_file,
    run_file,
)
from dprp_tf.deploy.exporters.flatbuffer import read_operators
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import _check_operators, export_tflite
from dprp_tf.deploy.running.runtime import load_file

PRECISIONS: list[Any] = [None, "float16", "dynamic", "int8"]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.images[..., None] / 16).astype("float32"), data.target.astype("int64")


@pytest.fixture(scope="module")
def network(digits: tuple[np.ndarray, np.ndarray]) -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(24, 3, padding="same", use_bias=False)(image)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.ReLU()(x)
    branch = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Add()([x, branch])
    x = layers.Conv2D(32, 3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="digit")(x))
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(digits[0][:1200], digits[1][:1200], batch_size=64, epochs=12, verbose=0)
    return model


@pytest.mark.parametrize("quantization", PRECISIONS)
def test_tflite_agrees_and_keeps_accuracy(
    quantization: Any, network: keras.Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    x, y = digits[0][1200:], digits[1][1200:]
    path = tmp_path / "digits.tflite"
    report = export_tflite(
        network,
        path,
        quantization=quantization,
        calibration_data=digits[0][:128],
        verification_data=x,
    )
    assert report.passed
    assert report.inputs == "verification_data"
    assert report.samples == len(x)
    assert report.size_bytes == path.stat().st_size
    assert report.operators["CONV_2D"] == 2
    assert report.operators["DEPTHWISE_CONV_2D"] == 1
    assert "MUL" not in report.operators, "BatchNorm was not folded into the convolution"
    assert report.top1_agreement is not None
    assert report.top1_agreement >= (1.0 if quantization is None else 0.97)
    # Lossy formats differ from the model, or they are not what they say.
    low, high = {None: (0, 1e-5), "float16": (1e-6, 5e-3), "dynamic": (1e-5, 0.2)}.get(
        quantization, (1e-4, 0.6)
    )
    assert low <= report.max_error <= high
    wanted = network.evaluate(x, y, verbose=0)[1]
    assert wanted > 0.85
    assert abs(evaluate_file(path, x, y) - wanted) <= 0.02
    # The report's figures are those of the file on disk.
    outputs = run_file(path, x)
    assert isinstance(outputs, np.ndarray)
    error = float(np.abs(outputs - network.predict(x, verbose=0)).max())
    assert error == pytest.approx(report.max_error, rel=1e-2, abs=1e-6)


def test_quantized_files_are_smaller_and_in_their_types(
    network: keras.Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    sizes, weights = {}, {}
    for quantization in PRECISIONS:
        path = tmp_path / f"{quantization}.tflite"
        report = export_tflite(
            network, path, quantization=quantization, calibration_data=digits[0][:64]
        )
        sizes[quantization] = report.size_bytes
        weights[quantization] = read_operators(path.read_bytes()).weight_types
    assert sizes["int8"] < sizes["float16"] < sizes[None]
    assert sizes["dynamic"] < 0.5 * sizes[None]
    assert weights["int8"] == ("INT8",)
    assert "INT8" in weights["dynamic"]
    operators = read_operators((tmp_path / "int8.tflite").read_bytes())
    assert operators.not_int8 == ()
    assert operators.in_float == ()
    assert len(read_operators((tmp_path / "None.tflite").read_bytes()).not_int8) == 4


def test_tflite_takes_batch_one_and_keeps_names(network: keras.Model, tmp_path: Path) -> None:
    report = export_tflite(network, tmp_path / "digits.tflite")
    assert report.inputs == "random"
    assert "random inputs" in str(report)
    loaded = load_file(tmp_path / "digits.tflite")
    assert [(t.name, t.shape, t.dtype) for t in loaded.inputs] == [
        ("image", (1, 8, 8, 1), "float32")
    ]
    assert [(t.name, t.shape) for t in loaded.outputs] == [("digit", (1, 10))]


def test_integer_io(
    network: keras.Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    path = tmp_path / "integer.tflite"
    report = export_tflite(
        network,
        path,
        quantization="int8",
        calibration_data=digits[0][:128],
        verification_data=x,
        integer_io=True,
    )
    assert "QUANTIZE" not in report.operators
    assert "DEQUANTIZE" not in report.operators
    loaded = load_file(path)
    assert loaded.inputs[0].dtype == "int8"
    assert loaded.outputs[0].dtype == "int8"
    assert evaluate_file(path, x, y) > 0.85
    entry = loaded.inputs[0]
    quantized = np.clip(np.round(x / entry.scale) + entry.zero_point, -128, 127).astype("int8")
    np.testing.assert_array_equal(run_file(path, quantized), run_file(path, x))


@pytest.mark.parametrize("opset", [13, 17])
def test_onnx_agrees(
    opset: int, network: keras.Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    import onnx

    x, y = digits[0][1200:], digits[1][1200:]
    path = tmp_path / "digits.onnx"
    report = export_onnx(network, path, verification_data=x, opset=opset)
    assert report.passed
    assert report.precision == "float32"
    assert report.top1_agreement == 1.0
    assert 0 < report.max_error < 1e-5
    assert report.operators["Conv"] == 3
    assert "BatchNormalization" not in report.operators
    assert {entry.version for entry in onnx.load(str(path)).opset_import if not entry.domain} == {
        opset
    }
    assert evaluate_file(path, x, y) == pytest.approx(network.evaluate(x, y, verbose=0)[1])
    assert load_file(path).inputs[0].shape == (None, 8, 8, 1)


def test_report_is_json_ready(network: keras.Model, tmp_path: Path) -> None:
    report = export_onnx(network, tmp_path / "digits.onnx")
    again = json.loads(json.dumps(report.as_dict()))
    assert again["path"] == str(tmp_path / "digits.onnx")
    assert again["max_error"] == report.max_error
    assert again["outputs"][0]["name"] == "digit"
    assert "digits.onnx" in str(report)
    assert "Conv x3" in str(report)


def _two_by_two() -> keras.Model:
    keras.utils.set_random_seed(2)
    # Names in neither alphabetical order, so that an order mix-up shows.
    image = keras.Input((6, 6, 2), name="picture")
    vector = keras.Input((3,), name="hints")
    features = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(image))
    joined = layers.Concatenate()([features, layers.Dense(5)(vector)])
    zone = layers.Dense(4, activation="softmax", name="zone")(joined)
    return keras.Model([image, vector], [zone, layers.Dense(2, name="box")(joined)])


@pytest.mark.parametrize("form", ["list", "dict"])
def test_several_inputs_and_outputs_in_int8(form: str, tmp_path: Path) -> None:
    model = _two_by_two()
    generator = np.random.default_rng(3)
    x = {
        "picture": generator.normal(size=(20, 6, 6, 2)).astype("float32"),
        "hints": generator.normal(size=(20, 3)).astype("float32"),
    }
    data: Any = x if form == "dict" else [x["picture"], x["hints"]]
    path = tmp_path / "two.tflite"
    report = export_tflite(
        model, path, quantization="int8", calibration_data=data, minimum_agreement=0.8
    )
    assert {output.name for output in report.outputs} == {"zone", "box"}
    outputs = run_file(path, x)
    assert isinstance(outputs, dict)
    wanted = dict(
        zip(("zone", "box"), model.predict([x["picture"], x["hints"]], verbose=0), strict=True)
    )
    for name, values in wanted.items():
        np.testing.assert_allclose(outputs[name], values, atol=0.15)


def test_nested_sequential_and_shared_layers(tmp_path: Path) -> None:
    keras.utils.set_random_seed(4)
    shared = layers.Conv2D(3, 3, padding="same", activation="relu")
    block = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(3, 3, padding="same")])
    image = keras.Input((6, 6, 3))
    model = keras.Model(image, layers.Flatten()(shared(block(shared(image)))))
    assert export_tflite(model, tmp_path / "a.tflite").operators["CONV_2D"] == 3
    assert export_onnx(model, tmp_path / "a.onnx").operators["Conv"] == 3


def test_mixed_precision_model_is_exported_in_float32(tmp_path: Path) -> None:
    keras.utils.set_random_seed(5)
    policy = keras.DTypePolicy("mixed_float16")
    image = keras.Input((8, 8, 3))
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, dtype=policy)])
    x = layers.BatchNormalization(dtype=policy)(inner(image))
    model = keras.Model(image, layers.Dense(3, dtype="float32")(layers.Flatten()(x)))
    x = np.random.default_rng(0).random((8, 8, 8, 3), dtype=np.float32)
    for report in (
        export_tflite(model, tmp_path / "mixed.tflite", verification_data=x),
        export_onnx(model, tmp_path / "mixed.onnx", verification_data=x),
    ):
        assert report.passed
        assert "float16" in report.notes[0]
        # float16 arithmetic is what differs from the user's model, by its own rounding
        difference = np.abs(run_file(report.path, x) - model.predict(x, verbose=0))
        assert 0 < difference.max() < 2e-2


# Refusals


def _left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _small() -> keras.Model:
    keras.utils.set_random_seed(6)
    image = keras.Input((6, 6, 3), name="image")
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(layers.Conv2D(4, 3)(image))))


def test_int8_with_misleading_calibration_fails_on_agreement(
    network: keras.Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match="top-1 agreement") as caught:
        export_tflite(
            network,
            tmp_path / "bad.tflite",
            quantization="int8",
            calibration_data=digits[0][:32] * 0.02,
            verification_data=digits[0][1200:1400],
        )
    assert caught.value.report.top1_agreement < 0.95
    assert caught.value.report.minimum_agreement == 0.95
    assert _left(tmp_path) == []


def test_int8_needs_calibration_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`calibration_data` must be given"):
        export_tflite(_small(), tmp_path / "a.tflite", quantization="int8")
    assert _left(tmp_path) == []


def test_conv3d_has_no_int8(tmp_path: Path) -> None:
    volume = keras.Input((4, 4, 4, 2))
    model = keras.Model(volume, layers.Flatten()(layers.Conv3D(3, 2)(volume)))
    x = np.random.default_rng(0).random((8, 4, 4, 4, 2), dtype=np.float32)
    with pytest.raises(ValueError, match=r"CONV_3D.*dynamic"):
        export_tflite(model, tmp_path / "a.tflite", quantization="int8", calibration_data=x)
    assert _left(tmp_path) == []


def test_a_model_with_its_own_train_step_is_fine_and_its_own_call_is_not(tmp_path: Path) -> None:
    class Trained(keras.Model):
        def train_step(self, data: Any) -> Any:
            raise NotImplementedError

    class Called(keras.Model):
        def call(self, x: Any) -> Any:
            return x + 1

    image = keras.Input((4, 4, 2))
    x = layers.Conv2D(2, 3)(image)
    assert export_tflite(Trained(image, x), tmp_path / "a.tflite").passed
    subclassed = Called()
    subclassed(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="built Functional or Sequential"):
        export_tflite(subclassed, tmp_path / "b.tflite")
    assert _left(tmp_path) == ["a.tflite"]


def test_flex_and_custom_operators_are_seen_in_the_file() -> None:
    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4), tf.float32)])
    def determinant(x: Any) -> Any:
        return tf.linalg.det(x) + 1.0

    def converted(flex: bool) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [determinant.get_concrete_function()]
        )
        builtins = tf.lite.OpsSet.TFLITE_BUILTINS
        select = tf.lite.OpsSet.SELECT_TF_OPS
        converter.target_spec.supported_ops = [builtins, select] if flex else [builtins]
        converter.allow_custom_ops = not flex
        return bytes(converter.convert())

    for flex, name in ((True, "FlexMatrixDeterminant"), (False, "MatrixDeterminant")):
        operators = read_operators(converted(flex))
        assert operators.foreign == (name,)
        assert operators.counts == {name: 1, "ADD": 1}
        with pytest.raises(ValueError, match=name):
            _check_operators(operators, None)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("calibration_data", (5, 6, 3)),
        ("calibration_data", (0, 6, 6, 3)),
        ("verification_data", (5, 6, 6, 4)),
        ("verification_data", (6, 6, 3)),
    ],
)
def test_data_of_the_wrong_shape(argument: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    good = np.random.default_rng(0).random((4, 6, 6, 3), dtype=np.float32)
    data: dict[str, Any] = {"calibration_data": good, "verification_data": good}
    data[argument] = np.zeros(shape, "float32")
    with pytest.raises(ValueError, match=f"`{argument}` must have shape .samples, 6, 6, 3."):
        export_tflite(_small(), tmp_path / "a.tflite", quantization="int8", **data)
    assert _left(tmp_path) == []


def test_data_that_is_not_finite_or_not_numeric(tmp_path: Path) -> None:
    x = np.zeros((4, 6, 6, 3), "float32")
    x[1, 2, 3, 0] = np.inf
    with pytest.raises(ValueError, match="`verification_data` must be finite"):
        export_onnx(_small(), tmp_path / "a.onnx", verification_data=x)
    with pytest.raises(ValueError, match="dtype"):
        export_onnx(_small(), tmp_path / "a.onnx", verification_data=x.astype(str))
    with pytest.raises(ValueError, match=r"list or dict of 2 arrays .*picture"):
        export_onnx(_two_by_two(), tmp_path / "a.onnx", verification_data=x)
    with pytest.raises(ValueError, match="one array per input"):
        export_onnx(_two_by_two(), tmp_path / "a.onnx", verification_data={"picture": x})


def test_arguments_out_of_range(tmp_path: Path) -> None:
    model, path = _small(), tmp_path / "a.tflite"
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("quantization", {"quantization": "int4"}),
        ("tolerance", {"tolerance": -1}),
        ("tolerance", {"tolerance": float("nan")}),
        ("minimum_agreement", {"minimum_agreement": 95}),
        ("integer_io", {"integer_io": True}),
    ]
    for name, arguments in wrong:
        with pytest.raises(ValueError, match=f"`{name}`"):
            export_tflite(model, path, **arguments)
    with pytest.raises(ValueError, match="`opset`"):
        export_onnx(model, tmp_path / "a.onnx", opset=7)
    open_shape = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="fixed shape"):
        export_tflite(open_shape, path)
    assert export_onnx(open_shape, tmp_path / "open.onnx").passed
    assert _left(tmp_path) == ["open.onnx"]
