"""A first look at a model and data, held against networks whose scaling and classes are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.costs.budget import Budget
from dprp_tf.data import Dataset, load
from dprp_tf.runs.first_look import FirstLookWarning, first_look, input_size, require_fit
from dprp_tf.runs.selecting import select_in_folder
from dprp_tf.runs.settings import SelectionSettings, TrainSettings
from dprp_tf.runs.training import train

CLASSES, SIZE = 6, 4
HALF = Budget.of(0.5)
COLORS = np.random.default_rng(3).permutation(np.linspace(10, 110, 3 * CLASSES)).reshape(-1, 3)


def images(labels: np.ndarray) -> np.ndarray:
    """Plain colors with a little noise, one color for each class."""
    noise = np.random.default_rng(1).integers(-2, 3, (len(labels), SIZE, SIZE, 3))
    return np.rint(COLORS[labels][:, None, None] + noise).astype("uint8")


def colors(channels: int = 3) -> Dataset:
    labels = np.arange(20 * CLASSES, dtype="int32") % CLASSES
    x = images(labels)[..., :channels]
    return Dataset("colors", x, labels, x[::-1].copy(), labels[::-1].copy(), tuple("abcdef"))


def nearest_color(seen: np.ndarray, *first: keras.layers.Layer) -> keras.Model:
    """A network whose largest output is the class of the nearest of the colors it knows."""
    inputs = x = keras.Input((SIZE, SIZE, 3))
    for layer in first:
        x = layer(x)
    output = keras.layers.Dense(CLASSES, "softmax", name="classes")
    model = keras.Model(inputs, output(keras.layers.GlobalAveragePooling2D()(x)))
    sharp = 500 / np.ptp(seen) ** 2
    output.set_weights([2 * sharp * seen.T, -sharp * (seen**2).sum(axis=-1)])
    return model


TORCH = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
CAFFE = np.array([123.68, 116.779, 103.939])
OWN = images(np.arange(CLASSES)).mean(axis=(0, 1, 2)), images(np.arange(CLASSES)).std((0, 1, 2))


@pytest.mark.parametrize(
    ("seen", "means"),
    [
        (COLORS / 255, "values of 0 to 1"),
        (COLORS / 127.5 - 1, "values of -1 to 1"),
        ((COLORS - TORCH[0]) / TORCH[1], "ImageNet's mean and standard deviation"),
        ((COLORS - CAFFE)[:, ::-1], "caffe"),
        ((COLORS - OWN[0]) / OWN[1], "the data's own mean"),
    ],
)
def test_a_missing_scaling_is_found_and_is_right(seen: np.ndarray, means: str) -> None:
    data, model = colors(), nearest_color(seen)
    look = first_look(model, data)
    assert look.accuracy < 0.5
    assert look.scaling is not None
    assert means in look.scaling.means
    assert look.scaling.accuracy == 1.0
    assert look.warnings[0].startswith("Preprocessing: ")
    if look.scaling.reversed_channels:
        assert "build the preprocessing into the model" in look.warnings[0]
        return
    scaled = data.normalized(look.scaling.mean, look.scaling.std)
    again = first_look(model, scaled)
    assert (again.accuracy, again.scaling, again.warnings) == (1.0, None, ())


def test_nothing_is_said_where_all_is_well() -> None:
    look = first_look(nearest_color(COLORS), colors())
    assert (look.accuracy, look.scaling, look.warnings) == (1.0, None, ())
    assert look.samples == 20 * CLASSES
    assert first_look(nearest_color(COLORS), colors(), samples=7).samples == 7
    with pytest.raises(ValueError, match="`samples` must be an integer of 1 or more"):
        first_look(nearest_color(COLORS), colors(), samples=0)


def test_a_scaling_too_many_is_found() -> None:
    model = nearest_color(COLORS / 255, keras.layers.Rescaling(1 / 255))
    assert first_look(model, colors()).warnings == ()
    twice = colors().normalized([1, 2, 3], [2]).normalized([0], [127.5])
    assert np.allclose(np.asarray(twice.normalization[1]), 255)  # type: ignore[index]
    look = first_look(model, twice)
    assert look.scaling is not None
    assert (look.scaling.mean, look.scaling.std) == ((0.0,), (1.0,))
    assert "without `mean` and `std` 100% are" in look.warnings[0]


@pytest.mark.parametrize(("zero", "step"), [(0, 1 / 255), (-1, 1 / 127.5)])
def test_images_that_are_scaled_in_their_file_are_scaled_back(zero: float, step: float) -> None:
    data = colors()
    x = (data.x_train * step + zero).astype("float32")
    scaled = replace(data, x_train=x, x_test=x, y_test=data.y_train)
    model = nearest_color(COLORS, keras.layers.Rescaling(1.0))
    look = first_look(model, scaled)
    assert look.scaling is not None
    assert first_look(model, scaled.normalized(look.scaling.mean, look.scaling.std)).accuracy == 1


def test_a_model_that_scales_itself_is_not_asked_for_another_scaling() -> None:
    model = nearest_color(COLORS / 255, keras.layers.Rescaling(1.0))
    look = first_look(model, colors())
    assert look.scaling is None
    assert look.warnings[0].startswith("Guessing: ")
    assert "preprocessing" not in look.warnings[0]


def test_classes_in_another_order_are_told_from_guessing() -> None:
    data = colors()
    other = np.array([1, 2, 3, 4, 5, 0], "int32")
    look = first_look(
        nearest_color(COLORS),
        replace(data, y_train=other[data.y_train], y_test=other[data.y_test]),
    )
    assert look.accuracy == 0
    assert look.confidence > 0.9
    assert "another order: renumbered, 100% are right" in look.warnings[0]
    assert "a, b, c, d, e, f" in look.warnings[0]


def test_a_model_that_knows_nothing_is_called_guessing() -> None:
    model = nearest_color(COLORS)
    model.set_weights([0 * weight for weight in model.get_weights()])
    look = first_look(model, colors())
    assert "17% of 120 test images are right on 6 classes, and guessing gives 17%" in "".join(
        look.warnings
    )
    with pytest.warns(FirstLookWarning, match="Guessing"):
        look.warn()
    assert json.loads(json.dumps(look.as_dict()))["first_look"]["scaling"] is None


def test_logits_are_as_sure_as_their_softmax() -> None:
    model = nearest_color(COLORS / 255)
    logits = keras.models.clone_model(model)
    logits.set_weights(model.get_weights())
    logits.layers[-1].activation = keras.activations.linear
    expected, found = (first_look(network, colors()) for network in (model, logits))
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-4)
    assert found.scaling == expected.scaling


def write_images(root: Path, *splits: str) -> Path:
    for split in splits:
        for label in range(CLASSES):
            folder = root / split / "abcdef"[label]
            folder.mkdir(parents=True)
            for index, image in enumerate(images(np.full(5, label))):
                Image.fromarray(image).resize((8, 8), 0).save(folder / f"{index}.png")
    return root


def test_a_split_that_was_drawn_is_said_and_one_that_was_given_is_not(tmp_path: Path) -> None:
    for name, splits, drawn in (("flat", [""], True), ("one", ["train"], True)):
        data = load(write_images(tmp_path / name, *splits), image_size=SIZE)
        assert data.drawn_test_split is drawn
        assert data.description["drawn_test_split"] is drawn
        assert data.normalized([0], [1]).drawn_test_split is drawn, "kept on the way"
        (said,) = first_look(nearest_color(COLORS), data).warnings
        assert said.startswith(f"Test split: {name} has no test/ folder, so 6 of its images")
        assert "test/<class>/" in said
    both = load(write_images(tmp_path / "both", "train", "test"), image_size=SIZE)
    assert not both.drawn_test_split
    assert first_look(nearest_color(COLORS), both).warnings == ()


def classes(count: int) -> keras.Model:
    inputs = keras.Input((SIZE, SIZE, 3))
    return keras.Model(inputs, keras.layers.Dense(count)(keras.layers.Flatten()(inputs)))


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    data = colors()
    require_fit(classes(CLASSES), data)
    for model, other, message in (
        (classes(5), data, r"Received: 6 classes in colors \(a, b, .*which has 5 outputs"),
        (classes(1), data, "which has 1 output. "),
        (classes(CLASSES), colors(1), "Received: images of 4x4x1.* Gray images have 1 channel"),
        (
            classes(CLASSES),
            replace(data, x_train=data.x_train[:, :2, :2], x_test=data.x_test[:, :2, :2]),
            "what the model takes, 4x4x3. Received: images of 2x2x3 .*`image_size=4`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            require_fit(model, other)
    inputs = keras.Input((SIZE, SIZE, 3))
    two = keras.Model(inputs, [inputs + 1, inputs + 2])
    with pytest.raises(ValueError, match="1 inputs and 2 outputs"):
        require_fit(two, data)
    with pytest.raises(ValueError, match="an output of the shape"):
        require_fit(keras.Model(inputs, keras.layers.Conv2D(6, 1)(inputs)), data)
    # The functions behind the commands.
    with pytest.raises(ValueError, match="which has 5 outputs"):
        select_in_folder(tmp_path / "s", classes(5), data, SelectionSettings(budget=HALF))
    classes(5).save(tmp_path / "five.keras")
    with pytest.raises(ValueError, match="which has 5 outputs"):
        train(tmp_path / "t", TrainSettings(model=str(tmp_path / "five.keras")), data)
    deploy.export(classes(5), tmp_path / "five.tflite")
    with pytest.raises(ValueError, match=r"five\.tflite, which has 5 outputs"):
        first_look(tmp_path / "five.tflite", data)


def test_the_size_that_a_model_takes(tmp_path: Path) -> None:
    assert input_size(classes(2)) == (SIZE, SIZE)
    deploy.export(classes(2), tmp_path / "two.tflite")
    assert input_size(tmp_path / "two.tflite") == (SIZE, SIZE)
    anything = keras.Input((None, None, 3))
    assert input_size(keras.Model(anything, anything + 1)) is None
    assert input_size(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])) is None


@pytest.mark.parametrize("activation", ["softmax", "linear"])
def test_a_training_takes_outputs_for_what_they_are(activation: str, tmp_path: Path) -> None:
    model = nearest_color(COLORS)
    model.layers[-1].activation = getattr(keras.activations, activation)
    model.save(tmp_path / "mine.keras")
    chosen = TrainSettings(
        model=str(tmp_path / "mine.keras"), method="dense", epochs=1, batch_size=40
    )
    trained = train(tmp_path / "run", chosen, colors())
    assert trained.loss.get_config()["from_logits"] is (activation == "linear")
    assert json.loads((tmp_path / "run" / "first_look.json").read_text())["warnings"] == []


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_it_in_its_own_words(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", "")
    model = nearest_color(COLORS / 255)
    model.layers[-1].activation = keras.activations.linear
    model.save(tmp_path / "mine.keras")
    file = tmp_path / "mine.tflite"
    exported = invoke("export", tmp_path / "mine.keras", file, "--data", photos, "--json")
    assert exported.exit_code == 0, exported.output
    assert "images of 8x8 pixels are resized to 4x4, which the model takes" in exported.stderr
    assert "warning: Test split: photos has no test/ folder" in exported.stderr
    found = json.loads(exported.stdout[exported.stdout.index("{") :])
    for warnings in (exported.stderr.split("\n"), found["data"]["warnings"]):
        assert any("with `--mean 0 --std 255` 100% are" in text for text in warnings), warnings
    assert found["data"]["drawn_test_split"] is True
    assert found["data"]["first_look"]["scaling"]["std"] == [255.0]
    scaled = ("--mean", 0, "--std", 255)
    timed = invoke("bench", file, "--data", photos, *scaled, "--repeats", 2, "--json")
    assert timed.exit_code == 0, timed.output
    found = json.loads(timed.stdout[timed.stdout.index("{") :])
    (said,) = found["data"]["warnings"]
    assert said.startswith("Test split")
    assert found["files"][0]["accuracy"] == 1.0
    classes(5).save(tmp_path / "five.keras")
    end = ("--data", photos, "--folder", tmp_path / "no")
    for words in (("train", "--model"), ("select", "--parameters", 0.5)):
        refused = invoke(*words, tmp_path / "five.keras", *end)
        assert refused.exit_code == 2, refused.output
        (line,) = refused.stderr.splitlines()[-1:]
        assert line.startswith("error: `--data` must have the classes of the model"), line
