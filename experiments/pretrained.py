"""DPRP from a trained model: every way to keep the structure with every matricization.

The way most users come: a trained network, a few epochs at a small learning rate, then the fold.
Run `python -m dprp_tf.experiments.pretrained --help`; finished configurations are not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from dprp_tf import data, deploy
from dprp_tf.conversion.folding import choose_forms, fold
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset
from dprp_tf.decomposition import MATRICIZATIONS
from dprp_tf.files.atomic import atomic_path, read_json, write_json
from dprp_tf.files.extras import require
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.saving import load_model
from dprp_tf.training.settings import STRUCTURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["configurations", "main", "plot", "run_one", "time_folds"]


def configurations(
    model: str, epochs: int, learning_rate: float, seed: int = 0
) -> Iterator[tuple[str, TrainSettings]]:
    """Yield the nine configurations by name.

    `spatial` matrices have 9 columns and are pressed by the paper's tail penalty; the spectra of
    `channel` and `separable` ones fade without a drop, so they are pressed by L1 and cut by
    energy.

    Args:
        model: Path of the trained `.keras` file.
        epochs: Epochs of each.
        learning_rate: Peak learning rate.
        seed: Seed of everything random.

    Yields:
        Names such as `"spatial_retraction"`, and settings.

    Example:

    >>> len(list(configurations("model.keras", 2, 0.01)))
    9
    """
    for matricization in MATRICIZATIONS:
        for structure in STRUCTURES:
            base = TrainSettings(
                model=model,
                method="dprp",
                epochs=epochs,
                batch_size=128,
                learning_rate=learning_rate,
                schedule="cosine",
                weight_decay=0.0,
                seed=seed,
                decomposition=matricization,
                structure=structure,
                compression_weight=15.0,
                threshold=0.3,
                discarded_energy=0.0,
                # To the end, every epoch.
                stop_epoch=epochs,
                frequency=1,
            )
            if matricization != "spatial":
                base = replace(
                    base,
                    compression="l1",
                    compression_weight=20.0,
                    threshold=0.05,
                    discarded_energy=0.02,
                )
            yield f"{matricization}_{structure}", base


def run_one(
    name: str, settings: TrainSettings, dataset: Dataset, test: Dataset, folder: Path
) -> dict[str, Any]:
    """Train one configuration, fold it, and time it against the dense model.

    Args:
        name: Its name.
        settings: Its settings.
        dataset: What it trains on.
        test: Where accuracy is measured.
        folder: Where its run goes.

    Returns:
        Accuracy before and after, parameters, ranks, `time_folds`; or the error it ended with.

    Example:

    >>> run_one.__name__
    'run_one'
    """
    dense = load_model(settings.model)
    before = accuracy(dense, test)
    row: dict[str, Any] = {
        "name": name,
        "settings": asdict(settings),
        "train_images": len(dataset.x_train),
        "accuracy_before": before,
        "parameters_before": model_cost(dense).parameters,
        "macs_before": model_cost(dense).macs,
    }
    try:
        model = train(folder, settings, dataset)
    except ValueError as error:
        return {**row, "error": " ".join(str(error).split())}
    history = read_json(folder / "history.json")
    return {
        **row,
        "accuracy_after": accuracy(fold(model), test),
        "parameters_in_training": model_cost(model).parameters,
        "ranks": model.ranks,
        "full_ranks": {layer.name: layer.full_rank for layer in model.low_rank_layers},
        **time_folds(dense, model, test),
        "history": history["runs"]["dprp"],
    }


def time_folds(dense: keras.Model, model: keras.Model, test: Dataset) -> dict[str, Any]:
    """Export the dense model and both folds to TFLite and time the three in turns.

    Args:
        dense: The model DPRP started from.
        model: The factorized model.
        test: Inputs to verify with.

    Returns:
        `folds`: by the form chosen (`smallest`, `fast`), parameters, MACs, file size, latency
        ratio to dense with its interval, and the form of each layer.

    Example:

    >>> time_folds.__name__
    'time_folds'
    """
    models = {"dense": dense, "smallest": fold(model), "fast": fold(model, form="fast")}
    with tempfile.TemporaryDirectory() as temporary:
        paths, sizes = [], {}
        for label, plain in models.items():
            paths.append(Path(temporary) / f"{label}.tflite")
            written = deploy.export(plain, paths[-1], verification_data=test.sample("test", 128)[0])
            sizes[label] = written.size_bytes
        timed = deploy.compare(paths, repeats=150, inputs=test.x_test[:1].astype("float32"))
    folds = {}
    for label, ratio in zip(models, timed.ratios, strict=True):
        cost = model_cost(models[label])
        folds[label] = {
            "parameters": cost.parameters,
            "macs": cost.macs,
            "size_bytes": sizes[label],
            "latency_ratio": ratio.ratio,
            "latency_ratio_interval": [ratio.low, ratio.high],
        }
        if label != "dense":
            rows = choose_forms(model, form=label)
            folds[label]["forms"] = {choice.name: choice.form for choice in rows}
    return {"folds": folds}


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Draw accuracy against parameters and against latency, one point per configuration.

    Args:
        rows: What `run_one` returned.

    Returns:
        The figure.

    Example:

    >>> len(plot([]).axes)
    2
    """
    matplotlib = require("matplotlib.figure", extra="report", feature="Drawing a figure")
    figure = matplotlib.Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours = dict(zip(MATRICIZATIONS, ("#0072B2", "#D55E00", "#009E73"), strict=True))
    markers = dict(zip(STRUCTURES, ("o", "s", "^"), strict=True))
    done = [row for row in rows if "error" not in row]
    for row in done:
        settings = row["settings"]
        style = {
            "color": colours[settings["decomposition"]],
            "marker": markers[settings["structure"]],
            "s": 60,
        }
        fast = row["folds"]["fast"]
        kept = row["folds"]["smallest"]["parameters"] / row["parameters_before"]
        panels[0].scatter(kept, row["accuracy_after"], **style)
        panels[1].scatter(fast["latency_ratio"], row["accuracy_after"], **style)
    for panel, label in zip(
        panels,
        (
            'parameters, form="smallest", relative to dense',
            'LiteRT latency, form="fast", relative to dense (float32, 1 thread)',
        ),
        strict=True,
    ):
        panel.axvline(1.0, color="0.6", linestyle=":")
        if done:
            panel.axhline(done[0]["accuracy_before"], color="0.4", linestyle="--", linewidth=1)
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("test accuracy after")
    for name, colour in colours.items():
        panels[1].scatter([], [], color=colour, label=name)
    for name, marker in markers.items():
        panels[1].scatter([], [], color="0.3", marker=marker, label=name)
    if done:
        panels[1].plot([], [], color="0.4", linestyle="--", linewidth=1, label="dense accuracy")
    figure.legend(*panels[1].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Run the study from the command line.

    Args:
        arguments: Command-line arguments. Default: those of the process.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="trained .keras file")
    parser.add_argument("--data", required=True, help="a data set's name, .npz or image folder")
    parser.add_argument("--mean", type=float, nargs="+", help="input normalization of the model")
    parser.add_argument("--std", type=float, nargs="+", help="input normalization of the model")
    parser.add_argument("--out", type=Path, default=Path("results/pretrained"))
    parser.add_argument("--work", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--images", type=int, help="train on the first so many images only")
    parser.add_argument("--only", nargs="*", help="names of configurations")
    parser.add_argument("--time", action="store_true", help="only time finished runs anew")
    chosen = parser.parse_args(arguments)
    test = data.load(chosen.data)
    if chosen.mean:
        test = test.normalized(chosen.mean, chosen.std)
    count = chosen.images or len(test.x_train)
    # Epochs are watched on part of the test split; the figures come from all of it.
    watched = slice(0, 2000)
    dataset = replace(
        test,
        x_train=test.x_train[:count],
        y_train=test.y_train[:count],
        x_test=test.x_test[watched],
        y_test=test.y_test[watched],
    )
    for name, settings in configurations(chosen.model, chosen.epochs, chosen.learning_rate):
        target = chosen.out / f"{name}.json"
        if chosen.time and target.exists():
            row = read_json(target)
            trained = chosen.work / name / "model.keras"
            if trained.exists():
                row.update(time_folds(load_model(chosen.model), load_model(trained), test))
                write_json(target, row)
        if chosen.time or target.exists() or (chosen.only and name not in chosen.only):
            continue
        row = run_one(name, settings, dataset, test, chosen.work / name)
        row["settings"]["model"] = Path(chosen.model).name
        write_json(target, row)
        brief = {k: row.get(k) for k in ("accuracy_after", "parameters_in_training")}
        print(name, row.get("error") or brief, flush=True)
    rows = [read_json(path) for path in sorted(chosen.out.glob("*.json"))]
    with atomic_path(chosen.out / "pretrained.png") as temporary:
        plot(rows).savefig(temporary, dpi=150)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
