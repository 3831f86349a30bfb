"""Ranks that fall inside fit: variables and slots really smaller, the rest kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import decomposition
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.optimizers import inner_optimizer, optimizer_slots
from dprp_tf.training import regularizers
from dprp_tf.training.resizing import resize
from dprp_tf.training.settings import STRUCTURES

pytestmark = pytest.mark.backend
TINY = [2.0, 1.5, 1.0, 1e-3, 1e-4, 1e-5]
RANKS = {"conv": 6, "first": 6, "head": 3}


def _np(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def _data(samples: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((samples, 8, 4)).astype("float32"), rng.integers(0, 3, samples)


def _dense_model(regularizer: Any = None, dtype: Any = None) -> keras.Model:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 4))
    x = layers.Conv1D(
        6, 3, padding="same", name="conv", kernel_regularizer=regularizer, dtype=dtype
    )(inputs)
    x = layers.BatchNormalization(name="norm", dtype=dtype)(x)
    x = layers.Flatten(name="flat")(layers.ReLU(name="relu")(x))
    x = layers.Dense(6, activation="tanh", name="first", dtype=dtype)(x)
    return keras.Model(inputs, layers.Dense(3, name="head", dtype="float32")(x))


def _model(optimizer: Any = None, regularizer: Any = None, **options: Any) -> dprp.DPRPModel:
    options = {"compression_weight": 0.37, "threshold": 0.05, **options}
    model = dprp.factorize(
        _dense_model(regularizer), decomposition="channel", settings=dprp.DPRPSettings(**options)
    )
    model.compile(
        optimizer or keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    assert model.ranks == RANKS
    return model


def _drive(
    callback: dprp.RankPruning,
    model: keras.Model,
    epochs: int,
    each: Callable[[], None] = lambda: None,
) -> list[dict[str, int]]:
    """Call a callback as fit does, without training; return the ranks after each epoch."""
    callback.set_model(model)
    callback.set_params({"epochs": epochs})
    callback.on_train_begin()
    ranks = []
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch)
        each()
        logs: dict[str, Any] = {}
        callback.on_epoch_end(epoch, logs)
        assert logs["total_rank"] == sum(model.ranks.values())
        ranks.append(dict(model.ranks))
    callback.on_train_end()
    return ranks


# --- variables and slots -----------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[Callable[[], Any], dict[str, bool]]] = {
    # Slot -> whether it changes sign with its variable.
    "SGD": (lambda: keras.optimizers.SGD(0.01), {}),
    "momentum": (lambda: keras.optimizers.SGD(0.01, momentum=0.9), {"momentums": True}),
    "Nesterov": (
        lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
        {"momentums": True},
    ),
    "Adam": (
        lambda: keras.optimizers.Adam(0.01, amsgrad=True),
        {"_momentums": True, "_velocities": False, "_velocity_hats": False},
    ),
    "AdamW": (
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.02),
        {"_momentums": True, "_velocities": False},
    ),
    "RMSprop": (
        lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
        {"_momentums": True, "_velocities": False, "_average_gradients": True},
    ),
    "Adamax": (lambda: keras.optimizers.Adamax(0.01), {"_m": True, "_u": False}),
    "Lion": (lambda: keras.optimizers.Lion(0.01), {"_momentums": True}),
    "Adagrad": (lambda: keras.optimizers.Adagrad(0.01), {"_accumulators": False}),
    "average of weights": (
        lambda: keras.optimizers.SGD(0.01, use_ema=True),
        {"_model_variables_moving_average": True},
    ),
    "accumulation": (
        lambda: keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=2),
        {"momentums": True, "_accumulated_gradients": True},
    ),
    "loss scaling": (
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01, momentum=0.9)),
        {"momentums": True},
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_permuted_signed_and_cut_with_their_variables(name: str) -> None:
    make, slot_signs = OPTIMIZERS[name]
    model = _model(make(), structure="paper")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(2)
    factors = ("u", "s", "v")
    layer, other = model.get_layer("conv"), model.get_layer("first")
    for at in (layer, other):
        for part in factors:
            variable = getattr(at, part)
            variable.assign(rng.standard_normal(variable.shape))
            slots = optimizer_slots(optimizer, variable)
            assert set(slots) == set(slot_signs)
            for slot in slots.values():
                slot.assign(rng.standard_normal(slot.shape))
    layer.s.assign([0.3, -2.0, 0.01, 1.5, -0.7, 0.02])
    order, signs = [1, 3, 4, 0], np.array([-1.0, 1.0, -1.0, 1.0])
    before = {part: _np(getattr(layer, part)).copy() for part in factors}
    slots_before = {
        (part, slot): _np(value).copy()
        for part in factors
        for slot, value in optimizer_slots(optimizer, getattr(layer, part)).items()
    }
    untouched = [v for v in model.variables if not any(v is getattr(layer, p) for p in factors)]
    kept = [_np(v).copy() for v in untouched]
    other_slots = optimizer_slots(optimizer, other.u)
    kept_slots = {slot: _np(value).copy() for slot, value in other_slots.items()}
    identities = [id(v) for v in model.trainable_variables]
    names = [v.path for v in model.trainable_variables]
    optimizer_identities = [id(v) for v in optimizer.variables]
    iterations = int(_np(inner_optimizer(optimizer).iterations))

    resize(model, {layer: 4})

    np.testing.assert_array_equal(_np(layer.u), before["u"][:, order] * signs.astype("float32"))
    np.testing.assert_array_equal(_np(layer.s), np.abs(before["s"][order]))
    np.testing.assert_array_equal(_np(layer.v), before["v"][:, order])
    assert model.ranks == {**RANKS, "conv": 4}
    for (part, slot), values in slots_before.items():
        now = _np(optimizer_slots(optimizer, getattr(layer, part))[slot])
        flips = signs if slot_signs[slot] and part in ("u", "s") else np.ones(4)
        np.testing.assert_array_equal(now, values[..., order] * flips.astype("float32"))
        assert now.shape == tuple(getattr(layer, part).shape)
    for variable, value in zip(untouched, kept, strict=True):
        np.testing.assert_array_equal(_np(variable), value)
    for slot, value in kept_slots.items():
        np.testing.assert_array_equal(_np(other_slots[slot]), value)
    # Keras' own bookkeeping: same objects, same order, same names.
    assert [id(v) for v in model.trainable_variables] == identities
    assert [v.path for v in model.trainable_variables] == names
    assert [id(v) for v in optimizer.variables] == optimizer_identities
    assert int(_np(inner_optimizer(optimizer).iterations)) == iterations
    assert layer.u.shape == (6, 4)
    assert model.count_params() == sum(int(np.prod(v.shape)) for v in model.variables)


@pytest.mark.slow_on_jax
@pytest.mark.parametrize("name", ["Nesterov", "AdamW", "accumulation"])
def test_training_goes_on_with_the_new_variables(name: str) -> None:
    model = _model(OPTIMIZERS[name][0](), structure="smoothed")
    x, y = _data(16)
    for _ in range(2):
        model.train_on_batch(x, y)
    layer = model.get_layer("conv")
    model.predict_on_batch(x)  # compiled for the old variables
    resize(model, {layer: 3, model.get_layer("first"): 2})
    before = [_np(v).copy() for v in model.trainable_variables]
    slots = [_np(v).copy() for v in optimizer_slots(model.optimizer, layer.u).values()]
    predictions = model.predict_on_batch(x)
    for _ in range(2):
        model.train_on_batch(x, y)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(_np(variable) - old).max() > 0, variable.path
    now = optimizer_slots(model.optimizer, layer.u).values()
    assert any(np.abs(_np(v) - old).max() > 0 for v, old in zip(now, slots, strict=True))
    assert np.abs(model.predict_on_batch(x) - predictions).max() > 0
    np.testing.assert_allclose(model.predict_on_batch(x), _np(model(x, training=False)), atol=1e-5)


@pytest.mark.parametrize("built", [True, False], ids=["built optimizer", "optimizer not built"])
def test_weight_decay_goes_on_where_it_was(built: bool) -> None:
    # With retraction, U and V do not decay, before a shrink and after it; s and biases do.
    model = _model(keras.optimizers.SGD(0.1, weight_decay=0.5), structure="retraction")
    optimizer = model.optimizer
    if built:
        optimizer.build(model.trainable_variables)
    layer = model.get_layer("conv")
    resize(model, {layer: 3})
    optimizer.build(model.trainable_variables)
    layer.bias.assign(np.full(6, 0.4))
    before = {v.path: _np(v).copy() for v in model.trainable_variables}
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    for part in ("u", "v"):
        for at in (layer, model.get_layer("first")):
            variable = getattr(at, part)
            np.testing.assert_array_equal(_np(variable), before[variable.path])
    for variable in (layer.s, layer.bias, model.get_layer("first").s):
        np.testing.assert_allclose(_np(variable), 0.95 * before[variable.path], rtol=1e-6)


def test_other_structures_decay_everything() -> None:
    model = _model(keras.optimizers.SGD(0.1, weight_decay=0.5), structure="smoothed")
    model.optimizer.build(model.trainable_variables)
    before = _np(model.get_layer("conv").u).copy()
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    model.optimizer.apply(zeros, model.trainable_variables)
    np.testing.assert_allclose(_np(model.get_layer("conv").u), 0.95 * before, rtol=1e-6)


def test_an_optimizer_of_other_shapes_is_refused_and_nothing_changed() -> None:
    model = _model(keras.optimizers.Adafactor(0.01), structure="paper")
    model.optimizer.build(model.trainable_variables)
    before = [_np(v).copy() for v in model.variables]
    with pytest.raises(ValueError, match=r"Rank pruning needs an optimizer.*Adafactor.*Use SGD"):
        resize(model, {model.get_layer("conv"): 2})
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(_np(variable), old)


@pytest.mark.parametrize("rank", [0, 7])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    model = _model()
    with pytest.raises(ValueError, match=rf"`ranks`.*{rank}.*'conv' of rank 6"):
        resize(model, {model.get_layer("conv"): rank})


@pytest.mark.parametrize("part", ["u", "s", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_refused_and_nothing_changed(part: str, bad: float) -> None:
    model = _model()
    model.get_layer("conv").s.assign(TINY)
    broken = getattr(model.get_layer("head"), part)
    values = _np(broken).copy()
    values[..., 0] = bad
    broken.assign(values)
    before = [_np(v).copy() for v in model.variables]
    with pytest.raises(ValueError, match=rf"diverged in epoch 1: `{part}` of layer 'head'"):
        _drive(dprp.RankPruning(), model, 1)
    with pytest.raises(ValueError, match=rf"`{part}` of layer 'head'"):
        resize(model, {model.get_layer("conv"): 2, model.get_layer("head"): 1})
    assert model.ranks == RANKS
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(_np(variable), old)


# --- when and which ----------------------------------------------------------------------------


def _dying(model: dprp.DPRPModel, name: str = "conv") -> Callable[[], None]:
    """Let the layer's last value die once more at every epoch."""

    def die() -> None:
        s = np.linspace(2.0, 1.0, model.ranks[name])
        if len(s) > 1:
            s[-1] = 1e-6
        model.get_layer(name).s.assign(s)

    return die


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({}, 4, [5, 4, 3, 2]),
        ({"start_epoch": 2}, 4, [6, 6, 5, 4]),
        ({"frequency": 2}, 5, [5, 5, 4, 4, 3]),
        ({"start_epoch": 1, "frequency": 2}, 6, [6, 5, 5, 4, 4, 3]),
        ({"start_epoch": 1, "frequency": 2}, 5, [6, 5, 5, 4, 3]),  # the last epoch cuts anyway
        ({"start_epoch": 9}, 3, [6, 6, 6]),  # but never before the start
        ({"minimum_rank": 4}, 4, [5, 4, 4, 4]),
        ({"minimum_removed": 2}, 3, [6, 6, 5]),  # one value is pending: only the last epoch cuts
        ({"minimum_removed": 1}, 2, [5, 4]),
        ({"layers": ["conv"]}, 2, [5, 4]),
        ({"layers": ["first"]}, 2, [6, 6]),
        ({"threshold": 1e-8}, 2, [6, 6]),
        # s = 2, 1.8, 1.6, 1.4, 1.2, 0: the last three hold 0.2576 of the energy, the last two
        # 0.1091.
        ({"discarded_energy": 0.27, "layers": ["conv"]}, 1, [3]),
        ({"discarded_energy": 0.25, "layers": ["conv"]}, 1, [4]),
        ({"discarded_energy": 0.25, "minimum_rank": 5, "layers": ["conv"]}, 1, [5]),
    ],
    ids=str,
)
def test_the_rank_at_every_epoch(options: dict[str, Any], epochs: int, expected: list[int]) -> None:
    model = _model()
    ranks = _drive(dprp.RankPruning(**options), model, epochs, _dying(model))
    assert [row["conv"] for row in ranks] == expected
    assert all({**row, "conv": 0} == {**RANKS, "conv": 0} for row in ranks)


def test_several_pending_values_are_cut_at_once_when_there_are_enough() -> None:
    model = _model()
    for name in ("conv", "first"):
        model.get_layer(name).s.assign(TINY)
    waiting = dprp.RankPruning(minimum_removed=7)
    enough = dprp.RankPruning(minimum_removed=6)
    waiting.set_model(model)
    assert {at.name: rank for at, rank in waiting.pending_ranks().items()} == {
        "conv": 3,
        "first": 3,
    }
    ranks = _drive(enough, model, 2)
    assert ranks[0] == {**RANKS, "conv": 3, "first": 3}
    assert enough.shrinks == [
        {"epoch": 0, "before": {"conv": 6, "first": 6}, "after": {"conv": 3, "first": 3}}
    ]


def test_a_large_value_behind_a_small_one_is_not_lost() -> None:
    model = _model()
    model.get_layer("conv").s.assign([1e-6, 2.0, 1e-7, -1.5, 1.0, 1e-5])
    _drive(dprp.RankPruning(), model, 1)
    # Read after an exact re-factorization in float32, which rounds.
    np.testing.assert_allclose(_np(model.get_layer("conv").s), [2.0, 1.5, 1.0], rtol=1e-5)


def test_pruning_changes_the_function_by_the_dropped_terms_only() -> None:
    model = _model()
    layer = model.get_layer("conv")
    layer.s.assign([1e-6, 2.0, 0.0, -1.5, 1.0, 0.0])
    before = _np(layer.kernel).copy()
    _drive(dprp.RankPruning(), model, 1)
    assert layer.rank == 3
    np.testing.assert_allclose(_np(layer.kernel), before, atol=2e-6)


def test_frozen_layers_are_left_alone() -> None:
    model = _model()
    for name in ("conv", "first"):
        model.get_layer(name).s.assign(TINY)
    model.get_layer("first").trainable = False
    assert _drive(dprp.RankPruning(), model, 1)[-1] == {**RANKS, "conv": 3}


# --- in fit ------------------------------------------------------------------------------------


class _Watch(keras.callbacks.Callback):
    """Count how often Python runs the losses (once per trace) and what each epoch ended with."""

    def __init__(self, model: dprp.DPRPModel) -> None:
        super().__init__()
        self.traces = 0
        self.per_epoch: list[int] = []
        self.ranks: list[dict[str, int]] = []
        original = model._layer_losses

        def counted() -> Any:
            self.traces += 1
            return original()

        model._layer_losses = counted  # type: ignore[method-assign]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.per_epoch.append(self.traces)
        self.ranks.append(dict(self.model.ranks))


def _fit(
    model: dprp.DPRPModel, epochs: int, callbacks: Sequence[Any] = (), **options: Any
) -> dict[str, list[float]]:
    x, y = _data()
    options = {"validation_data": (x[:24], y[:24]), "batch_size": 16, **options}
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=list(callbacks), **options).history


def _evaluate(model: keras.Model) -> dict[str, float]:
    """The figures of the model as it is, by hand: a stale compiled function can't fake them."""
    x, y = _data()
    logits = _np(model(x[:24], training=False)).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logarithms = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    loss = float(-logarithms[np.arange(24), y[:24]].mean())
    accuracy = float((logits.argmax(axis=-1) == y[:24]).mean())
    by_hand = {"loss": loss, "app_loss": loss, "accuracy": accuracy}
    evaluated = model.evaluate(x[:24], y[:24], verbose=0, return_dict=True)
    assert evaluated == {name: pytest.approx(value, rel=1e-4) for name, value in by_hand.items()}
    return by_hand


@pytest.mark.long_on_jax
@pytest.mark.parametrize(
    "structure",
    ["retraction", *(pytest.param(s, marks=pytest.mark.long) for s in STRUCTURES[1:])],
)
def test_a_fit_that_shrinks_and_another_after_it(structure: str, tmp_path: Path) -> None:
    # Orthogonality with the paper's weight would need the paper's patience: a milder one here.
    model = _model(
        structure=structure,
        orthogonality_weight=3.0,
        sorting_weight=0.7,
        structure_weight=0.9,
        retraction_period=1,
    )
    model.get_layer("conv").s.assign(TINY)
    watch = _Watch(model)
    pruning = dprp.RankPruning()
    history_file = tmp_path / "ranks.json"
    history = dprp.RankHistory(history_file)
    first = _fit(model, 1, [pruning, history, watch])

    # The only epoch is the last: cut before its validation, which is that of the model left.
    assert model.ranks == {**RANKS, "conv": 3}
    assert [row["epoch"] for row in pruning.shrinks] == [0]
    assert first["total_rank"] == [sum(model.ranks.values())]
    assert first["parameters"] == [model.rank_logs()["parameters"]]
    fresh = _evaluate(model)
    for name, value in fresh.items():
        assert first[f"val_{name}"][-1] == pytest.approx(value, rel=1e-4), name
    assert set(fresh) == {"loss", "accuracy", "app_loss"}
    record = json.loads(history_file.read_text())
    assert record == history.record
    assert [row["ranks"]["conv"] for row in record["epochs"]] == [6, 3]
    assert record["full_ranks"] == RANKS

    # The same callbacks again: the new variables move, nothing is cut, nothing is traced twice.
    before = [_np(v).copy() for v in model.trainable_variables]
    checkpoint = tmp_path / "best.keras"
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="app_loss", factor=0.5, patience=1, min_delta=1e6
    )
    saver = keras.callbacks.ModelCheckpoint(checkpoint, monitor="val_app_loss", mode="min")
    second = _fit(model, 4, [pruning, plateau, saver, watch])
    assert pruning.shrinks == []
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(_np(variable) - old).max() > 0, variable.path
    assert watch.per_epoch[1] == watch.per_epoch[-1], "traced anew although no rank changed"
    fresh = _evaluate(model)
    for name, value in fresh.items():
        assert second[f"val_{name}"][-1] == pytest.approx(value, rel=1e-4), name

    # Logs: each term under its own name, the total their weighted sum, the last batch a half one.
    terms = {"app_loss", "orth_loss", "sort_loss", "comp_loss", "loss"}
    assert terms | {"total_rank", "parameters", "accuracy", "learning_rate"} <= set(second)
    names = ("app_loss", "orth_loss", "sort_loss", "comp_loss", "loss")
    for epoch in range(4):
        app, orth, sort, comp, total = (second[name][epoch] for name in names)
        weighted = app + 0.37 * comp
        if structure != "retraction":
            weighted += 0.9 * (3.0 * orth + 0.7 * sort)
            assert orth > 1e-4
        else:
            assert abs(sort) < 1e-6
        assert total == pytest.approx(weighted, rel=1e-5)
        assert comp > 0.01
    assert second["learning_rate"][0] == pytest.approx(0.01)
    assert second["learning_rate"][-1] < 0.005
    assert second["val_loss"][-1] == pytest.approx(second["val_app_loss"][-1], rel=1e-5)

    # A checkpoint has the ranks, the settings and the optimizer's state of its epoch.
    again = keras.saving.load_model(checkpoint)
    assert again.ranks == model.ranks
    assert again.settings == model.settings
    x, _ = _data()
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    momenta = [optimizer_slots(m.optimizer, m.get_layer("conv").u) for m in (model, again)]
    np.testing.assert_array_equal(_np(momenta[0]["momentums"]), _np(momenta[1]["momentums"]))
    assert np.abs(_np(momenta[1]["momentums"])).max() > 0
    assert int(_np(again.optimizer.iterations)) == int(_np(model.optimizer.iterations)) == 15
    if structure == "retraction":
        for layer in model.low_rank_layers:
            for q in (layer.u, layer.v):
                gram = _np(q).T @ _np(q)
                np.testing.assert_allclose(gram, np.eye(len(_np(layer.s))), atol=2e-5)
            assert np.all(np.diff(_np(layer.s)) <= 1e-6)


@pytest.mark.slow_on_jax
def test_a_shrink_in_the_middle_of_a_fit_is_traced_once_and_trains_on() -> None:
    model = _model(compression_weight=0.02)
    model.get_layer("first").s.assign(TINY)
    watch = _Watch(model)
    moved: list[float] = []
    last: list[np.ndarray] = []

    class Moves(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            sync(self.model)
            kernel = _np(self.model.get_layer("first").kernel).copy()
            if last:
                moved.append(float(np.abs(kernel - last[-1]).max()))
            last.append(kernel)

    pruning = dprp.RankPruning(start_epoch=1, frequency=2)
    history = _fit(model, 4, [pruning, Moves(), watch])
    assert [row["first"] for row in watch.ranks] == [6, 3, 3, 3]
    assert [row["epoch"] for row in pruning.shrinks] == [1]
    assert min(moved) > 1e-6
    assert history["total_rank"] == [15, 12, 12, 12]
    traces = watch.per_epoch
    assert traces[1] == traces[0]
    assert traces[2] > traces[1], "a shrink without a new trace trains the old variables"
    assert traces[3] == traces[2]
    for name, value in _evaluate(model).items():
        assert history[f"val_{name}"][-1] == pytest.approx(value, rel=1e-4)


@pytest.mark.slow
def test_shrinking_with_several_steps_per_call() -> None:
    x, y = _data(48)
    model = _model()
    model.compile(
        keras.optimizers.Adam(0.003),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=2,
    )
    model.get_layer("conv").s.assign(TINY)
    history = model.fit(
        x,
        y,
        batch_size=12,
        epochs=2,
        verbose=0,
        validation_data=(x, y),
        callbacks=[dprp.RankPruning()],
    ).history
    assert model.ranks["conv"] == 3
    assert int(_np(model.optimizer.iterations)) == 8
    fresh = model.evaluate(x, y, verbose=0, return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(fresh["loss"], rel=1e-5)


def test_retraction_comes_every_so_many_steps() -> None:
    model = _model(keras.optimizers.SGD(0.05, momentum=0.9), retraction_period=3)
    x, y = _data(16)

    def error() -> float:
        return max(
            float(np.abs(_np(q).T @ _np(q) - np.eye(len(_np(layer.s)))).max())
            for layer in model.low_rank_layers
            for q in (layer.u, layer.v)
        )

    errors = []
    for _ in range(6):
        model.train_on_batch(x, y)
        errors.append(error())
    assert max(errors[2], errors[5]) < 2e-5
    assert min(errors[0], errors[1], errors[3], errors[4]) > 1e-4


@pytest.mark.slow_on_jax
def test_retraction_does_not_change_what_the_model_computes() -> None:
    # Two models, one step each from the same weights: only one retracts afterwards.
    x, y = _data(16)
    results = []
    for period in (1, 100):
        model = _model(retraction_period=period)
        model.train_on_batch(x, y)
        results.append(model.predict_on_batch(x))
    np.testing.assert_allclose(results[0], results[1], atol=2e-5)


# --- the loss, term by term --------------------------------------------------------------------


def _stirred(structure: str) -> dprp.DPRPModel:
    model = _model(
        regularizer=keras.regularizers.L2(0.013),
        structure=structure,
        compression_weight=0.37,
        structure_weight=0.6,
        orthogonality_weight=2.3,
        sorting_weight=1.7,
        threshold=0.2,
    )
    rng = np.random.default_rng(4)
    for layer in model.low_rank_layers:
        for q in (layer.u, layer.v):
            q.assign(_np(q) + 0.2 * rng.standard_normal(q.shape))
        layer.s.assign(rng.standard_normal(layer.rank))
    return model


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_total_is_the_weighted_sum_of_means_over_the_layers(structure: str) -> None:
    model = _stirred(structure)
    rate = 0.04
    model._learning_rate.assign(rate)
    at = model.low_rank_layers

    def orthogonality(q: Any, r: int) -> float:
        x = float(np.linalg.norm(_np(q).T @ _np(q) - np.eye(r)))
        d = 2 * rate * 0.6 * 2.3 / (len(at) * r**2) if structure == "smoothed" else 0.0
        return (np.sqrt(x**2 + d**2) - d) / r**2

    def tail(s: np.ndarray) -> float:
        tau = decomposition.retained_rank(s, 0.2)
        return float(np.abs(s[tau - 1 :]).sum() / max(1, len(s) - tau) / np.linalg.norm(s))

    orth = sum(orthogonality(q, len(_np(la.s))) for la in at for q in (la.u, la.v)) / len(at)
    sort = np.mean([float(_np(regularizers.sorting(_np(la.s)))) for la in at])
    comp = np.mean([tail(_np(la.s)) for la in at])
    terms = {name: float(_np(value)) for name, value in model.structural_losses().items()}
    assert terms == {
        "orth": pytest.approx(orth, rel=1e-4),
        "sort": pytest.approx(sort, rel=1e-4),
        "comp": pytest.approx(comp, rel=1e-4),
    }
    x, y = _data(16)
    logits = model(x, training=True)
    app = float(_np(model.loss(y, logits)))
    penalty = 0.013 * float(np.square(_np(model.get_layer("conv").kernel)).sum())
    total = float(_np(model.compute_loss(x, y, logits)))
    expected = app + penalty + 0.37 * comp
    if structure != "retraction":
        expected += 0.6 * (2.3 * orth + 1.7 * sort)
    assert total == pytest.approx(expected, rel=1e-5)
    evaluated = float(_np(model.compute_loss(x, y, logits, training=False)))
    assert evaluated == pytest.approx(app + penalty, rel=1e-5)
    assert float(_np(model._loss_terms.result()["dprp_app_loss"])) == pytest.approx(app, rel=1e-5)


def test_frozen_layers_are_in_no_term() -> None:
    model = _stirred("paper")
    for name in ("first", "head"):
        model.get_layer(name).trainable = False
    layer = model.get_layer("conv")
    terms = {name: float(_np(value)) for name, value in model.structural_losses().items()}
    assert terms["sort"] == pytest.approx(float(_np(regularizers.sorting(_np(layer.s)))), rel=1e-5)
    layer.trainable = False
    assert {float(_np(value)) for value in model.structural_losses().values()} == {0.0}


@pytest.mark.slow_on_jax
def test_the_smoothed_norm_follows_the_learning_rate() -> None:
    model = _model(keras.optimizers.SGD(0.02), structure="smoothed", orthogonality_weight=2.0)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.02 / (epoch + 1))
    _fit(model, 2, [schedule])
    assert float(_np(model._learning_rate)) == pytest.approx(0.01)


def test_without_compression_there_is_no_pressure() -> None:
    model = _model(compression=None)
    assert float(_np(model.structural_losses()["comp"])) == 0.0
    assert float(_np(_model(compression="l2").structural_losses()["comp"])) > 0.01


def test_balancing_comes_with_retraction() -> None:
    model = _model()
    assert all(layer.balanced_gradients for layer in model.low_rank_layers)
    model.settings = replace(model.settings, structure="paper")
    assert not any(layer.balanced_gradients for layer in model.low_rank_layers)


# --- bad input ---------------------------------------------------------------------------------

BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: dprp.RankPruning(0.0), r"`threshold`.*threshold=0\.0"),
    (lambda: dprp.RankPruning(1.0), r"`threshold`.*threshold=1\.0"),
    (lambda: dprp.RankPruning(discarded_energy=1.0), r"`discarded_energy`.*1\.0"),
    (lambda: dprp.RankPruning(start_epoch=-1), r"`start_epoch`.*start_epoch=-1"),
    (lambda: dprp.RankPruning(frequency=0), r"`frequency`.*frequency=0"),
    (lambda: dprp.RankPruning(minimum_rank=0), r"`minimum_rank`.*minimum_rank=0"),
    (
        lambda: dprp.RankPruning(minimum_removed=1.5),  # type: ignore[arg-type]
        r"`minimum_removed`.*1\.5",
    ),
    (lambda: _drive(dprp.RankPruning(layers=["cone"]), _model(), 1), r"`layers`.*\['cone'\]"),
    (lambda: _drive(dprp.RankPruning(), _dense_model(), 1), r"`RankPruning` works on a DPRPModel"),
    (lambda: dprp.DPRPSettings(structure="none"), r"`structure`.*structure='none'"),
    (lambda: dprp.DPRPSettings(threshold=0), r"`threshold`.*0"),
    (lambda: dprp.DPRPSettings(compression="trail"), r"`compression`.*'trail'"),
    (lambda: dprp.DPRPSettings(structure_weight=float("inf")), r"`structure_weight`.*inf"),
    (
        lambda: dprp.DPRPSettings(retraction_period=1.5),  # type: ignore[arg-type]
        r"`retraction_period`.*1\.5",
    ),
    (lambda: setattr(_model(), "settings", {"threshold": 0.1}), r"`settings`.*threshold"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_settings_come_back_from_their_config() -> None:
    settings = dprp.DPRPSettings(
        structure="smoothed",
        compression=regularizers.FunnelPenalty(0.3),
        compression_weight=0.2,
        threshold=0.03,
        structure_weight=0.4,
        orthogonality_weight=5.0,
        sorting_weight=0.6,
        retraction_period=7,
    )
    config = settings.get_config()
    assert dprp.DPRPSettings.from_config(json.loads(json.dumps(config))) == settings
    default = dprp.DPRPSettings().get_config()
    assert [name for name in default if default[name] == config[name]] == []


def test_the_terms_are_in_the_logs_of_every_epoch_after_an_evaluation() -> None:
    # Evaluating leaves the three structural terms out of ITS result, and of nothing else.
    model = _model()
    x, y = _data(16)
    model.train_on_batch(x, y)
    names = set(model.get_metrics_result())
    assert {"orth_loss", "sort_loss", "comp_loss"} <= names
    assert not {"orth_loss", "sort_loss", "comp_loss"} & set(
        model.test_on_batch(x, y, return_dict=True)
    )
    assert set(model.get_metrics_result()) == names


def test_a_diverged_run_ends_with_a_clear_error() -> None:
    inputs = keras.Input((4,))
    model = dprp.factorize(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
    x, y = np.full((8, 4), np.nan, "float32"), np.zeros((8, 3), "float32")
    with pytest.raises(ValueError, match=r"Training diverged in epoch 1, step 1.*inputs"):
        model.fit(x, y, epochs=1, verbose=0, callbacks=[dprp.RankPruning()])


def test_the_original_and_the_factorized_model_train_side_by_side() -> None:
    inputs = keras.Input((4,))
    plain = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    lowrank = dprp.factorize(plain)
    x, y = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
    for model in (plain, lowrank):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
    losses = []
    for _ in range(2):
        losses.append(float(plain.train_on_batch(x, y)))
        losses.append(float(lowrank.train_on_batch(x, y, return_dict=True)["app_loss"]))
    # They start from one function; on JAX a shared buffer would be gone after the first step.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[2] < losses[0]
    assert losses[3] < losses[1]


def test_nothing_is_cut_from_the_stop_epoch_on() -> None:
    model = _model()
    callback = dprp.RankPruning(start_epoch=0, stop_epoch=1, frequency=1)
    first = _drive(callback, model, 1)
    tail = np.ones(model.get_layer("conv").rank, "float32")
    tail[-1] = 1e-6
    model.get_layer("conv").s.assign(tail)
    callback.set_params({"epochs": 3})
    callback.set_model(model)
    callback.on_train_begin()
    for epoch in (1, 2):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {})
    assert model.ranks == first[-1]
    callback.stop_epoch = None
    callback.on_epoch_begin(2)
    callback.on_epoch_end(2, {})
    assert model.ranks["conv"] == first[-1]["conv"] - 1


def test_a_stop_before_the_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`stop_epoch`.*start_epoch=3.*stop_epoch=3"):
        dprp.RankPruning(start_epoch=3, stop_epoch=3)


def test_the_pressure_ends_with_the_cuts() -> None:
    model = _model()
    given = model.settings
    assert given.compression_weight > 0
    callback = dprp.RankPruning(stop_epoch=2)
    callback.set_model(model)
    callback.set_params({"epochs": 4})
    callback.on_train_begin()
    seen = []
    for epoch in range(3):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {})
        seen.append(model.pressure)
    assert seen == [1.0, 0.0, 0.0]
    assert model.settings == given


def test_pressure_is_a_factor_on_the_compression_alone() -> None:
    model = _model()
    x, y = _data()
    logits = model(x)
    full = float(_np(model.compute_loss(x, y, logits)))
    compression = float(_np(model.structural_losses()["comp"])) * model.settings.compression_weight
    assert compression > 0
    for pressure in (0.0, 0.5):
        model.pressure = pressure
        lower = float(_np(model.compute_loss(x, y, logits)))
        assert full - lower == pytest.approx((1 - pressure) * compression, rel=1e-3)
    for wrong in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"`pressure` must be .*{wrong}"):
            model.pressure = wrong
    assert model.pressure == 0.5


@pytest.mark.slow
def test_each_fit_presses_anew_and_leaves_the_settings_alone() -> None:
    model = _model()
    given, seen = model.settings, []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(model.pressure)
    )

    class Refusing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise RuntimeError("enough")

    def pressures(*more: keras.callbacks.Callback) -> list[float]:
        seen.clear()
        try:
            _fit(model, 2, [dprp.RankPruning(threshold=1e-9, stop_epoch=1), look, *more])
        finally:
            assert model.settings == given
            assert model.pressure == 1.0
        return seen

    first = list(pressures())
    assert set(first[: len(first) // 2]) == {1.0}
    assert set(first[len(first) // 2 :]) == {0.0}
    with pytest.raises(RuntimeError, match="enough"):
        pressures(Refusing())
    assert seen == first
    assert pressures() == first


@pytest.mark.slow
def test_the_step_after_a_fit_that_ended_the_pressure_presses_again() -> None:
    x, y = _data()
    values = []
    for stop in (None, 1):
        model = _model(keras.optimizers.SGD(0.0))
        _fit(model, 2, [dprp.RankPruning(threshold=1e-9, stop_epoch=stop)])
        values.append(model.train_on_batch(x, y, return_dict=True))
    assert float(values[0]["loss"]) == pytest.approx(float(values[1]["loss"]), rel=1e-5)
    assert float(values[0]["loss"]) > float(values[0]["app_loss"])
