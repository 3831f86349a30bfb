"""What a search comes to: all files timed in turns, the best of them, and what is told of it."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from dprp_tf.compression.goal import Goal, Point, no_worse
from dprp_tf.compression.outcome import Outcome
from dprp_tf.compression.workshop import DENSE, ROUNDED, Workshop
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.files.atomic import atomic_path, write_json
from dprp_tf.runs.evaluation import model_row
from dprp_tf.training.saving import load_model

__all__ = ["BestFile", "end"]

_RESULTS, _PLAN = "results.json", "joint_plan.json"


@dataclass(frozen=True, eq=False)
class BestFile:
    """What `compress` returns.

    Attributes:
        path: The best file.
        model: The Keras model that it was made of; of a file trained with int8 rounding, that
            before.
        met: Whether it keeps all bounds that were wished; if not, it is the one that misses least.
        front: Rows of all files that no other beats, the fastest first: `label`, `file`, `accuracy`
            (test split), `score` (validation samples), `time` and `size` as shares of the dense
            file's, `dense` and `best`.
        results: All that `results.json` of the folder holds.
    """

    path: Path
    model: keras.Model
    met: bool
    front: list[dict[str, Any]]
    results: dict[str, Any]


def end(
    place: Path,
    model: keras.Model,
    workshop: Workshop,
    goal: Goal,
    outcomes: Sequence[Outcome],
    minutes: float,
) -> BestFile:
    """Time all files that were written here in turns, choose the best, and write what was found.

    Args:
        place: The search's folder, which gets `best.tflite` or `best.onnx`, `best.keras`, the
            winner's `joint_plan.json`, and `results.json`.
        model: The model as it was given.
        workshop: Where the files are.
        goal: The wish.
        outcomes: All steps.
        minutes: What the search took.

    Returns:
        The best file.

    Raises:
        TargetError: If the files can't be timed.
    """
    folder = workshop.files.folder
    finished = {
        one.values["file"]["model"]: one
        for one in outcomes
        if one.is_file and (folder / one.values["file"]["file"]).exists()
    }
    rows = workshop.files.timed(
        [*workshop.dense_files, *(one.values["file"] for one in finished.values())]
    )
    front = [_entry(row, rows[0], finished.get(row["model"]), goal) for row in rows]
    # Nothing else is shipped, unless there is nothing else.
    best = goal.best([entry for entry in front if entry["verified"]] or front)
    for entry in front:
        entry["best"] = entry is best
        point = _point(entry)
        others = [_point(other) for other in front if other["verified"]]
        entry["beaten"] = not entry["verified"] or any(
            no_worse(other, point) and not no_worse(point, other) for other in others
        )
    path = place / f"best{Path(best['file']).suffix}"
    _copied(folder / best["file"], path)
    kept = model
    (place / _PLAN).unlink(missing_ok=True)
    if not best["dense"]:
        plan = next(cut for cut in outcomes if cut.number == finished[best["model"]].origin)
        JointPlan.from_dict(plan.values["plan"]).save(place / _PLAN)
        _copied(folder / f"{best['model']}.keras", place / "best.keras")
        kept = load_model(place / "best.keras")
    results = {
        "title": f"The best file of {model.name} on {workshop.test.name}",
        "command": "dprp compress",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": goal.settings.as_dict(),
        "data": {**workshop.test.description, "validation": len(workshop.validation.y_test)},
        "models": _models(model, workshop, finished),
        "files": [_within_format(row, rows[0]) for row in rows],
        "front": front,
        "wish": {
            "least_score": goal.least_score,
            "most_time": goal.most_time,
            "most_size": goal.most_size,
            "dense_score": goal.dense.score,
        },
        "search": [_step_row(one) for one in outcomes],
        "minutes": round(minutes, 2),
        "headline": _headline(best, front, goal, workshop),
        "notes": _notes(workshop, best, front, rows),
    }
    write_json(place / _RESULTS, results)
    shown = sorted(
        (entry for entry in front if not entry["beaten"]), key=lambda entry: entry["time"]
    )
    return BestFile(path, kept, bool(best["meets"]), shown, results)


def _entry(
    row: Mapping[str, Any], dense: Mapping[str, Any], origin: Outcome | None, goal: Goal
) -> dict[str, Any]:
    """A file among the others; its time and bytes as shares of the dense file's."""
    time, size = row.get("latency_ratio", 1.0), row["size_bytes"] / dense["size_bytes"]
    return {
        "label": f"{row['format']}, dense" if origin is None else origin.label,
        "model": row["model"],
        "file": row["file"],
        "score": row["score"],
        "accuracy": row["accuracy"],
        "time": time,
        "size": size,
        "dense": origin is None,
        "narrow": origin is not None and origin.stage == "narrow",
        "verified": row["verified"],
        "meets": row["verified"] and goal.meets(row["score"], time, size),
        "step": None if origin is None else origin.number,
    }


def _within_format(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose ratio, if it has one, is to the dense file of the same format."""
    if row["format"] == first["format"]:
        return dict(row)
    return {name: value for name, value in row.items() if not name.startswith("latency_ratio")}


def _point(entry: Mapping[str, Any]) -> Point:
    return entry["score"], entry["time"], entry["size"]


def _models(
    model: keras.Model, workshop: Workshop, finished: Mapping[str, Outcome]
) -> list[dict[str, Any]]:
    rows = [model_row(DENSE, f"{model.name}, as it was given", model, workshop.dense_accuracy)]
    for name, one in finished.items():
        row = {
            "name": name,
            "label": one.label,
            "accuracy": one.values["file"]["accuracy"],
            "parameters": one.values["parameters"],
            "macs": one.values["macs"],
        }
        rows.append(row)
    return rows


def _step_row(one: Outcome) -> dict[str, Any]:
    kept = ("of", "epochs", "optimizer", "learning_rate", "goes_on", "seconds", "missed")
    return {
        "number": one.number,
        "stage": one.stage,
        "label": one.label,
        "state": one.state,
        **({"score": one.score, "time": one.time, "size": one.size} if one.done else {}),
        **{name: one.values[name] for name in kept if name in one.values},
    }


def _headline(
    best: Mapping[str, Any],
    front: list[dict[str, Any]],
    goal: Goal,
    workshop: Workshop,
) -> dict[str, Any]:
    checks = []
    settings, dense = goal.settings, goal.dense
    if goal.least_score is not None:
        drop, allowed = dense.score - best["score"], dense.score - goal.least_score
        checks.append(
            {
                "name": "as accurate",
                "passed": best["score"] >= goal.least_score,
                "detail": f"{best['score']:.2%} of the validation samples beside the model's "
                f"{dense.score:.2%}: {100 * drop:.2f} points lost of {100 * allowed:.3g}",
            }
        )
    for name, bound, value, unit in (
        ("fast enough", settings.milliseconds, best["time"] * dense.milliseconds, "ms"),
        ("small enough", settings.kilobytes, best["size"] * dense.size_bytes / 1000, "kB"),
    ):
        if bound is not None:
            detail = f"{value:.4g} {unit} of {bound:g}"
            checks.append({"name": name, "passed": value <= bound, "detail": detail})
    others = [entry for entry in front if entry["dense"]]
    subject = f"The best file ({best['label']})"
    if best["dense"]:
        text = f"{subject} is a dense one: nothing that was found beats it."
    else:
        text = (
            f"{subject} takes {best['time']:.2f} of the time and {best['size']:.2f} of the bytes "
            f"of the dense file, at {best['accuracy']:.2%} on the test images; the model as it was "
            f"given has {workshop.dense_accuracy:.2%}, its dense file {others[0]['accuracy']:.2%}."
        )
    return {
        "achieved": bool(best["meets"]) and not best["dense"],
        "text": text,
        "checks": checks,
        "outcomes": []
        if best["dense"]
        else [{"model": best["model"], "format": workshop.files.label}],
    }


def _notes(
    workshop: Workshop,
    best: Mapping[str, Any],
    front: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> list[str]:
    decided, told = len(workshop.validation.y_test), len(workshop.test.y_test)
    notes = [
        f"The test split was halved at random: {decided:,} samples, called validation, decided; "
        f"accuracies are those on the other {told:,}."
    ]
    for entry, row in zip(front, rows, strict=True):
        if not entry["verified"]:
            notes.append(
                f"{entry['file']} ({entry['label']}) is not verified: it calls "
                f"{row['top1_agreement']:.1%} of the images the same as its model does, at "
                f"{entry['accuracy']:.2%} accuracy."
            )
    if best["model"].endswith(ROUNDED):
        notes.append("It was trained with int8 rounding inside; best.keras is it before that.")
    if not best["meets"]:
        notes.append("No file keeps all bounds; the best is the one that misses least.")
    return notes


def _copied(source: Path, path: Path) -> None:
    with atomic_path(path) as beside:
        shutil.copyfile(source, beside)
