"""A training run in a folder: configuration, log, checkpoints; started or continued alike."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import keras

from dprp_tf import zoo
from dprp_tf.conversion.factorizing import factorize
from dprp_tf.conversion.folding import choose_forms, fold
from dprp_tf.conversion.summaries import summarize
from dprp_tf.costs.budget import Budget
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.models import model_cost
from dprp_tf.data import Dataset, batches, evaluation_batches, reading_errors
from dprp_tf.files.atomic import read_json, remove_leftovers, write_json
from dprp_tf.files.lock import run_lock
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.graphs import walk_layers
from dprp_tf.keras_internals.seeds import seed_states, set_seed_states
from dprp_tf.layers import factorized_layers
from dprp_tf.report import save_plots, write_report
from dprp_tf.runs.evaluation import accuracy
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.training.budget_pruning import BudgetPruning
from dprp_tf.training.distribution import Distribution
from dprp_tf.training.divergence import DivergenceGuard
from dprp_tf.training.on_device import fit_on_device
from dprp_tf.training.rank_history import RankHistory
from dprp_tf.training.rank_pruning import RankPruning
from dprp_tf.training.saving import load_model, save_model
from dprp_tf.training.settings import DPRPSettings

__all__ = ["all_but", "finish", "train"]

_TABLE = "run_latency.json"
_MODEL = "model.keras"
_FOLDED = "folded.keras"
_RESULTS = "results.json"
_VALIDATION_BATCH = 500


def train(
    folder: str | os.PathLike[str],
    settings: TrainSettings,
    dataset: Dataset,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int = 0,
    fresh: bool = False,
    distribution: Distribution | None = None,
) -> keras.Model:
    """Train a model in a run folder, from its last finished epoch if there is one.

    The folder gets `config.json` (the settings and the data's name), `history.json`,
    `ranks.json` for a DPRP run, `state.json` with the checkpoint it names, and `model.keras` at
    the end. Everything is written beside and renamed, the state last, so an interrupted run goes
    on from an epoch that was wholly written.

    Args:
        folder: The run folder; made if missing.
        settings: What to train.
        dataset: Training and test split.
        callbacks: More Keras callbacks, such as a progress display.
        verbose: 2 for a line per epoch from Keras. Default 0.
        fresh: Whether to discard what the folder holds instead of going on. Default False.
        distribution: The devices and workers that train together; with several workers each
            calls this, and only the chief needs the folder. A run may go on on others. Default:
            one device.

    Returns:
        The trained model, on one device; its history is in `history.json`.

    Raises:
        ValueError: If the folder holds a run with other settings, or its files are unusable.
        RuntimeError: If another process is training in the folder; `WorkerLostError` if another
            worker has stopped.

    Example:

    >>> train.__name__
    'train'
    """
    place = Distribution() if distribution is None else distribution
    if place.replicas > 1:
        _require_shareable(place, settings, dataset)
    with place.watch(), place.run_folder(folder, fresh=fresh) as own, run_lock(own):
        remove_leftovers(own)
        with place.running():
            model = _train(own, settings, dataset, callbacks, verbose, fresh, place)
        return model if place.strategy is None else load_model(own / _MODEL)


def _train(
    folder: Path,
    settings: TrainSettings,
    dataset: Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int,
    fresh: bool,
    place: Distribution,
) -> keras.Model:
    state_path, history_path = folder / "state.json", folder / "history.json"
    config = {"settings": json.loads(json.dumps(asdict(settings))), "data": dataset.name}
    resumed = state_path.exists() and not fresh
    if resumed:
        _check_config(folder / "config.json", config)
    table = _latency_table(folder / _TABLE, settings, resumed)
    if not resumed:
        for stale in (state_path, history_path, folder / "ranks.json", folder / "config.json"):
            stale.unlink(missing_ok=True)
    keras.utils.set_random_seed(settings.seed)
    state: dict[str, Any] = {"epoch": 0, "history": [], "plateau": None, "seeds": None}
    if resumed:
        state = _read_state(state_path)
        finished = state["epoch"] >= settings.epochs
        with place.scope():
            # What a run ended with may be more than its last checkpoint: callbacks come after it.
            if finished and (folder / _MODEL).exists():
                return load_model(folder / _MODEL)
            model = _checkpoint(folder, state)
        if finished:
            _save(model, folder)
            return model
    else:
        with place.scope():
            model = _new_model(settings, dataset)
    write_json(folder / "config.json", config)
    # A run that is made longer: what it ended with before is not what it ends with now.
    for name in (_MODEL, _FOLDED, _RESULTS):
        (folder / name).unlink(missing_ok=True)

    schedule = _schedule(settings, state)
    plateau = schedule if isinstance(schedule, _Plateau) else None
    recorder = _Recorder(folder, settings, state, plateau)
    own: list[keras.callbacks.Callback] = [schedule]
    if settings.method == "dprp":
        options: dict[str, Any] = {
            name: getattr(settings, name)
            for name in (
                *("discarded_energy", "start_epoch", "stop_epoch"),
                *("frequency", "minimum_rank", "minimum_removed"),
            )
        }
        if table is None:
            pruning = RankPruning(**options)
        else:
            budget = Budget(milliseconds=settings.budget)
            pruning = BudgetPruning(budget, latency=table, **options)
        own = [pruning, schedule, RankHistory(folder / "ranks.json")]
    # First, so that the last good epoch's checkpoint outlives a diverged one.
    own.insert(0, DivergenceGuard())
    own = [*place.callbacks(), *own]
    if settings.on_device:
        fit_on_device(
            model,
            dataset,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            initial_epoch=state["epoch"],
            steps_per_dispatch=settings.steps_per_execution,
            augment=settings.augment,
            padding=settings.padding,
            flip=settings.flip,
            seed=settings.seed,
            callbacks=[*own, recorder, *callbacks],
        )
    else:
        _fit_from_host(
            model, dataset, settings, state["epoch"], [*own, recorder, *callbacks], verbose, place
        )
    _save(model, folder)
    return model


def _require_shareable(place: Distribution, settings: TrainSettings, dataset: Dataset) -> None:
    if settings.on_device:
        raise ValueError(
            "`on_device` must be False with several replicas. Received: on_device=True and "
            f"{place.replicas} replicas"
        )
    if settings.steps_per_execution > 1 and keras.backend.backend() == "tensorflow":
        raise ValueError(
            "`steps_per_execution` must be 1 with several replicas on the TensorFlow backend, "
            "which can't exchange values inside a loop. Received: "
            f"steps_per_execution={settings.steps_per_execution} and {place.replicas} replicas"
        )
    place.require_divisible(settings.batch_size)
    place.require_same(
        {
            "data": [dataset.name, len(dataset.x_train), len(dataset.x_test)],
            "settings": asdict(settings),
        }
    )


def _checkpoint(folder: Path, state: dict[str, Any]) -> keras.Model:
    """The model of a state, its random layers where they were."""
    try:
        model = load_model(folder / state["checkpoint"])
        if state["seeds"] is not None:
            set_seed_states(model, state["seeds"])
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"The run's state must name a sound checkpoint. Received: {folder / 'state.json'} ("
            f"{error}). Remove the folder, or start anew with `fresh`."
        ) from error
    return model


def _save(model: keras.Model, folder: Path) -> None:
    sync(model)
    save_model(model, folder / _MODEL)


def _fit_from_host(
    model: keras.Model,
    dataset: Dataset,
    settings: TrainSettings,
    initial_epoch: int,
    callbacks: list[keras.callbacks.Callback],
    verbose: int,
    place: Distribution,
) -> None:
    stream = batches(
        dataset,
        settings.batch_size,
        augment=settings.augment,
        padding=settings.padding,
        flip=settings.flip,
        drop_remainder=True,
        seed=settings.seed,
        epoch=initial_epoch,
        endless=place.replicas > 1,
    )
    steps = None
    validation: Any = {
        "validation_data": (dataset.x_test, dataset.y_test),
        "validation_batch_size": _VALIDATION_BATCH,
    }
    if dataset.streamed:
        validation = {"validation_data": evaluation_batches(dataset, settings.batch_size)}
    if place.replicas > 1:
        size = settings.batch_size if dataset.streamed else _VALIDATION_BATCH
        size = place.evaluation_batch_size(len(dataset.x_test), size)
        test = evaluation_batches(dataset, size)
        validation = {"validation_data": place.share(test), "validation_steps": len(test)}
        steps = len(dataset.x_train) // settings.batch_size
        stream = place.share(stream)
    with reading_errors(dataset.x_train, dataset.x_test):
        model.fit(
            stream,
            epochs=settings.epochs,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps,
            **validation,
            callbacks=callbacks,
            verbose=verbose,
            shuffle=False,
        )


def _new_model(settings: TrainSettings, dataset: Dataset) -> keras.Model:
    if settings.model.endswith(".keras"):
        model = load_model(settings.model)
    else:
        takes_shortcut = zoo.accepts(settings.model, "shortcut")
        options = {"shortcut": settings.shortcut} if takes_shortcut else {}
        model = zoo.build(
            settings.model,
            input_shape=dataset.image_shape,
            classes=len(dataset.classes),
            weight_decay=settings.weight_decay,
            preprocess=(dataset.mean, dataset.std),
            **options,
        )
    metrics: list[Any] = ["accuracy"]
    if settings.method == "dprp":
        model = factorize(
            model,
            decomposition=settings.decomposition,
            layers=all_but(model, settings.exclude),
            settings=DPRPSettings(
                structure=settings.structure,
                compression=settings.compression,
                compression_weight=settings.compression_weight,
                threshold=settings.threshold,
                retraction_period=settings.retraction_period,
            ),
        )
    else:
        metrics.append(
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="app_loss")
        )
    model.compile(
        optimizer=keras.optimizers.SGD(
            settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=metrics,
        steps_per_execution=settings.steps_per_execution,
    )
    return model


def _latency_table(own: Path, settings: TrainSettings, resumed: bool) -> LatencyTable | None:
    """The run's own copy if it goes on: a table measured anew must not change a run."""
    if settings.latency_table is None:
        return None
    if resumed and own.exists():
        return LatencyTable.load(own)
    table = LatencyTable.load(settings.latency_table)
    table.save(own)
    return table


def all_but(
    model: keras.Model, exclude: Sequence[str]
) -> Callable[[keras.layers.Layer], bool] | None:
    """Return what `factorize(layers=...)` takes to leave some layers dense.

    Args:
        model: The model.
        exclude: Names of layers that stay dense.

    Returns:
        A test of layers; None if none is left out.

    Raises:
        ValueError: If the model has no layer of a name.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> all_but(model, ["head"])(model.get_layer("head"))
    False
    """
    unknown = sorted(set(exclude) - {layer.name for layer in walk_layers(model)})
    if unknown:
        raise ValueError(
            f"`exclude` must name layers of the model. Received: {unknown}; "
            "`dprp inspect` lists them."
        )
    return (lambda layer: layer.name not in exclude) if exclude else None


def _schedule(settings: TrainSettings, state: dict[str, Any]) -> keras.callbacks.Callback:
    if settings.schedule == "plateau":
        return _Plateau(settings.patience, state["plateau"])

    def rate(epoch: int, _: float) -> float:
        if epoch < settings.warmup_epochs:
            return settings.learning_rate * (epoch + 1) / (settings.warmup_epochs + 1)
        if settings.schedule == "constant":
            return settings.learning_rate
        done = (epoch - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    return keras.callbacks.LearningRateScheduler(rate)


class _Plateau(keras.callbacks.ReduceLROnPlateau):
    """The papers' schedule on the application loss, able to go on where it was."""

    _KEPT = ("best", "wait", "cooldown_counter")

    def __init__(self, patience: int, state: dict[str, Any] | None) -> None:
        super().__init__(monitor="app_loss", factor=0.1, patience=patience, mode="min")
        self._restored = state

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        for name, value in (self._restored or {}).items():
            setattr(self, name, value)

    def state(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in self._KEPT}


class _Recorder(keras.callbacks.Callback):
    """Write history, checkpoint and state after every epoch, the state last."""

    def __init__(
        self,
        folder: Path,
        settings: TrainSettings,
        state: dict[str, Any],
        plateau: _Plateau | None,
    ) -> None:
        super().__init__()
        self._folder, self._settings, self._plateau = folder, settings, plateau
        self._history = list(state["history"])
        self._began = self._step_began = time.perf_counter()
        self._steps: dict[str, list[float]] = {"train": [], "test": []}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()
        self._steps = {"train": [], "test": []}

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps["train"].append(time.perf_counter() - self._step_began)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step_began = time.perf_counter()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps["test"].append(time.perf_counter() - self._step_began)

    def _tracing_seconds(self) -> float:
        """Return what the first steps took beyond the median step: a trace, where there was one."""
        excess = 0.0
        for steps in self._steps.values():
            if len(steps) > 1:
                excess += max(0.0, steps[0] - statistics.median(steps[1:]))
        return round(excess, 2)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        entry = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        for name in ("total_rank", "parameters"):
            if name in entry:
                entry[name] = int(entry[name])
        sync(self.model)
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        entry["learning_rate"] = float(rate)
        entry["seconds"] = round(time.perf_counter() - self._began, 2)
        entry["tracing_seconds"] = self._tracing_seconds()
        self._history.append(entry)
        name = f"checkpoint-{epoch + 1:04d}.keras"
        save_model(self.model, self._folder / name)
        write_json(self._folder / "history.json", {"runs": {self._settings.method: self._history}})
        write_json(
            self._folder / "state.json",
            {
                "epoch": epoch + 1,
                "checkpoint": name,
                "history": self._history,
                "plateau": self._plateau_state(),
                "seeds": seed_states(self.model),
            },
        )
        for old in self._folder.glob("checkpoint-[0-9][0-9][0-9][0-9]*.keras"):
            if old.name != name:
                old.unlink()

    def _plateau_state(self) -> dict[str, float] | None:
        return None if self._plateau is None else self._plateau.state()


def _check_config(path: Path, config: dict[str, Any]) -> None:
    if not path.exists():
        raise ValueError(
            f"`folder` must hold the configuration of its run. Received: {path.parent} with a "
            f"state and without {path.name}. Restore it, or start anew with `fresh`."
        )
    found = _read_json(path)
    known = {entry.name for entry in fields(TrainSettings)}
    settings = found.get("settings")
    if not isinstance(settings, dict) or not _whole(settings.get("epochs", 1)):
        raise ValueError(
            f"The run's configuration must hold its settings. Received: {path}, which does not. "
            "Remove the folder and start anew."
        )
    before = {k: v for k, v in settings.items() if k in known}
    now = config["settings"]
    changed = [name for name in now if name in before and before[name] != now[name]]
    # The run has its own copy of the table.
    changed = [name for name in changed if name != "latency_table"]
    changed = [name for name in changed if name != "epochs" or before["epochs"] > now["epochs"]]
    if changed or found.get("data") != config["data"]:
        details = ", ".join(f"{name}: {before[name]!r} -> {now[name]!r}" for name in changed)
        raise ValueError(
            f"`folder` holds a run with other settings. Received: {path.parent} "
            f"({details or 'other data'}). Choose another folder, or start anew with `fresh`."
        )


def _read_state(path: Path) -> dict[str, Any]:
    state = {"plateau": None, "seeds": None, **_read_json(path)}
    wrong = [key for key, sound in _STATE.items() if not _holds(sound, state)]
    if wrong:
        raise ValueError(
            f"The run's state must hold {', '.join(_STATE)}. Received: {path}, in which "
            f"{', '.join(wrong)} is missing or does not fit. Remove the folder and start anew."
        )
    return state


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# What each entry of a state must be; history and checkpoint must be those of its epoch.
_STATE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "epoch": lambda state: _whole(state["epoch"]) and state["epoch"] >= 1,
    "checkpoint": lambda state: state["checkpoint"] == f"checkpoint-{state['epoch']:04d}.keras",
    "history": lambda state: (
        [entry["epoch"] for entry in state["history"]] == list(range(1, state["epoch"] + 1))
    ),
    "plateau": lambda state: (
        state["plateau"] is None
        or (
            sorted(state["plateau"]) == sorted(_Plateau._KEPT)
            and all(isinstance(value, float) for value in state["plateau"].values())
        )
    ),
    "seeds": lambda state: (
        state["seeds"] is None
        or all(
            len(pair) == 2 and all(_whole(value) and -(2**63) <= value < 2**63 for value in pair)
            for pair in state["seeds"]
        )
    ),
}


def _holds(sound: Callable[[dict[str, Any]], bool], state: dict[str, Any]) -> bool:
    try:
        return sound(state)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"The run file must be JSON. Received: {path}, which can't be read ({error}). "
            "Remove the folder and start anew."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"The run file must hold an object. Received: {path}")
    return value


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
        table = LatencyTable.load(folder / _TABLE) if settings.latency_table else None
        forms = None if table is None else table.forms(model.ranks)
        folded = fold(model, forms=forms)
        save_model(folded, folder / _FOLDED)
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
    write_json(folder / _RESULTS, results)
    save_plots(folder)
    write_report(folder)
    return results
