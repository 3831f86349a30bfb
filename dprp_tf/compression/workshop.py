"""What is done in each stage of a search: cuts, trainings and files, with real models and data."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

import dprp_tf.deploy as deploy
from dprp_tf.compression.clock import Clock, Deadline
from dprp_tf.compression.outcome import Dense, Outcome
from dprp_tf.compression.settings import CompressionSettings
from dprp_tf.compression.study import CompressionStudy, MissedError, Result, Task
from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.keras_internals.precision import in_bfloat16, in_float32
from dprp_tf.keras_internals.rewriting import rewrite
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.runs.choosing_channels import groups_left
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.excluded_layers import all_but
from dprp_tf.runs.files import FORMATS, file_accuracy, format_for, time_rows, write_file
from dprp_tf.runs.time_tables import WIDTHS
from dprp_tf.selection.selecting_both import JointSelection
from dprp_tf.training.fine_tuning import FineTuning
from dprp_tf.training.saving import load_model, save_model

__all__ = ["DENSE", "Workshop"]

DENSE = "dense"
_DENSE_JSON = "dense.json"
# Images that a cut, which nothing was trained of, is judged by at most.
_LOOK = 2000
# Steps by which the length of an epoch is told, and rounds of timing beside the dense file.
_STEPS, _ROUNDS = 14, 40
# The share of an epoch's time in float32 that one in bfloat16 may take to be worth it.
_QUICKER = 0.9
# Seconds between two tries of a target that went away.
_WAIT = 10.0
_WEIGHT_DECAY = 5e-4
# Numbers of channels and ranks on the axes of the table of times; of a search of less than ten
# minutes fewer, so that some are left for it.
_POINTS, _FEW_POINTS, _SHORT = 5, 3, 600


class Workshop:
    """Does the steps of a search.

    Args:
        folder: The search's folder.
        model: The model as it was given.
        dataset: Its data; the test split decides nothing.
        validation: The same with the validation samples as its test split.
        settings: What is wished.
        clock: The search's clock.
        study: Where the search is kept.
        tell: Called with the name of each part of a step.
        measuring: Called with None and a text while the table of times is measured.
        training: Makes a callback that shows a training, of its name and epochs.
    """

    def __init__(
        self,
        folder: Path,
        model: keras.Model,
        dataset: Dataset,
        validation: Dataset,
        settings: CompressionSettings,
        clock: Clock,
        study: CompressionStudy,
        *,
        tell: Callable[[str], None],
        measuring: Callable[[float | None, str], None],
        training: Callable[[str, int], keras.callbacks.Callback],
    ) -> None:
        self._folder, self._model, self._settings = folder, model, settings
        self._dataset, self._validation = dataset, validation
        self._clock, self._study, self._training = clock, study, training
        self._label = format_for(settings.runtime, settings.precision)
        self._files = folder / "files"

        def ticking(text: str) -> None:
            clock.tick()
            tell(text)

        def ticking_along(text: str) -> None:
            clock.tick()
            measuring(None, text)

        self._tell, self._measuring = ticking, ticking_along

    @property
    def _dense_path(self) -> Path:
        return self._folder / _DENSE_JSON

    @cached_property
    def _begun(self) -> dict[str, Any]:
        """The dense files in every format of the runtime, and what was measured of them."""
        path = self._dense_path
        if path.exists():
            return dict(read_json(path))
        self._files.mkdir(parents=True, exist_ok=True)
        labels = [name for name, one in FORMATS.items() if one.runtime == self._settings.runtime]
        # The format that is wished is what the others are compared with.
        labels.sort(key=lambda name: name != self._label)
        rows, seconds = [], []
        for label in labels:
            self._tell(f"{label}: the model as it is")
            began = time.monotonic()
            rows.append(self._written(label, DENSE, self._model))
            seconds.append(time.monotonic() - began)
        self._tell("timing the dense files")
        began = time.monotonic()
        rows = self.timed(rows)
        timing = time.monotonic() - began
        self._tell("timing a step of training")
        found = {
            "files": rows,
            "score": accuracy(self._model, self._validation),
            "accuracy": accuracy(self._model, self._dataset),
            # The first file waits for the converter to be loaded.
            "file_seconds": statistics.median(seconds) + timing,
            "timing_seconds": timing,
            **self._timed_epoch(),
        }
        write_json(path, found)
        return found

    @property
    def dense_files(self) -> list[dict[str, Any]]:
        """The rows of the dense files; the first is of the precision that is wished."""
        return list(self._begun["files"])

    @property
    def dense(self) -> Dense:
        """The model as it was given."""
        (first, *_) = self.dense_files
        return Dense(
            self._begun["score"],
            first["latency_ms"]["median"],
            first["size_bytes"],
            self._begun["epoch_seconds"],
            len(self._validation.y_test),
        )

    @property
    def dense_accuracy(self) -> float:
        """The model's accuracy on the test split."""
        return float(self._begun["accuracy"])

    @property
    def file_seconds(self) -> float:
        """What it takes to write, verify and time a file."""
        return float(self._begun["file_seconds"])

    @property
    def ending_seconds(self) -> float:
        """What it takes to time all files in turns at the end."""
        return 2 * float(self._begun["timing_seconds"])

    def timed(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Time files in turns on the target.

        Args:
            rows: Rows of files; the first is what the others are compared with.

        Returns:
            The rows with their times.

        Raises:
            TargetError: If the target can't be reached or lacks the runtime, at the beginning; one
                that goes away later is waited for as long as the search may take.
        """
        settings = self._settings
        while True:
            try:
                with self._study.one_at_a_time(f"target {settings.target}"):
                    return time_rows(
                        self._files,
                        rows,
                        self._validation,
                        target=settings.target,
                        threads=settings.threads,
                        repeats=_ROUNDS,
                    )
            except deploy.TargetError as error:
                # What was there at the beginning comes back: a device that starts anew, a network.
                if not self._dense_path.exists() or self._clock.left < 0:
                    raise
                self._tell(f"waiting for {settings.target}: {error}")
                time.sleep(_WAIT)

    def _written(self, label: str, name: str, model: keras.Model) -> dict[str, Any]:
        """Write a file; its accuracy on the test split, its score on the validation samples."""
        row = write_file(self._files, label, name, model, self._dataset)
        score = file_accuracy(self._files / row["file"], self._validation)
        return {**row, "score": score}

    def _timed_epoch(self) -> dict[str, Any]:
        """What an epoch takes in the precision in which it takes less."""
        import tensorflow as tf

        whole = self._epoch_seconds_of(rewrite(self._model, lambda layer: None), self._model)
        try:
            half = in_bfloat16(self._model)
            quick = self._epoch_seconds_of(half, half)
        except (ValueError, TypeError, tf.errors.OpError):
            # Not every layer can be copied so, and not every operation is there.
            quick = math.inf
        if quick < _QUICKER * whole:
            return {"epoch_seconds": quick, "trained_in": "bfloat16"}
        return {"epoch_seconds": whole, "trained_in": "float32"}

    def _epoch_seconds_of(self, model: keras.Model, teacher: keras.Model) -> float:
        deadline = Deadline(self._clock, 0.0, _STEPS)
        self._tuning(1, 1e-6, teacher).fit(model, self._dataset, callbacks=[deadline])
        # Of an epoch of few steps all is timed at once.
        return deadline.epoch_seconds or 1.0

    @cached_property
    def _teacher(self) -> keras.Model:
        return in_bfloat16(self._model) if self._in_bfloat16 else self._model

    @property
    def _in_bfloat16(self) -> bool:
        return bool(self._begun.get("trained_in") == "bfloat16")

    def _tuning(self, epochs: int, learning_rate: float, teacher: keras.Model) -> FineTuning:
        settings = self._settings
        tuning = FineTuning(
            epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=_WEIGHT_DECAY,
            seed=settings.seed,
            teacher=teacher if settings.distill else None,
        )
        return tuning.for_model(self._model, self._dataset.y_train)

    @cached_property
    def _layers(self) -> Callable[[keras.layers.Layer], bool] | None:
        return all_but(self._model, self._settings.exclude)

    @cached_property
    def table(self) -> WidthTable:
        """What the model takes on the target by width and rank, measured once for all workers."""
        path = self._folder / WIDTHS
        if path.exists():
            return WidthTable.load(path)
        known = self._study.attribute("widths")
        if known is not None:
            table = WidthTable.from_dict(known)
        else:
            settings = self._settings
            with self._study.one_at_a_time(f"target {settings.target}"):
                table = deploy.measure_widths(
                    self._model,
                    target=settings.target,
                    runtime=settings.runtime,
                    precision=settings.precision,
                    threads=settings.threads,
                    decomposition=settings.decomposition,
                    groups=groups_left(self._model, self._layers),
                    multiple=settings.multiple,
                    points=_FEW_POINTS if self._clock.whole < _SHORT else _POINTS,
                    progress=self._measuring,
                )
            self._study.keep("widths", table.as_dict())
        table.save(path)
        return table

    @cached_property
    def _samples(self) -> tuple[np.ndarray, np.ndarray]:
        return self._dataset.sample("train", self._settings.samples, self._settings.seed)

    @cached_property
    def _selection(self) -> JointSelection:
        layers = self._layers
        return JointSelection(
            self._model,
            data=self._samples,
            latency=self.table,
            decomposition=self._settings.decomposition,
            groups=groups_left(self._model, layers),
            layers=None if layers is None else list(factorizable(self._model, layers)[0]),
            multiple=self._settings.multiple,
            score="accuracy",
            progress=lambda share, text: self._clock.tick(),
            seed=self._settings.seed,
        )

    @cached_property
    def _look(self) -> Dataset:
        """The validation samples that cuts are judged by."""
        count = len(self._validation.y_test)
        if count <= _LOOK:
            return self._validation
        rows = np.random.default_rng(self._settings.seed).permutation(count)[:_LOOK]
        return self._validation.with_rows(np.sort(rows), "test")

    def do(self, task: Task, outcomes: list[Outcome]) -> Result:
        """Do a step.

        Args:
            task: The step.
            outcomes: All steps so far.

        Returns:
            What came of it.

        Raises:
            MissedError: If there is no such cut.
        """
        done = {"cut": self._cut, "tuned": self._tuned, "finished": self._finished}
        try:
            return done[task.step.stage](task, outcomes)
        finally:
            self._clock.keep()

    def _place(self, number: int) -> Path:
        place = self._folder / "candidates" / f"{number:04d}"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _cut(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: cutting {task.candidate.label}")
        share = task.candidate.share
        by_time = self._settings.metric == "milliseconds"
        budget = Budget(time=share) if by_time else Budget(parameters=share)
        try:
            plan, small = self._selection.choose(budget, task.candidate.cut)
        except BudgetError as error:
            raise MissedError(str(error)) from error
        save_model(small, self._place(task.number) / "cut.keras")
        return Result(
            accuracy(small, self._look),
            plan.shares["milliseconds"],
            plan.shares["parameters"],
            {"plan": plan.as_dict(), **_counts(small)},
        )

    def _start(self, task: Task, outcomes: list[Outcome]) -> keras.Model:
        """What a training begins with: what was made of the cut here before, or the cut anew."""
        assert task.step.of is not None
        place = self._place(task.step.of)
        if task.step.goes_on and (place / "finished.keras").exists():
            return load_model(place / "finished.keras")
        (origin,) = (one for one in outcomes if one.number == task.step.of)
        if (place / "cut.keras").exists():
            return load_model(place / "cut.keras")
        # Another machine made it.
        plan = JointPlan.from_dict(origin.values["plan"])
        small = cut(self._model, plan, calibration_data=self._samples[0], latency=self.table)
        save_model(small, place / "cut.keras")
        return small

    def _trained(
        self, task: Task, model: keras.Model, reserve: float
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Train for the epochs of a step, or for a part of one on a part of the data."""
        step, dataset = task.step, self._dataset
        assert step.of is not None
        if step.epochs <= 0:
            return model, {}
        if step.epochs < 1:
            count = len(dataset.y_train)
            rows = np.random.default_rng(self._settings.seed).permutation(count)
            dataset = dataset.with_rows(np.sort(rows[: max(1, int(step.epochs * count))]))
        epochs = max(1, int(step.epochs))
        name = f"{step.stage}_{step.epochs:g}_{step.learning_rate:g}"
        if step.goes_on:
            name += "_on"
        deadline = Deadline(self._clock, reserve)
        told = f"{task.number}: {task.candidate.label}"
        trained = in_bfloat16(model) if self._in_bfloat16 else model
        self._tuning(epochs, step.learning_rate, self._teacher).fit(
            trained,
            dataset,
            callbacks=[deadline, self._training(told, epochs)],
            folder=self._place(step.of) / name,
        )
        model = in_float32(trained) if self._in_bfloat16 else trained
        seconds = deadline.epoch_seconds
        if seconds is None:
            return model, {}
        # As if all of the data had been trained on.
        return model, {"epoch_seconds": round(seconds / min(1.0, step.epochs), 3)}

    def _tuned(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: a little training of {task.candidate.label}")
        model, values = self._trained(task, self._start(task, outcomes), self.file_seconds)
        (origin,) = (one for one in outcomes if one.number == task.step.of)
        return Result(accuracy(model, self._validation), origin.time, origin.size, values)

    def _finished(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: training {task.candidate.label} to the end")
        reserve = self.file_seconds + self.ending_seconds
        model, values = self._trained(task, self._start(task, outcomes), reserve)
        assert task.step.of is not None
        path = self._place(task.step.of) / "finished.keras"
        save_model(model, path)
        name = f"cut{task.step.of}" + ("_on" if task.step.goes_on else "")
        save_model(model, self._files / f"{name}.keras")
        self._tell(f"{task.number}: its file")
        (origin,) = (one for one in outcomes if one.number == task.step.of)
        planned = {"planned_time": origin.time, "planned_size": origin.size}
        dense, row = self.timed([self.dense_files[0], self._written(self._label, name, model)])
        return Result(
            row["score"],
            row["latency_ratio"],
            row["size_bytes"] / dense["size_bytes"],
            {
                **values,
                **planned,
                "file": row,
                "model_score": accuracy(model, self._validation),
                **_counts(model),
            },
        )


def _counts(model: keras.Model) -> dict[str, Any]:
    cost = model_cost(model)
    return {"parameters": cost.parameters, "macs": cost.macs}
