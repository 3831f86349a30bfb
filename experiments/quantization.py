"""What each way to shrink a model's numbers costs in accuracy and saves in bytes.

For every model given, dense or factorized (which is folded first): float32, float16, dynamic and
int8 TFLite, float32, float16 and int8 ONNX, quantization-aware training, clustered and sparse
weights. Training goes on for one epoch in the last three, so a row tells what the same epoch does
to the float32 model. Run `python -m dprp_tf.experiments.quantization --help`; rows that exist are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf import data, deploy
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset
from dprp_tf.data.augmentation import random_crop_and_flip
from dprp_tf.deploy.quantization.training import cluster_weights, sparsify, train_quantized
from dprp_tf.files.atomic import write_json, write_text
from dprp_tf.layers import low_rank_layers
from dprp_tf.runs.evaluation import accuracy, plain_model
from dprp_tf.training.divergence import DivergenceGuard
from dprp_tf.training.saving import load_model, save_model

__all__ = ["Tuning", "main", "run_one", "table", "variants"]


@dataclass(frozen=True)
class Tuning:
    """How the variants that train are trained.

    Args:
        images: Training images, from the first.
        epochs: Passes over them.
        batch_size: Images per step.
        learning_rate: Adam's first learning rate; it falls to 0 along a cosine.
        clusters: Distinct values per kernel of the clustered variant.
        sparsity: Share of zeros of the sparse variant.
        calibration: Images whose ranges int8 files are calibrated on.
        augment: Shift each image by up to 4 pixels and mirror half of them, once.
        seed: Seed of everything random.
    """

    images: int = 10_000
    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-4
    clusters: int = 16
    sparsity: float = 0.5
    calibration: int = 256
    augment: bool = True
    seed: int = 0


def variants() -> Mapping[str, Callable[[keras.Model, Dataset, Tuning, Path], dict[str, Any]]]:
    """Give the variants by name, each a function that writes one file.

    Returns:
        Name to a function of model, data, settings and a path without suffix; it returns what
        the export reported, and under `file` the file's path.

    Example:

    >>> sorted(variants())[0]
    'ONNX float16'
    """
    return {
        "TFLite float32": _tflite(None),
        "TFLite float16": _tflite("float16"),
        "TFLite dynamic": _tflite("dynamic"),
        "TFLite int8": _tflite("int8"),
        "TFLite int8, trained (QAT)": _trained_int8,
        "ONNX float32": _onnx(None),
        "ONNX float16": _onnx("float16"),
        "ONNX int8": _onnx("int8"),
        "tuned, TFLite float32": _changed(_tuned, None),
        "tuned, TFLite int8": _changed(_tuned, "int8"),
        "clustered, TFLite float32": _changed(_clustered, None),
        "clustered, TFLite int8": _changed(_clustered, "int8"),
        "sparse, TFLite float32": _changed(_sparse, None),
        "sparse, TFLite int8": _changed(_sparse, "int8"),
    }


def run_one(
    name: str, model: keras.Model, dataset: Dataset, settings: Tuning, folder: Path
) -> dict[str, Any]:
    """Make one variant's file and measure it on the test split.

    Args:
        name: A key of `variants()`.
        model: A plain model.
        dataset: What it was trained on.
        settings: How to train and calibrate.
        folder: Where files go; trained models are kept and found again there.

    Returns:
        Accuracy, file and zip size, agreement with the model the file was made from, seconds.

    Example:

    >>> run_one.__name__
    'run_one'
    """
    started = time.perf_counter()
    row = variants()[name](model, dataset, settings, folder / _slug(name))
    seconds = time.perf_counter() - started
    path = Path(row.pop("file"))
    return {
        "variant": name,
        "accuracy": deploy.evaluate_file(
            path, dataset.x_test[:].astype("float32"), dataset.y_test, threads=2
        ),
        **row,
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Write rows as a markdown table per model.

    Args:
        rows: What `run_one` returned, with `model` and `accuracy_float32` beside.

    Returns:
        Markdown.

    Example:

    >>> table([])
    ''
    """
    parts = []
    for label in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == label]
        first = own[0]
        parts.append(
            f"### {label}: {first['parameters']:,} parameters, {first['macs'] / 1e6:.2f} M MACs, "
            f"{first['accuracy_float32']:.2%} as Keras model\n\n"
            "| variant | top-1 | against float32 | file | zip |\n|---|---|---|---|---|\n"
            + "\n".join(
                f"| {row['variant']} | {row['accuracy']:.2%} | "
                f"{100 * (row['accuracy'] - row['accuracy_float32']):+.2f} points | "
                f"{row['size_bytes'] / 1000:,.0f} kB | {row['compressed_bytes'] / 1000:,.0f} kB |"
                if "error" not in row
                else f"| {row['variant']} | {row['error']} | | | |"
                for row in own
            )
            + "\n"
        )
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the study from the command line.

    Args:
        arguments: Command-line arguments. Default: those of the process.

    Returns:
        0.
    """
    default = Tuning()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, nargs="+", help=".keras files, plain or DPRP")
    parser.add_argument("--label", nargs="+", help="a name for each model. Default: its file's")
    parser.add_argument("--data", required=True, help="a data set's name, .npz or image folder")
    parser.add_argument("--mean", type=float, nargs="+", help="input normalization of the models")
    parser.add_argument("--std", type=float, nargs="+", help="input normalization of the models")
    parser.add_argument("--work", type=Path, default=Path("runs/quantization"))
    parser.add_argument("--results", type=Path, default=Path("results/quantization"))
    parser.add_argument("--images", type=int, default=default.images)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--clusters", type=int, default=default.clusters)
    parser.add_argument("--sparsity", type=float, default=default.sparsity)
    parser.add_argument("--no-augment", action="store_true", help="train on the images as given")
    parser.add_argument("--only", nargs="*", help="names of variants")
    chosen = parser.parse_args(arguments)
    labels = chosen.label or [Path(path).stem for path in chosen.model]
    if len(labels) != len(chosen.model) or len(set(labels)) < len(labels):
        parser.error(f"give a --label of its own to each --model, not {labels}")
    settings = Tuning(
        images=chosen.images,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        clusters=chosen.clusters,
        sparsity=chosen.sparsity,
        augment=not chosen.no_augment,
    )
    dataset = data.load(chosen.data)
    if chosen.mean:
        dataset = dataset.normalized(chosen.mean, chosen.std)
    for label, path in zip(labels, chosen.model, strict=True):
        _run_model(label, path, dataset, settings, chosen.work, chosen.results, chosen.only)
    found = [json.loads(p.read_text(encoding="utf-8")) for p in chosen.results.glob("*/*.json")]
    order = list(variants())
    found.sort(key=lambda row: (row["model"], order.index(row["variant"])))
    write_text(chosen.results / "quantization.md", table(found))
    return 0


def _run_model(
    label: str,
    path: str,
    dataset: Dataset,
    settings: Tuning,
    work: Path,
    results: Path,
    only: list[str] | None,
) -> None:
    loaded = load_model(path)
    model = plain_model(loaded)
    about: dict[str, Any] = {
        "model": label,
        "file": Path(path).name,
        "folded": bool(low_rank_layers(loaded)),
        "parameters": model_cost(model).parameters,
        "macs": model_cost(model).macs,
        "settings": vars(settings),
        "data": dataset.description,
    }
    reference: float | None = None
    for name in variants():
        target = results / _slug(label) / f"{_slug(name)}.json"
        if target.exists() or (only and name not in only):
            continue
        reference = accuracy(model, dataset) if reference is None else reference
        try:
            row = run_one(name, model, dataset, settings, work / _slug(label))
        except (ValueError, deploy.ParityError) as error:
            row = {"variant": name, "error": " ".join(str(error).split())[:300]}
        write_json(target, {**about, "accuracy_float32": reference, **row})
        print(label, name, row.get("accuracy", row.get("error")), flush=True)


def _tflite(quantization: Any) -> Callable[..., dict[str, Any]]:
    def make(model: keras.Model, dataset: Dataset, settings: Tuning, path: Path) -> dict[str, Any]:
        report = deploy.export(
            model,
            path.with_suffix(".tflite"),
            quantization=quantization,
            calibration_data=_images(dataset, settings.calibration) if quantization else None,
            verification_data=_verification(dataset),
        )
        return _figures(report)

    return make


def _onnx(quantization: Any) -> Callable[..., dict[str, Any]]:
    def make(model: keras.Model, dataset: Dataset, settings: Tuning, path: Path) -> dict[str, Any]:
        report = deploy.export(
            model,
            path.with_suffix(".onnx"),
            verification_data=_verification(dataset),
            quantization=quantization,
            calibration_data=_images(dataset, settings.calibration) if quantization else None,
        )
        return _figures(report)

    return make


def _trained_int8(
    model: keras.Model, dataset: Dataset, settings: Tuning, path: Path
) -> dict[str, Any]:
    trained = train_quantized(model, *_training(dataset, settings), **_options(settings))
    report = trained.export_tflite(path.with_suffix(".tflite"), _verification(dataset))
    return {**_figures(report), "history": trained.history}


def _changed(
    change: Callable[[keras.Model, Dataset, Tuning], keras.Model], quantization: Any
) -> Callable[..., dict[str, Any]]:
    def make(model: keras.Model, dataset: Dataset, settings: Tuning, path: Path) -> dict[str, Any]:
        kept = path.with_name(f"{change.__name__.strip('_')}.keras")
        if kept.exists():
            changed = load_model(kept)
        else:
            changed = change(model, dataset, settings)
            save_model(changed, kept)
        kernels = [np.asarray(weight) for weight in changed.weights if len(weight.shape) > 1]
        zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
        return {
            **_tflite(quantization)(changed, dataset, settings, path),
            "zero_weights": zeros / sum(kernel.size for kernel in kernels),
            "distinct_weights": sum(len(np.unique(kernel)) for kernel in kernels),
        }

    return make


def _tuned(model: keras.Model, dataset: Dataset, settings: Tuning) -> keras.Model:
    """The float32 model after as much more training, to tell its effect from the others'."""
    keras.utils.set_random_seed(settings.seed)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    x, y = _training(dataset, settings)
    steps = settings.epochs * -(-len(x) // settings.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    logits = getattr(model.layers[-1], "activation", None) is not keras.activations.softmax
    copy.compile(
        keras.optimizers.Adam(schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
    )
    copy.fit(
        x,
        y,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        verbose=0,
        callbacks=[DivergenceGuard()],
    )
    return copy


def _clustered(model: keras.Model, dataset: Dataset, settings: Tuning) -> keras.Model:
    data_and_labels = _training(dataset, settings)
    return cluster_weights(
        model, *data_and_labels, clusters=settings.clusters, **_options(settings)
    )


def _sparse(model: keras.Model, dataset: Dataset, settings: Tuning) -> keras.Model:
    data_and_labels = _training(dataset, settings)
    return sparsify(model, *data_and_labels, sparsity=settings.sparsity, **_options(settings))


def _options(settings: Tuning) -> dict[str, Any]:
    return {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
    }


def _training(dataset: Dataset, settings: Tuning) -> tuple[np.ndarray, np.ndarray]:
    images = _images(dataset, settings.images)
    if settings.augment:
        images = np.asarray(random_crop_and_flip(images, settings.seed))
    return images, dataset.y_train[: settings.images]


def _images(dataset: Dataset, count: int) -> np.ndarray:
    return dataset.x_train[:count].astype("float32")


def _verification(dataset: Dataset) -> np.ndarray:
    return dataset.sample("test", 512)[0]


def _figures(report: deploy.ExportReport) -> dict[str, Any]:
    return {
        "file": str(report.path),
        "size_bytes": report.size_bytes,
        "compressed_bytes": report.compressed_bytes,
        "top1_agreement": report.top1_agreement,
        "notes": list(report.notes),
    }


def _slug(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


if __name__ == "__main__":
    raise SystemExit(main())
