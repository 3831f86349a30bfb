"""The command line end to end on real digits: every command, and every kind of bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dprp_tf.cli import app


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout[result.stdout.index("{") :])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short DPRP run with a pressure strong enough to cut ranks."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    answer(*train_arguments(folder, epochs=2))
    return folder


def train_arguments(folder: Path, epochs: int) -> list[object]:
    options = (
        "train --model resnet_small --data digits --image-size 8 --batch-size 64 --padding 1 "
        "--no-flip --learning-rate 0.05 --compression-weight 60 --threshold 0.4 --exclude logits "
        "--schedule constant"
    )
    return [*options.split(), "--epochs", epochs, "--folder", folder]


def test_train_leaves_a_run_folder_with_fallen_ranks(run: Path) -> None:
    for name in ("config", "history", "ranks", "state", "results"):
        assert (run / f"{name}.json").stat().st_size > 0
    ranks = json.loads((run / "ranks.json").read_text())
    assert ranks["epochs"][-1]["total_rank"] < ranks["epochs"][0]["total_rank"]
    assert ranks["epochs"][-1]["parameters"] < ranks["epochs"][0]["parameters"]
    assert "logits" not in ranks["layers"]
    assert (run / "report.html").exists()
    assert {path.stem for path in (run / "plots").glob("*.png")} >= {
        "cost_by_epoch",
        "ranks_by_layer",
        "singular_values",
        "training",
    }
    assert len(list(run.glob("checkpoint-*.keras"))) == 1


def test_train_goes_on_where_it_was(run: Path) -> None:
    before = json.loads((run / "history.json").read_text())["runs"]["dprp"]
    results = answer(*train_arguments(run, epochs=3))
    after = json.loads((run / "history.json").read_text())["runs"]["dprp"]
    assert after[:2] == before
    assert [entry["epoch"] for entry in after] == [1, 2, 3]
    trained, folded = results["models"]
    assert trained["accuracy"] == pytest.approx(folded["accuracy"], abs=0.003)


def test_inspect_fold_export_and_bench(run: Path, tmp_path: Path) -> None:
    listed = answer("inspect", run / "model.keras")
    fallen = [row for row in listed["layers"] if row["rank"] and row["rank"] < row["full_rank"]]
    assert fallen
    kept = next(row for row in listed["layers"] if row["name"] == "logits")
    assert kept["skipped"] == "kept dense"
    small = tmp_path / "small.keras"
    folded = answer("fold", run / "model.keras", small)
    by_name = {row["name"]: row for row in folded["layers"]}
    assert {row["name"]: row["rank"] for row in fallen}.items() <= {
        name: row["rank"] for name, row in by_name.items()
    }.items()
    data = ["--data", "digits", "--image-size", "8", "--samples", "100"]
    int8 = answer("export", small, tmp_path / "a.tflite", "--quantization", "int8", *data)
    # An unfolded model is folded on the way.
    onnx = answer("export", run / "model.keras", tmp_path / "a.onnx", *data)
    assert int8["passed"]
    assert int8["samples"] == 100
    assert int8["max_error"] > onnx["max_error"]
    single = answer("bench", tmp_path / "a.tflite", "--repeats", 3)
    assert single["repeats"] == 3
    assert single["median_ms"] > 0
    both = answer("bench", tmp_path / "a.tflite", tmp_path / "a.onnx", "--repeats", 3)
    assert next(entry["ratio"] for entry in both["ratios"]) == 1.0


def test_demo_ends_with_verified_files_and_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    results = answer("demo", "--folder", folder, "--epochs", 1)
    assert len(results["files"]) == 8
    assert all(row["verified"] for row in results["files"])
    for row in results["files"]:
        assert (folder / row["file"]).stat().st_size == row["size_bytes"]
        model = next(entry for entry in results["models"] if entry["name"] == row["model"])
        if "int8" not in row["format"]:
            assert row["accuracy"] == pytest.approx(model["accuracy"], abs=0.006)
    verdict = results["headline"]
    assert verdict["achieved"] == all(check["passed"] for check in verdict["checks"])
    assert verdict["text"] in (folder / "report.html").read_text(encoding="utf-8")
    assert results["timing"]["training dprp: tracing and retracing"] > 0


def test_reproduce_lists_what_was_run(tmp_path: Path) -> None:
    result = invoke("reproduce", "--list", "--results", tmp_path / "none")
    assert result.exit_code == 0
    assert "90.98 %" in result.stdout
    assert "0 of 300" in result.stdout


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    truncated = folder / "truncated.keras"
    truncated.write_bytes(b"PK\x03\x04 not a whole archive")
    npz = folder / "truncated.npz"
    np.savez(npz, x_train=np.zeros((4, 2, 2, 1), "uint8"))
    npz.write_bytes(npz.read_bytes()[:60])
    one_class = folder / "one_class"
    (one_class / "only").mkdir(parents=True)
    return {"truncated": truncated, "npz": npz, "one_class": one_class, "folder": folder}


TRAIN = ["train", "--data", "digits", "--folder", "{folder}/r"]
CASES = [
    (["train", "--model", "nope", "--data", "digits", "--folder", "{folder}/r"], "`name`.*'nope'"),
    (["train", "--model", "resnet20", "--data", "{npz}", "--folder", "{folder}/r"], "npz"),
    (["train", "--model", "resnet20", "--data", "{one_class}", "--folder", "{folder}/r"], "class"),
    (
        [
            "train",
            "--model",
            "resnet20",
            "--data",
            "digits",
            "--threshold",
            "1.5",
            "--folder",
            "{folder}/r",
        ],
        r"`threshold`.*\(0, 1\).*1.5",
    ),
    (
        [
            "train",
            "--model",
            "resnet_small",
            "--data",
            "digits",
            "--exclude",
            "nope",
            "--folder",
            "{folder}/r",
        ],
        "`exclude`.*nope",
    ),
    (["fold", "{folder}/missing.keras", "{folder}/o.keras"], "missing.keras"),
    (["fold", "{truncated}", "{folder}/o.keras"], "truncated"),
    (["inspect", "{truncated}"], "truncated"),
    (["fold", "{truncated}", "{folder}/o.h5"], "`output` must end in .keras"),
    (["export", "{truncated}", "{folder}/o.bin"], "`output` must end in .tflite or .onnx"),
    (["export", "{truncated}", "{folder}/o.onnx", "--quantization", "int8"], "`quantization`"),
    (["bench", "{truncated}"], "`path`.*tflite or .onnx"),
    (["report", "{folder}/nothing"], "nothing"),
    (["reproduce", "nope"], "`row`.*'nope'"),
    (["reproduce"], "`row`"),
]


@pytest.mark.parametrize(("arguments", "message"), CASES)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, bad: dict[str, Path]
) -> None:
    result = invoke(*(argument.format(**bad) for argument in arguments))
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2, result.output
    assert len(lines) == 1, result.output
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in result.output
    assert not (bad["folder"] / "r" / "config.json").exists()


def test_debug_shows_the_traceback(bad: dict[str, Path]) -> None:
    result = invoke("--debug", "inspect", bad["truncated"])
    assert isinstance(result.exception, ValueError)
