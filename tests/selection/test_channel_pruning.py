"""Channels that go inside `fit`: what is left trains on, is validated, and goes back in."""

from __future__ import annotations

import inspect
import json
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.width_latency import CostGrid, WidthLatency
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.keras_internals.optimizers import optimizer_slots
from dprp_tf.selection.channel_pruning import ChannelPruning

# Rounding of sums in another order, of outputs scaled to 1; what is wrong shows as 1e-2 or more.
TOLERANCE = 2e-5


def _np(value: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))


def _error(outputs: Any, expected: Any) -> float:
    a, b = _np(outputs), _np(expected)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((32, 8, 8, 1)).astype("float32"), rng.integers(0, 4, 32)


def _model(optimizer: Any = None) -> keras.Model:
    keras.utils.set_random_seed(5)
    model = zoo.resnet_small((8, 8, 1), 4, widths=(8, 16))
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _plain(optimizer: Any = None) -> keras.Model:
    """A quick one: a chain of two convolutions."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", name="a"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Conv2D(12, 3, padding="same", strides=2, activation="relu", name="b"),
            layers.Flatten(),
            layers.Dense(4, name="out"),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _fit(model: keras.Model, epochs: int, *callbacks: Any, **options: Any) -> Any:
    x, y = _data()
    return model.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0,
        callbacks=list(callbacks), **options,
    )  # fmt: skip


class _Around(ChannelPruning):
    """Note the model before and after each removal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[keras.Model, np.ndarray, np.ndarray]] = []
        self.weights: list[dict[str, np.ndarray]] = []

    def _prune_once(self) -> None:
        if self._done or self._epoch is None:
            return
        x, _ = _data()
        whole = keras.models.clone_model(self.model)
        whole.set_weights(self.model.get_weights())
        count = len(self.shrinks)
        super()._prune_once()
        if len(self.shrinks) > count:
            outputs = [_np(network(x, training=False)) for network in (whole, self.model)]
            self.seen.append((whole, *outputs))
            self.weights.append({v.path: _np(v) for v in self.model.trainable_variables})


@pytest.mark.backend
@pytest.mark.slow_on_jax
def test_a_fit_ends_with_a_smaller_model_that_trained_on(tmp_path: Path) -> None:
    model = _model()
    x, y = _data()
    held = [model, *model.layers, *model.variables]
    whole = model_cost(model)
    pruning = _Around({"macs": 0.55, "parameters": 0.6}, method="l1", multiple=2, stop_epoch=2)
    history = _fit(model, 3, pruning, validation_data=(x, y))
    assert len(pruning.shrinks) == 2
    for shrink, (before, was, now) in zip(pruning.shrinks, pruning.seen, strict=True):
        small = dprp.remove_channels(before, shrink["removed"])
        assert _error(now, small(x, training=False)) < TOLERANCE
        assert _error(now, was) > 1e-2
    # The line falls from the whole to the budget in two steps.
    first, second = (shrink["cost"] for shrink in pruning.shrinks)
    assert 0.55 * whole.macs < first["macs"] <= 0.775 * whole.macs
    left = model_cost(model)
    assert left.macs <= 0.55 * whole.macs
    assert left.parameters <= 0.6 * whole.parameters
    assert second["macs"] == left.macs
    assert history.history["parameters"][-1] == sum(
        int(np.prod(v.shape)) for v in model.trainable_variables
    )
    # What the optimizer trains are the variables that the model has now.
    for path, before in pruning.weights[-1].items():
        now = next(_np(v) for v in model.trainable_variables if v.path == path)
        assert np.abs(now - before).max() > 0, path
    for variable in model.trainable_variables:
        for slot in optimizer_slots(model.optimizer, variable).values():
            assert slot.shape == variable.shape
    assert all(a is b for a, b in zip(held, [model, *model.layers, *model.variables], strict=True))
    fresh = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    for name, value in fresh.items():
        assert history.history[f"val_{name}"][-1] == pytest.approx(value, abs=1e-5)
    model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert _error(loaded(x, training=False), model(x, training=False)) < TOLERANCE
    assert _error(model.predict(x, verbose=0), model(x, training=False)) < TOLERANCE
    again = loaded.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert again == pytest.approx(fresh, abs=1e-5)
    # Whoever takes a model takes this one: ranks after channels, and plain layers again.
    folded = dprp.fold(dprp.factorize(model, decomposition="channel"))
    assert _error(folded(x, training=False), model(x, training=False)) < 1e-3


@pytest.mark.backend
def test_the_validation_of_an_epoch_is_that_of_what_is_left_after_it(tmp_path: Path) -> None:
    model, data = _plain(), _data()
    pruning = ChannelPruning(0.6, method="l2", multiple=2)
    history = _fit(model, 1, pruning, validation_data=data)
    assert [shrink["epoch"] for shrink in pruning.shrinks] == [0]
    assert model.get_layer("a").filters + model.get_layer("b").filters < 20
    fresh = model.evaluate(*data, batch_size=8, verbose=0, return_dict=True)
    for name, value in fresh.items():
        assert history.history[f"val_{name}"][0] == pytest.approx(value, abs=1e-5)
    # A Sequential model, which tells of itself in its own way.
    model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert isinstance(loaded, keras.Sequential)
    found = loaded.evaluate(*data, batch_size=8, verbose=0, return_dict=True)
    assert found == pytest.approx(fresh, abs=1e-5)


@pytest.mark.backend
@pytest.mark.parametrize("refit", [True, False])
def test_activations_choose_and_fit_as_select_and_cut_do(refit: bool) -> None:
    x, _ = _data()
    # Many more than a reader has rows, or the fit would keep each of them as it is.
    data = np.random.default_rng(4).standard_normal((600, 8, 8, 1)).astype("float32")
    model = _plain()
    _fit(model, 1)
    # A stream, which gives its samples once.
    pruning = _Around(0.5, data=iter([data[:300], data[300:]]), multiple=4, refit=refit)
    _fit(model, 1, pruning)
    whole, was, now = pruning.seen[0]
    plan = dprp.select_channels(whole, method="activation", budget=0.5, data=data, multiple=4)
    assert plan.removed == pruning.shrinks[0]["removed"]
    small = dprp.cut(whole, plan, calibration_data=data if refit else None)
    assert _error(now, small(x, training=False)) < TOLERANCE
    assert _error(now, was) > 1e-2


@pytest.mark.parametrize("method", ["l1", "geometric_median", "random"])
def test_every_method_meets_the_budget(method: str) -> None:
    model = _plain()
    whole = model_cost(model)
    pruning = ChannelPruning(dprp.Budget(macs=0.4), method=method, multiple=1)
    _fit(model, 2, pruning)
    assert model_cost(model).macs <= 0.4 * whole.macs
    assert len(pruning.shrinks) == len(pruning.removed) == 2


def test_channels_go_at_the_ends_of_the_epochs_that_are_due() -> None:
    model = _plain()
    pruning = ChannelPruning(0.4, method="l1", multiple=1, start_epoch=1, stop_epoch=5, frequency=2)
    history = _fit(model, 6, pruning)
    assert [shrink["epoch"] for shrink in pruning.shrinks] == [1, 3, 4]
    counts = history.history["parameters"]
    dense = model_cost(_plain()).parameters
    assert counts == sorted(counts, reverse=True)
    assert counts[1] == counts[2] > counts[3] > counts[4] == counts[5]
    # After the k-th epoch of 4 no more than 1 - 0.6 k / 4 of all, and not much less.
    for at, k in ((1, 1), (3, 3), (4, 4)):
        cost = pruning.shrinks[(1, 3, 4).index(at)]["cost"]["parameters"]
        assert cost <= (1 - 0.15 * k) * dense + 1e-6
        assert cost > (1 - 0.15 * k) * dense - 0.1 * dense
    # What was chosen each time, taken out of copies, gives the same shapes.
    small = _plain()
    for step in pruning.removed:
        small = dprp.remove_channels(small, step)
    assert [w.shape for w in small.weights] == [w.shape for w in model.weights]


def test_a_named_group_alone_loses_channels() -> None:
    model = _plain()
    pruning = ChannelPruning(0.8, method="l1", multiple=1, groups=["b"])
    _fit(model, 2, pruning)
    assert model.get_layer("a").filters == 8
    assert model.get_layer("b").filters < 12
    assert all(set(shrink["removed"]) == {"b"} for shrink in pruning.shrinks)


def test_a_training_that_ends_too_early_says_so() -> None:
    model = _plain()
    pruning = ChannelPruning(0.4, method="l1", multiple=1, stop_epoch=4)
    with pytest.warns(UserWarning, match="above its budget of 0.4: training ended before"):
        _fit(model, 2, pruning)
    # The next goes on from there: what is left then counts as whole.
    again = ChannelPruning(0.9, method="l1", multiple=1)
    left = model_cost(model).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _fit(model, 1, again)
    assert 0.6 * left < model_cost(model).parameters <= 0.9 * left


class _Seconds(keras.callbacks.Callback):
    """The quickest step of each epoch, the loss taken out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.least: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.least.append(float("inf"))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float(logs["loss"])
        self.least[-1] = min(self.least[-1], time.perf_counter() - self._start)


@pytest.mark.backend
def test_the_steps_of_the_same_fit_become_cheaper() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 64))
    x = layers.Conv2D(192, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.Conv2D(192, 3, padding="same", activation="relu", name="b")(x)
    outputs = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    seconds = _Seconds()
    pruning = ChannelPruning({"macs": 0.05}, method="l1", stop_epoch=1)
    data = np.ones((40, 16, 16, 64), "float32"), np.ones((40, 2), "float32")
    model.fit(*data, batch_size=8, epochs=2, verbose=0, callbacks=[pruning, seconds])
    assert model.get_layer("a").filters < 96
    # A twentieth of the work; what a step takes besides, and what else the machine does, stays.
    assert seconds.least[1] < 0.5 * seconds.least[0]


# --- a budget of time -----------------------------------------------------------------------------


def _table() -> WidthTable:
    """Times of `_plain` that grow in steps of four channels, with 1 ms of all for the rest."""

    def row(name: str, window: tuple[int, ...], reads: int, makes: int) -> WidthLatency:
        axes = [(*range(4, size, 4), size) for size in (reads, makes)]
        costs = tuple(tuple(0.01 * one * other for other in axes[1]) for one in axes[0])
        return WidthLatency(name, window, CostGrid(axes[0], axes[1], costs))

    rows = (row("a", (3, 3), 1, 8), row("b", (3, 3), 8, 12), row("out", (), 192, 4))
    whole = sum(each.whole for each in rows)
    return WidthTable(rows, whole + 1.5, 0.5, "local", "litert", "int8", 1, "ms", "some", "1")


@pytest.mark.backend
def test_a_time_is_met_as_the_table_of_the_whole_model_tells_it() -> None:
    model, table = _plain(), _table()
    pruning = ChannelPruning({"time": 0.6}, method="l1", multiple=4, latency=table, stop_epoch=2)
    history = _fit(model, 3, pruning)
    found = history.history["predicted_cost"]
    assert found[-1] <= 0.6 * table.dense
    a, b = model.get_layer("a").filters, model.get_layer("b").filters
    assert (a, b) != (8, 12)

    # Entries of maps: 64 a + 64 a (norm) + 64 a (relu) + 16 b + 16 b (flat) + 4.
    def entries(a: int, b: int) -> int:
        return 64 * a + 16 * b + 4

    maps = entries(a, b) / entries(8, 12)
    channels = {"a": (1, a), "b": (a, b), "out": (16 * b, 4)}
    expected = table.model_cost(channels, maps=maps)
    assert found[-1] == pytest.approx(expected, rel=1e-6)
    assert found[0] <= 0.8 * table.dense


# --- what comes back ------------------------------------------------------------------------------


class _Score(keras.callbacks.Callback):
    """A figure that is best in the epoch given."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self._best = best

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["score"] = abs(epoch - self._best)


class _Snapshot(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, np.ndarray] = {}
        self.counts: dict[int, int] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.outputs[epoch] = self.model.predict(_data()[0], verbose=0)
        self.counts[epoch] = self.model.count_params()


@pytest.mark.backend
@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_early_stopping_gives_back_the_channels_of_the_best_epoch(first: bool) -> None:
    model = _plain()
    stopping = keras.callbacks.EarlyStopping(
        "score", mode="min", patience=2, restore_best_weights=True
    )
    pruning = ChannelPruning(0.5, method="l1", multiple=1, stop_epoch=5)
    snapshot = _Snapshot()
    order = [pruning, snapshot, stopping] if first else [snapshot, stopping, pruning]
    with pytest.warns(UserWarning, match="training ended before"):
        _fit(model, 6, _Score(1), *order)
    assert list(snapshot.outputs) == [0, 1, 2, 3]
    assert snapshot.counts[3] < snapshot.counts[1]
    assert model.count_params() == snapshot.counts[1]
    assert _error(model.predict(_data()[0], verbose=0), snapshot.outputs[1]) < TOLERANCE
    assert len(pruning.removed) == (2 if first else 1)
    _fit(model, 1)  # and it goes on


class _KilledError(Exception):
    pass


class _DieIn(keras.callbacks.Callback):
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._at, self._epoch = epoch, -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self._epoch, batch) == (self._at, 1):
            raise _KilledError


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(first: bool, tmp_path: Path) -> None:
    def run(*others: Any) -> tuple[keras.Model, ChannelPruning]:
        model = _plain(keras.optimizers.Adam(0.01))
        pruning = ChannelPruning(0.5, method="l1", multiple=1, stop_epoch=4)
        _fit(model, 5, *([pruning, *others] if first else [*others, pruning]))
        return model, pruning

    straight, expected = run()
    backup = tmp_path / "backup"
    with pytest.raises(_KilledError):
        run(keras.callbacks.BackupAndRestore(backup), _DieIn(2))
    model, pruning = run(keras.callbacks.BackupAndRestore(backup))
    # Kept before the callback that comes after it acts, an epoch's channels go in the next one.
    if first:
        assert pruning.removed == expected.removed
        x, _ = _data()
        assert _error(model.predict(x, verbose=0), straight.predict(x, verbose=0)) < 1e-3
    assert [shrink["epoch"] for shrink in pruning.shrinks] == [2, 3]
    assert model.count_params() <= 0.5 * _plain().count_params()
    assert not backup.exists()


# --- together with others -------------------------------------------------------------------------


@pytest.mark.backend
def test_a_teacher_teaches_what_is_left() -> None:
    teacher, model = _plain(), _plain()
    _fit(teacher, 3)
    taught = teacher.get_weights()
    pruning = ChannelPruning(0.5, method="l1", multiple=1, stop_epoch=2)
    teaching = dprp.Distillation(teacher, weight=0.7, features=["out"])
    history = _fit(model, 6, pruning, teaching, validation_data=_data())
    assert model.count_params() <= 0.5 * teacher.count_params()
    losses = history.history["distillation_loss"]
    assert losses[-1] < 0.8 * losses[2]
    for weight, before in zip(teacher.get_weights(), taught, strict=True):
        np.testing.assert_array_equal(weight, before)
    # The same fit without the teacher ends elsewhere.
    alone = _plain()
    _fit(alone, 6, ChannelPruning(0.5, method="l1", multiple=1, stop_epoch=2))
    assert _error(alone.predict(_data()[0], verbose=0), model.predict(_data()[0], verbose=0)) > 1e-2


@pytest.mark.backend
def test_mixed_precision_scales_its_loss_all_the_way() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = _plain(keras.optimizers.Adam(0.01))
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        pruning = ChannelPruning(0.5, method="l1", multiple=1, stop_epoch=2)
        history = _fit(model, 4, pruning)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("a").kernel.dtype == "float32"
    assert len(pruning.shrinks) == 2
    assert history.history["loss"][-1] < history.history["loss"][1]
    for variable in model.trainable_variables:
        slots = optimizer_slots(model.optimizer, variable)
        assert len(slots) == 2
        assert all(slot.shape == variable.shape for slot in slots.values())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_what_is_left_is_exported(suffix: str, tmp_path: Path) -> None:
    from dprp_tf import deploy
    from dprp_tf.deploy.running.runtime import load_file

    model = _model()
    pruning = ChannelPruning(0.5, method="l1", multiple=2)
    _fit(model, 1, pruning)
    path = tmp_path / f"small{suffix}"
    deploy.export(model, path)
    x, _ = _data()
    name = model.inputs[0].name
    found = load_file(path).run({name: x})
    assert _error(next(iter(found.values())), model.predict(x, verbose=0)) < 1e-4


# --- what it is made of ---------------------------------------------------------------------------


def test_its_config_holds_every_argument_and_makes_it_again() -> None:
    table = _table()
    settings = {
        "method": "random",
        "data": [[1.0, 2.0]],
        "groups": ["a"],
        "multiple": 4,
        "latency": table,
        "start_epoch": 1,
        "stop_epoch": 7,
        "frequency": 2,
        "refit": False,
        "seed": 3,
        "verbose": 1,
    }
    pruning = ChannelPruning(dprp.Budget(time=0.5, tolerance=0.2), **settings)
    accepted = inspect.signature(ChannelPruning).parameters
    assert set(pruning.get_config()) == set(accepted)
    # Away from the defaults, which an argument that is forgotten would fall back to.
    for name, value in settings.items():
        assert value != accepted[name].default
    again = ChannelPruning.from_config(json.loads(json.dumps(pruning.get_config())))
    assert again.budget == pruning.budget
    assert again.latency == table
    assert again.get_config() == pruning.get_config()


def test_verbose_prints_a_line_per_removal(capsys: pytest.CaptureFixture[str]) -> None:
    _fit(_plain(), 2, ChannelPruning(0.6, method="l1", multiple=1, stop_epoch=1, verbose=1))
    lines = [line for line in capsys.readouterr().out.splitlines() if "removed channels" in line]
    assert len(lines) == 1
    assert lines[0].startswith("epoch 1: removed channels (")


# --- what is refused, before any step -------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (0.5, {"method": "best"}, "`method` must be one of"),
        (0.5, {}, "`data` must be given for method='activation'"),
        (0.5, {"method": "l1", "multiple": 0}, "`multiple`"),
        (0.5, {"method": "l1", "start_epoch": 3, "stop_epoch": 3}, "`stop_epoch` must be above"),
        (0.5, {"method": "l1", "latency": "table"}, "`latency` must be a WidthTable"),
        (1.5, {"method": "l1"}, "`parameters` must be a share"),
        ("half", {"method": "l1"}, "`budget` must be a Budget"),
    ],
)
def test_arguments_out_of_range_are_refused(budget: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChannelPruning(budget, **options)


def _other_table() -> WidthTable:
    return dprp.WidthTable(
        (WidthLatency("a", (3, 3), CostGrid((1,), (4, 16), ((1.0, 2.0),))),),
        5.0, 1.0, "local", "litert", "int8", 1, "ms", "some", "1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (0.01, {}, "`parameters` must be at least .* at the least widths"),
        ({"macs": 0.5}, {"multiple": 64}, "`macs` must be at least"),
        ({"time": 0.5}, {}, "`latency` must be given for a budget of time"),
        ({"time": 0.01}, {"latency": _table()}, "`time` must be at least .* Received: time=0.01"),
        ({"time": 0.5}, {"latency": _other_table()}, "a table of this model's widths"),
        ({"accuracy_drop": 0.1}, {}, "Received: accuracy_drop"),
        (0.5, {"groups": ["out"]}, "groups of which channels may go"),
        (0.5, {"start_epoch": 2}, "`start_epoch` must be below epochs=2"),
        (0.5, {"method": "activation", "data": np.ones((4, 5, 5, 1))}, "`data` must hold inputs"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_a_step(
    budget: Any, options: Any, message: str
) -> None:
    model = _plain()
    before = model.get_weights()
    pruning = ChannelPruning(budget, **{"method": "l1", "multiple": 1, **options})
    with pytest.raises(ValueError, match=message):
        _fit(model, 2, pruning)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    _fit(model, 1)  # nothing of it stays


def test_two_in_one_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must hold one `ChannelPruning` at most"):
        _fit(_plain(), 1, *(ChannelPruning(0.8, method=name, multiple=1) for name in ("l1", "l2")))


def test_models_without_channels_or_graph_are_refused() -> None:
    x, y = np.ones((8, 3)), np.ones((8, 2))
    pruning = ChannelPruning(0.5, method="l1")
    bare = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    lowrank = dprp.factorize(_plain(), decomposition="channel")

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    for model, message in (
        (bare, "must have channels that may go"),
        (Own(), "must be a built Functional or Sequential model"),
    ):
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, epochs=1, verbose=0, callbacks=[pruning])
    lowrank.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="works on a model of plain layers"):
        _fit(lowrank, 1, pruning)


def test_an_optimizer_whose_slots_do_not_follow_is_refused_before_a_step() -> None:
    model = _plain(keras.optimizers.Adafactor(0.01))
    before = model.get_weights()
    with pytest.raises(ValueError, match="Removing channels in place needs an optimizer"):
        _fit(model, 1, ChannelPruning(0.5, method="l1", multiple=1))
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert model.count_params() == _plain().count_params()
    assert model.get_layer("a").filters == 8
