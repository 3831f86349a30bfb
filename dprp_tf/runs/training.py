"""A training run in a folder: configuration, log, checkpoints; started or continued alike."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from dprp_tf import zoo
from dprp_tf.conversion.factorizing import factorize
from dprp_tf.conversion.writing_out import reachable
from dprp_tf.costs.budget import Budget
from dprp_tf.costs.compiled_loss import is_categorical
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.data import Dataset, batches, evaluation_batches, reading_errors
from dprp_tf.files.atomic import remove_leftovers, write_json
from dprp_tf.files.lock import run_lock
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.runs.checkpoints import Recorder, check_config, load_checkpoint, read_state
from dprp_tf.runs.excluded_layers import all_but
from dprp_tf.runs.first_look import FirstLook, first_look
from dprp_tf.runs.kept_folder import KeptFolder
from dprp_tf.runs.ownership import TRAINING, require_own
from dprp_tf.runs.results import FOLDED, LOOK, RESULTS, TABLE
from dprp_tf.runs.schedules import Plateau, schedule
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.training.budget_pruning import BudgetPruning
from dprp_tf.training.distillation import Distillation
from dprp_tf.training.distribution import Distribution
from dprp_tf.training.divergence import DivergenceGuard
from dprp_tf.training.fine_tuning import FineTuning, classification_loss
from dprp_tf.training.on_device import fit_on_device
from dprp_tf.training.rank_history import RankHistory
from dprp_tf.training.rank_pruning import RankPruning
from dprp_tf.training.saving import load_model, save_model
from dprp_tf.training.settings import DPRPSettings

__all__ = ["train"]

_MODEL = "model.keras"
_TEACHER = "teacher.keras"
_VALIDATION_BATCH = 500
# Settings that `DPRPSettings` and the pruning callbacks take by the same names.
_STRUCTURE = (
    "structure",
    "compression",
    "compression_weight",
    "threshold",
    "retraction_period",
)
_PRUNING = (
    "discarded_energy",
    "start_epoch",
    "stop_epoch",
    "frequency",
    "minimum_rank",
    "minimum_removed",
)


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

    The folder gets `config.json` (the settings and the data's name), for a model that is trained
    already `first_look.json` (`runs.first_look`), `history.json`, `ranks.json` for a DPRP run,
    `teacher.keras` for one that distills, `state.json` with the checkpoint it names, and
    `model.keras` at the end. Everything is written beside and renamed, the state last, so an
    interrupted run goes on from an epoch that was wholly written.

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
        ValueError: If the folder holds a run with other settings or what is no run, the model to
            start from is the run's own, or its files are unusable.
        RuntimeError: If another process is at work in the folder; `WorkerLostError` if another
            worker has stopped.

    Example:

    >>> train.__name__
    'train'
    """
    place = Distribution() if distribution is None else distribution
    if place.replicas > 1:
        _require_shareable(place, settings, dataset)
    start = Path(settings.model).resolve()
    if start in {Path(folder, name).resolve() for name in TRAINING.held(Path(folder))}:
        raise ValueError(
            "`model` must not be a file that the run in `folder` replaces. Received: "
            f"model={settings.model!r}, folder={str(folder)!r}; choose another folder."
        )
    with place.watch(), place.run_folder(folder, fresh=fresh) as own:
        require_own(own, TRAINING)
        with run_lock(own):
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
    state_path = folder / "state.json"
    config = {"settings": json.loads(json.dumps(asdict(settings))), "data": dataset.name}
    resumed = state_path.exists() and not fresh
    if resumed:
        check_config(folder / "config.json", config)
    table = _latency_table(folder / TABLE, settings, resumed)
    keras.utils.set_random_seed(settings.seed)
    start: keras.Model | None = None
    state: dict[str, Any] = {"epoch": 0, "history": [], "plateau": None, "seeds": None}
    if resumed:
        state = read_state(state_path)
        finished = state["epoch"] >= settings.epochs
        with place.scope():
            # What a run ended with may be more than its last checkpoint: callbacks come after it.
            if finished and (folder / _MODEL).exists():
                return load_model(folder / _MODEL)
            model = load_checkpoint(folder, state)
        if finished:
            _save(model, folder)
            return model
    else:
        with place.scope():
            found = reachable(load_model(settings.model)) if settings.starts_trained else None
            model = _new_model(settings, dataset, found)
        look: FirstLook | None = None
        if settings.starts_trained:
            # What is trained itself, or lies on several devices, is not what it began from.
            apart = found is not None and model is not found and place.strategy is None
            start = found if apart else reachable(load_model(settings.model))
            assert start is not None
            look = first_look(start, dataset)
            look.warn()
        # Only now: a model that can't be made or does not fit takes no earlier run with it.
        for stale in ("state.json", "history.json", "ranks.json", LOOK, _TEACHER):
            (folder / stale).unlink(missing_ok=True)
        # What follows is found again by it if the run is killed: it says whose folder this is.
        write_json(folder / "config.json", config)
        if start is not None and look is not None:
            if settings.distill:
                save_model(start, folder / _TEACHER)
            write_json(folder / LOOK, look.as_dict())
    if resumed:
        write_json(folder / "config.json", config)
    if table is not None:
        table.save(folder / TABLE)
    # A run that is made longer: what it ended with before is not what it ends with now.
    for name in (_MODEL, FOLDED, RESULTS):
        (folder / name).unlink(missing_ok=True)

    rates = schedule(settings, state["plateau"])
    plateau = rates if isinstance(rates, Plateau) else None
    recorder = Recorder(folder, settings, state, plateau)
    own: list[keras.callbacks.Callback] = [rates]
    if settings.method == "dprp":
        options = _taken(settings, _PRUNING)
        if table is None:
            pruning = RankPruning(**options)
        else:
            budget = Budget(milliseconds=settings.milliseconds)
            pruning = BudgetPruning(budget, latency=table, **options)
        own = [pruning, rates, RankHistory(folder / "ranks.json")]
        if settings.distill:
            # A run that goes on finds its own copy as it was.
            teacher = load_model(folder / _TEACHER) if start is None else start
            own.append(Distillation(teacher))
    # Before all that write, so that the last good epoch's checkpoint outlives a diverged one.
    kept = KeptFolder(folder / TRAINING.mark)
    own = [*place.callbacks(), DivergenceGuard(), kept, *own]
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
    kept.check()
    _save(model, folder)
    return model


def _taken(settings: TrainSettings, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


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


def _new_model(settings: TrainSettings, dataset: Dataset, start: keras.Model | None) -> keras.Model:
    if start is not None:
        model = start
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
    loss = _loss(model, dataset)
    metrics: list[Any] = ["accuracy"]
    if settings.method == "dprp":
        model = factorize(
            model,
            decomposition=settings.decomposition,
            layers=all_but(model, settings.exclude),
            settings=DPRPSettings(**_taken(settings, _STRUCTURE)),
        )
    else:
        logits = loss.get_config()["from_logits"]
        metrics.append(
            keras.metrics.SparseCategoricalCrossentropy(from_logits=logits, name="app_loss")
        )
    model.compile(
        optimizer=keras.optimizers.SGD(
            settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov
        ),
        loss=loss,
        metrics=metrics,
        steps_per_execution=settings.steps_per_execution,
    )
    return model


def _loss(model: keras.Model, dataset: Dataset) -> keras.losses.SparseCategoricalCrossentropy:
    """The cross-entropy the model was compiled with; else from logits or not, as it ends."""
    found = FineTuning().for_model(model, dataset.y_train).loss
    if isinstance(found, keras.losses.SparseCategoricalCrossentropy):
        return found
    if is_categorical(found):  # by its name, which takes probabilities
        return keras.losses.SparseCategoricalCrossentropy()
    return classification_loss(model, dataset.y_train)


def _latency_table(own: Path, settings: TrainSettings, resumed: bool) -> LatencyTable | None:
    """The run's own copy if it goes on: a table measured anew must not change a run."""
    if settings.latency_table is None:
        return None
    if resumed and own.exists():
        return LatencyTable.load(own)
    return LatencyTable.load(settings.latency_table)
