"""Models as people bring them: names, batch sizes, precisions, constants and operators."""

from __future__ import annotations

from collections.abc import Iterator
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
        model, tmp_path / f"b{suffix}", quantization="int8", calibration_data=x, tolerance=0.12
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


# Batch sizes


def _fixed(batch: int, finish: Any) -> keras.Model:
    keras.utils.set_random_seed(6)
    image = keras.Input((8, 8, 3), batch_size=batch, name="image")
    x = layers.Conv2D(4, 3, activation="relu")(image)
    return keras.Model(image, finish(layers.GlobalAveragePooling2D()(x)))


@EVERY
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_declared_batch_size_does_not_bind_the_file(
    suffix: str, quantization: str | None, batch: int, tmp_path: Path
) -> None:
    nested = keras.Sequential([keras.Input((4,), batch_size=batch), layers.Dense(3)])
    for finish in (layers.Dense(3), nested):
        model = _fixed(batch, finish)
        # No multiple of the batch size.
        x = 0.7 * _normal(33, 8, 8, 3)
        report = export(
            model,
            tmp_path / f"a{suffix}",
            quantization=quantization,
            calibration_data=_normal(34, 8, 8, 3, seed=4),
            verification_data=x,
            minimum_agreement=0,
        )
        assert report.samples == 33
        assert report.notes == ()
        (tensor,) = load_file(report.path).inputs
        assert tensor.shape == (None if suffix == ".onnx" else 1, 8, 8, 3)
        wanted = np.asarray(model(x, training=False))
        limit = (0.05 if quantization else 1e-5) * np.abs(wanted).max()
        np.testing.assert_allclose(run_file(report.path, x), wanted, atol=limit)
    assert model.inputs[0].shape == (batch, 8, 8, 3)


@EVERY
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_batch_size_that_the_computation_needs_stays(
    suffix: str, quantization: str | None, tmp_path: Path
) -> None:
    scales = keras.ops.convert_to_tensor(np.array([[1.0], [2.0], [3.0], [4.0]], "float32"))
    bound: dict[str, Any] = {
        "reshape": lambda x: layers.Dense(3)(keras.ops.reshape(x, (4, 2, 2))[:, 0]),
        "by place": lambda x: layers.Dense(3)(x) * scales,
    }
    for name, finish in bound.items():
        model = _fixed(4, finish)
        x = _normal(14, 8, 8, 3)
        report = export(
            model,
            tmp_path / f"a{suffix}",
            quantization=quantization,
            calibration_data=x,
            minimum_agreement=0,
        )
        assert any("batches of 4 only" in note for note in report.notes)
        assert load_file(report.path).inputs[0].shape == (4, 8, 8, 3)
        filled = np.concatenate([x, x[-1:], x[-1:]])
        parts = [np.asarray(model(filled[n : n + 4])) for n in range(0, 16, 4)]
        wanted = np.concatenate(parts)[:14]
        limit = (0.05 if quantization else 1e-5) * np.abs(wanted).max()
        np.testing.assert_allclose(run_file(report.path, x), wanted, atol=limit)
        # Where a sample's place counts, others would come out elsewhere.
        moved = run_file(report.path, np.roll(x, 1, axis=0))
        shift = np.abs(np.roll(moved, -1, axis=0) - wanted).max()
        assert (shift > 0.2 * np.abs(wanted).max()) == (name == "by place")


def test_what_is_not_computed_sample_by_sample_is_refused(tmp_path: Path) -> None:
    for batch in (None, 4):
        image = keras.Input((6,), batch_size=batch)
        x = layers.Dense(3)(image)
        for summed in (keras.ops.sum(x), keras.ops.sum(x, axis=0, keepdims=True)):
            with pytest.raises(ValueError, match="`model` must compute one output per sample"):
                export(keras.Model(image, summed), tmp_path / "a.onnx")
    first, second = keras.Input((6,), batch_size=4), keras.Input((6,), batch_size=1)
    with pytest.raises(ValueError, match=r"as many samples in every input.*\[1, 4\]"):
        export(keras.Model([first, second], first + second), tmp_path / "a.onnx")
    series = keras.Input((6, 5), batch_size=4)
    kept = layers.LSTM(3, stateful=True, name="kept")(series)
    with pytest.raises(ValueError, match="layer 'kept' with stateful=True"):
        export(keras.Model(series, kept), tmp_path / "a.tflite")
    assert list(tmp_path.iterdir()) == []


# Precisions


# Each is called under a global policy, with the type that it computes in.
MIXED: dict[str, tuple[tuple[int, ...], Any]] = {
    "operations": (
        (8, 8, 3),
        lambda x, d: keras.ops.relu(layers.Conv2D(3, 3, padding="same")(x) + x * 0.5) - 0.25,
    ),
    "casts": (
        (8, 8, 3),
        lambda x, d: keras.ops.cast(layers.Conv2D(3, 3)(keras.ops.cast(x, d)) / 3, d),
    ),
    "constant": (
        (6,),
        lambda x, d: layers.Dense(4)(x) * keras.ops.convert_to_tensor([0.1, 0.7, 1.1, 2.3], d),
    ),
    "bidirectional": ((3, 5), lambda x, d: layers.Bidirectional(layers.LSTM(4))(x)),
    "wrapped apart": (
        (3, 5),
        lambda x, d: layers.Bidirectional(layers.GRU(4), dtype="float32")(x),
    ),
    "time distributed": (
        (2, 8, 3),
        lambda x, d: layers.TimeDistributed(layers.TimeDistributed(layers.Dense(4)))(x),
    ),
    "spectral": ((8, 8, 3), lambda x, d: layers.SpectralNormalization(layers.Conv2D(8, 3))(x)),
    "cells": ((3, 5), lambda x, d: layers.RNN([layers.GRUCell(4), layers.LSTMCell(3)])(x)),
    "attention": ((3, 8), lambda x, d: layers.MultiHeadAttention(2, 4)(x, x)),
    "nested": (
        (2, 8),
        lambda x, d: keras.Sequential(
            [keras.Input((2, 8)), layers.TimeDistributed(layers.Dense(4)), layers.Softmax()]
        )(x),
    ),
    "activation layer": ((8,), lambda x, d: layers.Dense(4, activation=layers.ELU(0.3))(x)),
    "function": ((8,), lambda x, d: layers.Lambda(lambda t: t * 0.3 + 0.1)(layers.Dense(4)(x))),
}


@pytest.fixture
def _any_policy() -> Iterator[None]:
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.usefixtures("_any_policy")
@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "float16") for kind in MIXED), ("operations", "bfloat16")]
)
def test_the_twin_of_a_mixed_model_is_float32_all_through(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    shape, build = MIXED[kind]

    def made(policy: str, dtype: str) -> keras.Model:
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(7)
        x = keras.Input(shape, name="x")
        return keras.Model(x, layers.Activation("linear", dtype="float32")(build(x, dtype)))

    plain = made("float32", "float32")
    model = made(f"mixed_{dtype}", dtype)
    plain.set_weights(model.get_weights())
    x = _normal(8, *shape)
    wanted, mixed = np.asarray(plain(x)), np.asarray(model(x))
    scale = np.abs(wanted).max()
    # Rounding to 11 or 8 bits shows, or it was not mixed.
    assert 1e-5 * scale < np.abs(mixed - wanted).max() < 3e-2 * scale
    for suffix in EXPORTERS:
        report = export(model, tmp_path / f"a{suffix}", verification_data=x)
        assert dtype in report.notes[0]
        # What the constants were rounded to before, they stay.
        limit = 1e-3 if kind == "constant" else 2e-6
        np.testing.assert_allclose(run_file(report.path, x), wanted, atol=limit * scale)


@pytest.mark.usefixtures("_any_policy")
def test_a_float32_model_needs_no_twin_whatever_the_policy_is_now() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(x))
    keras.config.set_dtype_policy("mixed_float16")
    outer = keras.Input((4,))
    around = keras.Model(outer, model(outer))
    for given in (model, around):
        source = Source.of(given)
        assert source.model is given
        assert source.notes == ()


def test_half_inputs_become_float32(tmp_path: Path) -> None:
    for dtype in ("float16", "float64"):
        x = keras.Input((6,), dtype=dtype, name="x")
        model = keras.Model(x, layers.Dense(3, dtype=dtype, name="y")(x))
        data = _normal(8, 6).astype(dtype)
        for suffix in EXPORTERS:
            report = export(model, tmp_path / f"a{suffix}", verification_data=data)
            assert load_file(report.path).inputs[0].dtype == "float32"
            found = run_file(report.path, data)
            error = np.abs(found - np.asarray(model(data))).max()
            assert 0 < error < 5e-3


def test_layers_that_share_a_weight_are_exported(tmp_path: Path) -> None:
    keras.utils.set_random_seed(8)
    shared = layers.Dense(5, dtype="mixed_float16")
    x = keras.Input((4, 5))
    once = layers.TimeDistributed(shared, dtype="mixed_float16")(x)
    again = shared(once)
    model = keras.Model(x, layers.Activation("linear", dtype="float32")(again))
    data = _normal(8, 4, 5)
    for suffix in EXPORTERS:
        report = export(model, tmp_path / f"a{suffix}", verification_data=data)
        wanted = np.asarray(model(data))
        assert np.abs(run_file(report.path, data) - wanted).max() < 1e-2 * np.abs(wanted).max()


# Operators

ACTIVATIONS = sorted(
    name
    for name, value in vars(keras.activations).items()
    # `threshold` has no defaults to be called by name with.
    if not name.startswith("_") and name not in ("deserialize", "get", "serialize", "threshold")
)


def test_every_activation_becomes_onnx(tmp_path: Path) -> None:
    assert {"celu", "gelu", "mish", "log_softmax", "sparsemax"} <= set(ACTIVATIONS)
    x = keras.Input((8,), name="x")
    outputs = [layers.Activation(name, name=f"{name}_y")(x) for name in ACTIVATIONS]
    model = keras.Model(x, outputs)
    data = 3 * _normal(64, 8)
    report = export(model, tmp_path / "a.onnx", verification_data=data)
    found = run_file(report.path, data)
    assert isinstance(found, dict)
    assert list(found) == [f"{name}_y" for name in ACTIVATIONS]
    for name in ACTIVATIONS:
        wanted = np.asarray(keras.activations.get(name)(data))
        np.testing.assert_allclose(found[f"{name}_y"], wanted, 1e-5, 2e-6, err_msg=name)
    assert report.operators["Erf"] == 1
    approximate = np.asarray(keras.activations.gelu(data, approximate=True))
    assert np.abs(found["gelu_y"] - approximate).max() > 1e-4


OPERATIONS: dict[str, Any] = {
    "erfc": lambda x: 1 - keras.ops.erf(x),
    "celu": lambda x: keras.ops.celu(x, alpha=0.4),
    "expm1": lambda x: keras.ops.expm1(x),
    "gelu": lambda x: keras.ops.gelu(x, approximate=False),
    "log1p": lambda x: keras.ops.log1p(keras.ops.abs(x)),
    "logaddexp": lambda x: keras.ops.logaddexp(x, 2 * x[:, ::-1]),
    "softplus": lambda x: keras.ops.softplus(x),
    "in a cell": lambda x: layers.SimpleRNN(3, activation="gelu")(x[..., None]),
    "in a copy": lambda x: layers.TimeDistributed(layers.Dense(3, activation="celu"))(x[..., None]),
}


@pytest.mark.parametrize("options", [{}, {"opset": 13}, {"quantization": "int8"}])
def test_operators_that_tf2onnx_lacks_are_spelled_out(
    options: dict[str, Any], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(9)
    x = keras.Input((7,), name="x")
    model = keras.Model(x, [OPERATIONS[name](x) for name in OPERATIONS])
    data = _normal(64, 7)
    limit = 0.1 if "quantization" in options else None
    report = export(
        model,
        tmp_path / "a.onnx",
        calibration_data=data,
        tolerance=limit,
        minimum_agreement=0,
        **options,
    )
    assert report.operators["Erf"] >= 2
    assert not {"Erfc", "Expm1", "Log1p"} & set(report.operators)
    found = run_file(report.path, data)
    assert isinstance(found, dict)
    for values, wanted in zip(found.values(), model(data), strict=True):
        error = np.abs(values - np.asarray(wanted)).max()
        assert error <= (limit or 1e-5) * np.abs(wanted).max()


LACKING: dict[str, Any] = {
    "Erfinv": lambda x: keras.ops.erfinv(0.5 * x),
    "Bucketize": lambda x: layers.Discretization(bin_boundaries=[0.2, 0.5])(x),
    "RFFT": lambda x: keras.ops.rfft(x)[0],
    "ScaleAndTranslate": lambda x: layers.Resizing(3, 5, antialias=True, name="smoothed")(
        keras.ops.reshape(x, (-1, 8, 1, 1))
    ),
}


@pytest.mark.parametrize("operator", list(LACKING))
def test_operators_that_onnx_lacks_are_refused_by_name(operator: str, tmp_path: Path) -> None:
    from dprp_tf.deploy.exporters.onnx import convert_onnx

    x = keras.Input((8,))
    model = keras.Model(x, LACKING[operator](x))
    place = "smoothed" if operator == "ScaleAndTranslate" else ""
    message = rf"operators that ONNX lacks, in opset 17:.*{operator} \(.*{place}.*Replace the"
    for quantization in (None, "int8"):
        data = np.zeros((4, 8), "float32")
        with pytest.raises(ValueError, match=message):
            convert_onnx(model, quantization=quantization, calibration_data=data)
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_refuses_such_a_model_before_it_measures(tmp_path: Path) -> None:
    import dprp_tf as dprp
    from dprp_tf.deploy import plan_fold

    x = keras.Input((8, 8, 4))
    y = layers.Conv2D(16, 3)(x)
    model = keras.Model(x, keras.ops.erfinv(0.5 * keras.ops.tanh(y)))
    steps: list[str] = []
    with pytest.raises(ValueError, match=r"operators that ONNX lacks.*Erfinv"):
        plan_fold(
            dprp.factorize(model, ranks=2),
            runtime="onnxruntime",
            rounds=3,
            cache=tmp_path,
            progress=steps.append,
        )
    assert [step for step in steps if "measur" in step] == []


# Resized images

SIZES = [(20, 13), (23, 27), (5, 7), (12, 14), (24, 28), (1, 1)]


def _resized(data: np.ndarray, interpolation: str) -> list[np.ndarray]:
    return [
        np.asarray(keras.ops.image.resize(data, size, interpolation=interpolation))
        for size in SIZES
    ]


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "bicubic", "area"])
def test_images_are_resized_to_the_size_asked_for(interpolation: str, tmp_path: Path) -> None:
    # The ratio in float32, times the old size, is less than the new.
    assert any(12 * float(np.float32(new / 12)) < new for new, _ in SIZES)
    x = keras.Input((12, 14, 3), name="x")
    resized = [layers.Resizing(*size, interpolation=interpolation)(x) for size in SIZES]
    model = keras.Model(x, resized)
    data = _normal(6, 12, 14, 3)
    report = export(model, tmp_path / "a.onnx", verification_data=data)
    found = run_file(report.path, data)
    assert isinstance(found, dict)
    plain = _resized(data, "nearest" if interpolation != "nearest" else "bilinear")
    for values, wanted, other in zip(found.values(), model(data), plain, strict=True):
        np.testing.assert_allclose(values, np.asarray(wanted), atol=1e-5)
        if values.shape[1:3] not in ((12, 14), (24, 28)):
            assert np.abs(values - other).max() > 0.1, "no interpolation shows"


@EVERY
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_networks_with_resized_images_are_exported(
    suffix: str, quantization: str | None, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(10)
    x = keras.Input((12, 14, 3), name="x")
    y = layers.Resizing(20, 13)(x)
    y = layers.UpSampling2D(3, interpolation="bilinear")(layers.Conv2D(4, 3)(y))
    y = keras.ops.image.resize(layers.Conv2D(2, 1)(y), (23, 46))
    model = keras.Model(x, y)
    data = _normal(16, 12, 14, 3)
    report = export(
        model, tmp_path / f"a{suffix}", quantization=quantization, calibration_data=data
    )
    wanted = model.predict(data, verbose=0)
    assert wanted.shape == (16, 23, 46, 2)
    limit = (0.06 if quantization else 1e-5) * np.abs(wanted).max()
    np.testing.assert_allclose(run_file(report.path, data), wanted, atol=limit)


def test_images_of_any_size_are_resized_to_one(tmp_path: Path) -> None:
    x = keras.Input((None, None, 3), name="x")
    model = keras.Model(x, layers.Resizing(20, 13)(x))
    path = tmp_path / "a.onnx"
    export(model, path)
    for shape in ((4, 12, 14, 3), (2, 9, 31, 3), (1, 40, 8, 3)):
        data = _normal(*shape)
        np.testing.assert_allclose(run_file(path, data), np.asarray(model(data)), atol=1e-5)


@pytest.mark.parametrize("opset", [13, 18])
def test_a_file_with_resized_images_names_sizes(opset: int, tmp_path: Path) -> None:
    import onnx

    for batch in (None, 4):
        x = keras.Input((12, 14, 3), name="x", batch_size=batch)
        y = layers.Resizing(20, 13, interpolation="nearest")(x)
        y = y if batch is None else keras.ops.reshape(y, (batch, 20, 13, 3))
        report = export(keras.Model(x, y), tmp_path / "a.onnx", opset=opset)
        nodes = onnx.load(str(report.path)).graph.node
        (node,) = [node for node in nodes if node.op_type == "Resize"]
        assert len(node.input) == 4
        modes = {attribute.name: attribute.s for attribute in node.attribute}
        # `tf_half_pixel_for_nn` is in no opset from 13 on.
        assert modes["coordinate_transformation_mode"] == b"half_pixel"


# What is no model to export


@EVERY
def test_texts_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    word = keras.Input((1,), dtype="string", name="word")
    lookup = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    model = keras.Model(word, layers.Dense(2)(lookup(word)))
    with pytest.raises(ValueError, match=r"input 'word' of dtype string\. Keep .*StringLookup"):
        export(model, tmp_path / f"a{suffix}")
    number = keras.Input((1,), dtype="int64")
    back = layers.StringLookup(vocabulary=["a", "b"], invert=True)(number)
    with pytest.raises(ValueError, match=r"output .* of dtype string\. Keep .*StringLookup"):
        export(keras.Model(number, back), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_keras_3_model_is_told_what_it_is(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    import tensorflow as tf

    class Mine(tf_keras.Model):
        pass

    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    plain.export(tmp_path / "saved", verbose=False)
    wrong: list[tuple[Any, str]] = [
        (tf_keras.Sequential([tf_keras.layers.Input((3,))]), "Sequential of Keras 2.*set_weights"),
        (Mine(), r"Mine of Keras 2.*set_weights"),
        (tf_keras.layers.Dense(2), r"Dense of Keras 2.*set_weights"),
        (tf.saved_model.load(str(tmp_path / "saved")), r"SavedModel.*keras\.saving\.load_model"),
        ("a.keras", r"str\. Load the file first: keras\.saving\.load_model"),
        (tmp_path / "a.keras", r"PosixPath\. Load the file first"),
        (layers.Dense(2), r"Dense\. Pass the model itself"),
        (None, r"NoneType\. Pass the model itself"),
    ]
    for model, message in wrong:
        with pytest.raises(ValueError, match=rf"must be a Keras model\. Received: .*{message}"):
            export(model, tmp_path / "a.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]
