"""The command line end to end on real digits: every command, and every kind of bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from dprp_tf import data
from dprp_tf.cli.main import app
from dprp_tf.deploy import evaluate_file


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


@pytest.mark.long
def test_train_goes_on_where_it_was(run: Path) -> None:
    before = json.loads((run / "history.json").read_text())["runs"]["dprp"]
    results = answer(*train_arguments(run, epochs=3))
    after = json.loads((run / "history.json").read_text())["runs"]["dprp"]
    assert after[:2] == before
    assert [entry["epoch"] for entry in after] == [1, 2, 3]
    dense, folded = results["models"]
    assert folded["accuracy"] == pytest.approx(after[-1]["val_accuracy"], abs=0.003)
    assert folded["parameters"] < dense["parameters"]
    assert results["ranks"]["after"] == after[-1]["total_rank"] < results["ranks"]["before"]


@pytest.fixture(scope="module")
def exported(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Files of the run's model with what `export` said: folded as int8, unfolded as ONNX."""
    folder = tmp_path_factory.mktemp("exported")
    options = ["--data", "digits", "--image-size", "8", "--samples", "100"]
    small, int8, onnx = folder / "small.keras", folder / "a.tflite", folder / "a.onnx"
    return {
        "folded": (small, answer("fold", run / "model.keras", small)),
        "int8": (int8, answer("export", small, int8, "--quantization", "int8", *options)),
        # An unfolded model is folded on the way.
        "onnx": (onnx, answer("export", run / "model.keras", onnx, *options)),
    }


def test_inspect_fold_and_export(
    run: Path, exported: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    listed = answer("inspect", run / "model.keras")
    fallen = [row for row in listed["layers"] if row["rank"] and row["rank"] < row["full_rank"]]
    assert fallen
    kept = next(row for row in listed["layers"] if row["name"] == "logits")
    assert kept["skipped"] == "kept dense"
    folded, int8, onnx = (said for _, said in exported.values())
    by_name = {row["name"]: row for row in folded["layers"]}
    assert {row["name"]: row["rank"] for row in fallen}.items() <= {
        name: row["rank"] for name, row in by_name.items()
    }.items()
    assert int8["passed"]
    assert int8["samples"] == 100
    assert int8["max_error"] > onnx["max_error"]


def test_bench_by_another_score_on_labels_that_are_no_classes(tmp_path: Path) -> None:
    from dprp_tf.deploy.exporters.onnx import export_onnx

    brighter = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Rescaling(0.9)])
    export_onnx(brighter, tmp_path / "brighter.onnx")
    images = np.random.default_rng(0).random((9, 6, 6, 1)).astype("float32")
    np.savez(tmp_path / "images.npz", x_test=images, y_test=images)
    options = [tmp_path / "brighter.onnx", "--repeats", 2, "--data", tmp_path / "images.npz"]
    found = answer("bench", *options, "--score", "psnr", "--output", tmp_path / "run")
    expected = (10 * np.log10(1 / ((0.1 * images) ** 2).mean(axis=(1, 2, 3)))).mean()
    assert found["files"][0]["psnr"] == pytest.approx(expected, rel=1e-4)
    assert found["score"] == {"name": "psnr", "unit": "dB", "less_is_better": False}
    assert (found["samples"], found["data"]["name"]) == (9, "images")
    invoke("report", tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "PSNR is that of the very file on 9 test samples of images" in text
    assert f"{expected:.4g} dB" in text
    assert "Accuracy" not in text
    error = invoke("bench", *options, "--score", "mse", "--image-size", 8)
    assert error.exit_code != 0
    assert "must be left out for labels that are not classes" in " ".join(error.output.split())
    table = invoke("bench", *options, "--score", "mse", "--samples", 4)
    assert "Mse" in table.stdout, table.output


@pytest.mark.slow
def test_bench_and_report(
    run: Path, exported: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    files = [exported["int8"][0], exported["onnx"][0]]
    options = ["--threads", 1, "--threads", 2, "--repeats", 3, "--data", "digits"]
    options += ["--image-size", 8]
    found = answer("bench", *files, *options, "--samples", 60, "--output", run)
    assert json.loads((run / "bench.json").read_text(encoding="utf-8")) == found
    assert [(entry["target"], entry["threads"]) for entry in found["runs"]] == [
        ("local", 1),
        ("local", 2),
    ]
    for entry in found["runs"]:
        assert [result["repeats"] for result in entry["results"]] == [3, 3]
        assert all(result["median_ms"] > 0 for result in entry["results"])
        assert entry["ratios"][0]["ratio"] == 1
    assert (found["samples"], found["data"]["name"]) == (60, "digits")
    for file, path in zip(found["files"], files, strict=True):
        dataset = data.load("digits", image_size=8)
        expected = evaluate_file(path, *dataset.sample("test", 60))
        assert file["accuracy"] == pytest.approx(expected)
    for name in ("bench.png", "bench_dark.png"):
        assert (run / "plots" / name).stat().st_size > 10_000
    page = run / "report.html"
    page.unlink()
    assert invoke("report", run).stdout.strip() == str(page)
    text = page.read_text(encoding="utf-8")
    assert 'id="benchmarks"' in text
    assert "on 60 test samples of digits" in text
    # Without data or a folder: the table alone.
    result = invoke("bench", files[0], "--repeats", 3)
    assert result.exit_code == 0, result.output
    assert "local, 1 thread" in result.stdout
    assert "Accuracy" not in result.stdout
    # A target that can't be reached is named; what the others measured is kept.
    partly = invoke(
        *("bench", files[0], "--repeats", 3, "--output", tmp_path / "partly"),
        *("--target", "local", "--target", "ssh://nobody@127.0.0.1:1"),
    )
    assert partly.exit_code == 2
    assert "a.tflite" in partly.stdout
    assert "error: some targets could not measure: ssh://nobody@127.0.0.1:1" in partly.stderr
    kept = json.loads((tmp_path / "partly" / "bench.json").read_text(encoding="utf-8"))
    assert [entry["target"] for entry in kept["runs"]] == ["local"]
    assert [entry["target"] for entry in kept["failures"]] == ["ssh://nobody@127.0.0.1:1"]


@pytest.mark.slow
def test_demo_ends_with_verified_files_and_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    results = answer("demo", "--folder", folder, "--epochs", 1)
    assert [row["name"] for row in results["models"]] == ["dense", "dprp", "cut"]
    assert len(results["files"]) == 12
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
    # The cut was chosen by the int8 time, if this processor can have less of it.
    plan = json.loads((folder / "joint_plan.json").read_text(encoding="utf-8"))
    budget = results["settings"]["cut"]["budget"]
    if budget.get("time") is not None:
        assert 0.5 <= budget["time"] < 1
        assert plan["cost"]["milliseconds"] <= budget["time"] * plan["dense"]["milliseconds"]
    else:
        assert plan["cost"]["parameters"] <= 0.505 * plan["dense"]["parameters"]
    judged = {row["model"]: row["format"] for row in verdict["outcomes"]}
    assert judged == {"dprp": "TFLite float32", "cut": "TFLite int8"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("widths.json")}
    again = answer("demo", "--folder", folder, "--epochs", 1)
    # What is finished is not repeated.
    assert [row["accuracy"] for row in again["models"]] == [
        row["accuracy"] for row in results["models"]
    ]
    assert before[folder / "widths.json"] == (folder / "widths.json").stat().st_mtime_ns


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
    tflite = folder / "truncated.tflite"
    tflite.write_bytes(b"\x1c\x00\x00\x00TFL3 cut off")
    one_class = folder / "one_class"
    (one_class / "only").mkdir(parents=True)
    return {
        "truncated": truncated,
        "npz": npz,
        "tflite": tflite,
        "one_class": one_class,
        "folder": folder,
    }


TRAIN = ["train", "--data", "digits", "--folder", "{folder}/r"]
CASES = [
    (
        ["train", "--model", "nope", "--data", "digits", "--folder", "{folder}/r"],
        "`--model`.*'nope'",
    ),
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
        r"`--threshold` must be .*above 0 and below 1.*1.5",
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
        "`--exclude`.*nope",
    ),
    (["fold", "{folder}/missing.keras", "{folder}/o.keras"], "missing.keras"),
    (["fold", "{truncated}", "{folder}/o.keras"], "truncated"),
    (["inspect", "{truncated}"], "truncated"),
    (["fold", "{truncated}", "{folder}/o.h5"], "`OUTPUT` must end in .keras"),
    (["export", "{truncated}", "{folder}/o.bin"], "`OUTPUT` must end in .tflite or .onnx"),
    (["bench", "{truncated}"], "`FILES`.*tflite or .onnx"),
    (["bench", "{tflite}", "--target", "raspberry"], "`--target` must be.*'raspberry'"),
    (["bench", "{tflite}", "--target", "ssh://nobody@127.0.0.1:1"], "127.0.0.1"),
    (["bench", "{tflite}"], "tflite"),
    (["bench", "{tflite}", "--data", "digits", "--mean", "3"], "`--mean` and `--std`"),
    (["report", "{folder}/nothing"], "nothing"),
    (["reproduce", "nope"], "`ROW`.*'nope'"),
    (["reproduce"], "`ROW`"),
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


@pytest.mark.slow
def test_onnx_is_quantized_too_and_unknown_kinds_are_named(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    arguments = ("export", run / "model.keras", path, "--data", "digits", "--image-size", 8)
    said = answer(*arguments, "--quantization", "int8")
    assert said["precision"] == "int8"
    plain = answer(*arguments[:2], tmp_path / "plain.onnx", *arguments[3:])
    assert path.stat().st_size < 0.6 * (tmp_path / "plain.onnx").stat().st_size
    assert plain["max_error"] < said["max_error"]
    refused = invoke(*arguments, "--quantization", "int4")
    assert refused.exit_code == 2
    assert "`--quantization`" in refused.output


def test_debug_shows_the_traceback(bad: dict[str, Path]) -> None:
    result = invoke("--debug", "inspect", bad["truncated"])
    assert isinstance(result.exception, ValueError)
