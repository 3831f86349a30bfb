"""ResNet-18 at 224x224 with fewer channels: its int8 time as planned, and as measured.

`python benchmarks/planned_widths.py --out results/benchmarks/planned_widths.json`. Random weights:
structures are compared, not accuracies. Channels go by the norms of their filters until both the
MACs and the time asked for are met; the files are timed in turns with the dense one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import dprp_tf as dprp
from dprp_tf import deploy, zoo
from dprp_tf.deploy.planning.form_costs import Setting
from dprp_tf.deploy.targets import resolve_target
from dprp_tf.files.atomic import write_json

__all__ = ["main"]

# Shares of the MACs, and of the int8 time, that both are to be met.
_ASKED = ((0.5, 0.55), (0.3, 0.36))


def main() -> int:
    """Measure and print predicted and measured times.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--points", type=int, default=4, help="widths measured on each axis")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = zoo.resnet18()
    images = np.random.default_rng(0).normal(size=(8, 224, 224, 3)).astype("float32")
    setting = Setting(resolve_target("local"), "litert", "int8")
    began = time.perf_counter()
    table = deploy.measure_widths(model, precision="int8", points=chosen.points, rounds=10)
    result: dict[str, Any] = {"table_seconds": round(time.perf_counter() - began), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        networks = {"dense": model}
        for macs, share in _ASKED:
            budget = dprp.Budget(macs=macs, time=share)
            plan = dprp.select_channels(model, method="l2", budget=budget, latency=table)
            name = f"channels_{macs}"
            networks[name] = dprp.cut(model, plan)
            result["rows"].append({"name": name, "asked": {"macs": macs, "time": share}})
            result["rows"][-1]["shares"] = dict(plan.shares)
        for name, network in networks.items():
            # Outputs of random weights are too alike for a comparison to mean anything.
            paths.append(setting.convert(network, Path(folder, name), integer_io=False))
        timed = deploy.compare(paths, repeats=chosen.repeats, inputs=images[:1])
    for row, ratio in zip(result["rows"], timed.ratios[1:], strict=True):
        row["measured"] = {"time": ratio.ratio, "low": ratio.low, "high": ratio.high}
        print(f"{row['name']}: {row['shares']}, measured {row['measured']}")
    if chosen.out is not None:
        write_json(chosen.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
