"""A step of LeSS on ResNet-20 beside a plain training step, interleaved in one process.

`python benchmarks/less_step.py --out results/benchmarks/less_step.json`; with KERAS_BACKEND=jax it
measures that backend. A refresh of the singular vectors, due every ten steps by default, is timed
by itself and added to each step by its share. Ratios of medians are what counts.
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

from dprp_tf import zoo
from dprp_tf.channels import channel_groups, follow, places_of
from dprp_tf.files.atomic import write_json
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.selection.methods.less import LeSS
from dprp_tf.selection.solving.soft_costs import SoftCosts

__all__ = ["main"]


def _soft(model: keras.Model, learning: LeSS) -> keras.Model:
    groups = [group for group in channel_groups(model).values() if group.prunable]
    places = places_of(model, follow(model), groups)
    names = factorizable(model)[0]
    factorized = [layer.key for layer in places.layers if layer.key in names]
    costs = SoftCosts(model, places, factorized, ["macs"])
    soft = learning.soften(model, places, costs, {"macs": 0.5})
    soft.compile(
        keras.optimizers.Adam(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return soft


def main() -> int:
    """Measure and print the ratios.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps of each model per round")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((chosen.batch_size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, chosen.batch_size)
    keras.utils.set_random_seed(0)
    learning = LeSS()
    soft = _soft(zoo.resnet20(), learning)
    models = {"plain": compiled(zoo.resnet20()), "less": soft}
    for model in models.values():
        model.train_on_batch(x, y)
    times = time_steps(models, x, y, rounds=chosen.rounds, steps=chosen.steps)
    refreshes = []
    for _ in range(5):
        began = time.perf_counter()
        soft.refresh()
        refreshes.append(time.perf_counter() - began)
    plain = statistics.median(times.wall["plain"])
    refresh = statistics.median(refreshes)
    result: dict[str, Any] = {
        "backend": keras.backend.backend(),
        "batch_size": chosen.batch_size,
        "rounds": chosen.rounds,
        "steps_per_round": chosen.steps,
        "plain_median_seconds": plain,
        "refresh_seconds": refresh,
        "less": times.ratios("less"),
    }
    whole = result["less"]["wall"] + refresh / learning.refresh / plain
    result["wall_with_refresh"] = whole
    print(
        f"less: wall {result['less']['wall']:.3f}, processor {result['less']['processor']:.3f}, "
        f"refresh {1000 * refresh:.0f} ms; wall with a refresh every {learning.refresh} steps "
        f"{whole:.3f}"
    )
    if chosen.out:
        write_json(chosen.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
