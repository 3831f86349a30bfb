"""A run in a folder: resumed equals uninterrupted; other settings and damaged files refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.data import Dataset, load
from dprp_tf.runs import schedules
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.runs.training import train
from dprp_tf.training.saving import load_model


class _InterruptedError(Exception):
    pass


class _StopIn(keras.callbacks.Callback):
    """Die in the middle of an epoch, as a killed process would."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._at = epoch
        self._epoch = -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._epoch == self._at and batch == 1:
            raise _InterruptedError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load("digits", image_size=8)
    return Dataset(
        "few digits",
        whole.x_train[:96],
        whole.y_train[:96],
        whole.x_test[:40],
        whole.y_test[:40],
        whole.classes,
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A tiny network whose first layer loses most of its rank at once."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input(digits.image_shape)
    x = layers.Rescaling(1 / 255.0)(inputs)
    x = layers.Conv2D(6, 3, padding="same", name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="second")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = keras.Model(inputs, layers.Dense(10, name="head")(x))
    taps = np.random.default_rng(0).standard_normal((3, 3, 1, 1))
    model.get_layer("second").kernel.assign(
        0.2 * taps * np.random.default_rng(1).standard_normal((1, 1, 6, 6))
    )
    path = tmp_path_factory.mktemp("start") / "tiny.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def settings(start: Path) -> TrainSettings:
    return TrainSettings(
        model=str(start),
        method="dprp",
        epochs=3,
        batch_size=32,
        learning_rate=0.05,
        schedule="plateau",
        patience=1,
        compression_weight=0.3,
        threshold=0.05,
        padding=1,
        flip=False,
        seed=5,
    )


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, settings: TrainSettings, digits: Dataset
) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, settings, digits)
    return folder


@pytest.fixture(scope="module")
def broken_off(
    tmp_path_factory: pytest.TempPathFactory, settings: TrainSettings, digits: Dataset
) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    with pytest.raises(_InterruptedError):
        train(folder, settings, digits, callbacks=[_StopIn(1)])
    return folder


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "run")
    return to / "run"


def _history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "history.json").read_text())["runs"]["dprp"]


def test_a_run_leaves_whole_files(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"config.json", "history.json", "ranks.json", "state.json", "model.keras"} <= names
    left = [name for name in names if name.startswith(".") and name != ".lock"]
    assert not left, "a temporary file was left"
    assert len([name for name in names if name.startswith("checkpoint-")]) == 1
    history = _history(whole)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for row in history:
        assert {"app_loss", "comp_loss", "loss", "val_accuracy", "total_rank", "parameters"} <= set(
            row
        )
    assert history[0]["total_rank"] < 9 + 9 + 6, "nothing was pruned: the test would be vacuous"
    ranks = json.loads((whole / "ranks.json").read_text())
    assert [row["epoch"] for row in ranks["epochs"]] == [0, 1, 2, 3]
    model = load_model(whole / "model.keras")
    assert isinstance(model, dprp.DPRPModel)
    assert sum(model.ranks.values()) == history[-1]["total_rank"]


def test_an_interrupted_run_goes_on_to_the_same_end(
    whole: Path, broken_off: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    folder = _copy(broken_off, tmp_path)
    assert not (folder / "model.keras").exists()
    assert json.loads((folder / "state.json").read_text())["epoch"] == 1
    resumed = train(folder, settings, digits)
    expected = load_model(whole / "model.keras")
    assert resumed.ranks == expected.ranks
    for ours, theirs in zip(resumed.weights, expected.weights, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(resumed.optimizer.variables, expected.optimizer.variables, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-3, atol=1e-4)
    for row, other in zip(_history(folder), _history(whole), strict=True):
        assert set(row) == set(other)
        for name in (name for name in row if not name.endswith("seconds")):
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    ranks = [json.loads((at / "ranks.json").read_text()) for at in (folder, whole)]
    assert [row["ranks"] for row in ranks[0]["epochs"]] == [
        row["ranks"] for row in ranks[1]["epochs"]
    ]
    assert ranks[0]["baseline_parameters"] == ranks[1]["baseline_parameters"]


@pytest.mark.slow
def test_a_run_that_distills_goes_on_with_the_teacher_it_began_with(
    whole: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    start = tmp_path / "start.keras"
    shutil.copy(settings.model, start)
    settings = replace(settings, model=str(start), distill=True)
    expected = train(tmp_path / "whole", settings, digits)
    with pytest.raises(_InterruptedError):
        train(tmp_path / "run", settings, digits, callbacks=[_StopIn(1)])
    other = load_model(start)
    other.set_weights([2 * weight for weight in other.get_weights()])
    other.save(start)
    resumed = train(tmp_path / "run", settings, digits)
    assert resumed.ranks == expected.ranks
    for ours, theirs in zip(resumed.weights, expected.weights, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-5)
    for row, other_row in zip(
        _history(tmp_path / "run"), _history(tmp_path / "whole"), strict=True
    ):
        distance = other_row["distillation_loss"]
        assert row["distillation_loss"] == pytest.approx(distance, rel=1e-3)
        assert distance > 1e-4
    assert "distillation_loss" not in _history(whole)[0]
    # Begun anew without a teacher, it keeps none.
    train(tmp_path / "run", replace(settings, distill=False), digits, fresh=True)
    assert not (tmp_path / "run" / "teacher.keras").exists()


@pytest.mark.slow
def test_the_schedule_goes_on_where_it_was(
    broken_off: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    folder = _copy(broken_off, tmp_path)
    state = json.loads((folder / "state.json").read_text())
    assert state["plateau"]["best"] == pytest.approx(state["history"][0]["app_loss"])
    # No epoch can be better than 0, so a schedule that remembers it cuts the rate at once.
    state["plateau"]["best"] = 0.0
    (folder / "state.json").write_text(json.dumps(state))
    train(folder, settings, digits)
    rates = [row["learning_rate"] for row in _history(folder)]
    assert rates == pytest.approx([0.05, 0.005, 0.0005])


def test_a_schedule_without_a_best_goes_on_without_one(
    broken_off: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    folder = _copy(broken_off, tmp_path)
    state = json.loads((folder / "state.json").read_text())
    # Infinite until an epoch had a loss; JSON knows no infinity.
    state["plateau"]["best"] = None
    (folder / "state.json").write_text(json.dumps(state))
    train(folder, settings, digits)
    again = json.loads((folder / "state.json").read_text(), parse_constant=pytest.fail)
    losses = [row["app_loss"] for row in again["history"][1:]]
    assert again["plateau"]["best"] == pytest.approx(min(losses))


@pytest.mark.slow
def test_a_finished_run_is_returned_and_can_be_prolonged(
    whole: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    folder = _copy(whole, tmp_path)

    class Never(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            raise AssertionError("a finished run must not train again")

    again = train(folder, settings, digits, callbacks=[Never()])
    assert again.ranks == load_model(whole / "model.keras").ranks
    train(folder, replace(settings, epochs=4), digits)
    assert [row["epoch"] for row in _history(folder)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.07},
        {"threshold": 0.2},
        {"seed": 6},
        {"method": "dense"},
        {"decomposition": "channel"},
        {"epochs": 2},
    ],
    ids=str,
)
def test_other_settings_are_refused(
    whole: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = _copy(whole, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (name,) = change
    with pytest.raises(ValueError, match=rf"`folder` holds a run with other settings.*{name}: .*"):
        train(folder, replace(settings, **change), digits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_data_is_refused(
    whole: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    other = Dataset(
        "others",
        digits.x_train,
        digits.y_train,
        digits.x_test,
        digits.y_test,
        digits.classes,
    )
    with pytest.raises(ValueError, match=r"`folder` holds a run with other settings.*data"):
        train(_copy(whole, tmp_path), settings, other)


# --- the loss ----------------------------------------------------------------------------------

ENDS: dict[str, Callable[[Any], Any]] = {
    "logits": lambda x: layers.Dense(10)(x),
    "softmax": lambda x: layers.Dense(10, activation="softmax")(x),
    "a softmax layer": lambda x: layers.Softmax()(layers.Dense(10)(x)),
    # Numbers of a softmax whose last layer does not tell.
    "a layer of its own": lambda x: layers.Identity()(layers.Dense(10, activation="softmax")(x)),
}


@pytest.mark.parametrize(
    ("method", "end", "compiled", "logits"),
    [
        ("dense", "softmax", None, False),
        ("dprp", "a softmax layer", None, False),
        ("dense", "a layer of its own", "sparse_categorical_crossentropy", False),
        ("dense", "softmax", "categorical_crossentropy", False),
        ("dense", "logits", "mse", True),
    ],
)
def test_the_loss_is_the_models(
    method: str, end: str, compiled: Any, logits: bool, digits: Dataset, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input(digits.image_shape)
    outputs = ENDS[end](layers.Flatten()(layers.Rescaling(1 / 255.0)(inputs)))
    model = keras.Model(inputs, outputs)
    if compiled is not None:
        model.compile("adam", compiled)
    model.save(tmp_path / "start.keras")
    told = model.predict(digits.x_test.astype("float32"), verbose=0).astype(np.float64)
    if logits:
        told = np.exp(told - told.max(axis=1, keepdims=True))
        told /= told.sum(axis=1, keepdims=True)
    expected = -np.mean(np.log(told[np.arange(len(told)), digits.y_test]))
    settings = TrainSettings(
        model=str(tmp_path / "start.keras"),
        method=method,
        epochs=1,
        batch_size=48,
        learning_rate=0.0,
        compression=None,
        threshold=1e-6,
        discarded_energy=0.0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*from_logits.*")
        trained = train(tmp_path / "run", settings, digits)
    (row,) = json.loads((tmp_path / "run" / "history.json").read_text())["runs"][method]
    assert row["val_app_loss"] == pytest.approx(expected, rel=1e-4)
    assert trained.loss.get_config()["from_logits"] is logits


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", ["state.json", "config.json", "checkpoint"])
def test_a_damaged_run_is_refused_with_the_file_named(
    broken_off: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path, name: str
) -> None:
    folder = _copy(broken_off, tmp_path)
    path = next(folder.glob("checkpoint-*")) if name == "checkpoint" else folder / name
    _truncate(path)
    with pytest.raises(ValueError, match=rf"Received: .*{path.name}"):
        train(folder, settings, digits)


def test_a_missing_checkpoint_is_named(
    broken_off: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    folder = _copy(broken_off, tmp_path)
    path = next(folder.glob("checkpoint-*"))
    path.unlink()
    with pytest.raises(ValueError, match=path.name):
        train(folder, settings, digits)


@pytest.mark.parametrize("content", ['{"epoch": 1}', "[1, 2]", '{"epoch": "one"}'])
def test_a_state_of_another_form_is_refused(
    broken_off: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path, content: str
) -> None:
    folder = _copy(broken_off, tmp_path)
    (folder / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json"):
        train(folder, settings, digits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "0.5", [1], True])
@pytest.mark.parametrize("entry", ["history", "plateau"])
def test_a_state_with_what_is_no_finite_number_is_refused(
    broken_off: Path,
    settings: TrainSettings,
    digits: Dataset,
    tmp_path: Path,
    entry: str,
    value: Any,
) -> None:
    folder = _copy(broken_off, tmp_path)
    state = json.loads((folder / "state.json").read_text())
    if entry == "history":
        state["history"][0]["loss"] = value
    else:
        state["plateau"] = {"best": value, "wait": 0.0, "cooldown_counter": 0.0}
    (folder / "state.json").write_text(json.dumps(state))
    found = (
        rf"state\.json, (in which {entry} is missing or does not|which can't be read \(it holds)"
    )
    with pytest.raises(ValueError, match=found):
        train(folder, settings, digits)


def test_a_checkpoint_whose_optimizer_is_not_finite_is_refused(
    broken_off: Path, settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    folder = _copy(broken_off, tmp_path)
    path = next(folder.glob("checkpoint-*"))
    model = keras.saving.load_model(path)
    slot = next(v for v in model.optimizer.variables if "momentum" in v.path)
    slot.assign(np.full(slot.shape, np.inf, "float32"))
    model.save(path)
    with pytest.raises(ValueError, match=r"sound checkpoint.*the optimizer's .*momentum"):
        train(folder, settings, digits)


def test_a_folder_that_is_a_file_is_refused(
    settings: TrainSettings, digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(OSError, match="file"):
        train(tmp_path / "file", settings, digits)
    assert (tmp_path / "file").read_text() == "here already"


# --- reading models ----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_truncated_model_is_refused(start: Path, tmp_path: Path, share: float) -> None:
    content = start.read_bytes()
    path = tmp_path / "cut.keras"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"`path` must be a whole \.keras archive.*cut\.keras"):
        load_model(path)


def test_a_model_with_damaged_weights_is_refused(start: Path, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "hurt.keras"
    with zipfile.ZipFile(start) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[: len(content) // 2] if name.endswith(".h5") else content)
    with pytest.raises(ValueError, match=r"`path` must be a Keras model.*hurt\.keras"):
        load_model(path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.keras, which does not exist"):
        load_model(tmp_path / "absent.keras")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"`path`.*notes\.txt"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"`path` must be a \.keras file.*the folder"):
        load_model(tmp_path)


# --- settings ----------------------------------------------------------------------------------

BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: TrainSettings(method="tucker"), r"`method`.*'tucker'"),
    (lambda: TrainSettings(schedule="step"), r"`schedule`.*'step'"),
    (lambda: TrainSettings(epochs=0), r"`epochs`.*0"),
    (lambda: TrainSettings(batch_size=-4), r"`batch_size`.*-4"),
    (lambda: TrainSettings(learning_rate=float("nan")), r"`learning_rate`.*nan"),
    (lambda: TrainSettings(compression_weight=-0.5), r"`compression_weight`.*-0\.5"),
    (lambda: TrainSettings(threshold=1.0), r"`threshold`.*1\.0"),
    (lambda: TrainSettings(patience=0), r"`patience`.*0"),
    (lambda: TrainSettings(distill=True), r"`distill` needs a trained \.keras.*'resnet20'"),
    (lambda: TrainSettings(model="a.keras", method="dense", distill=True), r"`distill`.*'dense'"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_settings_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1]),
        (
            "cosine",
            [0.1 / 3, 0.2 / 3, *(0.05 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75]))))],
        ),
    ],
)
def test_the_learning_rate_of_every_epoch(schedule: str, expected: list[float]) -> None:
    settings = TrainSettings(epochs=6, warmup_epochs=2, learning_rate=0.1, schedule=schedule)
    rate = schedules.schedule(settings, None).schedule
    assert [rate(epoch, 0.0) for epoch in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize("how", ["removed", "renamed"])
@pytest.mark.parametrize("epoch", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_whose_folder_is_taken_away_ends_and_leaves_none_without_settings(
    settings: TrainSettings, digits: Dataset, tmp_path: Path, how: str, epoch: int
) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"

    class Take(keras.callbacks.Callback):
        def on_epoch_begin(self, at: int, logs: Any = None) -> None:
            if at == epoch and how == "removed":
                shutil.rmtree(folder)
            elif at == epoch:
                folder.rename(other)

    chosen = replace(settings, epochs=2)
    with pytest.raises(FileNotFoundError, match=r"`folder` must stay.*run, which.*config\.json"):
        train(folder, chosen, digits, callbacks=[Take()])
    assert not folder.exists()
    if how == "renamed":
        # Nothing of it is lost.
        train(other, chosen, digits)
        assert [entry["epoch"] for entry in _history(other)] == [1, 2]


def test_what_a_run_begins_from_is_loaded_once(
    settings: TrainSettings, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []

    def counted(path: Any) -> keras.Model:
        loaded.append(Path(path))
        return load_model(path)

    monkeypatch.setattr("dprp_tf.runs.training.load_model", counted)
    train(tmp_path / "run", replace(settings, epochs=1, distill=True), digits)
    assert loaded == [Path(settings.model)]
    # What is trained itself is not what is looked at and kept beside it.
    loaded.clear()
    train(tmp_path / "dense", replace(settings, epochs=1, method="dense"), digits)
    assert loaded == [Path(settings.model)] * 2
