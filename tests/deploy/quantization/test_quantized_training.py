"""Training for int8, for few distinct weights and for zeros; zip sizes; the study of all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.deploy import evaluate_file, export, run_file
from dprp_tf.deploy.exporters.dying_layer import DyingLayer, first_dying_layer
from dprp_tf.deploy.exporters.flatbuffer import read_operators
from dprp_tf.deploy.exporters.parity import compressed_size
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.exporters.tflite import export_tflite
from dprp_tf.deploy.quantization.keras2 import to_keras2
from dprp_tf.deploy.quantization.training import (
    QuantizedModel,
    _consumers,
    _rounds_output,
    cluster_weights,
    sparsify,
    train_quantized,
)
from dprp_tf.deploy.running.runtime import load_file
from dprp_tf.experiments import quantization as study

Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits(small_digits: Data) -> Data:
    return small_digits


@pytest.fixture(scope="module")
def network(trained_on_digits: Callable[[tuple[int, int]], keras.Model]) -> keras.Model:
    return trained_on_digits((8, 16))


@pytest.fixture(scope="module")
def folded(network: keras.Model) -> keras.Model:
    """Parallel depthwise branches, concatenated, before a pointwise convolution."""
    lowrank = dprp.factorize(network, decomposition="spatial", ranks=2)
    return dprp.fold(lowrank, form="two_stage")


def _accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.asarray(model.predict(x, verbose=0)).argmax(1) == y))


# Quantization-aware training


@pytest.mark.slow
def test_quantizers_stand_behind_what_the_runtime_runs_as_one(folded: keras.Model) -> None:
    model = to_keras2(folded, decompose=True).model
    consumers = _consumers(model)
    rounded = {layer.name: _rounds_output(layer, consumers) for layer in model.layers}
    kinds = {layer.name: type(layer).__name__ for layer in model.layers}
    # Branches round to the range of their concatenation, which is rounded.
    branches = [name for name in rounded if "_branch" in name]
    assert len(branches) == 10
    assert not any(rounded[name] for name in branches)
    assert all(rounded[name] for name, kind in kinds.items() if kind == "Concatenate")
    # Convolution + BatchNorm + ReLU and Add + ReLU round once, at the end.
    assert not any(rounded[name] for name, kind in kinds.items() if kind in ("Add", "Permute"))
    assert all(rounded[name] for name, kind in kinds.items() if kind == "ReLU")
    for name, kind in kinds.items():
        if kind == "BatchNormalization":
            assert rounded[name] == name.endswith("bn2"), name
    assert rounded["image_entry"]
    assert rounded["logits"]


def test_quantization_aware_training(folded: keras.Model, digits: Data, tmp_path: Path) -> None:
    x, y = digits[0][:1200], digits[1][:1200]
    test_x, test_y = digits[0][1200:], digits[1][1200:]
    before = [weight.copy() for weight in folded.get_weights()]
    started = _accuracy(folded, test_x, test_y)
    trained = train_quantized(
        folded,
        x,
        y,
        epochs=3,
        batch_size=32,
        learning_rate=1e-2,
        validation_data=(test_x, test_y),
    )
    for old, new in zip(before, folded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert isinstance(trained, QuantizedModel)
    assert len(trained.history["val_accuracy"]) == 3
    assert trained.history["loss"][-1] < trained.history["loss"][0]
    scores = trained.evaluate(test_x, test_y)
    assert scores["accuracy"] == pytest.approx(trained.history["val_accuracy"][-1], abs=1e-6)
    assert scores["accuracy"] > started + 0.2
    path = tmp_path / "trained.tflite"
    report = trained.export_tflite(path, test_x)
    assert report.precision == "int8"
    assert report.top1_agreement is not None
    assert report.top1_agreement >= 0.95
    assert report.inputs == "verification_data"
    assert report.compressed_bytes < report.size_bytes == path.stat().st_size
    operators = read_operators(path.read_bytes())
    assert operators.not_int8 == ()
    assert operators.in_float == ()
    # One for the input: nothing is rescaled on the way, not even before concatenations.
    assert operators.counts["QUANTIZE"] == 1
    assert operators.counts["CONCATENATION"] == 5
    assert evaluate_file(path, test_x, test_y) == pytest.approx(scores["accuracy"], abs=0.02)
    outputs = trained.predict(test_x[:50])
    assert isinstance(outputs, np.ndarray)
    written = run_file(path, test_x[:50])
    assert isinstance(written, np.ndarray)
    assert float(np.abs(outputs - written).max()) <= 0.15 * float(np.abs(outputs).max())
    # What it was trained from would not pass as the same model.
    plain = folded.predict(test_x[:50], verbose=0)
    assert float(np.abs(plain - written).max()) > 0.2 * float(np.abs(outputs).max())


def test_a_layer_that_the_converter_crashes_on_is_found_among_quantizers(digits: Data) -> None:
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = layers.Add(name="joined")([x, layers.Conv2D(4, 3, padding="same", name="culprit")(x)])
    model = keras.Model(inputs, layers.Dense(10, name="last")(layers.Flatten()(x)))
    trained = train_quantized(model, digits[0][:64], digits[1][:64])
    tried: list[list[str]] = []

    def dies(part: Source, calibration: object) -> bool:
        assert all(
            np.isfinite(values).all() for values in part.predict(part.random_data()).values()
        )
        tried.append([layer.name for layer in part.model.layers])
        return "quant_culprit" in tried[-1]

    assert first_dying_layer(trained._source, None, dies) == DyingLayer("culprit", "Conv2D")
    assert any("quant_culprit" not in names for names in tried)


@pytest.mark.slow
def test_quantized_training_of_softmax_and_integer_io(digits: Data, tmp_path: Path) -> None:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, activation="hard_silu")(inputs)
    x = layers.DepthwiseConv2D(3, use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dense(16, use_bias=False)(layers.Flatten()(x))
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", name="digit")(x))
    one_hot = np.eye(10, dtype="float32")[digits[1]]
    model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
    model.fit(digits[0][:1200], one_hot[:1200], batch_size=64, epochs=6, verbose=0)
    wanted = _accuracy(model, digits[0][1200:], digits[1][1200:])
    assert wanted > 0.85
    trained = train_quantized(model, digits[0][:1200], one_hot[:1200], epochs=1, learning_rate=1e-3)
    path = tmp_path / "a.tflite"
    report = trained.export_tflite(path, integer_io=True)
    assert report.inputs == "training data"
    assert [tensor.dtype for tensor in load_file(path).inputs] == ["int8"]
    operators = read_operators(path.read_bytes())
    assert "QUANTIZE" not in operators.counts
    assert operators.in_float == ()
    assert evaluate_file(path, digits[0][1200:], digits[1][1200:]) > wanted - 0.05


def test_training_rounds_exactly_as_the_runtime_does(tmp_path: Path) -> None:
    keras.utils.set_random_seed(7)
    inputs = keras.Input((10, 10, 4))
    x = layers.Conv2D(6, 3, use_bias=False)(layers.Rescaling(1.7, offset=0.3)(inputs))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    branches = [layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x) for _ in range(3)]
    x = layers.Add()([layers.Conv2D(6, 1)(layers.Concatenate()(branches)), x])
    model = keras.Model(inputs, layers.GlobalAveragePooling2D(keepdims=True)(x))
    data = np.random.default_rng(7).normal(size=(200, 10, 10, 4)).astype("float32")
    trained = train_quantized(
        model, data, model.predict(data, verbose=0), loss="mse", metrics=(), learning_rate=1e-3
    )
    report = trained.export_tflite(tmp_path / "a.tflite", data)
    assert report.operators["QUANTIZE"] == 1
    outputs, written = trained.predict(data), run_file(tmp_path / "a.tflite", data)
    assert isinstance(outputs, np.ndarray)
    assert isinstance(written, np.ndarray)
    step = np.diff(np.unique(written)).min()
    assert len(np.unique(written)) > 30
    steps = np.round((outputs - written) / step)
    assert np.abs(steps).max() <= 1
    assert np.mean(steps == 0) > 0.95


def test_frozen_layers_stay_frozen() -> None:
    keras.utils.set_random_seed(6)
    inputs = keras.Input((6, 6, 2))
    x = layers.Rescaling(0.5, offset=0.25, name="rescaling")(inputs)
    frozen = layers.Conv2D(3, 3, trainable=False, name="frozen")
    x = layers.Conv2D(2, 3, name="free")(layers.ReLU()(frozen(x)))
    model = keras.Model(inputs, layers.Flatten()(x))
    data = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
    labels = np.arange(32) % 8
    trained = train_quantized(model, data, labels, batch_size=8, learning_rate=0.1).model
    kernels = {v.name: v.numpy() for v in trained.variables if "kernel:" in v.name}
    kept = {name.split("/")[0]: value for name, value in kernels.items() if "free" not in name}
    assert sorted(kept) == ["frozen", "rescaling"]
    np.testing.assert_array_equal(kept["frozen"], frozen.get_weights()[0])
    np.testing.assert_array_equal(kept["rescaling"], np.full((1, 1, 2, 1), 0.5))
    free = next(value for name, value in kernels.items() if "free" in name)
    assert np.abs(free - model.get_layer("free").get_weights()[0]).max() > 0.01
    for function in (sparsify, cluster_weights):
        copy = function(model, data, labels, batch_size=8, learning_rate=0.1)
        for name in ("frozen", "free"):
            old, new = (m.get_layer(name).get_weights()[0] for m in (model, copy))
            assert np.array_equal(old, new) == (name == "frozen")


def test_training_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2)])
    x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    functions: tuple[Any, ...] = (train_quantized, cluster_weights, sparsify)
    for train in functions:
        for options, message in (
            ({"epochs": 0}, "`epochs` must be an integer of 1 or more"),
            ({"batch_size": 0}, "`batch_size` must be an integer of 1 or more"),
            ({"learning_rate": 0.0}, "`learning_rate` must be"),
        ):
            with pytest.raises(ValueError, match=message):
                train(model, x, y, **options)
        with pytest.raises(ValueError, match="`x` must have shape"):
            train(model, x[:, :3], y)
        with pytest.raises(ValueError, match="must be a Keras model"):
            train("model.keras", x, y)
    with pytest.raises(ValueError, match="`clusters` must be an integer of 2 or more"):
        cluster_weights(model, x, y, clusters=1)
    with pytest.raises(ValueError, match="two steps or more"):
        sparsify(model, x, y)
    with pytest.raises(ValueError, match=r"`sparsity` must be .*above 0 and below 1"):
        sparsify(model, x, y, sparsity=1.0)
    volume = keras.Sequential([keras.Input((4, 4, 4, 1)), layers.Conv3D(2, 2, name="deep")])
    with pytest.raises(ValueError, match=r"int8.*deep \(Conv3D\)"):
        train_quantized(volume, np.zeros((2, 4, 4, 4, 1)), np.zeros(2))
    two = keras.Model(model.inputs, [model.outputs[0], model.inputs[0]])
    with pytest.raises(ValueError, match="`loss` must be given"):
        train_quantized(two, x, y)
    lowrank = dprp.factorize(zoo.resnet_small((8, 8, 1), widths=(4,)), ranks=1)
    with pytest.raises(ValueError, match=r"dprp_tf\.fold"):
        sparsify(lowrank, np.zeros((2, 8, 8, 1)), np.zeros(2))
    trained = train_quantized(model, x, y)
    with pytest.raises(ValueError, match=r"end in \.tflite"):
        trained.export_tflite(tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


# Clusters and zeros


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {
        f"{layer.name} {type(layer).__name__}": layer.get_weights()[0]
        for layer in model.layers
        if layer.get_weights() and layer.get_weights()[0].ndim > 1
    }


@pytest.mark.slow
def test_clustered_weights(folded: keras.Model, digits: Data, tmp_path: Path) -> None:
    x, y = digits[0][:1200], digits[1][:1200]
    before = [weight.copy() for weight in folded.get_weights()]
    clustered = cluster_weights(folded, x, y, clusters=8, learning_rate=1e-2)
    for old, new in zip(before, folded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer.name for layer in clustered.layers] == [layer.name for layer in folded.layers]
    free = 0
    for name, kernel in _kernels(clustered).items():
        if "Depthwise" in name:
            free += len(np.unique(kernel)) > 8
        else:
            assert 2 <= len(np.unique(kernel)) <= 8, name
    assert free > 0
    test = digits[0][1200:], digits[1][1200:]
    assert _accuracy(clustered, *test) > _accuracy(folded, *test) + 0.1
    sizes = []
    for model in (folded, clustered):
        path = tmp_path / "kernels"
        kernels = _kernels(model).items()
        path.write_bytes(b"".join(k.tobytes() for name, k in kernels if "Depthwise" not in name))
        sizes.append(compressed_size(path))
    assert sizes[1] < 0.3 * sizes[0]
    report = export_tflite(clustered, tmp_path / "clustered.tflite")
    assert report.compressed_bytes == compressed_size(report.path)


def test_sparse_weights(network: keras.Model, digits: Data, tmp_path: Path) -> None:
    x, y = digits[0][:1200], digits[1][:1200]
    sparse = sparsify(network, x, y, sparsity=0.6, epochs=2, batch_size=32, learning_rate=3e-3)
    kernels = _kernels(sparse)
    assert len(kernels) == 6
    zeros = sum(int((kernel == 0).sum()) for kernel in kernels.values())
    assert zeros / sum(kernel.size for kernel in kernels.values()) == pytest.approx(0.6, abs=0.01)
    for kernel in kernels.values():
        assert float((kernel == 0).mean()) == pytest.approx(0.6, abs=0.02)
    assert all((kernel != 0).all() for kernel in _kernels(network).values())
    assert _accuracy(sparse, digits[0][1200:], digits[1][1200:]) > 0.8
    plain = export_tflite(network, tmp_path / "plain.tflite").compressed_bytes
    assert export_tflite(sparse, tmp_path / "sparse.tflite").compressed_bytes < 0.75 * plain


@pytest.mark.parametrize("samples", [2, 3, 50])
def test_sparsity_is_reached_in_however_few_steps(samples: int) -> None:
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16)])
    x = np.random.default_rng(0).normal(size=(samples, 8)).astype("float32")
    sparse = sparsify(model, x, np.zeros(samples, "int64"), batch_size=1)
    assert float((sparse.get_weights()[0] == 0).mean()) == 0.5


@pytest.mark.slow
def test_compressed_size_is_that_of_a_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    values = np.random.default_rng(0).normal(size=700_000).astype("float32")
    values[::3] = 0
    path.write_bytes(values.tobytes())
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.write(path, "weights")
    with zipfile.ZipFile(archive) as file:
        assert compressed_size(path) == file.getinfo("weights").compress_size
    assert 0 < archive.stat().st_size - compressed_size(path) < 200
    (tmp_path / "empty").touch()
    assert compressed_size(tmp_path / "empty") < 10


# The study


@pytest.mark.long
def test_study_writes_rows_and_a_table_and_resumes(
    network: keras.Model, digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = digits
    images = (x * 255).astype("uint8")
    np.savez(
        tmp_path / "data.npz",
        x_train=images[:400],
        y_train=y[:400],
        x_test=images[1200:1500],
        y_test=y[1200:1500],
    )
    network.save(tmp_path / "dense.keras")
    lowrank = dprp.factorize(network, decomposition="channel", ranks=6)
    lowrank.save(tmp_path / "lowrank.keras")
    arguments = [
        *("--model", str(tmp_path / "dense.keras"), str(tmp_path / "lowrank.keras")),
        *("--data", str(tmp_path / "data.npz"), "--mean", "0", "--std", "255"),
        *("--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")),
        *("--images", "200", "--no-augment", "--only", "ONNX int8", "sparse, TFLite float32"),
    ]
    assert study.main(arguments) == 0
    written = sorted((tmp_path / "results").glob("*/*.json"))
    assert [path.parent.name for path in written] == ["dense"] * 2 + ["lowrank"] * 2
    rows = [json.loads(path.read_text()) for path in written]
    assert [row["folded"] for row in rows] == [False] * 2 + [True] * 2
    for row in rows[:2]:
        wanted = _accuracy(network, x[1200:1500], y[1200:1500])
        assert row["accuracy_float32"] == pytest.approx(wanted, abs=0.01)
        assert row["accuracy"] > 0.5
        assert 0 < row["compressed_bytes"] < row["size_bytes"]
    sparse = next(row for row in rows if row["variant"].startswith("sparse"))
    assert sparse["zero_weights"] == pytest.approx(0.5, abs=0.01)
    text = (tmp_path / "results" / "quantization.md").read_text()
    assert text.count("| ONNX int8 |") == 2
    assert f"| {rows[0]['accuracy']:.2%} |" in text
    times = [path.stat().st_mtime_ns for path in written]
    capsys.readouterr()
    assert study.main(arguments) == 0
    assert [path.stat().st_mtime_ns for path in written] == times
    assert capsys.readouterr().out == ""


# Layers that augment


def _augmented(*augmentations: keras.layers.Layer) -> keras.Model:
    keras.utils.set_random_seed(31)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            *augmentations,
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


AUGMENTATIONS: dict[str, Callable[[], keras.layers.Layer]] = {
    "flip": lambda: layers.RandomFlip(seed=1),
    "rotation without a seed": lambda: layers.RandomRotation(0.4),
    "shifts in half precision": lambda: layers.RandomTranslation(0.4, 0.4, dtype="mixed_float16"),
}


@pytest.mark.parametrize("kind", list(AUGMENTATIONS))
def test_augmentation_goes_on_in_training_alone(kind: str, tmp_path: Path) -> None:
    # A ramp, so that flips and shifts show.
    x = np.random.default_rng(0).random((48, 8, 8, 3), dtype=np.float32) ** 2
    x *= np.linspace(0, 1, 8, dtype=np.float32)[:, None] * np.array([0.2, 0.5, 1], "float32")
    y = np.arange(48) % 3
    plain = _augmented()
    model = _augmented(AUGMENTATIONS[kind]())
    model.set_weights(plain.get_weights())
    before = [np.asarray(v) for v in model.variables]
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
    trained = train_quantized(model, x, y, **options)
    again = train_quantized(model, x, y, **options)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    assert trained.history == again.history
    assert trained.history["loss"] != train_quantized(plain, x, y, **options).history["loss"]
    # The file holds nothing of it.
    report = trained.export_tflite(tmp_path / "a.tflite", minimum_agreement=0)
    reference = export(
        plain,
        tmp_path / "b.tflite",
        quantization="int8",
        calibration_data=x,
        minimum_agreement=0,
    )
    assert report.operators == reference.operators
    predicted = trained.predict(x)
    np.testing.assert_array_equal(predicted, trained.predict(x))
    assert isinstance(predicted, np.ndarray)
    assert np.ptp(predicted, axis=0).max() > 1e-3


def test_clusters_and_zeros_come_with_augmentation() -> None:
    model = _augmented(layers.RandomFlip(), layers.RandomContrast(0.3))
    x = np.random.default_rng(0).random((32, 8, 8, 3), dtype=np.float32)
    y = np.arange(32) % 3
    clustered = cluster_weights(model, x, y, clusters=4)
    assert [len(np.unique(weight)) for weight in clustered.get_weights()[::2]] == [4, 4]
    sparse = sparsify(model, x, y, sparsity=0.5, epochs=3, batch_size=8)
    assert np.mean(sparse.get_weights()[0] == 0) == pytest.approx(0.5, abs=0.02)
    assert [type(layer) for layer in clustered.layers] == [type(layer) for layer in model.layers]


def test_layers_that_change_images_at_inference_too_are_still_refused() -> None:
    x, y = np.zeros((4, 8, 8, 3), "float32"), np.zeros(4, int)
    with pytest.raises(ValueError, match=r"\(RandomCrop\)"):
        train_quantized(_augmented(layers.RandomCrop(6, 6)), x, y)
