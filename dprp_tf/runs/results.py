"""What a finished training run amounts to: the folded model, its figures, plots and page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import keras

from dprp_tf.conversion.folding import fold
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.models import ModelCost, model_cost
from dprp_tf.data import Dataset
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.layers import factorized_layers
from dprp_tf.runs.evaluation import accuracy, layer_rows, model_row
from dprp_tf.runs.reporting import report_run
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.training.saving import load_model, save_model

__all__ = ["FOLDED", "LOOK", "RESULTS", "TABLE", "finish"]

# Files of a run folder.
TABLE = "run_latency.json"
FOLDED = "folded.keras"
RESULTS = "results.json"
LOOK = "first_look.json"


def finish(
    folder: str | os.PathLike[str],
    settings: TrainSettings,
    dataset: Dataset,
    model: keras.Model,
) -> dict[str, Any]:
    """Fold a finished run's model, and write `folded.keras`, `results.json`, plots and report.

    The first of the results' models is the dense one: that which the run began from, with its
    accuracy, or for a network trained from scratch its parameters and MACs. `ranks` has the sums of
    the ranks before and after; `notes` say that nothing was cut, where that is so.

    Args:
        folder: The run folder.
        settings: What was trained.
        dataset: Its data.
        model: The trained model.

    Returns:
        The content of `results.json`.

    Example:

    >>> finish.__name__
    'finish'
    """
    folder = Path(folder)
    cost, name, look = model_cost(model), Path(settings.model).name, folder / LOOK
    rows = _dense_rows(settings, dataset, cost)
    results: dict[str, Any] = {
        "title": f"{name} on {dataset.name}",
        "command": "dprp train",
        "settings": asdict(settings),
        "data": {**dataset.description, **(read_json(look) if look.exists() else {})},
        "models": rows,
    }
    notes: list[str] = []
    if factorized_layers(model):
        table = LatencyTable.load(folder / TABLE) if settings.latency_table else None
        forms = None if table is None else table.forms(model.ranks)
        folded = fold(model, forms=forms)
        save_model(folded, folder / FOLDED)
        top_1 = accuracy(folded, dataset)
        row = model_row("dprp", f"{name}, folded", folded, top_1, cost.parameters)
        rows.append(row)
        results["ranks"] = _ranks(folder)
        notes += _cut_notes(settings, results["ranks"], row["parameters"], cost.dense_parameters)
        results |= layer_rows(model, forms=forms)
    else:
        # Beside the model that it began from, a dense one is no longer the baseline.
        key, label = ("trained", "trained on") if rows else (settings.method, settings.method)
        rows.append(model_row(key, f"{name}, {label}", model, accuracy(model, dataset)))
    results["notes"] = [*notes, _timing_note(folder, settings)]
    write_json(folder / RESULTS, results)
    report_run(folder)
    return results


def _dense_rows(settings: TrainSettings, dataset: Dataset, cost: ModelCost) -> list[dict[str, Any]]:
    """The dense model that the run is held against: the one it began from, or one untrained."""
    row = {
        "name": "dense",
        "label": f"{Path(settings.model).name}, dense",
        "parameters": cost.dense_parameters,
        "macs": cost.dense_macs,
    }
    # A run that went on elsewhere may be without the file.
    if settings.starts_trained and Path(settings.model).exists():
        row["label"] = f"{Path(settings.model).name}, before training"
        return [{**row, "accuracy": accuracy(load_model(settings.model), dataset)}]
    return [row] if settings.starts_trained or settings.method == "dprp" else []


def _ranks(folder: Path) -> dict[str, int]:
    """The sums of all ranks before training and at its end."""
    epochs = read_json(folder / "ranks.json")["epochs"]
    return {key: epochs[at]["total_rank"] for key, at in (("before", 0), ("after", -1))}


def _cut_notes(
    settings: TrainSettings, ranks: Mapping[str, int], folded: int, dense: int
) -> list[str]:
    """Say that nothing was cut, or too little to make the folded model smaller; and what would."""
    if ranks["after"] == ranks["before"]:
        told = f"Nothing was cut: the ranks are what they were, {ranks['after']} in all."
    elif folded >= dense:
        told = (
            f"The ranks fell from {ranks['before']} to {ranks['after']} in all, too little for "
            "any layer to be smaller in two stages than dense: the folded model has no fewer "
            "parameters."
        )
    else:
        return []
    return [
        f"{told} To cut more: a larger --compression-weight (it was "
        f"{settings.compression_weight:g}), --threshold ({settings.threshold:g}) or "
        f"--discarded-energy ({settings.discarded_energy:g}), more --epochs "
        f"({settings.epochs}), or --decomposition separable with --discarded-energy."
    ]


def _timing_note(folder: Path, settings: TrainSettings) -> str:
    """Say how to get the times that a training does not take."""
    kept = FOLDED if settings.method == "dprp" else "model.keras"
    models = {"small": str(folder / kept)}
    if settings.starts_trained:
        models = {"dense": settings.model, **models}
    steps = [f"dprp export {quote(path)} {stem}.tflite" for stem, path in models.items()]
    files, place = " ".join(f"{stem}.tflite" for stem in models), quote(str(folder))
    steps += [f"dprp bench {files} --output {place}", f"dprp report {place}"]
    return f"No file was timed. To add sizes and times to the report: {'; '.join(steps)}"
