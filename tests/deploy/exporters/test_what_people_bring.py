"""Models as people bring them: names, batch sizes, precisions, constants and operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.deploy import ExportReport, export, run_file
from dprp_tf.deploy.exporters.exporting import EXPORTERS
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.running.runtime import load_file

EVERY = pytest.mark.parametrize("suffix", list(EXPORTERS))


def _normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _names(report: ExportReport) -> list[str]:
    loaded = load_file(report.path)
    return [tensor.name for tensor in (*loaded.inputs, *loaded.outputs)]


# Names


@EVERY
@pytest.mark.parametrize("name", ["class", "self", "None", "async", "1st", "_x", "größe", "a b-c"])
def test_an_input_may_be_called_anything(suffix: str, name: str, tmp_path: Path) -> None:
    image = keras.Input((8,), name=name)
    model = keras.Model(image, layers.Dense(3, name="y")(image))
    x = _normal(32, 8)
    for quantization in (None, "int8"):
        report = export(
            model,
            tmp_path / f"a{suffix}",
            quantization=quantization,
            calibration_data={name: x},
            minimum_agreement=0,
        )
        new, output = _names(report)
        assert new.isidentifier()
        assert output == "y"
        assert f"names changed in the file: input {name!r} is {new!r}" in report.notes
    assert _names(report) == [*Source.of(model).inputs, *Source.of(model).outputs]
    assert Source.of(model).model_names == {new: name, "y": "y"}
    # The file's own name does as well.
    export(model, tmp_path / f"a{suffix}", verification_data={new: x})
    assert np.abs(run_file(tmp_path / f"a{suffix}", {new: x})).max() > 0.1


@EVERY
def test_legal_names_stay_and_no_note_is_made(suffix: str, tmp_path: Path) -> None:
    for name in ("image", "Image", "x__y", "x_", "match", "args", "training", "Identity"):
        image = keras.Input((4,), name=name)
        model = keras.Model(image, layers.Dense(3, name="Y")(image))
        report = export(model, tmp_path / f"a{suffix}")
        assert _names(report) == [name, "Y"]
        assert report.notes == ()


@EVERY
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("a.b", "c", "a_b"), ["a_b_1", "c", "a_b"]),
        (("im-1", "im 1", "im.1"), ["im_1", "im_1_1", "im_1_2"]),
        (("x", "X", "d"), ["x", "X_1", "d"]),
        (("class", "t_class", "T_class"), ["t_class_2", "t_class", "T_class_1"]),
    ],
)
def test_names_that_become_equal_are_told_apart(
    suffix: str, given: tuple[str, str, str], wanted: list[str], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(1)
    first, second = keras.Input((4,), name=given[0]), keras.Input((4,), name=given[1])
    joined = layers.Subtract(name=given[2])([layers.Dense(2)(first), layers.Dense(2)(second)])
    model = keras.Model([first, second], joined)
    x = [_normal(8, 4), _normal(8, 4, seed=4)]
    report = export(model, tmp_path / f"a{suffix}", verification_data=x)
    source = Source.of(model)
    assert [*source.inputs, *source.outputs] == wanted
    assert set(_names(report)) == set(wanted)
    assert source.model_names == dict(zip(wanted, given, strict=True))
    by_name = dict(zip(wanted[:2], x, strict=True))
    outputs = run_file(report.path, by_name)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=1e-5)
    swapped = run_file(report.path, dict(zip(wanted[:2], x[::-1], strict=True)))
    assert np.abs(swapped - outputs).max() > 0.1


@EVERY
def test_an_output_may_be_an_input_or_come_twice(suffix: str, tmp_path: Path) -> None:
    x = keras.Input((4,), name="x")
    y = layers.Dense(3, name="y")(x)
    data = _normal(8, 4)
    for outputs, names in (([y, x], ["x", "y", "x_1"]), ([y, y], ["x", "y", "y_1"])):
        model = keras.Model(x, outputs)
        report = export(model, tmp_path / f"a{suffix}", verification_data=data)
        assert set(_names(report)) == set(names)
        found = run_file(report.path, data)
        assert isinstance(found, dict)
        wanted: list[Any] = model.predict(data, verbose=0)
        for name, values in zip(names[1:], wanted, strict=True):
            np.testing.assert_allclose(found[name], values, atol=1e-5)


# Constants


def _adapted() -> layers.Layer:
    normalization = layers.Normalization()
    normalization.adapt(3 + 2 * _normal(64, 8, 8, 3))
    return normalization


def _inside(operation: Any) -> Any:
    inner = keras.Input((8, 8, 3))
    return keras.Model(inner, operation(inner))


LARGE = _normal(8, 8, 3)  # more than the 128 elements up to which TensorFlow copies constants
CONSTANTS: dict[str, Any] = {
    "adapted normalization": lambda x: _adapted()(x),
    "given normalization": lambda x: layers.Normalization(mean=[1, 2, 3], variance=[4, 1, 9])(x),
    "inverse normalization": lambda x: layers.Normalization(
        mean=[1, 2, 3], variance=[4, 1, 9], invert=True
    )(x),
    "preprocess_input": lambda x: keras.applications.resnet50.preprocess_input(x),
    "small tensor": lambda x: x - keras.ops.convert_to_tensor([1.0, 2.0, 3.0]),
    "large tensor": lambda x: keras.ops.convert_to_tensor(LARGE) * x,
    "large array": lambda x: x + LARGE,
    "variable": lambda x: x * keras.Variable(LARGE),
    "indices": lambda x: keras.ops.take(x, keras.ops.convert_to_tensor([2, 0, 1, 1]), axis=-1),
    "matrix": lambda x: keras.ops.matmul(x, keras.ops.convert_to_tensor(_normal(3, 5))),
    "nested": lambda x: _inside(lambda y: y / keras.ops.convert_to_tensor([2.0, 4.0, 8.0]))(x),
    "bound": lambda x: keras.ops.maximum(x, keras.ops.convert_to_tensor(LARGE)),
}


@EVERY
@pytest.mark.parametrize("kind", list(CONSTANTS))
def test_constants_in_the_graph_are_part_of_the_file(
    suffix: str, kind: str, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 3), name="image")
    changed = CONSTANTS[kind](image)
    model = keras.Model(image, layers.Conv2D(4, 3, name="y")(changed))
    x = 3 * _normal(16, 8, 8, 3)
    report = export(model, tmp_path / f"a{suffix}", verification_data=x)
    assert _names(report) == ["image", "y"]
    wanted = model.predict(x, verbose=0)
    found = run_file(report.path, x)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    if changed.shape == image.shape:
        # Without the constant it would be another file.
        without = np.asarray(model.layers[-1](x))
        assert np.abs(found - without).max() > 0.1 * np.abs(wanted).max()
    rounded = export(
        model, tmp_path / f"b{suffix}", quantization="int8", calibration_data=x, tolerance=0.05
    )
    assert _names(rounded) == ["image", "y"]
    assert rounded.max_error > 2 * report.max_error


def test_a_captured_constant_is_an_initializer(tmp_path: Path) -> None:
    import onnx

    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, image + keras.ops.convert_to_tensor(LARGE))
    for options in ({}, {"opset": 13}, {"quantization": "float16"}):
        report = export(model, tmp_path / "a.onnx", **options)
        graph = onnx.load(str(report.path)).graph
        assert [entry.name for entry in graph.input] == ["image"]
        assert LARGE.size in [np.prod(tensor.dims) for tensor in graph.initializer]
