"""The README's own code runs as printed, on data that needs no download."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dprp_tf.cli.main import app
from dprp_tf.costs.latency_table import LatencyTable

README = Path(__file__).parent.parent / "README.md"


def test_the_two_commands_open_it() -> None:
    first_block = re.search(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert first_block is not None
    commands = [line.split("#")[0].strip() for line in first_block[1].splitlines()]
    assert commands == ["make demo", "make test"]


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks)
    assert code.count("epochs=30") == 2
    assert code.count("plan_fold(lowrank, target=target)") == 1
    assert code.count("measure_latency(lowrank, target=target)") == 1
    assert code.count("measure_latency(lowrank, **place)") == 1
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (320, 1))
    images = rng.integers(0, 56, (320, 32, 32, 3), dtype=np.uint8)
    # A bright band of three rows says the class: outputs that hardly vary say nothing about a file.
    images += 200 * (np.arange(32)[:, None, None] // 3 == labels[:, :, None, None]).astype(np.uint8)
    split = (images[:64], labels[:64]), (images[64:], labels[64:])
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: split)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPRP_TF_CACHE", str(tmp_path / "cache"))
    for shown, quick in (
        ("zoo.resnet20(", "zoo.resnet_cifar(8, "),
        ("epochs=30", "epochs=1"),
        ("plan_fold(lowrank, target=target)", "plan_fold(lowrank, target=target, rounds=3)"),
        (
            "deploy.measure_latency(lowrank, target=target)",
            "by_rank(deploy.measure_latency(lowrank, target=target, rounds=3, ranks=(1, 2)))",
        ),
        ("stop_epoch=24", "stop_epoch=1"),
        ("epochs=36", "epochs=2"),
        ("most_steps=900", "most_steps=5"),
        ("FineTuning(epochs=20)", "FineTuning(epochs=1)"),
        ("FineTuning(epochs=20, ", "FineTuning(epochs=1, "),
        # Of a network that has learned nothing, the largest of ten scores is a matter of rounding.
        ("class_scores=True", "class_scores=False"),
        (
            "deploy.measure_latency(lowrank, **place)",
            "by_rank(deploy.measure_latency(lowrank, **place, rounds=3))",
        ),
    ):
        assert shown in code
        code = code.replace(shown, quick)
    names: dict[str, object] = {"by_rank": _by_rank}
    exec(compile(code, str(README), "exec"), names)  # noqa: S102
    model, gradual = names["model"], names["gradual"]
    assert isinstance(model, keras.Model)
    assert isinstance(gradual, keras.Model)
    assert gradual.count_params() < model.count_params()
    small = names["small"]
    assert isinstance(small, keras.Model)
    assert {type(layer).__module__.split(".")[0] for layer in small.layers} == {"keras"}
    assert (tmp_path / "tuned.tflite").stat().st_size < (tmp_path / "dense.tflite").stat().st_size
    assert (tmp_path / "small.tflite").stat().st_size > 100_000
    assert (tmp_path / "small.onnx").stat().st_size > 100_000


def _by_rank(table: LatencyTable) -> LatencyTable:
    """Return a measured table with costs by rank alone: few timings differ from run to run."""
    rows = tuple(
        replace(row, dense=1.0, costs=tuple(rank / row.full_rank for rank in row.ranks))
        for row in table.layers
    )
    return replace(table, layers=rows, dense=float(len(rows)))


@pytest.mark.slow
def test_the_commands_for_a_trained_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## From a trained model") :]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    commands = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert [words[:2] for words in commands] == [
        ["dprp", "mine.keras"],
        ["dprp", "select"],
        ["dprp", "report"],
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPRP_TF_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, images in (("train", 150), ("test", 30)):
        for label in range(4):
            place = tmp_path / "photos" / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                pixels[8 * label : 8 * label + 8] += 100
                Image.fromarray(pixels).save(place / f"{number}.png")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for filters in (32, 64, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    outputs = keras.layers.Dense(4, activation="softmax")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = keras.utils.image_dataset_from_directory(
        "photos/train", image_size=(32, 32), seed=0, verbose=False
    )
    model.fit(data, epochs=2, verbose=0)
    model.save("mine.keras")
    for words in commands:
        quick = ["1" if word == "20" else "0.8" if word == "0.5" else word for word in words[1:]]
        result = CliRunner().invoke(app, quick)
        if result.exit_code == 2 and "must be at least" in result.output:
            # A processor on which no share of so small a network's time is to be had says so.
            by_weights = ["--parameters" if word == "--time" else word for word in quick]
            result = CliRunner().invoke(app, by_weights)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "runs/mine/tuned_int8.tflite").exists()
    page = (tmp_path / "runs/mine/report.html").read_text(encoding="utf-8")
    assert "tuned_int8.tflite" in page
