"""What a finished training says of itself: beside which model, how much was cut, what to do."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.cli.main import app
from dprp_tf.data import Dataset, load
from dprp_tf.runs.results import finish
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load("digits", image_size=8)
    train_split, test_split = (whole.x_train[:96], whole.y_train[:96]), (whole.x_test, whole.y_test)
    return Dataset("few digits", *train_split, *test_split, whole.classes)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A trained network of one wide convolution."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input(digits.image_shape)
    x = layers.Conv2D(12, 3, activation="relu", name="first")(layers.Rescaling(1 / 255)(inputs))
    x = layers.Conv2D(12, 3, activation="relu", name="conv")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", name="head")(x))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(digits.x_train, digits.y_train, epochs=10, verbose=0)
    path = tmp_path_factory.mktemp("start") / "mine.keras"
    model.save(path)
    return path


def _results(start: Path | str, digits: Dataset, folder: Path, **options: Any) -> dict[str, Any]:
    settings = TrainSettings(
        model=str(start),
        epochs=1,
        batch_size=48,
        learning_rate=1e-5,
        augment=False,
        decomposition="spatial",
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is whole but for its pictures")
        found = finish(folder, settings, digits, train(folder, settings, digits))
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(found))
    return found


def _accuracy(model: keras.Model, data: Dataset) -> float:
    outputs = model.predict(data.x_test.astype("float32"), verbose=0)
    return float(np.mean(np.argmax(outputs, -1) == data.y_test))


def test_a_trained_model_is_the_baseline(start: Path, digits: Dataset, tmp_path: Path) -> None:
    dense = keras.saving.load_model(start)
    found = _results(start, digits, tmp_path, discarded_energy=0.5, exclude=("first", "head"))
    before, folded = found["models"]
    assert before["name"] == "dense"
    assert before["label"] == "mine.keras, before training"
    assert before["accuracy"] == pytest.approx(_accuracy(dense, digits))
    assert before["parameters"] == dense.count_params()
    assert before["macs"] == 36 * 9 * 12 + 16 * 9 * 12 * 12 + 120
    assert folded["name"] == "dprp"
    plain = keras.saving.load_model(tmp_path / "folded.keras")
    assert folded["parameters"] == plain.count_params() < before["parameters"]
    assert folded["accuracy"] == pytest.approx(_accuracy(plain, digits))
    assert folded["trained_parameters"] != folded["parameters"]
    assert found["ranks"]["after"] < found["ranks"]["before"] == 9
    (note,) = found["notes"]
    assert note.startswith("No file was timed.")
    assert f"dprp export {start} dense.tflite" in note
    page = (tmp_path / "report.html").read_text()
    assert "No verdict" not in page
    assert "No file was timed." in page


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"discarded_energy": 0.0, "threshold": 1e-9}, "Nothing was cut: the ranks .* 28 in all"),
        # A rank of 8 of 9 is larger in two stages.
        ({"discarded_energy": 1e-3, "exclude": ("first", "head")}, "fell from 9 to 8 in all, too"),
    ],
)
def test_it_is_said_where_nothing_came_of_it(
    options: dict[str, Any], told: str, start: Path, digits: Dataset, tmp_path: Path
) -> None:
    if "exclude" in options:
        layer = dprp.factorize(keras.saving.load_model(start), layers=["conv"]).low_rank_layers[0]
        energy = np.sort(np.square(layer.factors.s))
        options = {**options, "discarded_energy": float(1.01 * energy[0] / energy.sum())}
        assert energy[0] + energy[1] > 1.5 * energy[0], "the second would fall too"
    found = _results(start, digits, tmp_path, compression=None, **options)
    cut, timed = found["notes"]
    (row,) = (row for row in found["models"] if row["name"] == "dprp")
    assert row["parameters"] == found["models"][0]["parameters"]
    assert re.search(told, cut)
    for flag in ("--compression-weight", "--threshold", "--discarded-energy", "--epochs"):
        assert flag in cut
    assert timed.startswith("No file was timed.")


def test_a_dense_training_of_a_trained_model_has_it_beside(
    start: Path, digits: Dataset, tmp_path: Path
) -> None:
    found = _results(start, digits, tmp_path, method="dense")
    before, after = found["models"]
    assert (before["name"], after["name"]) == ("dense", "trained")
    assert before["parameters"] == after["parameters"]
    assert "ranks" not in found
    assert f"dprp export {tmp_path / 'model.keras'}" in found["notes"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "dprp"])
def test_from_scratch_there_is_a_baseline_of_costs(method: str, tmp_path: Path) -> None:
    whole = load("digits", image_size=12)
    few = replace(whole, x_train=whole.x_train[:96], y_train=whole.y_train[:96])
    found = _results("lenet5", few, tmp_path, method=method)
    first = found["models"][0]
    plain = zoo.build("lenet5", input_shape=few.image_shape, classes=10)
    assert first["parameters"] == plain.count_params()
    assert [row["name"] for row in found["models"]] == ["dense", "dprp"][: 1 + (method == "dprp")]
    assert ("accuracy" in first) is (method == "dense")


@pytest.mark.slow
def test_the_command_has_the_facts_in_the_terminal_and_on_the_page(
    start: Path, tmp_path: Path
) -> None:
    arguments = ["train", "--model", start, "--data", "digits", "--image-size", 8, "--epochs", 1]
    arguments += ["--learning-rate", 1e-5, "--discarded-energy", 0, "--compression", "none"]
    arguments += ["--threshold", 1e-9, "--folder", tmp_path / "run", "--decomposition", "spatial"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "mine.keras, before" in told
    assert "Nothing was cut: the ranks are what they were, 28 in all." in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Nothing was cut" in page
    assert "mine.keras, before" in page
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert config["compression_weight"] == TrainSettings(model="a.keras").compression_weight
    assert config["stop_epoch"] == 1
