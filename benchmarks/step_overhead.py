"""One training step of factorized ResNet-20 beside the plain one, interleaved in one process.

`python benchmarks/step_overhead.py --out results/benchmarks/step_overhead.json`; with
KERAS_BACKEND=jax it measures that backend. Ratios of medians are what counts: absolute times on a
shared machine mean little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from interleaved import compiled, time_steps

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.files.atomic import write_json

__all__ = ["main"]


def _models(names: list[str]) -> dict[str, keras.Model]:
    keras.utils.set_random_seed(0)
    plain = zoo.resnet20()
    made = {"plain": compiled(plain)}
    for name in names:
        matricization, structure, *period = name.split(":")
        made[name] = compiled(
            dprp.factorize(
                plain,
                decomposition=matricization,
                settings=dprp.DPRPSettings(
                    structure=structure, retraction_period=int(period[0]) if period else None
                ),
            )
        )
    return made


def main() -> int:
    """Measure and print the ratios.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps of each model per round")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["spatial:retraction", "spatial:smoothed", "spatial:paper", "channel:retraction"],
        help="matricization:structure[:retraction period]",
    )
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((chosen.batch_size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, chosen.batch_size)
    models = _models(chosen.variants)
    tracing = {}
    for name, model in models.items():
        began = time.perf_counter()
        model.train_on_batch(x, y)
        tracing[name] = round(time.perf_counter() - began, 2)
    times = time_steps(models, x, y, rounds=chosen.rounds, steps=chosen.steps)
    result: dict[str, Any] = {
        "backend": keras.backend.backend(),
        "batch_size": chosen.batch_size,
        "rounds": chosen.rounds,
        "steps_per_round": chosen.steps,
        "first_step_seconds": tracing,
        "plain_median_seconds": {
            "wall": statistics.median(times.wall["plain"]),
            "processor": statistics.median(times.processor["plain"]),
        },
        "ratios": {},
    }
    for name in chosen.variants:
        ratios = result["ratios"][name] = times.ratios(name)
        low, high = ratios["processor_quartiles"]
        print(
            f"{name:28} processor {ratios['processor']:.3f} ({low:.3f} to {high:.3f})  "
            f"wall {ratios['wall']:.3f}  first step {tracing[name]:.1f} s"
        )
    if chosen.out:
        write_json(chosen.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
