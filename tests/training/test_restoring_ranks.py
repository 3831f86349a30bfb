"""Keras' own callbacks across rank changes: what was saved at other ranks goes back in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf.keras_internals.optimizers import optimizer_slots
from dprp_tf.training.resizing import resize

pytestmark = pytest.mark.backend
FULL = {"conv": 6, "head": 3}


def _np(value: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))


def _tail(variable: keras.Variable) -> str:
    """A variable's path without the optimizer's own name, which Keras counts."""
    return variable.path.rpartition("/")[2]


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((32, 8, 4)).astype("float32"), rng.integers(0, 3, 32)


def _model(
    optimizer: Any = None, frozen: bool = False, structure: str = "retraction"
) -> dprp.DPRPModel:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 4))
    x = layers.Conv1D(6, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dropout(0.2, name="drop", seed=7)(layers.Flatten()(x))
    dense = keras.Model(inputs, layers.Dense(3, name="head")(x))
    if frozen:
        dense.get_layer("conv").trainable = False
    model = dprp.factorize(
        dense,
        decomposition="channel",
        settings=dprp.DPRPSettings(structure=structure, compression_weight=0.3, threshold=0.05),
    )
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    assert model.ranks == FULL
    return model


class _CutAt(keras.callbacks.Callback):
    """Lower ranks at the ends of given epochs, as `RankPruning` does, but by a plan."""

    def __init__(self, plan: dict[int, dict[str, int]]) -> None:
        super().__init__()
        self._plan = plan

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        found = self._plan.get(epoch, {})
        by_name = {layer.name: layer for layer in self.model.low_rank_layers}
        lower = {by_name[n]: r for n, r in found.items() if r < by_name[n].rank}
        if lower:
            resize(self.model, lower)
        if logs is not None:
            logs.update(self.model.rank_logs())


class _Snapshot(keras.callbacks.Callback):
    """Keep the outputs at the end of every epoch."""

    def __init__(self, x: np.ndarray) -> None:
        super().__init__()
        self._x = x
        self.outputs: dict[int, np.ndarray] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.outputs[epoch] = _np(self.model(self._x, training=False))


class _KilledError(Exception):
    pass


class _DieIn(keras.callbacks.Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__()
        self._at = epoch, batch
        self._epoch = -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self._epoch, batch) == self._at:
            raise _KilledError


def _skip_averages_on_jax() -> None:
    if keras.backend.backend() == "jax":
        pytest.skip("on JAX Keras 3.15 can't call fit twice with use_ema, on no model")


def _fit(model: keras.Model, epochs: int, *callbacks: Any, **options: Any) -> Any:
    x, y = _data()
    return model.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0,
        callbacks=list(callbacks), **options,
    )  # fmt: skip


PLAN = {0: {"conv": 5}, 1: {"conv": 3, "head": 2}, 3: {"conv": 2}}

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.02),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "average of weights": lambda: keras.optimizers.SGD(0.05, use_ema=True),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("loss scaling", marks=pytest.mark.long),
        pytest.param("AdamW", marks=pytest.mark.long),
        pytest.param("average of weights", marks=pytest.mark.long),
    ],
)
def test_weights_of_lower_ranks_load_into_the_model_as_built(name: str, tmp_path: Path) -> None:
    structure = "retraction"
    if name == "average of weights":
        _skip_averages_on_jax()
        structure = "smoothed"  # a retraction's turns can't be averaged
    trained = _model(OPTIMIZERS[name](), structure=structure)
    _fit(trained, 2, _CutAt(PLAN))
    assert trained.ranks == {"conv": 3, "head": 2}
    x, _ = _data()
    for file in ("a.weights.h5", "b.keras"):
        (trained.save_weights if file.endswith("h5") else trained.save)(tmp_path / file)
        fresh = _model(OPTIMIZERS[name](), structure=structure)
        fresh.optimizer.build(fresh.trainable_variables)
        assert np.abs(_np(fresh(x)) - _np(trained(x))).max() > 1e-2
        fresh.load_weights(tmp_path / file)
        assert fresh.ranks == trained.ranks
        np.testing.assert_array_equal(_np(fresh(x)), _np(trained(x)))
        ours, theirs = fresh.optimizer.variables, trained.optimizer.variables
        assert [_tail(v) for v in ours] == [_tail(v) for v in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(_np(mine), _np(other), err_msg=mine.path)
        # Both go on alike: nothing of the old payloads is left in a compiled function. The seed
        # of the dropout is state of the model, which the file holds too.
        _fit(trained, 1)
        _fit(fresh, 1)
        for mine, other in zip(fresh.weights, trained.weights, strict=True):
            np.testing.assert_allclose(
                _np(mine), _np(other), rtol=1e-5, atol=1e-6, err_msg=mine.path
            )
        trained.load_weights(tmp_path / file)


@pytest.mark.slow
@pytest.mark.long_on_jax
def test_higher_ranks_come_back_and_train_on() -> None:
    model = _model()
    _fit(model, 1)
    x, y = _data()
    before, kept = _np(model(x)), model.get_weights()
    _fit(model, 4, _CutAt(PLAN))
    assert model.ranks == {"conv": 2, "head": 2}
    model.set_weights(kept)
    assert model.ranks == FULL
    np.testing.assert_array_equal(_np(model(x)), before)
    layer = model.get_layer("conv")
    for variable in (layer.u, layer.s, layer.v):
        (slot,) = optimizer_slots(model.optimizer, variable).values()
        assert tuple(slot.shape) == tuple(variable.shape)
        assert not _np(slot).any()
    bias_slot = optimizer_slots(model.optimizer, layer.bias)["momentums"]
    assert _np(bias_slot).any()
    old = {v.path: _np(v) for v in model.trainable_variables}
    history = _fit(model, 1, validation_data=(x, y))
    for variable in model.trainable_variables:
        assert np.abs(_np(variable) - old[variable.path]).max() > 0, variable.path
    fresh = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert history.history["val_accuracy"][-1] == pytest.approx(fresh["accuracy"], abs=1e-6)
    assert history.history["val_loss"][-1] == pytest.approx(fresh["loss"], rel=1e-5)


@pytest.mark.slow
def test_early_stopping_gives_back_the_best_ranks(tmp_path: Path) -> None:
    x, _ = _data()
    model, snapshot = _model(), _Snapshot(x)
    # parameters rise in no epoch, so with mode="max" the first epoch stays the best.
    stopping = keras.callbacks.EarlyStopping(
        "parameters", mode="max", patience=3, restore_best_weights=True
    )
    plan = {1: {"conv": 3, "head": 2}, 2: {"conv": 2}}
    history = _fit(model, 9, _CutAt(plan), snapshot, stopping)
    assert len(history.history["loss"]) == 4
    assert history.history["total_rank"] == [9, 5, 4, 4]
    assert model.ranks == FULL
    np.testing.assert_allclose(_np(model(x)), snapshot.outputs[0], rtol=1e-5, atol=1e-6)
    assert np.abs(_np(model(x)) - snapshot.outputs[3]).max() > 1e-2
    model.save(tmp_path / "best.keras")
    again = keras.saving.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(_np(again(x)), _np(model(x)))


@pytest.mark.long_on_jax
def test_early_stopping_with_rank_pruning() -> None:
    x, y = _data()
    model, snapshot = _model(), _Snapshot(x)
    model.get_layer("conv").s.assign([3.0, 2.0, 1.0, 0.5, 1e-4, 1e-5])
    stopping = keras.callbacks.EarlyStopping(
        "total_rank", mode="max", patience=2, restore_best_weights=True, start_from_epoch=1
    )
    _fit(model, 6, dprp.RankPruning(), snapshot, stopping, validation_data=(x, y))
    best = stopping.best_epoch
    assert model.rank_logs()["total_rank"] == stopping.best
    assert best >= 1
    np.testing.assert_allclose(_np(model(x)), snapshot.outputs[best], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.long_on_jax
@pytest.mark.parametrize("moment", [(3, 2), pytest.param((2, 0), marks=pytest.mark.long)])
def test_backup_and_restore_goes_on_with_the_same_ranks(
    tmp_path: Path, moment: tuple[int, int]
) -> None:
    x, _ = _data()

    def rate(epoch: int, _: float) -> float:
        return 0.05 / (epoch + 1)

    def callbacks(folder: str) -> list[Any]:
        return [
            _CutAt(PLAN),
            keras.callbacks.BackupAndRestore(tmp_path / folder),
            keras.callbacks.LearningRateScheduler(rate),
        ]

    whole = _model()
    _fit(whole, 6, *callbacks("whole"))
    killed = _model()
    with pytest.raises(_KilledError):
        _fit(killed, 6, *callbacks("killed"), _DieIn(*moment))
    resumed = _model()
    history = _fit(resumed, 6, *callbacks("killed"))
    assert history.epoch == list(range(moment[0], 6))
    assert resumed.ranks == whole.ranks == {"conv": 2, "head": 2}
    np.testing.assert_allclose(_np(resumed(x)), _np(whole(x)), rtol=1e-4, atol=1e-5)
    assert int(resumed.optimizer.iterations) == int(whole.optimizer.iterations) == 24
    assert not (tmp_path / "killed").exists()


@pytest.mark.long
@pytest.mark.long_on_jax
def test_backup_within_an_epoch_keeps_the_ranks(tmp_path: Path) -> None:
    killed = _model()
    backup = {"backup_dir": tmp_path / "backup", "save_freq": 3, "double_checkpoint": True}
    with pytest.raises(_KilledError):
        _fit(
            killed, 5, _CutAt(PLAN), keras.callbacks.BackupAndRestore(**backup), _DieIn(2, 3)
        )  # fmt: skip
    resumed = _model()
    history = _fit(resumed, 5, _CutAt(PLAN), keras.callbacks.BackupAndRestore(**backup))
    assert history.epoch == [2, 3, 4]
    assert history.history["total_rank"] == [5, 4, 4]


@pytest.mark.slow
@pytest.mark.long_on_jax
def test_model_checkpoint_of_weights_alone_keeps_the_best(tmp_path: Path) -> None:
    x, _ = _data()
    model, snapshot = _model(), _Snapshot(x)
    path = tmp_path / "{epoch}.weights.h5"
    _fit(model, 4, _CutAt(PLAN), snapshot, keras.callbacks.ModelCheckpoint(
        path, save_weights_only=True))  # fmt: skip
    totals = []
    for epoch in (3, 0, 2, 1):  # up and down again
        model.load_weights(tmp_path / f"{epoch + 1}.weights.h5")
        totals.append(sum(model.ranks.values()))
        np.testing.assert_allclose(_np(model(x)), snapshot.outputs[epoch], rtol=1e-5, atol=1e-6)
    assert totals == [4, 8, 5, 5]


@pytest.mark.slow
@pytest.mark.long_on_jax
def test_model_checkpoint_of_the_model_goes_on(tmp_path: Path) -> None:
    model = _model()
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="total_rank", mode="min", save_best_only=True
    )
    _fit(model, 4, _CutAt(PLAN), checkpoint)
    again = keras.saving.load_model(tmp_path / "best.keras")
    assert again.ranks == {"conv": 2, "head": 2}
    _fit(again, 1)
    _fit(model, 1)
    for mine, other in zip(again.weights, model.weights, strict=True):
        np.testing.assert_allclose(_np(mine), _np(other), rtol=1e-5, atol=1e-6, err_msg=mine.path)


@pytest.mark.long_on_jax
def test_frozen_layers_take_over_ranks_too(tmp_path: Path) -> None:
    model = _model(frozen=True)
    resize(model, {model.get_layer("conv"): 2})
    model.save_weights(tmp_path / "low.weights.h5")
    x, _ = _data()
    other = _model(frozen=True)
    other.load_weights(tmp_path / "low.weights.h5")
    assert other.ranks == {"conv": 2, "head": 3}
    np.testing.assert_array_equal(_np(other(x)), _np(model(x)))


@pytest.mark.long
def test_pressure_stays_off_when_a_backup_is_restored_after_its_end(tmp_path: Path) -> None:
    pruning = dprp.RankPruning(stop_epoch=2)
    model = _model()
    with pytest.raises(_KilledError):
        _fit(model, 5, pruning, keras.callbacks.BackupAndRestore(tmp_path / "b"), _DieIn(3, 0))
    assert model.settings.compression_weight == 0.3
    resumed, seen = _model(), []
    assert resumed.settings.compression_weight == 0.3
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(resumed.pressure)
    )
    _fit(
        resumed, 5, dprp.RankPruning(stop_epoch=2),
        keras.callbacks.BackupAndRestore(tmp_path / "b"), look,
    )  # fmt: skip
    assert set(seen) == {0.0}


@pytest.mark.long_on_jax
def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    model = _model()
    weights = model.get_weights()
    with pytest.raises(ValueError, match="weight list of length"):
        model.set_weights(weights[:-1])
    first = [v.path for v in model.weights].index("conv/u")
    wrong = list(weights)
    wrong[first] = np.zeros((5, 2), "float32")
    with pytest.raises(ValueError, match="shape"):
        model.set_weights(wrong)
    wrong = list(weights)
    wrong[first], wrong[first + 1] = wrong[first][:, :2], wrong[first + 1][:3]
    with pytest.raises(ValueError, match="shape"):
        model.set_weights(wrong)
    assert model.ranks == FULL
    inputs = keras.Input((8, 4))
    other = dprp.factorize(
        keras.Model(inputs, layers.Conv1D(7, 3, name="conv")(inputs)), decomposition="channel"
    )
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match=r"(?s)could not be loaded"):
        model.load_weights(tmp_path / "other.weights.h5")
    assert model.ranks == FULL


@pytest.mark.slow
@pytest.mark.long_on_jax
def test_averages_of_weights_begin_at_factors_that_came_back() -> None:
    _skip_averages_on_jax()
    model = _model(keras.optimizers.SGD(0.01, use_ema=True), structure="smoothed")
    _fit(model, 1)
    kept, layer = model.get_weights(), model.get_layer("conv")
    before = _np(layer.kernel)
    resize(model, {layer: 3})
    model.set_weights(kept)
    _fit(model, 1)
    np.testing.assert_allclose(_np(layer.kernel), before, atol=0.05)


def test_a_refused_list_of_weights_changes_nothing() -> None:
    model = _model()
    kept = model.get_weights()
    resize(model, {model.get_layer("conv"): 2})
    before = model.get_weights()
    kept[-1] = np.zeros(5, "float32")
    with pytest.raises(ValueError, match="head/bias"):
        model.set_weights(kept)
    assert model.ranks["conv"] == 2
    for mine, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, other)
