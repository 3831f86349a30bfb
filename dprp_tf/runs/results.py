"""What a finished training run amounts to: the folded model, its figures, plots and page."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from dprp_tf.conversion.folding import choose_forms, fold
from dprp_tf.conversion.summaries import summarize
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset
from dprp_tf.files.atomic import write_json
from dprp_tf.layers import factorized_layers
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.reporting import report_run
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.training.saving import save_model

__all__ = ["FOLDED", "RESULTS", "TABLE", "finish"]

# Files of a run folder.
TABLE = "run_latency.json"
FOLDED = "folded.keras"
RESULTS = "results.json"


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
    cost = model_cost(model)
    rows = [
        {
            "name": settings.method,
            "label": f"{settings.model}, {settings.method}",
            "accuracy": accuracy(model, dataset),
            "parameters": cost.parameters,
            "macs": cost.macs,
            "trained_parameters": cost.parameters,
        }
    ]
    results: dict[str, Any] = {
        "title": f"{settings.model} on {dataset.name}",
        "command": "dprp train",
        "settings": asdict(settings),
        "data": dataset.description,
        "models": rows,
    }
    if factorized_layers(model):
        table = LatencyTable.load(folder / TABLE) if settings.latency_table else None
        forms = None if table is None else table.forms(model.ranks)
        folded = fold(model, forms=forms)
        save_model(folded, folder / FOLDED)
        folded_cost = model_cost(folded)
        rows[0]["label"] = f"{settings.model}, factors in training"
        rows.append(
            {
                "name": "dprp",
                "label": f"{settings.model}, folded",
                "accuracy": accuracy(folded, dataset),
                "parameters": folded_cost.parameters,
                "macs": folded_cost.macs,
                "trained_parameters": cost.parameters,
            }
        )
        results["layers"] = [asdict(row) for row in choose_forms(model, forms=forms)]
        results["skipped"] = [
            {"name": row.name, "reason": row.skipped} for row in summarize(model).skipped
        ]
    write_json(folder / RESULTS, results)
    report_run(folder)
    return results
