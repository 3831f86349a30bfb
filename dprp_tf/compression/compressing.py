"""From a trained model to the best file for a device, in one call."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dprp_tf import data as datasets
from dprp_tf.compression.board import board, step_line
from dprp_tf.compression.clock import Clock
from dprp_tf.compression.ending import BestFile, end
from dprp_tf.compression.goal import Goal
from dprp_tf.compression.random_schedule import RandomSchedule
from dprp_tf.compression.schedule import Schedule
from dprp_tf.compression.settings import CompressionSettings
from dprp_tf.compression.study import CompressionStudy, Result, StepCallback, Task
from dprp_tf.compression.workshop import Workshop
from dprp_tf.conversion.writing_out import reachable
from dprp_tf.data import Dataset
from dprp_tf.data.arrays import ARRAYS, as_labels, from_arrays
from dprp_tf.data.splitting import stratified_split
from dprp_tf.files.arguments import check_number
from dprp_tf.files.atomic import remove_leftovers
from dprp_tf.files.digests import digest_of
from dprp_tf.files.lock import run_lock
from dprp_tf.files.settings import require_same_settings
from dprp_tf.runs.first_look import first_look
from dprp_tf.runs.ownership import COMPRESSION, require_own
from dprp_tf.runs.progress import Display
from dprp_tf.runs.reporting import report_run

__all__ = ["compress"]

_CONFIG = "config.json"
_TEST_SHARE = 0.2
# Seconds between two looks at what other workers do.
_PAUSE = 2.0


def compress(
    model: keras.Model,
    data: Dataset | tuple[Any, Any] | str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str],
    minutes: float = 60,
    storage: str | None = None,
    display: Display | None = None,
    fresh: bool = False,
    callbacks: Sequence[StepCallback] = (),
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
        model: A built, trained classifier of plain layers; it stays as it is. Attention and einsum
            layers are written out, as by `write_out`.
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
        callbacks: Called with Optuna's study and its trial after every step, as those for
            MLflow and Weights & Biases are; the values are the accuracy on the
            validation samples and the shares of time and bytes.
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
    wish, model = CompressionSettings(**settings), reachable(model)
    check_number("minutes", minutes, above=0)
    dataset = _dataset(data)
    place, shown = Path(folder), display or Display(quiet=True)
    first_look(model, dataset).warn()
    require_own(place, COMPRESSION)
    with run_lock(place):
        remove_leftovers(place)
        if fresh:
            COMPRESSION.discard(place)
        identity = {**_identity(model, dataset), **wish.as_dict()}
        require_same_settings(place / _CONFIG, {"compression": identity}, "a search")
        clock = Clock(place / "clock.json", minutes)
        study = CompressionStudy(
            place,
            identity,
            storage=storage,
            sampler=wish.sampler,
            seed=wish.seed,
            callbacks=callbacks,
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
    reserve = workshop.ending_seconds(study.outcomes())
    kind = RandomSchedule if wish.sampler == "random" else Schedule
    schedule = kind(goal, clock.searching - reserve, workshop.file_seconds)

    def show() -> None:
        outcomes, files = study.outcomes(), workshop.dense_files
        display.show(lambda: board(outcomes, goal, files, clock.left))

    def work(task: Task) -> Result:
        show()
        return workshop.do(task, study.outcomes())

    while True:
        outcomes = study.outcomes()
        reserve = workshop.ending_seconds(outcomes)
        step = None if study.waiting else schedule.next(outcomes, clock.left - reserve)
        if step is None and not study.waiting:
            busy = any(one.state == "running" for one in outcomes)
            if not busy or clock.left < reserve + workshop.file_seconds:
                break
            time.sleep(_PAUSE)
            study.give_back_stale()
            continue
        before = len(outcomes)
        study.run(step, work)
        for one in study.outcomes()[before:]:
            display.line(step_line(one, goal))
        show()
    display.show(None)
    display.step("timing all files in turns")
    best = end(place, model, workshop, goal, study.outcomes(), clock.spent / 60)
    report_run(place)
    display.finish()
    return best


def _require_time(
    clock: Clock, workshop: Workshop, study: CompressionStudy, minutes: float
) -> None:
    """Refuse minutes in which nothing can be finished, if nothing was before."""
    if any(one.done for one in study.outcomes()):
        return
    needed = workshop.file_seconds + workshop.ending_seconds([])
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
    x, y = np.asarray(data[0]), as_labels(np.asarray(data[1]), "y", "data")
    train, test = stratified_split(y, _TEST_SHARE, 0, "data")
    parts = (x[train], y[train], x[test], y[test])
    classes = tuple(str(label) for label in range(int(y.max()) + 1))
    made = from_arrays(
        "data", dict(zip(ARRAYS, parts, strict=True)), None, classes, augmentation=None
    )
    return replace(made, drawn_test_split=True)


def _identity(model: keras.Model, dataset: Dataset) -> dict[str, Any]:
    """What tells a model and its data from others, the same in every process."""
    samples = (dataset.sample(split, 16)[0] for split in ("train", "test"))
    return {
        "model": digest_of(model.get_weights())[:16],
        "data": digest_of((dataset.y_train, dataset.y_test, *samples))[:16],
    }
