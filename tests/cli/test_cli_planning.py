"""From a time to ranks to a plan to files, by commands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from dprp_tf import deploy
from dprp_tf.cli.main import app
from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.data import load
from dprp_tf.training.saving import load_model

TRAIN = [
    *[
        "train",
        "--model",
        "resnet_small",
        "--data",
        "digits",
        "--image-size",
        "8",
        "--batch-size",
        "64",
        "--padding",
        "1",
    ],
    *["--no-flip", "--learning-rate", "0.05", "--compression-weight", "1", "--exclude", "logits"],
    *["--schedule", "constant"],
]


BUDGET = ["--milliseconds", "3", "--latency-table", "none.json"]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout[result.stdout.index("{") :])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPRP_TF_CACHE", str(folder / "cache"))
        path = folder / "latency.json"
        arguments = ("--input-shape", "8,8,1", "--exclude", "logits", "--rounds", 3, "--rank", 2)
        answer("latency", "resnet_small", path, *arguments)
    return path


@pytest.mark.slow
def test_a_time_becomes_ranks_and_a_plan_and_a_verified_file(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPRP_TF_CACHE", str(tmp_path / "cache"))
    costs = LatencyTable.load(table)
    assert costs.unit == "ms"
    assert all(row.name != "logits" for row in costs.layers)
    budget = (costs.model_cost({}) + costs.least) / 2
    run = tmp_path / "run"
    arguments = ("--latency-table", table, "--milliseconds", budget, "--folder", run)
    answer(*TRAIN, "--epochs", 2, *arguments)
    model = load_model(run / "model.keras")
    assert costs.model_cost(model.ranks) <= budget
    assert sum(model.ranks.values()) < sum(row.full_rank for row in costs.layers)
    assert LatencyTable.load(run / "run_latency.json") == costs, "the table it began with"

    planned = answer("plan", run / "model.keras", run / "plan.json", "--rounds", 3)
    assert FoldPlan.load(run / "plan.json").as_dict() == planned
    folded = answer("fold", run / "model.keras", tmp_path / "s.keras", "--plan", run / "plan.json")
    forms = {entry["name"]: entry["form"] for entry in planned["layers"]}
    assert {entry["name"]: entry["form"] for entry in folded["layers"]} == forms
    images = load("digits", image_size=8).x_test[:8].astype("float32")
    plain = keras.saving.load_model(tmp_path / "s.keras")
    expected = np.asarray(model(images, training=False))
    np.testing.assert_allclose(np.asarray(plain(images)), expected, atol=1e-4, rtol=1e-4)
    assert deploy.export(plain, tmp_path / "s.tflite", verification_data=images).passed
    shown = invoke("plan", run / "model.keras", run / "plan.json", "--rounds", 3)
    assert shown.exit_code == 0
    assert "dprp fold" in shown.output


def test_a_budget_that_cannot_be_met_is_one_line(table: Path, tmp_path: Path) -> None:
    arguments = ("--latency-table", table, "--milliseconds", 1e-6, "--folder", tmp_path / "run")
    result = invoke(*TRAIN, "--epochs", 1, *arguments)
    assert result.exit_code == 2
    assert "`--milliseconds` must be at least" in result.output
    assert "Traceback" not in result.output


@pytest.mark.long
def test_a_start_that_failed_does_not_lock_the_folder(table: Path, tmp_path: Path) -> None:
    arguments = ("--latency-table", table, "--milliseconds", 1e-6, "--folder", tmp_path / "run")
    assert invoke(*TRAIN, "--epochs", 1, *arguments).exit_code == 2
    possible = ("--latency-table", table, "--milliseconds", LatencyTable.load(table).least)
    result = invoke(*TRAIN, "--epochs", 1, *possible, "--folder", tmp_path / "run")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latency", "resnet_small", "x.json", "--input-shape", "8x8"], "height,width,channels"),
        (["latency", "resnet_small", "x.json", "--exclude", "nobody"], "nobody"),
        (["latency", "resnet_small", "x.json", "--target", "moon"], "moon"),
        ([*TRAIN, "--folder", "x", "--milliseconds", "3"], "given together"),
        (
            [*TRAIN, "--folder", "x", "--milliseconds", "3", "--latency-table", "none.json"],
            "none.json",
        ),
        (["plan", "none.keras", "plan.json"], "none.keras"),
        (["plan", "none.keras", "plan.keras"], "must end in .json"),
        ([*TRAIN, "--folder", "x", "--method", "dense", *BUDGET], "--method dprp"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
