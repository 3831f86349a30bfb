"""Latency of planned folds against the dense network, beside their MACs and the prediction.

ResNet-18 at 224x224 and ResNet-20 at 32x32, spatial rank 3 and channel rank S/2 in every 3x3
convolution but the stem, LiteRT and ONNX Runtime, float32 and int8, one thread, random weights:
latency does not depend on the values. Each combination is one process-wide interleaved run: the
dense fold, every layer in two stages, and the plan. Goes on where it stopped.

    python benchmarks/fold_plan.py --out results/benchmarks/fold_plan.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from dprp_tf.deploy.planning.planner import plan_fold

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.costs.layer_forms import own_form
from dprp_tf.costs.models import model_cost
from dprp_tf.deploy import measure_files, resolve_target
from dprp_tf.deploy.measurement.intervals import ratio_interval
from dprp_tf.deploy.planning.form_costs import Setting
from dprp_tf.files.atomic import write_json
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.layers import low_rank_layers

__all__ = ["main"]

NETWORKS = ("resnet18", "resnet20")
MATRICIZATIONS = ("spatial", "channel")
RUNTIMES = ("litert", "onnxruntime")
PRECISIONS = ("float32", "int8")


def lowrank_network(network: str, matricization: str) -> keras.Model:
    """Factorize every 3x3 convolution but the stem: spatial rank 3, channel rank S/2."""
    keras.utils.set_random_seed(0)
    model = zoo.build(network)
    ranks = {
        layer.name: 3 if matricization == "spatial" else layer.filters // 2
        for layer in walk_layers(model)
        if isinstance(layer, keras.layers.Conv2D)
        and layer.kernel_size == (3, 3)
        and not layer.name.startswith("stem")
    }
    return dprp.factorize(model, decomposition=matricization, ranks=ranks, layers=list(ranks))


def measure(
    model: keras.Model, runtime: str, precision: str, rounds: int, cache: Path | None, target: str
) -> dict[str, Any]:
    """Plan a model, then time dense, two-stage and planned folds in turns."""
    found = plan_fold(
        model, target=target, runtime=runtime, precision=precision, rounds=rounds, cache=cache
    )
    setting = Setting(resolve_target(target), runtime, precision)
    names = [layer.name for layer in low_rank_layers(model)]
    folds = {
        "dense": dprp.fold(model, forms=dict.fromkeys(names, "dense")),
        "two_stage": dprp.fold(model, form="two_stage"),
        "planned": dprp.fold(model, plan=found),
    }
    macs = {name: int(model_cost(folded).macs or 0) for name, folded in folds.items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            setting.convert(folded, Path(folder) / name, integer_io=False)
            for name, folded in folds.items()
        ]
        results = dict(
            zip(
                folds,
                measure_files(paths, warmup=5, repeats=2 * rounds, target=target, memory=False),
                strict=True,
            )
        )
    row: dict[str, Any] = {
        "unit": found.unit,
        "processor": found.processor,
        "runtime_version": found.runtime_version,
        "dense_cost": results["dense"].cost,
        "warnings": sorted({w for result in results.values() for w in result.warnings}),
        "forms": {layer.name: str(layer.form) for layer in found.layers},
        "plan_ratio_when_planned": found.ratio,
        "notes": list(found.notes),
    }
    for name in ("two_stage", "planned"):
        ratio, low, high = ratio_interval(results[name].samples, results["dense"].samples)
        macs_ratio = macs[name] / macs["dense"]
        row[name] = {
            "ratio": ratio,
            "low": low,
            "high": high,
            "macs_ratio": macs_ratio,
            "ratio_to_macs_ratio": ratio / macs_ratio,
            "size_ratio": results[name].size_bytes / results["dense"].size_bytes,
        }
    # What the layers' costs sum up to, for the plan and for all two-stage forms alike.
    own = {layer.name: own_form(layer) for layer in low_rank_layers(model)}
    dense_sum = sum(layer.dense.cost for layer in found.layers)
    sums = {
        "planned": sum(layer.chosen.cost for layer in found.layers),
        "two_stage": sum(
            next(c.cost for c in layer.candidates if c.form == own[layer.name])
            for layer in found.layers
        ),
    }
    for name, total in sums.items():
        predicted = 1 + (total - dense_sum) / found.dense_cost
        row[name]["predicted_ratio"] = predicted
        row[name]["predicted_to_measured"] = predicted / row[name]["ratio"]
    return row


def main() -> None:
    """Run what is missing, keep it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON that grows with each run")
    parser.add_argument("--only", default="", help="substring of the combinations to run")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--target", default="local")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    for network, matricization in itertools.product(NETWORKS, MATRICIZATIONS):
        model = None
        for runtime, precision in itertools.product(RUNTIMES, PRECISIONS):
            key = f"{network} {matricization} {runtime} {precision}"
            if key in rows or options.only not in key:
                continue
            model = model or lowrank_network(network, matricization)
            rows[key] = measure(
                model, runtime, precision, options.rounds, options.cache, options.target
            )
            write_json(options.out, rows)
    print(
        "| | MACs, two-stage | two-stage | predicted / measured "
        "| MACs, planned | planned | planned / MACs | predicted / measured |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for key, row in rows.items():
        two, planned = row["two_stage"], row["planned"]
        print(
            f"| {key} | {two['macs_ratio']:.3f} "
            f"| {two['ratio']:.3f} ({two['low']:.3f}..{two['high']:.3f}) "
            f"| {two['predicted_to_measured']:.3f} | {planned['macs_ratio']:.3f} "
            f"| {planned['ratio']:.3f} ({planned['low']:.3f}..{planned['high']:.3f}) "
            f"| {planned['ratio_to_macs_ratio']:.2f} | {planned['predicted_to_measured']:.3f} |"
        )


if __name__ == "__main__":
    main()
