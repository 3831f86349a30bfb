"""Keras' own callbacks and settings that people combine with ours, in one training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp

EPOCHS = 6


def _data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((64, 8, 8, 3)).astype("float32")
    return x, (x.mean((1, 2)).argmax(-1)).astype("int32")


def _low_rank(structure: str = "retraction") -> Any:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="first")(image)
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="second")(x)
    x = layers.Dense(3, name="kind")(layers.GlobalAveragePooling2D()(x))
    settings = dprp.DPRPSettings(structure=structure)
    return dprp.factorize(keras.Model(image, x), decomposition="channel", settings=settings)


def _compile(model: Any, steps_per_execution: int = 1, **options: Any) -> None:
    model.compile(
        keras.optimizers.Adam(5e-3, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_loggers_schedules_checkpoints_and_pruning_in_one_training(
    steps: int, tmp_path: Path
) -> None:
    model = _low_rank()
    _compile(model, steps_per_execution=steps)
    full = sum(model.ranks.values())
    callbacks: list[Any] = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_loss", save_best_only=True),
        keras.callbacks.ReduceLROnPlateau("app_loss", patience=1),
        keras.callbacks.EarlyStopping("val_loss", patience=EPOCHS, restore_best_weights=True),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        dprp.RankHistory(),
        dprp.RankPruning(discarded_energy=0.1),
    ]
    x, y = _data()
    history = model.fit(
        x, y, validation_data=(x, y), epochs=EPOCHS, batch_size=8, verbose=0, callbacks=callbacks
    ).history
    assert np.isfinite(history["loss"]).all()
    assert history["total_rank"][-1] < full
    with open(tmp_path / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["total_rank"]) for row in rows] == history["total_rank"]
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(history["val_accuracy"][-1], rel=1e-5)
    best = dprp.load_model(tmp_path / "best.keras")
    loss = min(history["val_loss"])
    assert best.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(loss, rel=1e-3)
    # Restored to the epoch of the smallest loss, with the ranks of then.
    assert sum(model.ranks.values()) == history["total_rank"][int(np.argmin(history["val_loss"]))]


def test_tensorboard_beside_pruning(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install it")
    model = _low_rank()
    _compile(model)
    board = keras.callbacks.TensorBoard(tmp_path / "board", histogram_freq=1)
    x, y = _data()
    before = sum(model.ranks.values())
    pruning = dprp.RankPruning(discarded_energy=0.1)
    model.fit(x, y, epochs=3, batch_size=8, verbose=0, callbacks=[board, pruning])
    assert sum(model.ranks.values()) < before
    assert list((tmp_path / "board").rglob("events.out.*"))


@pytest.mark.backend
@pytest.mark.slow
def test_averaged_weights_go_with_a_structure_that_does_not_turn() -> None:
    model = _low_rank("smoothed")
    _compile(model, use_ema=True, ema_momentum=0.8)
    x, y = _data()
    callbacks = [keras.callbacks.SwapEMAWeights(), dprp.RankPruning(discarded_energy=0.1)]
    before = sum(model.ranks.values())
    history = model.fit(x, y, epochs=4, batch_size=8, verbose=0, callbacks=callbacks).history
    assert np.isfinite(history["loss"]).all()
    assert sum(model.ranks.values()) < before
    assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.backend
def test_averaged_weights_are_refused_where_factors_turn() -> None:
    with pytest.raises(ValueError, match="use_ema"):
        _compile(_low_rank(), use_ema=True)
