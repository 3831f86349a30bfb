"""A training step of ResNet-20 with the modified stable rank beside a plain one, interleaved.

`python benchmarks/regularized_step.py --out results/benchmarks/regularized_step_tensorflow.json`;
with KERAS_BACKEND=jax it measures that backend. What counts is the ratio of the means over whole
windows of 64 steps, each with its decomposition of all kernels; the quartiles are those of the
ratios of neighbouring blocks of a few steps, of which one in a window holds the decomposition.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf import zoo
from dprp_tf.decomposition import full_rank
from dprp_tf.files.atomic import write_json
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.training.rank_regularization import RankRegularization

__all__ = ["main"]


def _compiled() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = zoo.resnet20()
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _half_ranks(model: keras.Model, decomposition: str) -> dict[str, int]:
    return {
        key: max(1, full_rank(layer.kernel.shape, decomposition) // 2)
        for key, layer in layer_keys(model).items()
        if hasattr(layer, "kernel")
    }


class _Steps:
    """A model and what its training does before each step."""

    def __init__(self, decomposition: str | None, refresh: int) -> None:
        self.model = _compiled()
        self.callback: RankRegularization | None = None
        self.done = 0
        if decomposition is not None:
            ranks = _half_ranks(self.model, decomposition)
            self.callback = RankRegularization(
                ranks=ranks, decomposition=decomposition, refresh=refresh
            )
            self.callback.set_model(self.model)
            self.callback.on_train_begin()
            self.callback.on_epoch_begin(0)

    def run(self, x: Any, y: Any, steps: int) -> tuple[float, float]:
        """Return the seconds of the wall clock and of the processor."""
        began, began_processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            if self.callback is not None:
                self.callback.on_train_batch_begin(self.done)
            self.model.train_on_batch(x, y)
            self.done += 1
        return time.perf_counter() - began, time.process_time() - began_processor

    def decomposition(self) -> float:
        """Return the wall clock seconds of one decomposition of all kernels."""
        assert self.callback is not None
        began = time.perf_counter()
        self.callback.on_epoch_begin(0)
        self.callback.on_train_batch_begin(0)
        return time.perf_counter() - began


def _quartiles(pairs: list[float]) -> list[float]:
    return [float(value) for value in np.percentile(pairs, (25, 50, 75))]


def main() -> int:
    """Measure and print the ratios.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--windows", type=int, default=1, help="windows of `--refresh` steps")
    parser.add_argument("--refresh", type=int, default=64, help="steps between decompositions")
    parser.add_argument("--block", type=int, default=4, help="steps of each model in turn")
    parser.add_argument("--decompositions", nargs="+", default=["spatial", "channel"])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.refresh % chosen.block:
        parser.error("--refresh must be a multiple of --block: whole windows are compared")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((chosen.batch_size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, chosen.batch_size)
    models = {"plain": _Steps(None, chosen.refresh)}
    models.update({name: _Steps(name, chosen.refresh) for name in chosen.decompositions})
    first = {}
    for name, steps in models.items():
        first[name] = steps.run(x, y, 1)[0]
        steps.run(x, y, 1)
        steps.done = 0
        if steps.callback is not None:
            steps.callback.on_epoch_begin(0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for at in range(chosen.windows * chosen.refresh // chosen.block):
        # In turn from another one: what a neighbour leaves in the caches is shared out.
        names = list(models)[at % len(models) :] + list(models)[: at % len(models)]
        for name in names:
            times[name].append(models[name].run(x, y, chosen.block))
    count = chosen.windows * chosen.refresh
    plain = np.array(times["plain"])
    result: dict[str, Any] = {
        "backend": keras.backend.backend(),
        "batch_size": chosen.batch_size,
        "steps": count,
        "refresh": chosen.refresh,
        "block": chosen.block,
        "penalty": "modified_stable_rank",
        "plain_mean_seconds": {
            "wall": float(plain[:, 0].sum() / count),
            "processor": float(plain[:, 1].sum() / count),
        },
        "ratios": {},
    }
    for name in chosen.decompositions:
        own = np.array(times[name])
        row: dict[str, Any] = {"first_step_seconds": first[name]}
        row["decomposition_seconds"] = float(
            np.median([models[name].decomposition() for _ in range(5)])
        )
        for column, kind in enumerate(("wall", "processor")):
            row[kind] = float(own[:, column].sum() / plain[:, column].sum())
            row[f"{kind}_quartiles"] = _quartiles(list(own[:, column] / plain[:, column]))
        result["ratios"][name] = row
        low, middle, high = row["processor_quartiles"]
        print(
            f"{name:10} processor {row['processor']:.3f} "
            f"(blocks {low:.3f}, {middle:.3f}, {high:.3f})  wall {row['wall']:.3f}  "
            f"decomposition {1000 * row['decomposition_seconds']:.1f} ms"
        )
    if chosen.out:
        write_json(chosen.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
