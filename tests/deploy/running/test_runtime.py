"""Running exported files in this process, and what happens with damaged ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.deploy import evaluate_file, export, run_file
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.running.runtime import load_file


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(21)
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu")(image)
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))


@pytest.fixture(scope="module")
def files(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    export_tflite(model, folder / "a.tflite")
    export_onnx(model, folder / "a.onnx")
    return {"tflite": folder / "a.tflite", "onnx": folder / "a.onnx"}


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("samples", [1, 5, 130])
def test_any_number_of_samples(
    suffix: str, samples: int, model: keras.Model, files: dict[str, Path]
) -> None:
    x = np.random.default_rng(0).normal(size=(samples, 6, 6, 3)).astype("float32")
    wanted = model.predict(x, verbose=0)
    for threads in (1, 2):
        np.testing.assert_allclose(run_file(files[suffix], x, threads=threads), wanted, atol=1e-5)
    np.testing.assert_allclose(run_file(files[suffix], {"image": x}), wanted, atol=1e-5)
    np.testing.assert_allclose(run_file(files[suffix], [x]), wanted, atol=1e-5)


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_accuracy_takes_every_form_of_label(
    suffix: str, model: keras.Model, files: dict[str, Path]
) -> None:
    x = np.random.default_rng(1).normal(size=(40, 6, 6, 3)).astype("float32")
    labels = model.predict(x, verbose=0).argmax(axis=1)
    labels[:10] = (labels[:10] + 1) % 4
    for y in (labels, labels[:, None], np.eye(4)[labels]):
        assert evaluate_file(files[suffix], x, y) == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"`y` must hold whole numbers of shape \(40,\)"):
        evaluate_file(files[suffix], x, labels[:39])


def test_accuracy_needs_class_scores(tmp_path: Path) -> None:
    flat = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    export_onnx(flat, tmp_path / "one.onnx")
    with pytest.raises(ValueError, match=r"output \(samples, classes\)"):
        evaluate_file(tmp_path / "one.onnx", np.zeros((3, 4), "float32"), np.zeros(3))


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_truncated_file(suffix: str, share: float, files: dict[str, Path], tmp_path: Path) -> None:
    content = files[suffix].read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=rf"whole model file.*cut\.{suffix}"):
        run_file(path, np.zeros((1, 6, 6, 3), "float32"))


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_missing_empty_and_foreign_files(suffix: str, tmp_path: Path) -> None:
    x = np.zeros((1, 6, 6, 3), "float32")
    with pytest.raises(FileNotFoundError, match=rf"absent\.{suffix}"):
        run_file(tmp_path / f"absent.{suffix}", x)
    (tmp_path / f"empty.{suffix}").touch()
    with pytest.raises(ValueError, match="empty file"):
        run_file(tmp_path / f"empty.{suffix}", x)
    (tmp_path / f"text.{suffix}").write_text("this is no model at all, but long enough to try")
    with pytest.raises(ValueError, match=rf"text\.{suffix}"):
        run_file(tmp_path / f"text.{suffix}", x)
    with pytest.raises(ValueError, match=r"\.tflite or \.onnx"):
        run_file(tmp_path / "model.keras", x)


@pytest.mark.parametrize("suffix", ["tflite", "onnx"])
def test_inputs_that_do_not_fit(suffix: str, files: dict[str, Path]) -> None:
    wrong: list[Any] = [
        np.zeros((1, 6, 6, 4), "float32"),
        np.zeros((6, 6, 3), "float32"),
        np.zeros((0, 6, 6, 3), "float32"),
        {"picture": np.zeros((1, 6, 6, 3), "float32")},
        (np.zeros((1, 6, 6, 3), "float32"), np.zeros((1, 2), "float32")),
    ]
    for inputs in wrong:
        with pytest.raises(ValueError, match="`inputs` must"):
            run_file(files[suffix], inputs)
    with pytest.raises(ValueError, match="`threads`"):
        run_file(files[suffix], np.zeros((1, 6, 6, 3), "float32"), threads=0)


def test_importing_deploy_loads_neither_tensorflow_nor_a_runtime() -> None:
    # The parent package is replaced by an empty one: what it loads is its own affair.
    program = """
import importlib.util, sys, types
spec = importlib.util.find_spec("dprp_tf")
parent = types.ModuleType("dprp_tf")
parent.__path__ = list(spec.submodule_search_locations)
sys.modules["dprp_tf"] = parent
import dprp_tf.deploy
heavy = ("tensorflow", "keras", "jax", "tf2onnx", "onnx", "onnxruntime", "ai_edge_litert", "rich")
assert callable(dprp_tf.deploy.benchmark) and callable(dprp_tf.deploy.export)
print(sorted(set(heavy) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# One order and no silent casts


def _of_two(first: str, second: str) -> keras.Model:
    keras.utils.set_random_seed(23)
    a, b = keras.Input((8,), name=first), keras.Input((8,), name=second)
    left, right = layers.Dense(4)(a), layers.Dense(4)(b)
    return keras.Model(
        [a, b], [layers.Subtract(name="z")([left, right]), layers.Dense(4, name="m")(right)]
    )


@pytest.mark.parametrize("names", [("query", "key"), ("key", "query"), ("b", "class")])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".onnx", {}),
        (".onnx", {"quantization": "int8"}),
        (".tflite", {}),
        (".tflite", {"quantization": "int8"}),
        (".tflite", {"quantization": "int8", "integer_io": True}),
    ],
)
def test_a_list_stands_in_the_models_order(
    suffix: str, names: tuple[str, str], options: dict[str, Any], tmp_path: Path
) -> None:
    model = _of_two(*names)
    x = list(np.random.default_rng(0).random((2, 64, 8), dtype=np.float32))
    path = tmp_path / f"a{suffix}"
    export(model, path, calibration_data=x, minimum_agreement=0, **options)
    outputs = run_file(path, x)
    assert isinstance(outputs, dict)
    assert list(outputs) == ["z", "m"]
    limit = 0.08 if options else 1e-6
    for (name, found), wanted in zip(outputs.items(), model.predict(x, verbose=0), strict=True):
        scale = np.abs(wanted).max()
        assert np.abs(found - wanted).max() <= limit * scale, name
        assert np.abs(run_file(path, x[::-1])[name] - wanted).max() > 0.3 * scale, name
        loaded = load_file(path)
        by_name = {tensor.name: array for tensor, array in zip(loaded.inputs, x, strict=True)}
        np.testing.assert_array_equal(run_file(path, dict(reversed(by_name.items())))[name], found)


def test_a_list_for_a_file_of_other_origin_stands_in_the_files_order(tmp_path: Path) -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 2), name="b"), tf.TensorSpec((1, 2), name="a")])
    def serve(b: Any, a: Any) -> Any:
        return {"y": b - 2 * a}

    holder = tf.Module()
    holder.serve = serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], holder
    )
    (tmp_path / "a.tflite").write_bytes(converter.convert())
    loaded = load_file(tmp_path / "a.tflite")
    names = [tensor.name for tensor in loaded.inputs]
    x = {"b": np.ones((1, 2), "float32"), "a": np.full((1, 2), 5, "float32")}
    given = [x[name] for name in names]
    np.testing.assert_array_equal(run_file(tmp_path / "a.tflite", given), [[-9, -9]])
    np.testing.assert_array_equal(run_file(tmp_path / "a.tflite", x), [[-9, -9]])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_integers_are_held_or_refused(suffix: str, dtype: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(24)
    image = keras.Input((6,), dtype=dtype, name="image")
    scaled = layers.Dense(3)(keras.ops.cast(image, "float32") / 8)
    model = keras.Model(image, scaled)
    path = tmp_path / f"a{suffix}"
    high = 2 if dtype == "bool" else 100
    x = np.random.default_rng(0).integers(0, high, (16, 6)).astype(dtype)
    export(model, path, verification_data=x)
    wanted = model.predict(x, verbose=0)
    labels = wanted.argmax(axis=1)
    for held in (x, x.astype("int64"), x.astype("float32"), x.astype("uint8")):
        np.testing.assert_allclose(run_file(path, held), wanted, rtol=1e-4, atol=1e-5)
        assert evaluate_file(path, held, labels) == 1
    wrong = [x / 255, x.astype("float32") + np.nan, np.full((2, 6), 1e20), x.astype(str)]
    wrong += [x.astype("int16") - 200] if dtype in ("uint8", "bool") else []
    wrong += [np.full((2, 6), 2**40)] if dtype == "int32" else []
    for values in wrong:
        with pytest.raises(ValueError, match=rf"`inputs` must hold .*{dtype}.*Received.*dtype="):
            run_file(path, values)
        with pytest.raises(ValueError, match=r"`x` must hold .*'image'"):
            evaluate_file(path, values, labels[: len(values)])
        with pytest.raises(ValueError, match="`verification_data` must"):
            export(model, tmp_path / f"b{suffix}", verification_data=values)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_floats_that_would_become_infinite_are_refused(suffix: str, files: dict[str, Path]) -> None:
    x = np.full((1, 6, 6, 3), 1e39)
    with pytest.raises(ValueError, match=r"numbers up to 3\.4028e\+38 .*Received.*1e\+39"):
        run_file(files[suffix[1:]], x)
    assert np.isfinite(run_file(files[suffix[1:]], x / 1e39)).all()


def test_quantized_inputs_take_numbers_of_every_dtype_but_no_nan(
    model: keras.Model, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3))
    path = tmp_path / "a.tflite"
    export(
        model,
        path,
        quantization="int8",
        calibration_data=x,
        minimum_agreement=0,
        tolerance=0.5,
        integer_io=True,
    )
    wanted = run_file(path, x.astype("float32"))
    assert np.ptp(wanted) > 1
    for dtype in ("uint8", "int16", "int64", "float64"):
        np.testing.assert_array_equal(run_file(path, x.astype(dtype)), wanted)
    with pytest.raises(ValueError, match="must hold no NaN for input 'image'"):
        run_file(path, np.where(x == x[0, 0, 0, 0], np.nan, x))


# Files of other origin


def _open_tflite(path: Path) -> keras.Model:
    import tensorflow as tf

    keras.utils.set_random_seed(25)
    image = keras.Input((None, None, 3), name="image")
    scale = keras.Input((1,), name="scale")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    model = keras.Model([image, scale], layers.Multiply()([x, scale]))
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return model


def test_a_tflite_file_of_open_sizes_takes_those_of_the_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = _open_tflite(tmp_path / "open.tflite")
    loaded = load_file(tmp_path / "open.tflite")
    shapes = {tensor.name: tensor.shape for tensor in loaded.inputs}
    assert sorted(shapes.values(), key=len) == [(None, 1), (None, None, None, 3)]
    image = next(name for name, shape in shapes.items() if len(shape) == 4)
    capfd.readouterr()
    generator = np.random.default_rng(0)
    # More than a chunk, then less, then another size.
    for shape in ((70, 6, 8, 3), (2, 6, 8, 3), (3, 11, 5, 3)):
        x = generator.random(shape, dtype=np.float32)
        scale = generator.random((len(x), 1), dtype=np.float32)
        given = {name: x if name == image else scale for name in shapes}
        (found,) = loaded.run(given).values()
        np.testing.assert_allclose(found, np.asarray(model([x, scale])), atol=1e-5)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match=r"\(samples, any, any, 3\)"):
        loaded.run({name: x[..., :2] if name == image else scale for name in shapes})
    # Too small for the kernel.
    tiny = {name: x[:, :2, :2] if name == image else scale for name in shapes}
    with pytest.raises(ValueError, match="fails to run"):
        loaded.run(tiny)


def _onnx_file(path: Path, shape: list[Any], kind: str = "FLOAT") -> None:
    import onnx
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info("given", getattr(TensorProto, kind), shape),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    node = helper.make_node("Add", ["x", "given"], ["y"])
    if kind == "STRING":
        node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def test_inputs_without_a_batch_axis_or_numbers_are_refused(tmp_path: Path) -> None:
    from dprp_tf.deploy import benchmark

    x = {"given": np.float32(1), "x": np.ones((2, 3), "float32")}
    path = tmp_path / "a.onnx"
    for shape, kind, message in (
        ([], "FLOAT", r"input 'given' is of shape \(\) and dtype float32\. Give it a first axis"),
        (["n", 1], "STRING", r"input 'given' is of shape \(None, 1\) and dtype tensor\(string\)"),
    ):
        _onnx_file(path, shape, kind)
        with pytest.raises(ValueError, match=message):
            run_file(path, x)
        with pytest.raises(ValueError, match=r"input 'given'.*(without axes|hold numbers)"):
            benchmark(path, repeats=1)
    _onnx_file(path, ["n", 1])
    np.testing.assert_array_equal(run_file(path, {**x, "given": [[1], [2]]}), [[2] * 3, [3] * 3])
