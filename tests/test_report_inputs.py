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

from dprp_tf.report.comparison import files_table, models_table, verdict
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


def make_history(epochs: int = 20, dprp: bool = True, structure: str = "smoothed") -> dict[str, Any]:
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
            "matricization": "spatial",
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
                "matricization": "spatial",
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
