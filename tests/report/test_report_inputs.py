"""Synthetic run folders for the tests of the report, and tests of how they are read.

Every figure here is made up to look like a run of the demo; none was measured.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from dprp_tf.report.formatting import (
    change_text,
    clean_name,
    count_text,
    duration_text,
    error_text,
    milliseconds_text,
    number,
    percent_text,
    points_text,
    ratio_text,
    short_count_text,
    size_text,
)
from dprp_tf.report.loading import load_run
from dprp_tf.report.tables.files import files_table
from dprp_tf.report.tables.models import models_table
from dprp_tf.report.verdict import verdict


def make_ranks(layers: int = 7, epochs: int = 20, full_rank: int = 9) -> dict[str, Any]:
    """Make `ranks.json` of a run whose ranks fall after a third of its epochs."""
    random.seed(7)
    names = [f"stage{1 + i * 3 // layers}_block{i // 2}_conv{i % 2 + 1}" for i in range(layers)]
    full = {name: full_rank * (1 + 2 * (i * 3 // layers)) for i, name in enumerate(names)}
    finals = {name: max(1, round(full[name] * random.uniform(0.2, 0.7))) for name in names}
    entries = []
    for epoch in range(epochs + 1):
        progress = min(1.0, max(0.0, epoch / max(epochs, 1) - 0.3) / 0.6)
        ranks = {n: round(full[n] + (finals[n] - full[n]) * progress) for n in names}
        total = sum(ranks.values())
        share = total / sum(full.values())
        entries.append(
            {
                "epoch": epoch,
                "parameters": round(274_300 * share),
                "macs": round(40_900_000 * share),
                "total_rank": total,
                "ranks": ranks,
                "singular_values": {
                    n: [
                        3.0 * math.exp(-j * (0.6 + 1.5 * progress) / (full[n] / 6))
                        for j in range(ranks[n])
                    ]
                    for n in names
                },
            }
        )
    return {
        "layers": names,
        "full_ranks": full,
        "baseline_parameters": 272_474,
        "baseline_macs": 40_550_000,
        "epochs": entries,
    }


def make_history(
    epochs: int = 20, dprp: bool = True, structure: str = "smoothed"
) -> dict[str, Any]:
    """Make `history.json`; the retraction structure has zero structure losses."""
    random.seed(3)
    runs: dict[str, Any] = {"dense": []}
    for epoch in range(1, epochs + 1):
        loss = 2.2 * math.exp(-epoch / 5) + 0.06
        runs["dense"].append(
            {
                "epoch": epoch,
                "loss": loss,
                "accuracy": 1 - 0.4 * loss,
                "val_loss": loss * 1.2 + random.uniform(0, 0.05),
                "val_accuracy": 0.985 - 0.36 * loss,
                "learning_rate": 0.1,
                "seconds": 2.5,
            }
        )
    if dprp:
        runs["dprp"] = []
        for epoch in range(1, epochs + 1):
            loss = 2.3 * math.exp(-epoch / 5.5) + 0.08
            structure_loss = 0.0 if structure == "retraction" else 0.02 * math.exp(-epoch / 6)
            runs["dprp"].append(
                {
                    "epoch": epoch,
                    "loss": loss + structure_loss * 1.1 + 0.09,
                    "accuracy": 1 - 0.4 * loss,
                    "val_loss": loss * 1.25 + 0.1,
                    "val_accuracy": 0.98 - 0.36 * loss,
                    "learning_rate": 0.1,
                    "seconds": 2.9,
                    "app_loss": loss,
                    "orth_loss": structure_loss,
                    "sort_loss": structure_loss * 0.1 if epoch % 3 else 0.0,
                    "comp_loss": 0.1 * 0.98**epoch,
                    "total_rank": 189 - 4 * epoch,
                    "parameters": 274_300 - 5_000 * epoch,
                }
            )
    return {"runs": runs}


def make_results(achieved: bool = True, layers: int = 7) -> dict[str, Any]:
    """Make `results.json` with a dense and a DPRP file in five formats."""
    ranks = make_ranks(layers)
    final = ranks["epochs"][-1]["ranks"]
    files = []
    for name, stem, size, accuracy, latency in (
        ("TFLite float32", "float32.tflite", 1_105_648, 0.9861, 0.412),
        ("TFLite float16", "float16.tflite", 561_200, 0.9861, 0.418),
        ("TFLite dynamic range", "dynamic.tflite", 301_520, 0.9833, 0.301),
        ("TFLite int8", "int8.tflite", 312_240, 0.9806, 0.228),
        ("ONNX float32", "float32.onnx", 1_098_210, 0.9861, 0.377),
    ):
        for model, smaller, faster, lost in (("dense", 1, 1, 0), ("dprp", 0.59, 0.63, 0.0028)):
            median = latency * faster
            files.append(
                {
                    "model": model,
                    "format": name,
                    "file": f"{model}_{stem}",
                    "size_bytes": round(size * smaller),
                    "accuracy": accuracy - lost,
                    "max_error": 3.1e-7 if "32" in name else 1.2e-2,
                    "top1_agreement": 1.0 if "32" in name else 0.9944,
                    "verified": True,
                    "latency_ms": {"median": median, "p10": median * 0.97, "p90": median * 1.08},
                    "latency_ratio": None if model == "dense" else faster,
                    "latency_ratio_interval": None if model == "dense" else [0.6, 0.66],
                    "peak_memory_bytes": 4_200_000,
                }
            )
    return {
        "title": "DPRP on handwritten digits",
        "created": "2025-11-21T11:40:03+00:00",
        "command": "dprp demo --epochs 20 --seed 1",
        "settings": {
            "model": "demo_resnet",
            "epochs": 20,
            "batch_size": 64,
            "learning_rate": 0.1,
            "compression_weight": 0.5,
            "threshold": 0.1,
            "structure": "smoothed",
            "decomposition": "spatial",
            "seed": 1,
        },
        "data": {
            "name": "digits",
            "classes": 10,
            "train": 1437,
            "test": 360,
            "image_shape": [8, 8, 1],
        },
        "headline": {
            "achieved": achieved,
            "text": "The DPRP file is 41 % smaller and takes 0.63 times the time of the dense one, "
            "0.28 points of accuracy apart."
            if achieved
            else "The DPRP file is smaller, but it is not faster than the dense one.",
            "checks": [
                {"name": "Smaller", "passed": True, "detail": "652 kB against 1.11 MB"},
                {"name": "Faster", "passed": achieved, "detail": "ratio 0.63, at most 0.66"},
                {"name": "Within one point", "passed": True, "detail": "98.33 % against 98.61 %"},
            ],
        },
        "models": [
            {
                "name": "dense",
                "label": "Dense",
                "accuracy": 0.9861,
                "parameters": 272_474,
                "macs": 40_550_000,
                "trained_parameters": None,
            },
            {
                "name": "dprp",
                "label": "DPRP",
                "accuracy": 0.9833,
                "parameters": 160_760,
                "macs": 23_900_000,
                "trained_parameters": 171_020,
            },
        ],
        "files": files,
        "layers": [
            {
                "name": name,
                "type": "SVDConv2D",
                "decomposition": "spatial",
                "full_rank": ranks["full_ranks"][name],
                "rank": final[name],
                "form": "branches" if index % 3 else "dense",
                "dense_parameters": 9_216,
                "folded_parameters": 9_216 * final[name] // ranks["full_ranks"][name],
            }
            for index, name in enumerate(ranks["layers"])
        ],
        "skipped": [
            {"name": "stage2_shortcut", "reason": "1x1 kernel: no spatial matrix to factorize"},
            {"name": "classifier", "reason": "no rank saves parameters"},
        ],
        "timing": {
            "dense training": 48.2,
            "DPRP training": 61.9,
            "retracing": 3.4,
            "export and checks": 25.0,
            "benchmark": 31.75,
        },
    }


def write_run(folder: Path, **parts: dict[str, Any] | None) -> Path:
    """Write the given parts of a run as JSON files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in parts.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (count_text(272_474), "272,474"),
        (count_text(-5), "\u22125"),
        (count_text(math.nan), "\u2013"),
        (count_text(True), "\u2013"),
        (short_count_text(999), "999"),
        (short_count_text(999_600), "1.00 M"),
        (short_count_text(0), "0"),
        (size_text(411_964), "412 kB"),
        (size_text(318), "318 B"),
        (percent_text(1.0), "100.00 %"),
        (change_text(59, 100), "\u221241 %"),
        (change_text(100.67, 100), "+0.67 %"),
        (change_text(99.96, 100), "\u22120.040 %"),
        (change_text(5, 5), "±0 %"),
        (change_text(5, 0), ""),
        (change_text(None, 5), ""),
        (points_text(0.98, 0.983), "\u22120.30 pt"),
        (points_text(0.98, 0.98), "±0.00 pt"),
        (ratio_text(0.631, [0.6, 0.66]), "0.63\u00d7 [0.60, 0.66]"),
        (ratio_text(0.631, [0.6]), "0.63\u00d7"),
        (ratio_text(0.0312), "0.031\u00d7"),
        (milliseconds_text(9.996), "10.0 ms"),
        (milliseconds_text(1234.5), "1,234 ms"),
        (duration_text(59.97), "1 min 0 s"),
        (duration_text(7_199), "2 h 0 min"),
        (error_text(3.14e-7), "3.1e\u221207"),
        (clean_name("a\nb\x00\tc"), "a b c"),
    ],
)
def test_numbers_read_as_people_write_them(said: str, expected: str) -> None:
    assert said == expected


def test_names_are_shortened_in_the_middle() -> None:
    short = clean_name("block_" + "x" * 80 + "_conv", limit=26)
    assert len(short) == 26
    assert short.startswith("block_")
    assert short.endswith("_conv")


@pytest.mark.parametrize("value", [None, "12", math.inf, math.nan, [], True, 10**400])
def test_what_is_not_a_finite_number_is_nan(value: Any) -> None:
    assert math.isnan(number(value))


def test_a_missing_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*dprp demo"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds none of them"):
        load_run(tmp_path)
    (tmp_path / "a_file").write_text("")
    with pytest.raises(FileNotFoundError, match="which is a file"):
        load_run(tmp_path / "a_file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"epochs": [', r"ranks\.json must hold valid JSON.*Repeat the run"),
        (b"\xff\xfe\x00", r"ranks\.json must hold valid JSON"),
        (b"[1, 2]", r"ranks\.json must hold a JSON object.*list"),
    ],
)
def test_a_broken_file_is_named_with_the_way_out(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "ranks.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    ranks = make_ranks(3, epochs=2)
    run = load_run(write_run(tmp_path / "run", ranks=ranks))
    assert run.ranks == ranks
    assert run.history is None
    assert run.results is None


def test_models_stand_beside_the_dense_one_wherever_it_is_listed() -> None:
    results = make_results()
    results["models"].reverse()
    table = models_table(results)
    assert [row[0].text for row in table.rows] == ["Dense", "DPRP"]
    parameters = table.rows[1][2]
    assert (parameters.text, parameters.note, parameters.tone) == (
        "160,760",
        "\u221241 %",
        "better",
    )
    accuracy = table.rows[1][1]
    assert (accuracy.text, accuracy.note, accuracy.tone) == ("98.33 %", "\u22120.28 pt", "worse")


def test_columns_without_a_figure_are_left_out() -> None:
    files = [{"model": "dense", "format": "ONNX", "size_bytes": 10}]
    assert [column.title for column in files_table({"files": files}).columns] == [
        "Format",
        "Model",
        "Size",
    ]


@pytest.mark.parametrize(
    ("ratio", "interval", "tone"),
    [
        (0.63, [0.6, 0.66], "better"),
        (0.98, [0.94, 1.03], ""),
        (1.12, [1.08, 1.15], "worse"),
        (1.12, None, "worse"),
    ],
)
def test_a_latency_counts_only_when_its_interval_excludes_one(
    ratio: float, interval: list[float] | None, tone: str
) -> None:
    file = {"model": "dprp", "latency_ratio": ratio, "latency_ratio_interval": interval}
    table = files_table({"files": [file]})
    column = [column.title for column in table.columns].index("Latency ratio")
    assert table.rows[0][column].tone == tone


def test_an_unverified_file_stands_out() -> None:
    results = make_results()
    results["files"][3]["verified"] = False
    table = files_table(results)
    column = [column.title for column in table.columns].index("Max. error")
    assert [row[column].note for row in table.rows].count("NOT VERIFIED") == 1
    assert table.rows[3][column].tone == "worse"


def test_one_failed_check_withholds_the_verdict() -> None:
    results = make_results()
    results["headline"]["checks"][0]["passed"] = False
    outcome = verdict(results)
    assert outcome.achieved is False
    assert outcome.text.startswith("1 of 3 checks failed")


def test_lists_of_the_wrong_kind_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`models` must be a list of objects"):
        models_table({"models": {"dense": 1}})
    with pytest.raises(ValueError, match="`headline` must be an object"):
        verdict({"headline": "achieved"})
