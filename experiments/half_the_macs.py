"""A small transformer, a ConvMixer and a U-Net cut to half of their MACs, tuned, and as files.

Each network is trained first, then cut by ranks, by channels and by both, and tuned for some
epochs. The U-Net marks where photos of vehicles and of animals lie on a composed canvas.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf import data as datasets
from dprp_tf import deploy, zoo
from dprp_tf.conversion.cutting import cut
from dprp_tf.conversion.writing_out import reachable
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.scores import resolve_score
from dprp_tf.data import Dataset
from dprp_tf.experiments.narrow_networks import Told
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.keras_internals.precision import in_bfloat16, in_float32
from dprp_tf.selection.selecting import select_ranks
from dprp_tf.selection.selecting_both import select_channels_and_ranks
from dprp_tf.selection.selecting_channels import select_channels
from dprp_tf.training.fine_tuning import FineTuning
from dprp_tf.training.saving import load_model, save_model

__all__ = ["composed", "main"]

_SAMPLES = 512
_CANVAS = 64
# Of CIFAR-10's classes those that move by an engine; the others are animals.
_VEHICLES = (0, 1, 8, 9)
_FORMATS = (("float32", None), ("int8", "int8"))


def composed(
    images: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Paste photos of CIFAR-10 on canvases, and say what lies where.

    Args:
        images: Photos, (n, 32, 32, 3), of values 0 to 255.
        labels: Their classes, (n,).
        count: How many canvases.
        seed: Seed of places, sizes and photos.

    Returns:
        Canvases (count, 64, 64, 3), float32 of 0 to 1, and maps (count, 64, 64): 0 for the
        background, which is a blurred photo, 1 for a vehicle, 2 for an animal.

    Example:

    >>> x, y = composed(np.zeros((9, 32, 32, 3), np.uint8), np.arange(9), 2, seed=0)
    >>> x.shape, y.shape, sorted(np.unique(y).tolist())
    ((2, 64, 64, 3), (2, 64, 64), [0, 1, 2])
    """
    rng = np.random.default_rng(seed)
    x = np.empty((count, _CANVAS, _CANVAS, 3), np.float32)
    y = np.zeros((count, _CANVAS, _CANVAS), np.int32)
    for canvas, marks in zip(x, y, strict=True):
        # 4x4 patches of another photo's means: colors of photos, and nothing to recognize.
        behind = images[rng.integers(len(images))].reshape(8, 4, 8, 4, 3).mean((1, 3))
        canvas[:] = np.kron(behind, np.ones((8, 8, 1)))
        for _ in range(rng.integers(1, 4)):
            one = rng.integers(len(images))
            side = int(rng.integers(16, 33))
            at = np.linspace(0, 31, side).round().astype(int)
            row, column = rng.integers(0, _CANVAS - side + 1, 2)
            place = slice(row, row + side), slice(column, column + side)
            canvas[place] = images[one][np.ix_(at, at)]
            marks[place] = 1 if labels[one] in _VEHICLES else 2
    return x / 255.0, y


class _Task:
    """A network, what it is trained and measured on, and how well it does."""

    def __init__(self, network: str, dataset: Dataset, canvases: int) -> None:
        self.network = network
        x, y = np.asarray(dataset.x_train), np.ravel(dataset.y_train)
        x_test, y_test = np.asarray(dataset.x_test), np.ravel(dataset.y_test)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if network == "unet":
            self.train: Any = composed(x, y, canvases, seed=0)
            self.test = composed(x_test, y_test, canvases // 4, seed=1)
            self.score = "mean_iou"
            self.build: Callable[[], keras.Model] = partial(zoo.unet, (_CANVAS, _CANVAS, 3), 3)
        else:
            mean, std = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
            self.train = dataset.normalized(mean, std)
            normal = self.train
            self.test = normal.x_test, np.ravel(normal.y_test)
            self.score = "accuracy"
            self.build = partial(zoo.build, network)

    def samples(self) -> tuple[Any, Any]:
        """Some of what it is trained on."""
        if isinstance(self.train, Dataset):
            found: tuple[Any, Any] = self.train.sample("train", _SAMPLES)
            return found
        return self.train[0][:_SAMPLES], self.train[1][:_SAMPLES]

    def of(self, model: keras.Model) -> float:
        """The score of a model on what it was not trained on."""
        x, y = self.test
        return float(resolve_score(self.score, model, y)(y, model.predict(x, verbose=0)))

    def tuned(self, model: keras.Model, folder: Path, epochs: int, rate: float) -> keras.Model:
        """A model trained, gone on with or read again."""
        path = folder / "model.keras"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            quick = in_bfloat16(model)
            settings = FineTuning(
                epochs=epochs,
                optimizer="adam",
                learning_rate=rate,
                weight_decay=1e-4,
                batch_size=128 if isinstance(self.train, Dataset) else 32,
                loss=self.loss,
            )
            settings.fit(quick, self.train, callbacks=[Told(folder.name)], folder=folder)
            save_model(in_float32(quick), path)
        return load_model(path)


def _plans(model: keras.Model, task: _Task, share: float) -> dict[str, Callable[[], Any]]:
    budget, data = Budget(macs=share), task.samples()
    score = task.score
    return {
        "ranks": lambda: select_ranks(
            model, budget=budget, data=data, decomposition="separable", score=score
        ),
        "channels": lambda: select_channels(
            model, method="outputs", budget=budget, data=data, score=score
        ),
        "both": lambda: select_channels_and_ranks(model, budget=budget, data=data, score=score),
    }


def _files(
    models: dict[str, keras.Model], task: _Task, folder: Path, target: str
) -> dict[str, dict[str, Any]]:
    """Scores, sizes and times of each model's files, timed in turns by format."""
    x, y = task.test
    rows: dict[str, dict[str, Any]] = {name: {} for name in models}
    folder.mkdir(parents=True, exist_ok=True)
    for format_name, quantization in _FORMATS:
        paths = {name: folder / f"{name}_{format_name}.tflite" for name in models}
        kept = []
        for name, model in models.items():
            try:
                deploy.export(
                    model,
                    paths[name],
                    quantization=quantization,
                    calibration_data=task.samples()[0][:200] if quantization else None,
                    verification_data=x[:200],
                )
            except deploy.ParityError as error:
                rows[name][format_name] = {"refused": str(error).splitlines()[0]}
                continue
            kept.append(name)
        results = deploy.measure_files([paths[name] for name in kept], target=target)
        for name, result in zip(kept, results, strict=True):
            found = deploy.run_file(paths[name], x)
            rows[name][format_name] = {
                "score": float(resolve_score(task.score, models[name], y)(y, found)),
                "size_bytes": paths[name].stat().st_size,
                "cost": result.cost,
            }
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one network, cut it, tune what is left, and measure all of it.

    Args:
        arguments: Of the command line. Default: `sys.argv`.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=("vit_cifar", "conv_mixer_cifar", "unet"))
    parser.add_argument("--data", required=True, help="CIFAR-10, as `dprp train` takes it")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--tuning-epochs", type=int, default=3)
    parser.add_argument("--canvases", type=int, default=6000, help="of the U-Net")
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs to keep")
    parser.add_argument("--target", nargs="*", default=["local"])
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("results/half_the_macs"))
    chosen = parser.parse_args(arguments)
    task = _Task(chosen.network, datasets.load(chosen.data), chosen.canvases)
    place = chosen.work / chosen.network
    keras.utils.set_random_seed(0)
    trained = task.tuned(task.build(), place / "trained", chosen.epochs, chosen.learning_rate)
    if chosen.train_only:
        return 0
    model = reachable(trained)
    whole = model_cost(model)
    models = {"dense": model}
    rows: dict[str, Any] = {
        "dense": {"parameters": whole.parameters, "macs": whole.macs, "score": task.of(model)}
    }
    x, _ = task.samples()
    for name, plan in _plans(model, task, chosen.macs).items():
        try:
            found = plan()
        except BudgetError as error:
            rows[name] = {"missed": str(error)}
            continue
        small = cut(model, found, calibration_data=x)
        cost = model_cost(small)
        rows[name] = {"parameters": cost.parameters, "macs": cost.macs, "cut": task.of(small)}
        models[name] = task.tuned(
            small, place / name, chosen.tuning_epochs, chosen.learning_rate / 2
        )
        rows[name]["score"] = task.of(models[name])
        print(name, rows[name], flush=True)
    # What the whole network gains by the same epochs.
    models["dense, tuned"] = task.tuned(
        model, place / "dense", chosen.tuning_epochs, chosen.learning_rate / 2
    )
    rows["dense, tuned"] = {**rows["dense"], "score": task.of(models["dense, tuned"])}
    for target in chosen.target:
        told = target.replace(":", "_")
        for name, files in _files(models, task, place / told, target).items():
            rows[name].setdefault("files", {})[told] = files
    path = chosen.results / f"{chosen.network}.json"
    known = dict(read_json(path)) if path.exists() else {}
    known[f"{chosen.macs} of the MACs, {chosen.epochs} + {chosen.tuning_epochs} epochs"] = rows
    chosen.results.mkdir(parents=True, exist_ok=True)
    write_json(path, known)
    for name, row in rows.items():
        print(name, row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
