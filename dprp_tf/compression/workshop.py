"""What is done in each stage of a search: cuts, trainings and files, with real models and data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

import dprp_tf.deploy as deploy
from dprp_tf.compression.clock import Clock
from dprp_tf.compression.filing import Filing
from dprp_tf.compression.outcome import Dense, Outcome
from dprp_tf.compression.settings import CompressionSettings
from dprp_tf.compression.study import CompressionStudy, MissedError, Result, Task
from dprp_tf.compression.training import CandidateTraining
from dprp_tf.conversion.cutting import cut
from dprp_tf.costs.budget import Budget, BudgetError
from dprp_tf.costs.joint_plan import JointPlan
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.data import Dataset
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.runs.choosing_channels import groups_left
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.excluded_layers import all_but
from dprp_tf.runs.time_tables import WIDTHS
from dprp_tf.selection.selecting_both import JointSelection
from dprp_tf.training.divergence import DivergenceError
from dprp_tf.training.saving import load_model, save_model

__all__ = ["DENSE", "ROUNDED", "Workshop"]

DENSE = "dense"
# What names of models end in that were trained with rounding.
ROUNDED = "_rounded"
_DENSE_JSON, _CUT, _TUNED = "dense.json", "cut.keras", "tuned.keras"
# Images that a cut, which nothing was trained of, is judged by at most.
_LOOK = 2000
# What the last timing may take longer than the first.
_MARGIN = 1.5
# Numbers of channels and ranks on the axes of the table of times; of a search of less than ten
# minutes fewer, so that some are left for it.
_POINTS, _FEW_POINTS, _SHORT = 5, 3, 600


class Workshop:
    """Does the steps of a search.

    Args:
        folder: The search's folder.
        model: The model as it was given.
        test: Its data; the test split tells accuracies and decides nothing.
        validation: The same with the validation samples as its test split.
        settings: What is wished.
        clock: The search's clock.
        study: Where the search is kept.
        tell: Called with the name of each part of a step.
        measuring: Called with None and a text while the table of times is measured.
        show: Makes a callback that shows a training, of its name and epochs.

    Attributes:
        files: The search's files.
        test: As given.
        validation: As given.
    """

    def __init__(
        self,
        folder: Path,
        model: keras.Model,
        test: Dataset,
        validation: Dataset,
        settings: CompressionSettings,
        clock: Clock,
        study: CompressionStudy,
        *,
        tell: Callable[[str], None],
        measuring: Callable[[float | None, str], None],
        show: Callable[[str, int], keras.callbacks.Callback],
    ) -> None:
        self._folder, self._model, self._settings = folder, model, settings
        self.test, self.validation = test, validation
        self._clock, self._study = clock, study

        def ticking(text: str) -> None:
            clock.tick()
            tell(text)

        def ticking_along(text: str) -> None:
            clock.tick()
            measuring(None, text)

        self._tell, self._measuring = ticking, ticking_along
        self.files = Filing(folder / "files", test, validation, settings, clock, study, ticking)
        self._training = CandidateTraining(model, test, settings, clock, show)

    @cached_property
    def _begun(self) -> dict[str, Any]:
        """The dense files in every format of the runtime, and what was measured of the model."""
        path = self._folder / _DENSE_JSON
        if path.exists():
            return dict(read_json(path))
        rows, seconds = [], []
        for label in self.files.labels:
            self._tell(f"{label}: the model as it is")
            began = time.monotonic()
            try:
                rows.append(self.files.write(label, DENSE, self._model))
            except deploy.ParityError as error:
                # Its outputs are not even numbers, as where they leave float16's range.
                if label == self.files.label:
                    raise
                self._tell(f"{label}: left out. {error}")
            seconds.append(time.monotonic() - began)
        self._tell("timing the dense files")
        began = time.monotonic()
        rows = self.files.timed(rows, patient=False)
        timing = time.monotonic() - began
        self._tell("timing a step of training")
        found = {
            "files": rows,
            "score": accuracy(self._model, self.validation),
            "accuracy": accuracy(self._model, self.test),
            # The first file waits for the converter to be loaded.
            "file_seconds": statistics.median(seconds) + timing,
            "timing_seconds": timing,
            **self._training.quickest(),
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
            len(self.validation.y_test),
        )

    @property
    def dense_accuracy(self) -> float:
        """The model's accuracy on the test split."""
        return float(self._begun["accuracy"])

    @property
    def file_seconds(self) -> float:
        """What it takes to write, verify and time a file."""
        return float(self._begun["file_seconds"])

    def ending_seconds(self, outcomes: Sequence[Outcome]) -> float:
        """Return what it takes to time all files in turns at the end, with one more of them.

        Args:
            outcomes: All steps so far.
        """
        dense = len(self.dense_files)
        files = dense + sum(one.is_file for one in outcomes) + 1
        return _MARGIN * float(self._begun["timing_seconds"]) * files / dense

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
                # Another worker may have measured it in the meantime.
                known = self._study.attribute("widths")
                if known is not None:
                    return WidthTable.from_dict(known)
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
        return self.test.sample("train", self._settings.samples, self._settings.seed)

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
        count = len(self.validation.y_test)
        if count <= _LOOK:
            return self.validation
        rows = np.random.default_rng(self._settings.seed).permutation(count)[:_LOOK]
        return self.validation.with_rows(np.sort(rows), "test")

    def do(self, task: Task, outcomes: list[Outcome]) -> Result:
        """Do a step.

        Args:
            task: The step.
            outcomes: All steps so far.

        Returns:
            What came of it.

        Raises:
            MissedError: If there is no such cut, or its training diverges.
        """
        done = {
            "cut": self._cut,
            "tuned": self._tuned,
            "finished": self._finished,
            "narrow": self._narrow,
            "quantized": self._quantized,
        }
        try:
            return done[task.step.stage](task, outcomes)
        except DivergenceError as error:
            raise MissedError(str(error)) from error
        finally:
            self._clock.keep()

    def _place(self, number: int) -> Path:
        place = self._folder / "candidates" / f"{number:04d}"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _cut(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: cutting {task.candidate.label}")
        try:
            plan, small = self._selection.choose(self._budget(task), task.candidate.cut)
        except BudgetError as error:
            raise MissedError(str(error)) from error
        save_model(small, self._place(task.number) / _CUT)
        return Result(
            accuracy(small, self._look),
            plan.shares["milliseconds"],
            plan.shares["parameters"],
            {"plan": plan.as_dict(), **_counts(small)},
        )

    def _budget(self, task: Task) -> Budget:
        share = task.candidate.share
        by_time = self._settings.metric == "milliseconds"
        return Budget(time=share) if by_time else Budget(parameters=share)

    def _origin(self, task: Task, outcomes: list[Outcome]) -> Outcome:
        """The cut that is trained."""
        return next(one for one in outcomes if one.number == task.step.of)

    def _kept(self, origin: Outcome, gone_on: bool = False) -> Path:
        """Where the model lies that a file was made of."""
        return self.files.folder / f"cut{origin.number}{'_on' if gone_on else ''}.keras"

    def _start(self, task: Task, origin: Outcome) -> keras.Model:
        """What a training begins with: what was made of the cut here before, or the cut anew.

        A training to the end begins where the best little one ended.
        """
        place = self._place(origin.number)
        finished = self._kept(origin)
        if task.step.goes_on:
            if not finished.exists():
                raise MissedError("the model that was finished lies on another machine")
            return load_model(finished)
        if task.step.stage == "finished" and (place / _TUNED).exists():
            return load_model(place / _TUNED)
        if (place / _CUT).exists():
            return load_model(place / _CUT)
        # Another machine made it.
        plan = JointPlan.from_dict(origin.values["plan"])
        small = cut(self._model, plan, calibration_data=self._samples[0], latency=self.table)
        save_model(small, place / _CUT)
        return small

    def _trained(
        self, task: Task, start: keras.Model, place: Path, reserve: float
    ) -> tuple[keras.Model, dict[str, Any]]:
        """The model that a step's training ends with, and what was seen of its epochs."""
        step = task.step
        name = f"{step.stage}_{step.epochs:g}_{step.optimizer}_{step.learning_rate:g}"
        model, seconds = self._training.train(
            start,
            step,
            place / (f"{name}_on" if step.goes_on else name),
            f"{task.number}: {task.candidate.label}",
            str(self._begun["trained_in"]),
            reserve,
        )
        return model, {} if seconds is None else {"epoch_seconds": seconds}

    def _reserve(self, outcomes: list[Outcome]) -> float:
        """What must be left when a training to the end is over."""
        return self.file_seconds + self.ending_seconds(outcomes)

    def _tuned(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: a little training of {task.candidate.label}")
        origin = self._origin(task, outcomes)
        start, place = self._start(task, origin), self._place(origin.number)
        model, values = self._trained(task, start, place, self.file_seconds)
        score = accuracy(model, self.validation)
        others = [
            one.score
            for one in outcomes
            if one.stage == "tuned" and one.done and one.origin == origin.number
        ]
        if score > max(others, default=0.0):
            save_model(model, place / _TUNED)
        return Result(score, origin.time, origin.size, values)

    def _finished(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: training {task.candidate.label} to the end")
        origin = self._origin(task, outcomes)
        start, place = self._start(task, origin), self._place(origin.number)
        model, values = self._trained(task, start, place, self._reserve(outcomes))
        planned = {"planned_time": origin.time, "planned_size": origin.size}
        kept = self._kept(origin, task.step.goes_on)
        return self._filed(task, model, kept, {**values, **planned})

    def _narrow(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: a narrower network from scratch")
        try:
            plan, small = self._selection.narrower(self._budget(task))
        except ValueError as error:  # no such widths, or a layer that can't be made anew
            raise MissedError(str(error)) from error
        # Done again after an interruption, it has another number.
        name = f"narrow_{task.candidate.share:g}"
        place = self._folder / "candidates" / name
        model, seen = self._trained(task, small, place, self._reserve(outcomes))
        values = {
            "plan": plan.as_dict(),
            "planned_time": plan.shares["milliseconds"],
            "planned_size": plan.shares["parameters"],
            **seen,
        }
        return self._filed(task, model, self.files.folder / f"{name}.keras", values)

    def _quantized(self, task: Task, outcomes: list[Outcome]) -> Result:
        self._tell(f"{task.number}: training {task.candidate.label} with int8 rounding")
        origin = self._origin(task, outcomes)
        *_, finished = (
            one
            for one in outcomes
            if one.stage == "finished" and one.done and one.origin == origin.number
        )
        kept = self._kept(origin, bool(finished.values.get("goes_on")))
        if not kept.exists():
            raise MissedError("the model that was finished lies on another machine")
        model = load_model(kept)
        trained = self._training.train_rounded(model, task.step, self._reserve(outcomes))
        names = ("planned_time", "planned_size", "model_score", "parameters", "macs")
        values = {name: finished.values[name] for name in names if name in finished.values}
        path = kept.with_stem(f"{kept.stem}{ROUNDED}")
        # What `best.keras` becomes, without the rounding.
        save_model(model, path)
        return self._filed(task, trained, path, values)

    def _filed(
        self,
        task: Task,
        model: keras.Model | deploy.QuantizedModel,
        kept: Path,
        values: dict[str, Any],
    ) -> Result:
        """A trained model as a file that is verified and timed."""
        self._tell(f"{task.number}: its file")
        try:
            row = self.files.write(self.files.label, kept.stem, model)
        except deploy.ParityError as error:
            raise MissedError(str(error)) from error
        if isinstance(model, keras.Model):
            save_model(model, kept)
            score = accuracy(model, self.validation)
            values = {**values, "model_score": score, **_counts(model)}
        dense, row = self.files.timed([self.dense_files[0], row])
        return Result(
            row["score"],
            row["latency_ratio"],
            row["size_bytes"] / dense["size_bytes"],
            {**values, "file": row},
        )


def _counts(model: keras.Model) -> dict[str, Any]:
    cost = model_cost(model)
    return {"parameters": cost.parameters, "macs": cost.macs}
