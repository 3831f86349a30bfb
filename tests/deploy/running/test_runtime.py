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

from dprp_tf.deploy import evaluate_file, run_file
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite


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
