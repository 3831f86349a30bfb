"""One fine-tuning step of a cut ResNet-20 with its teacher beside one without, interleaved.

`python benchmarks/distillation_step.py --out results/benchmarks/distillation_step.json`; with
KERAS_BACKEND=jax it measures that backend. The students are ResNet-20 at half of the ranks, folded,
and the dense network itself; the teacher is the dense one. Ratios of medians are what counts:
absolute times on a shared machine mean little.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

import keras
import numpy as np
from interleaved import compiled, time_steps

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.decomposition import full_rank
from dprp_tf.files.atomic import write_json
from dprp_tf.keras_internals.graphs import layer_keys

__all__ = ["main"]


def _halved(dense: keras.Model) -> keras.Model:
    ranks = {
        key: max(1, full_rank(layer.kernel.shape, "separable") // 2)
        for key, layer in layer_keys(dense).items()
        if hasattr(layer, "kernel")
    }
    lowrank = dprp.factorize(dense, decomposition="separable", ranks=ranks)
    return dprp.fold(lowrank)


def _taught(model: keras.Model, teacher: keras.Model, features: tuple[str, ...]) -> keras.Model:
    teaching = dprp.Distillation(teacher, features=features)
    teaching.set_model(model)
    teaching.on_train_begin()
    return model


def _models() -> dict[str, dict[str, keras.Model]]:
    keras.utils.set_random_seed(0)
    dense = zoo.resnet20()
    features = tuple(
        key for key, layer in layer_keys(dense).items() if isinstance(layer, keras.layers.Add)
    )[2::3]
    made: dict[str, dict[str, keras.Model]] = {}
    for name, student in (("cut", _halved), ("dense", keras.models.clone_model)):
        plain, taught, both = (compiled(student(dense), nesterov=True) for _ in range(3))
        made[name] = {
            "plain": plain,
            "taught": _taught(taught, dense, ()),
            "with features": _taught(both, dense, features),
        }
    return made


def main() -> int:
    """Measure and print the ratios.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="steps of each model per round")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((chosen.batch_size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, chosen.batch_size)
    result: dict[str, Any] = {
        "backend": keras.backend.backend(),
        "batch_size": chosen.batch_size,
        "rounds": chosen.rounds,
        "steps_per_round": chosen.steps,
        "load_at_the_start": os.getloadavg()[0],
        "students": {},
    }
    for student, models in _models().items():
        for model in models.values():
            for _ in range(2):
                model.train_on_batch(x, y)
        times = time_steps(models, x, y, rounds=chosen.rounds, steps=chosen.steps)
        row: dict[str, Any] = {"plain_median_seconds": statistics.median(times.wall["plain"])}
        for name in ("taught", "with features"):
            ratios = row[name] = times.ratios(name)
            low, high = ratios["processor_quartiles"]
            print(
                f"{student:6} {name:14} processor {ratios['processor']:.3f} "
                f"({low:.3f} to {high:.3f})  wall {ratios['wall']:.3f}"
            )
        result["students"][student] = row
    result["load_at_the_end"] = os.getloadavg()[0]
    if chosen.out:
        write_json(chosen.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
