"""Hold a low-rank model against its dense baseline: files, parity, accuracy, latency, verdict."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from dprp_tf import deploy
from dprp_tf.conversion.folding import choose_forms, fold
from dprp_tf.conversion.summaries import summarize
from dprp_tf.costs.accuracy import top_1_accuracy
from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset, StreamedImages, evaluation_batches, reading_errors
from dprp_tf.layers import factorized_layers
from dprp_tf.runs.files import FORMATS, timed_files

__all__ = ["accuracy", "compare_models", "layer_rows", "model_row", "plain_model"]

_SHOWN = ("TFLite float32", "TFLite float16", "TFLite int8", "ONNX float32")


def accuracy(model: keras.Model, dataset: Dataset, batch_size: int = 500) -> float:
    """Return the top-1 accuracy of a model on the test split.

    Args:
        model: A classifier, compiled or not.
        dataset: Its data.
        batch_size: Images per batch.

    Returns:
        The share of test images whose largest output is their class, 0 to 1.

    Example:

    >>> accuracy.__name__
    'accuracy'
    """
    if isinstance(dataset.x_test, StreamedImages):
        with reading_errors(dataset.x_test):
            outputs = model.predict(evaluation_batches(dataset, min(batch_size, 128)), verbose=0)
    else:
        outputs = model.predict(dataset.x_test.astype("float32"), batch_size=batch_size, verbose=0)
    return top_1_accuracy(dataset.y_test, outputs)


def plain_model(model: keras.Model) -> keras.Model:
    """Return the model folded to plain layers if it has low-rank layers, else the model itself.

    Args:
        model: Any Keras model.

    Returns:
        A model that exports.
    """
    return fold(model) if factorized_layers(model) else model


def compare_models(
    folder: str | os.PathLike[str],
    dense: keras.Model,
    lowrank: keras.Model,
    dataset: Dataset,
    *,
    title: str,
    command: str,
    settings: Mapping[str, Any],
    timing: Mapping[str, float] | None = None,
    tolerated_loss: float = 0.01,
    repeats: int = 60,
    threads: int = 1,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Plan, fold and export both models in every format, check and time the files; a verdict.

    For each runtime and precision the low-rank model is folded by a plan measured here
    (`deploy.plan_fold`), which is kept in the folder. Each file is verified against its Keras model
    on test images while it is written; the files of one format are timed in turns in one run.

    Args:
        folder: Where the files go.
        dense: The baseline.
        lowrank: The `DPRPModel`.
        dataset: Data both were trained on.
        title: Title of the report.
        command: The command that made it.
        settings: What to print as settings.
        timing: Seconds by label, for the report.
        tolerated_loss: Accuracy the low-rank model may lose, as a share. Default 0.01, a point.
        repeats: Timed rounds per format.
        threads: Threads of the runtimes.
        progress: Called with the name of each step.

    Returns:
        The content of `results.json`, which the caller writes.

    Raises:
        ParityError: If a file computes something else than its model.

    Example:

    >>> compare_models.__name__
    'compare_models'
    """
    folder = Path(folder)
    plans = _plans(folder, lowrank, threads, progress)
    folds = {key: fold(lowrank, plan=plan) for key, plan in plans.items()}
    first = ("litert", "float32")
    plans[first].save(folder / "plan.json")
    scores = {"dense": accuracy(dense, dataset), "dprp": accuracy(folds[first], dataset)}
    files: list[dict[str, Any]] = []
    for label in _SHOWN:
        entry = FORMATS[label]
        models = {"dense": dense, "dprp": folds[(entry.runtime, entry.precision)]}
        files += timed_files(
            folder, label, models, dataset, threads=threads, repeats=repeats, progress=progress
        )
    trained = model_cost(lowrank).parameters
    return {
        "title": title,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "settings": dict(settings),
        "data": dataset.description,
        "headline": _verdict(files, scores, tolerated_loss),
        "models": [
            model_row("dense", "dense baseline", dense, scores["dense"]),
            model_row("dprp", "DPRP, folded", folds[first], scores["dprp"], trained),
        ],
        "files": files,
        **layer_rows(lowrank, plan=plans[first]),
        "timing": dict(timing or {}),
    }


def model_row(
    name: str,
    label: str,
    model: keras.Model,
    top_1: float,
    trained_parameters: int | None = None,
) -> dict[str, Any]:
    """Return a model's row in `results.json`.

    Args:
        name: `"dense"` or `"dprp"`.
        label: What a reader sees.
        model: The model, whose parameters and MACs are counted.
        top_1: Its accuracy, 0 to 1.
        trained_parameters: Parameters of the model in training, if that was another. Default None.

    Returns:
        JSON-ready values.
    """
    cost = model_cost(model)
    return {
        "name": name,
        "label": label,
        "accuracy": top_1,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "trained_parameters": trained_parameters,
    }


def layer_rows(model: keras.Model, **forms: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the `layers` and `skipped` of `results.json`: how each layer is folded, or why not.

    Args:
        model: A model with low-rank layers.
        **forms: `plan` or `forms`, as `choose_forms` takes them.

    Returns:
        JSON-ready values.
    """
    return {
        "layers": [asdict(row) for row in choose_forms(model, **forms)],
        "skipped": [{"name": row.name, "reason": row.skipped} for row in summarize(model).skipped],
    }


def _plans(
    folder: Path, lowrank: keras.Model, threads: int, progress: Callable[[str], None]
) -> dict[tuple[str, str], FoldPlan]:
    plans: dict[tuple[str, str], FoldPlan] = {}
    for entry in (FORMATS[label] for label in _SHOWN):
        key = (entry.runtime, entry.precision)
        if key not in plans:
            progress(f"planning the fold for {entry.runtime} {entry.precision}")
            plans[key] = deploy.plan_fold(
                lowrank, runtime=entry.runtime, precision=entry.precision, threads=threads
            )
            plans[key].save(folder / "plans" / f"{'_'.join(key)}.json")
    return plans


def _verdict(
    files: list[dict[str, Any]], scores: Mapping[str, float], tolerated_loss: float
) -> dict[str, Any]:
    """Judge by the float32 TFLite files: smaller, faster beyond the noise, accurate enough."""
    pair = {row["model"]: row for row in files if row["format"] == "TFLite float32"}
    dense, lowrank = pair["dense"], pair["dprp"]
    size = lowrank["size_bytes"] / dense["size_bytes"]
    low, high = lowrank["latency_ratio_interval"]
    loss = scores["dense"] - scores["dprp"]
    checks = [
        {
            "name": "smaller",
            "passed": size < 1,
            "detail": f"file {size:.2f} x the dense one "
            f"({lowrank['size_bytes'] / 1000:,.0f} kB, {dense['size_bytes'] / 1000:,.0f} kB)",
        },
        {
            "name": "faster",
            "passed": high < 1,
            "detail": f"latency {lowrank['latency_ratio']:.2f} x the dense one "
            f"(95 % interval {low:.2f} to {high:.2f})",
        },
        {
            "name": "as accurate",
            "passed": loss <= tolerated_loss,
            "detail": f"{scores['dprp']:.2%} instead of {scores['dense']:.2%} "
            f"(tolerated loss {100 * tolerated_loss:g} points)",
        },
    ]
    failed = [check["name"] for check in checks if not check["passed"]]
    if failed:
        text = f"The DPRP model is not {' and not '.join(failed)}: see the checks."
    else:
        text = (
            f"The DPRP file is {1 - size:.0%} smaller and {1 - lowrank['latency_ratio']:.0%} "
            f"faster than the dense one, at {scores['dprp']:.1%} accuracy "
            f"({scores['dense']:.1%} dense)."
        )
    return {"achieved": not failed, "text": text, "checks": checks}
