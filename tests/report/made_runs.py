"""Run folders whose figures are made up to look like a run of the demo; none was measured."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from dprp_tf.files.atomic import write_json


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


FILES = (
    ("dense_float32.tflite", 1_105_648, 0.9861, 1.0),
    ("dprp_float32.tflite", 652_300, 0.9833, 0.63),
    ("dense_int8.tflite", 312_240, 0.9833, 0.55),
    ("dprp_int8.tflite", 184_900, 0.9806, 0.44),
)


BUSY = (
    "Busy machine: other work kept 1.6 of 4 CPUs busy during a run of 1 thread. Stop what else "
    "runs there and measure again; ratios suffer less than times."
)


DRIFT = (
    "Thermal drift: the last third of the samples took 12 % longer than the first. Let the machine "
    "cool, or cool it better; ratios of files timed in turns stay fair."
)


def make_bench(with_accuracy: bool = True) -> dict[str, Any]:
    """Make `bench.json` of four files on two timed targets and an emulated one; none measured."""
    random.seed(5)
    runs: list[dict[str, Any]] = []
    for target, threads, milliseconds, processor in (
        ("local", 1, 0.412, "Example 3000 @ 2.10GHz"),
        ("local", 2, 0.268, "Example 3000 @ 2.10GHz"),
        ("ssh://pi@raspberrypi.local:22", 1, 3.71, "Cortex-A72"),
        ("qemu:cortex-a72", 1, None, "Cortex-A72"),
    ):
        results, ratios = [], []
        for position, (name, size, _, share) in enumerate(FILES):
            slow = share * random.uniform(0.96, 1.04) if position else 1.0
            result: dict[str, Any] = {
                "path": f"runs/demo/{name}",
                "target": target,
                "machine": {"architecture": "aarch64", "processor": processor, "cpus": 4},
                "runtime": "LiteRT",
                "runtime_version": "2.3.0",
                "threads": threads,
                "size_bytes": size,
                "warnings": [BUSY] if target == "local" else [],
            }
            if milliseconds is None:
                result |= {"median_ms": None, "instructions": round(9_412_345 * slow)}
            else:
                median = milliseconds * slow
                result |= {
                    "median_ms": median,
                    "p10_ms": median * 0.97,
                    "p90_ms": median * 1.08,
                    "instructions": None,
                    "peak_memory_bytes": 61_000_000 + size,
                    "cold_start_ms": 92.1 * slow,
                }
            results.append(result)
            ratios.append({"ratio": slow, "low": slow - 0.02, "high": slow + 0.02})
        runs.append(
            {
                "target": target,
                "threads": threads,
                "unit": "ms" if milliseconds else "instructions",
                "results": results,
                "ratios": ratios,
            }
        )
    runs[2]["results"][3]["warnings"] = [DRIFT]
    return {
        "created": "2025-11-21T12:00:00+00:00",
        "files": [
            {
                "path": f"runs/demo/{name}",
                "name": name,
                "size_bytes": size,
                "accuracy": accuracy if with_accuracy else None,
            }
            for name, size, accuracy, _ in FILES
        ],
        "runs": runs,
        "failures": [
            {"target": "adb://serial", "threads": 1, "message": "adb://serial: no such device."}
        ],
    }


def make_plan(layers: int = 6) -> dict[str, Any]:
    """Make `plan.json` as a planner writes it."""
    random.seed(2)
    rows = []
    for index in range(layers):
        dense = 0.02 * (1 + index)
        ratios = {"dense": 1.0, "summed": 0.5 + 0.1 * index, "concatenated": 0.45 + 0.13 * index}
        if index > 2:
            ratios["channel"] = 0.8
        form = min(ratios, key=lambda name: ratios[name])
        rows.append(
            {
                "name": f"stage{1 + index // 2}_block{index % 2}_conv1",
                "form": form,
                "ranks": [] if form == "dense" else [3],
                "dense_cost": dense,
                "cost": dense * ratios[form],
                "reason": f"{form} takes {ratios[form]:.2f} of the dense layer's time",
                "candidates": [
                    {
                        "form": name,
                        "ranks": [] if name == "dense" else [3],
                        "cost": dense * ratio,
                        "ratio": ratio,
                        "low": ratio - 0.02,
                        "high": ratio + 0.02,
                    }
                    for name, ratio in ratios.items()
                ],
            }
        )
    return {
        "version": 1,
        "runtime": "litert",
        "runtime_version": "2.3.0",
        "processor": "Example 3000 @ 2.10GHz",
        "precision": "float32",
        "threads": 1,
        "target": "local",
        "dense_macs": 40_550_000,
        "planned_macs": 24_330_000,
        "unit": "ms",
        "layers": rows,
        "dense_cost": 0.52,
        "planned_cost_predicted": 0.33,
        "planned_cost_measured": 0.352,
        "ratio": {"ratio": 0.677, "low": 0.66, "high": 0.69},
        "notes": ["2 of 6 layers stay dense: no other form was faster beyond the noise."],
    }


def make_quantization() -> list[dict[str, Any]]:
    """Make `quantization.json`."""
    return [
        {
            "name": name,
            "accuracy": accuracy,
            "bytes": size,
            "compressed_bytes": zipped,
            "agreement": agreement,
        }
        for name, accuracy, size, zipped, agreement in (
            ("float32", 0.9833, 652_300, 604_000, 1.0),
            ("float16", 0.9833, 331_200, 301_000, 1.0),
            ("int8, post-training", 0.9806, 184_900, 151_200, 0.9944),
            ("int8, quantization-aware", 0.9861, 185_100, 152_800, 0.9917),
        )
    ]


def write_run(folder: Path, **parts: dict[str, Any] | None) -> Path:
    """Write the given parts of a run as JSON files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in parts.items():
        if value is not None:
            write_json(folder / f"{name}.json", value)
    return folder
