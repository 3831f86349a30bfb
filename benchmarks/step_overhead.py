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

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.files.atomic import write_json

__all__ = ["main"]


def _compiled(model: keras.Model) -> keras.Model:
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _models(names: list[str]) -> dict[str, keras.Model]:
    keras.utils.set_random_seed(0)
    plain = zoo.resnet20()
    made = {"plain": _compiled(plain)}
    for name in names:
        matricization, structure, *period = name.split(":")
        made[name] = _compiled(
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
    wall: dict[str, list[float]] = {name: [] for name in models}
    processor: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(chosen.rounds):
        for name, model in models.items():
            began, began_processor = time.perf_counter(), time.process_time()
            for _ in range(chosen.steps):
                model.train_on_batch(x, y)
            processor[name].append((time.process_time() - began_processor) / chosen.steps)
            wall[name].append((time.perf_counter() - began) / chosen.steps)
    result: dict[str, Any] = {
        "backend": keras.backend.backend(),
        "batch_size": chosen.batch_size,
        "rounds": chosen.rounds,
        "steps_per_round": chosen.steps,
        "first_step_seconds": tracing,
        "plain_median_seconds": {
            "wall": statistics.median(wall["plain"]),
            "processor": statistics.median(processor["plain"]),
        },
        "ratios": {},
    }
    for name in chosen.variants:
        ratios: dict[str, Any] = {
            kind: statistics.median(times[name]) / statistics.median(times["plain"])
            for kind, times in (("wall", wall), ("processor", processor))
        }
        pairs = sorted(a / b for a, b in zip(processor[name], processor["plain"], strict=True))
        ratios["processor_quartiles"] = [pairs[len(pairs) // 4], pairs[(3 * len(pairs)) // 4]]
        result["ratios"][name] = ratios
        print(
            f"{name:28} processor {ratios['processor']:.3f} "
            f"({pairs[len(pairs) // 4]:.3f} to {pairs[(3 * len(pairs)) // 4]:.3f})  "
            f"wall {ratios['wall']:.3f}  first step {tracing[name]:.1f} s"
        )
    if chosen.out:
        write_json(chosen.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
