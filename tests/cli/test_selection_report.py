"""`dprp select`, then `dprp report` on its folder: the page has what the files have."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import pytest
from typer.testing import CliRunner

from dprp_tf.cli.main import app


@pytest.mark.slow
def test_the_page_of_a_selection_has_what_was_chosen(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(24, 3, activation="relu", name="second")(x)
    outputs = keras.layers.Dense(10, name="classes")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, outputs).save(tmp_path / "dense.keras")
    folder = tmp_path / "ranks"
    chosen = ["select", tmp_path / "dense.keras", "--data", "digits", "--image-size", 8]
    chosen += ["--folder", folder, "--method", "energy", "--parameters", 0.6, "--tolerance", 0.1]
    for arguments in ([*chosen, "--samples", 50], ["report", folder]):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text(encoding="utf-8")
    accuracies = json.loads((folder / "selection.json").read_text())["accuracy"]
    assert set(accuracies) == {"dense", "cut"}
    for accuracy in accuracies.values():
        assert f"{100 * accuracy:.2f} %" in page
    for name in ("dense.keras", "ranks/cut.keras"):
        assert f"{keras.saving.load_model(tmp_path / name).count_params():,}" in page
    assert "plot-rank_plan" in page
    assert "asked: parameters 0.6" in page
