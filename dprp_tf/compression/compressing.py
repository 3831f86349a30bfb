"""From a trained model to the best file for a device, in one call."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf import data as datasets
from dprp_tf.compression.board import board, step_line
from dprp_tf.compression.clock import Clock
from dprp_tf.compression.goal import Goal
from dprp_tf.compression.outcome import Outcome
from dprp_tf.compression.schedule import Schedule
from dprp_tf.compression.settings import CompressionSettings
from dprp_tf.compression.study import CompressionStudy, Result, Task
from dprp_tf.compression.workshop import DENSE, Workshop
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.data import Dataset
from dprp_tf.data.splitting import stratified_split
from dprp_tf.files.arguments import check_number
from dprp_tf.files.atomic import atomic_path, remove_leftovers, write_json
from dprp_tf.files.lock import run_lock
from dprp_tf.files.settings import require_same_settings
from dprp_tf.runs.evaluation import model_row
from dprp_tf.runs.first_look import first_look
from dprp_tf.runs.ownership import COMPRESSION, require_own
from dprp_tf.runs.progress import Display
from dprp_tf.runs.reporting import report_run
from dprp_tf.training.saving import load_model

__all__ = ["BestFile", "compress"]

_CONFIG, _RESULTS, _PLAN = "config.json", "results.json", "joint_plan.json"
_TEST_SHARE = 0.2
# Seconds between two looks at what other workers do.
_PAUSE = 2.0


@dataclass(frozen=True, eq=False)
class BestFile:
    """What `compress` returns.

    Attributes:
        path: The best file.
        model: The Keras model that it was made of.
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


def compress(
    model: keras.Model,
    data: Dataset | tuple[Any, Any] | str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str],
    minutes: float = 60,
    storage: str | None = None,
    display: Display | None = None,
    fresh: bool = False,
    **settings: Any,
) -> BestFile:
    """Search for the best file that a trained model can become on a target, and write it.

    The search begins with the dense files and a table of what the model takes on the target by
    width and rank. Cuts of channels and ranks, which need no training, come next, proposed by an
    Optuna study of three objectives, score, time and bytes. The most promising of them are trained
    a little, and the best of those to the end, towards the model's own outputs; they become files,
    are verified, and are timed on the target in turns with the dense ones. The dense files in every
    precision always take part. What is called best was measured as a file.

    Half of the test split, drawn at random, decides: those are the validation samples. The
    accuracies that are reported are those on the other half, which nothing was chosen by.

    Args:
        model: A built, trained classifier of plain layers; it stays as it is.
        data: Its data: a `Dataset`; `(x, y)`, of which a fifth is held out as a test split; or what
            `dprp_tf.data.load` takes.
        folder: Where everything is kept; the same call goes on in it after an interruption, or
            with more minutes.
        minutes: What the whole search may take, interruptions not counted. Default 60.
        storage: Address of a database that workers on several machines share, such as
            `"postgresql://user@host/name"`; each has a folder of its own. Default: SQLite in the
            folder.
        display: Where progress is shown. Default: nothing is.
        fresh: Whether to discard what the folder holds.
        **settings: Fields of `CompressionSettings`: the wish (`max_drop`, `milliseconds`,
            `kilobytes`, `smallest`), the `target`, `runtime`, `precision`, and others.

    Returns:
        The best file.

    Raises:
        ValueError: If an argument is unusable, the data do not fit the model, the folder or
            database is of another search, or the minutes are too few for one candidate.
        TargetError: If the target can't be reached or lacks the runtime.
        ImportError: If Optuna is absent: `pip install "dprp-tf[search]"`.

    Source: ours; stages that grow while candidates fall are those of successive halving (Jamieson
    and Talwalkar 2016).

    Example:

    >>> compress.__name__
    'compress'
    """
    wish = CompressionSettings(**settings)
    check_number("minutes", minutes, above=0)
    dataset = _dataset(data)
    place, shown = Path(folder), display or Display(quiet=True)
    first_look(model, dataset).warn()
    require_own(place, COMPRESSION)
    with run_lock(place):
        remove_leftovers(place)
        if fresh:
            for name in COMPRESSION.held(place):
                found = place / name
                shutil.rmtree(found) if found.is_dir() else found.unlink()
        identity = {**_identity(model, dataset), **wish.as_dict()}
        require_same_settings(place / _CONFIG, {"compression": identity}, "a search")
        clock = Clock(place / "clock.json", minutes)
        study = CompressionStudy(
            place, identity, storage=storage, sampler=wish.sampler, seed=wish.seed
        )
        try:
            return _search(place, model, dataset, wish, minutes, clock, study, shown)
        finally:
            clock.keep()


def _search(
    place: Path,
    model: keras.Model,
    dataset: Dataset,
    wish: CompressionSettings,
    minutes: float,
    clock: Clock,
    study: CompressionStudy,
    display: Display,
) -> BestFile:
    validation, test = _halves(dataset, wish.seed)
    workshop = Workshop(
        place,
        model,
        test,
        validation,
        wish,
        clock,
        study,
        tell=display.step,
        measuring=display.search("the table of times"),
        show=display.training,
    )
    goal = Goal(wish, workshop.dense)
    # The table is measured before anything is proposed.
    _ = workshop.table
    _require_time(clock, workshop, study, minutes)
    clock.prepared()
    # What is timed together at the end takes its time too.
    reserve = workshop.ending_seconds
    schedule = Schedule(goal, clock.searching - reserve, workshop.file_seconds)

    def show() -> None:
        display.show(board(study.outcomes(), goal, workshop.dense_files, clock.left))

    def work(task: Task) -> Result:
        show()
        return workshop.do(task, study.outcomes())

    while True:
        outcomes = study.outcomes()
        step = None if study.waiting else schedule.next(outcomes, clock.left - reserve)
        if step is None and not study.waiting:
            busy = any(one.state == "running" for one in outcomes)
            if not busy or clock.left < reserve + workshop.file_seconds:
                break
            time.sleep(_PAUSE)
            continue
        before = len(outcomes)
        study.run(step, work)
        for one in study.outcomes()[before:]:
            display.line(step_line(one, goal))
        show()
    return _ended(place, model, test, validation, wish, goal, workshop, study, clock, display)


def _ended(
    place: Path,
    model: keras.Model,
    test: Dataset,
    validation: Dataset,
    wish: CompressionSettings,
    goal: Goal,
    workshop: Workshop,
    study: CompressionStudy,
    clock: Clock,
    display: Display,
) -> BestFile:
    """Time all files that were written here in turns, choose, and write what was found."""
    files = workshop.files.folder
    outcomes = study.outcomes()
    finished = {
        one.values["file"]["model"]: one
        for one in outcomes
        if one.stage == "finished" and one.done and (files / one.values["file"]["file"]).exists()
    }
    display.show(None)
    display.step("timing all files in turns")
    rows = workshop.files.timed(
        [*workshop.dense_files, *(one.values["file"] for one in finished.values())]
    )
    dense = rows[0]
    front = []
    for row in rows:
        origin = finished.get(row["model"])
        front.append(
            {
                "label": f"{row['format']}, dense" if origin is None else origin.candidate.label,
                "model": row["model"],
                "file": row["file"],
                "score": row["score"],
                "accuracy": row["accuracy"],
                "time": row.get("latency_ratio", 1.0),
                "size": row["size_bytes"] / dense["size_bytes"],
                "dense": origin is None,
                "meets": goal.meets(
                    row["score"],
                    row.get("latency_ratio", 1.0),
                    row["size_bytes"] / dense["size_bytes"],
                ),
                "step": None if origin is None else origin.number,
            }
        )
    best = goal.best(front)
    for entry in front:
        entry["best"] = entry is best
        entry["beaten"] = any(_beats(other, entry) for other in front)
    path = place / f"best{Path(best['file']).suffix}"
    _copied(files / best["file"], path)
    kept = model
    (place / _PLAN).unlink(missing_ok=True)
    if not best["dense"]:
        JointPlan.from_dict(_origin(outcomes, finished[best["model"]]).values["plan"]).save(
            place / _PLAN
        )
        _copied(files / f"{best['model']}.keras", place / "best.keras")
        kept = load_model(place / "best.keras")
    results = {
        "title": f"The best file of {model.name} on {test.name}",
        "command": "dprp compress",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": wish.as_dict(),
        "data": {**test.description, "validation": len(validation.y_test)},
        "models": _models(model, workshop, finished, files),
        "files": [_within_format(row, rows[0]) for row in rows],
        "front": front,
        "wish": {
            "least_score": goal.least_score,
            "most_time": goal.most_time,
            "most_size": goal.most_size,
            "dense_score": goal.dense.score,
        },
        "search": [_step_row(one) for one in outcomes],
        "minutes": round(clock.spent / 60, 2),
        "headline": _headline(best, front, goal, workshop),
        "notes": _notes(validation, test, best, front),
    }
    write_json(place / _RESULTS, results)
    report_run(place)
    display.finish()
    shown = sorted(
        (entry for entry in front if not entry["beaten"]), key=lambda entry: entry["time"]
    )
    return BestFile(path, kept, bool(best["meets"]), shown, results)


def _origin(outcomes: Sequence[Outcome], one: Outcome) -> Outcome:
    """The cut that something was trained of."""
    return next(cut for cut in outcomes if cut.number == one.origin)


def _within_format(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose ratio, if it has one, is to the dense file of the same format."""
    if row["format"] == first["format"]:
        return dict(row)
    return {name: value for name, value in row.items() if not name.startswith("latency_ratio")}


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a file is better than another in something and worse in nothing."""
    pairs = [(one["score"], other["score"])]
    pairs += [(-one[name], -other[name]) for name in ("time", "size")]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _models(
    model: keras.Model, workshop: Workshop, finished: Mapping[str, Outcome], files: Path
) -> list[dict[str, Any]]:
    rows = [model_row(DENSE, f"{model.name}, as it was given", model, workshop.dense_accuracy)]
    for name, one in finished.items():
        row = {
            "name": name,
            "label": one.candidate.label,
            "accuracy": one.values["file"]["accuracy"],
            "parameters": one.values["parameters"],
            "macs": one.values["macs"],
        }
        rows.append(row)
    return rows


def _step_row(one: Outcome) -> dict[str, Any]:
    kept = ("of", "epochs", "learning_rate", "goes_on", "seconds", "missed")
    return {
        "number": one.number,
        "stage": one.stage,
        "label": one.candidate.label,
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
    if settings.max_drop is not None:
        drop = dense.score - best["score"]
        checks.append(
            {
                "name": "as accurate",
                "passed": drop <= settings.max_drop,
                "detail": f"{best['score']:.2%} of the validation samples beside the model's "
                f"{dense.score:.2%}: {100 * drop:.2f} points lost of {100 * settings.max_drop:g}",
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
        "outcomes": [],
    }


def _notes(
    validation: Dataset, test: Dataset, best: Mapping[str, Any], front: list[dict[str, Any]]
) -> list[str]:
    notes = [
        f"The test split was halved at random: {len(validation.y_test):,} samples, called "
        f"validation, decided; accuracies are those on the other {len(test.y_test):,}."
    ]
    if not best["meets"]:
        notes.append("No file keeps all bounds; the best is the one that misses least.")
    return notes


def _require_time(
    clock: Clock, workshop: Workshop, study: CompressionStudy, minutes: float
) -> None:
    """Refuse minutes in which nothing can be finished, if nothing was before."""
    if any(one.done for one in study.outcomes()):
        return
    needed = workshop.file_seconds + workshop.ending_seconds
    if clock.left < needed:
        whole = (clock.spent + needed) / 60
        raise ValueError(
            f"`minutes` must be enough for one candidate here, about {whole:.1f}. Received: "
            f"minutes={minutes:g}, of which {clock.spent / 60:.1f} went into the dense files and "
            "the table of times, which are kept; the same call with more minutes goes on."
        )


def _halves(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """The data with one half of the test split, which decides, and with the other, which tells."""
    count = len(dataset.y_test)
    if count < 2:
        raise ValueError(
            "`data` must have two test samples or more, some to decide by and some to tell by. "
            f"Received: {count} in {dataset.name}"
        )
    order = np.random.default_rng(seed).permutation(count)
    first, second = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    return dataset.with_rows(first, "test"), dataset.with_rows(second, "test")


def _dataset(data: Any) -> Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, (str, os.PathLike)):
        return datasets.load(os.fspath(data))
    if not (isinstance(data, tuple) and len(data) == 2):
        raise ValueError(
            "`data` must be a Dataset, (x, y), or a name, .npz or folder that dprp_tf.data.load "
            f"takes. Received: {type(data).__name__}"
        )
    x, y = np.asarray(data[0]), np.asarray(data[1])
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
    train, test = stratified_split(y, _TEST_SHARE, 0, "data")
    classes = tuple(str(label) for label in range(int(y.max()) + 1))
    return Dataset(
        "data", x[train], y[train], x[test], y[test], classes, None, drawn_test_split=True
    )


def _identity(model: keras.Model, dataset: Dataset) -> dict[str, Any]:
    """What tells a model and its data from others, the same in every process."""
    of_model = hashlib.sha256()
    for weight in model.get_weights():
        of_model.update(repr((weight.shape, str(weight.dtype))).encode())
        of_model.update(np.ascontiguousarray(weight).tobytes())
    of_data = hashlib.sha256(repr(sorted(dataset.description.items())).encode())
    for labels in (dataset.y_train, dataset.y_test):
        of_data.update(np.ascontiguousarray(labels).tobytes())
    for split in ("train", "test"):
        of_data.update(dataset.sample(split, 16)[0].tobytes())
    return {"model": of_model.hexdigest()[:16], "data": of_data.hexdigest()[:16]}


def _copied(source: Path, path: Path) -> None:
    with atomic_path(path) as beside:
        shutil.copyfile(source, beside)
