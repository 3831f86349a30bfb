"""Is training stable at learning rate 0.1 down to rank 1? Every structure, several seeds.

ResNet-20 starts at full rank, takes some steps, is cut to rank 3 and then to rank 1 everywhere,
with the steps going on at a constant learning rate of 0.1 and the paper's momentum of 0.9.
Run `python -m dprp_tf.experiments.stability --help`; finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import dprp_tf as dprp
from dprp_tf import data, zoo
from dprp_tf.data import Dataset
from dprp_tf.data.augmentation import random_crop_and_flip
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.training.resizing import resize
from dprp_tf.training.settings import STRUCTURES

__all__ = ["main", "run_one"]


def run_one(
    structure: str, seed: int, dataset: Dataset, *, steps: int, batch_size: int, rate: float = 0.1
) -> dict[str, Any]:
    """Train through the cuts and record the losses of each phase.

    Args:
        structure: How the SVD structure is kept.
        seed: Seed of weights, order and augmentation.
        dataset: Its data.
        steps: Steps in each of the three phases.
        batch_size: Images per step.
        rate: Learning rate.

    Returns:
        Per phase the application loss (mean of the last ten steps), the largest loss, the
        orthogonality error (Eq. 10), and whether everything stayed finite.

    Example:

    >>> run_one.__name__
    'run_one'
    """
    keras.utils.set_random_seed(seed)
    model = dprp.factorize(
        zoo.resnet20(preprocess=(dataset.mean, dataset.std), weight_decay=1e-4),
        settings=dprp.DPRPSettings(structure=structure, compression_weight=0.1, threshold=0.1),
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # train_on_batch calls no callbacks: the smoothed norm is told the learning rate here.
    model._learning_rate.assign(rate)
    rng = np.random.default_rng(seed)
    phases = []
    for rank in (9, 3, 1):
        cut = {layer: min(rank, int(layer.rank or 1)) for layer in model.low_rank_layers}
        if rank < 9 and all(np.all(np.isfinite(layer.factors.s)) for layer in cut):
            resize(model, cut)
        losses = []
        for step in range(steps):
            rows = rng.integers(0, len(dataset.x_train), batch_size)
            images = random_crop_and_flip(dataset.x_train[rows], seed=step)
            logs = model.train_on_batch(
                ops.cast(images, "float32"), dataset.y_train[rows], return_dict=True
            )
            losses.append(float(logs["app_loss"]))
            model.reset_metrics()
            if not math.isfinite(losses[-1]):
                break
        finite = all(math.isfinite(value) for value in losses) and all(
            np.all(np.isfinite(values)) for layer in cut for values in layer.factors
        )
        phases.append(
            {
                "rank": rank,
                "finite": finite,
                "app_loss": float(np.mean(losses[-10:])) if finite else None,
                "largest_app_loss": max(losses) if finite else None,
                "orthogonality": float(model.structural_losses()["orth"]) if finite else None,
            }
        )
        if not finite:
            break
    return {"structure": structure, "seed": seed, "learning_rate": rate, "phases": phases}


def main(arguments: list[str] | None = None) -> int:
    """Run the study from the command line.

    Args:
        arguments: Command-line arguments. Default: those of the process.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10: its name or a .npz")
    parser.add_argument("--out", type=Path, default=Path("results/stability/stability.json"))
    parser.add_argument("--steps", type=int, default=60, help="steps per phase")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    dataset = data.load(chosen.data)
    record: dict[str, Any] = {"batch_size": chosen.batch_size, "steps": chosen.steps, "runs": []}
    if chosen.out.exists():
        record = read_json(chosen.out)
    done = {(run["structure"], run["seed"]) for run in record["runs"]}
    for seed in range(chosen.seeds):
        for structure in STRUCTURES:
            if (structure, seed) in done:
                continue
            run = run_one(
                structure, seed, dataset, steps=chosen.steps, batch_size=chosen.batch_size
            )
            record["runs"].append(run)
            write_json(chosen.out, record)
            summary = [
                (phase["rank"], phase["finite"], phase["app_loss"]) for phase in run["phases"]
            ]
            print(structure, seed, summary, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
