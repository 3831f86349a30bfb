"""`dprp package`: from a file, from data, and from the folder of a search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.data import load as load_data


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is right more often than a guess where its pixels are scaled as it knows them."""
    keras.utils.set_random_seed(2)
    digits = load_data("digits", image_size=8).normalized([80.0], [90.0])
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(digits.x_train, digits.y_train, epochs=8, verbose=0)
    path = tmp_path_factory.mktemp("file") / "digits.tflite"
    deploy.export(model, path)
    return path


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text(encoding="utf-8"))


def test_data_give_labels_normalization_and_figures(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ship"
    words = ["--data", "digits", "--mean", 80, "--std", 90, "--license", "MIT", "--name", "Digits"]
    result = invoke("package", file, folder, *words)
    assert result.exit_code == 0, result.output
    assert "run.py" in result.stdout
    found = told(folder)
    assert (found["name"], found["license"], found["labels"]) == ("Digits", "MIT", 10)
    assert found["inputs"][0]["normalization"] == {"mean": [80.0], "std": [90.0]}
    digits = load_data("digits", image_size=8).normalized([80.0], [90.0])
    figures = found["figures"]
    assert figures["accuracy"] == deploy.evaluate_file(file, digits.x_test, digits.y_test)
    assert figures["accuracy"] > 0.7
    assert figures["data"] == "359 test images of digits"
    assert 0 < figures["median_ms"] < 1000
    assert (folder / "labels.txt").read_text().split() == [str(n) for n in range(10)]
    assert "359 test images" in (folder / "README.md").read_text(encoding="utf-8")


def test_without_data_a_file_of_labels_does(file: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghij") + "\n")
    words = ["--labels", tmp_path / "labels.txt", "--mean", 80, "--std", 90, "--json"]
    result = invoke("package", file, tmp_path / "ship", *words)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["description"]["labels"] == 10
    assert printed["description"]["figures"] == {}
    assert (tmp_path / "ship" / "labels.txt").read_text().split() == list("abcdefghij")


def test_the_folder_of_a_search_gives_its_best_file_and_its_figures(
    file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "phone"
    run.mkdir()
    shutil.copyfile(file, run / "best.tflite")
    row = {"file": "c3_int8.tflite", "score": 0.9, "accuracy": 0.91, "time": 0.4, "size": 0.5}
    results = {
        "data": {"name": "digits", "test": 180},
        "settings": {"target": "local", "threads": 1},
        "front": [
            {"file": "dense_int8.tflite", "best": False, "label": "dense"},
            {**row, "best": True, "label": "both, 0.40"},
        ],
        "files": [
            {"file": "dense_int8.tflite"},
            {
                "file": "c3_int8.tflite",
                "top1_agreement": 0.99,
                "latency_ms": {"median": 0.5, "p10": 0.4, "p90": None},
            },
        ],
    }
    (run / "results.json").write_text(json.dumps(results))
    result = invoke("package", run, tmp_path / "ship")
    assert result.exit_code == 0, result.output
    found = told(tmp_path / "ship")
    assert found["name"] == "phone"
    figures = found["figures"]
    assert (figures["accuracy"], figures["median_ms"], figures["time_ratio"]) == (0.91, 0.5, 0.4)
    assert figures["data"] == "180 test images of digits"
    card = (tmp_path / "ship" / "README.md").read_text(encoding="utf-8")
    assert "| top-1 accuracy | 91.00% |" in card
    assert "both, 0.40" in card


def test_what_does_not_fit_is_said_in_a_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("a\nb\n")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    np.save(tmp_path / "x.npy", np.zeros(3))
    for words, said in (
        ([tmp_path / "gone.tflite", tmp_path / "ship"], "must name an existing file"),
        ([mine, tmp_path / "ship"], "`FILE` must be"),
        ([tmp_path / "x.npy", tmp_path / "ship"], "must name a .tflite or .onnx file"),
        ([file, mine], "`FOLDER` must be new, empty"),
        ([file, tmp_path / "ship", "--labels", tmp_path / "few.txt"], "`--labels` must name as"),
        ([file, tmp_path / "ship", "--mean", 1], "`--mean` and `--std` must be given together"),
        (
            [file, tmp_path / "ship", "--data", "digits", "--labels", tmp_path / "few.txt"],
            "`--labels` must be left out",
        ),
    ):
        result = invoke("package", *words)
        assert result.exit_code == 2, result.output
        lines = result.stderr.strip().splitlines()
        assert lines[-1].startswith("error: ")
        assert said in lines[-1]
    assert not (tmp_path / "ship").exists()
