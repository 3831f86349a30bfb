"""What a finished training run amounts to: the folded model, its figures, plots and page."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from dprp_tf.conversion.folding import fold
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.layers import factorized_layers
from dprp_tf.runs.evaluation import accuracy, layer_rows, model_row
from dprp_tf.runs.reporting import report_run
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.training.saving import save_model

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
    look = folder / LOOK
    trained, top_1 = model_cost(model).parameters, accuracy(model, dataset)
    label = f"{settings.model}, {settings.method}"
    results: dict[str, Any] = {
        "title": f"{settings.model} on {dataset.name}",
        "command": "dprp train",
        "settings": asdict(settings),
        "data": {**dataset.description, **(read_json(look) if look.exists() else {})},
        "models": [model_row(settings.method, label, model, top_1, trained)],
    }
    if factorized_layers(model):
        table = LatencyTable.load(folder / TABLE) if settings.latency_table else None
        forms = None if table is None else table.forms(model.ranks)
        folded = fold(model, forms=forms)
        save_model(folded, folder / FOLDED)
        results["models"][0]["label"] = f"{settings.model}, factors in training"
        label, top_1 = f"{settings.model}, folded", accuracy(folded, dataset)
        results["models"].append(model_row("dprp", label, folded, top_1, trained))
        results |= layer_rows(model, forms=forms)
    write_json(folder / RESULTS, results)
    report_run(folder)
    return results
