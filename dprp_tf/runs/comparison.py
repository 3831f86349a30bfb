"""Hold smaller models against their dense baseline: files, parity, accuracy, latency, verdict."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from dprp_tf import deploy
from dprp_tf.conversion.folding import fold
from dprp_tf.costs.fold_plan import FoldPlan
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset
from dprp_tf.layers import factorized_layers
from dprp_tf.runs.evaluation import accuracy, layer_rows, model_row
from dprp_tf.runs.files import FORMATS, format_for, timed_files
from dprp_tf.runs.headline import headline

__all__ = ["Contender", "compare_models"]

_SHOWN = ("TFLite float32", "TFLite float16", "TFLite int8", "ONNX float32")
_DENSE = "dense"


@dataclass(frozen=True)
class Contender:
    """A smaller model that is held against the dense one.

    Attributes:
        label: What a reader sees, such as `"DPRP, folded"`.
        model: The model. One with low-rank layers is folded for each runtime and precision, by a
            plan measured there; a plain one is exported as it is.
        judged_by: The format of the files that the verdict looks at, which the model was made for:
            `"TFLite float32"` or `"TFLite int8"`, for example.
    """

    label: str
    model: keras.Model
    judged_by: str


@dataclass(frozen=True)
class _Folds:
    """A contender as plain models, by runtime and precision, and the plans they were folded by."""

    models: Mapping[tuple[str, str], keras.Model]
    plans: Mapping[tuple[str, str], FoldPlan]


def compare_models(
    folder: str | os.PathLike[str],
    dense: keras.Model,
    contenders: Mapping[str, Contender],
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
    """Plan, fold and export all models in every format, check and time the files; a verdict.

    For each runtime and precision a low-rank model is folded by a plan measured here
    (`deploy.plan_fold`), which is kept in the folder. Each file is verified against its Keras model
    on test images while it is written; the files of one format are timed in turns in one run.

    Args:
        folder: Where the files go.
        dense: The baseline, `"dense"` in the results.
        contenders: The smaller models by the names that their files and rows get. Layers and the
            folder's `plan.json` are those of the first that has low-rank layers.
        dataset: Data that all were trained on.
        title: Title of the report.
        command: The command that made it.
        settings: What to print as settings.
        timing: Seconds by label, for the report.
        tolerated_loss: Accuracy that a file may lose against the dense one of its format, as a
            share. Default 0.01, a point.
        repeats: Timed rounds per format.
        threads: Threads of the runtimes.
        progress: Called with the name of each step.

    Returns:
        The content of `results.json`, which the caller writes.

    Raises:
        ParityError: If a file computes something else than its model.
        ValueError: If there is no contender, one is called `"dense"`, or is judged by a format that
            no file is written in.

    Example:

    >>> compare_models("runs/x", None, {}, None, title="", command="", settings={})
    Traceback (most recent call last):
      ...
    ValueError: `contenders` must hold one model or more, none of them called 'dense'. Received: []
    """
    _check(contenders)
    folder = Path(folder)
    folds = {
        name: _folds(folder, name, contender.model, threads, progress)
        for name, contender in contenders.items()
    }
    files: list[dict[str, Any]] = []
    for label in _SHOWN:
        entry = FORMATS[label]
        key = (entry.runtime, entry.precision)
        models = {_DENSE: dense, **{name: found.models[key] for name, found in folds.items()}}
        files += timed_files(
            folder, label, models, dataset, threads=threads, repeats=repeats, progress=progress
        )
    rows = [model_row(_DENSE, "dense baseline", dense, accuracy(dense, dataset))]
    layers: dict[str, Any] = {}
    for name, contender in contenders.items():
        found = folds[name]
        # The one that is shown, and whose parameters are told.
        first = next(iter(found.models.values()))
        trained = model_cost(contender.model).parameters if found.plans else None
        rows.append(model_row(name, contender.label, first, accuracy(first, dataset), trained))
        if found.plans and not layers:
            plan = next(iter(found.plans.values()))
            plan.save(folder / "plan.json")
            layers = layer_rows(contender.model, plan=plan)
    judged = {
        name: (contender.label, contender.judged_by) for name, contender in contenders.items()
    }
    return {
        "title": title,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "settings": dict(settings),
        "data": dataset.description,
        "headline": headline(files, judged, tolerated_loss),
        "models": rows,
        "files": files,
        **layers,
        "notes": [
            note
            for name, contender in contenders.items()
            for note in _dense_notes(contender.label, folds[name].plans)
        ],
        "timing": dict(timing or {}),
    }


def _check(contenders: Mapping[str, Contender]) -> None:
    if not contenders or _DENSE in contenders:
        raise ValueError(
            f"`contenders` must hold one model or more, none of them called {_DENSE!r}. Received: "
            f"{list(contenders)}"
        )
    for name, contender in contenders.items():
        if contender.judged_by not in _SHOWN:
            raise ValueError(
                f"`judged_by` must be one of {_SHOWN}. Received: {contender.judged_by!r} for the "
                f"contender {name!r}"
            )


def _folds(
    folder: Path, name: str, model: keras.Model, threads: int, progress: Callable[[str], None]
) -> _Folds:
    """Fold a low-rank model for every runtime and precision; a plain one is the same for all."""
    keys = dict.fromkeys((FORMATS[label].runtime, FORMATS[label].precision) for label in _SHOWN)
    if not factorized_layers(model):
        return _Folds(dict.fromkeys(keys, model), {})
    plans: dict[tuple[str, str], FoldPlan] = {}
    for runtime, precision in keys:
        progress(f"planning the fold of {name} for {runtime} {precision}")
        plan = deploy.plan_fold(model, runtime=runtime, precision=precision, threads=threads)
        plan.save(folder / "plans" / f"{name}_{runtime}_{precision}.json")
        plans[runtime, precision] = plan
    return _Folds({key: fold(model, plan=plan) for key, plan in plans.items()}, plans)


def _dense_notes(label: str, plans: Mapping[tuple[str, str], FoldPlan]) -> list[str]:
    """Say of which files of a low-rank model all layers are dense, and why."""
    notes = []
    for (runtime, precision), plan in plans.items():
        if any(layer.form.kind != "dense" for layer in plan.layers):
            continue
        best = min((c.ratio for layer in plan.layers for c in layer.candidates[1:]), default=1.0)
        why = f"the best other form of any takes {best:.2f} x its time"
        if best <= 1:
            why = "no other form made the model faster for certain"
        notes.append(
            f"{label}, {format_for(runtime, precision)}: every layer stays dense, as {why}; the "
            "file takes what the dense one takes."
        )
    return notes
