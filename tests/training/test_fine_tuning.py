"""Fine-tuning: what diverges is not kept, seeds hold, what lies in the folder is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf.keras_internals.optimizers import optimizer_slots
from dprp_tf.training.divergence import DivergenceError, broken_slots, broken_weights
from dprp_tf.training.saving import load_model, save_model

SAMPLES, BATCH = 24, 8
TUNING = dprp.FineTuning(epochs=3, learning_rate=0.05, batch_size=BATCH)


def _model() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(6, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.3, name="drop")(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((SAMPLES, 5)).astype("float32"), np.arange(SAMPLES) % 3


def _values(model: keras.Model) -> list[np.ndarray]:
    variables = [*model.weights, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


class _After(keras.callbacks.Callback):
    """Do something to the model after a step of an epoch; both counted from 0."""

    def __init__(self, epoch: int, step: int, act: Callable[[keras.Model], None]) -> None:
        super().__init__()
        self._when, self._act, self._epoch = (epoch, step), act, -1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if (self._epoch, batch) == self._when:
            self._act(self.model)


class _AtEpochsEnd(_After):
    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        pass

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch == self._when[0]:
            self._act(self.model)


def _plant(layer: str, weight: str, value: float) -> Callable[[keras.Model], None]:
    def act(model: keras.Model) -> None:
        variable = getattr(model.get_layer(layer), weight)
        variable.assign(np.full(variable.shape, value, "float32"))

    return act


def _plant_momentum(model: keras.Model) -> None:
    slots = optimizer_slots(model.optimizer, model.get_layer("head").kernel)
    (slot,) = slots.values()
    slot.assign(np.full(slot.shape, np.inf, "float32"))


# --- optimizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "optimizer"),
    [
        ({}, lambda rate: keras.optimizers.SGD(rate, 0.9, nesterov=True)),
        ({"optimizer": "adam"}, keras.optimizers.Adam),
        (
            {"optimizer": "adam", "weight_decay": 0.1},
            lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1),
        ),
    ],
    ids=["sgd", "adam", "adam with decay"],
)
def test_each_optimizer_trains_as_keras_does_with_its_own_rate(
    settings: dict[str, Any], optimizer: Callable[[Any], keras.optimizers.Optimizer]
) -> None:
    x, y = np.random.default_rng(0).normal(size=(16, 5)).astype("float32"), np.arange(16) % 3

    def plain() -> keras.Model:
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="only")])

    ours, theirs = plain(), plain()
    started = np.array(ours.get_layer("only").kernel)
    # One step an epoch, so that the order of the samples changes nothing.
    dprp.FineTuning(epochs=4, batch_size=16, **settings).fit(ours, (x, y))
    rate = 0.003 if settings else 0.01
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(optimizer(keras.optimizers.schedules.CosineDecay(rate, 4)), loss)
    theirs.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0)
    for mine, other in zip(ours.trainable_weights, theirs.trainable_weights, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(other), rtol=1e-4, atol=1e-6)
    assert np.abs(np.array(ours.get_layer("only").kernel) - started).max() > 1e-3


@pytest.mark.parametrize(
    ("normalization", "kind"),
    [("BatchNormalization", "SGD"), ("LayerNormalization", "Adam"), ("RMSNormalization", "Adam")],
)
def test_transformers_are_trained_by_adam(normalization: str, kind: str) -> None:
    inner = keras.Sequential(
        [keras.Input((5,)), getattr(keras.layers, normalization)(), keras.layers.Dense(4)]
    )
    model = keras.Sequential([keras.Input((5,)), inner, keras.layers.Dense(3)])
    x, y = np.ones((8, 5), "float32"), np.arange(8) % 3
    dprp.FineTuning(epochs=1).fit(model, (x, y))
    assert type(model.optimizer).__name__ == kind
    dprp.FineTuning(epochs=1, optimizer="sgd").fit(model, (x, y))
    assert type(model.optimizer).__name__ == "SGD"


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="`optimizer` must be"):
        dprp.FineTuning(optimizer="lion")


# --- a training that diverges --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        (_After(1, 2, _plant("first", "bias", np.nan)), "`bias` of layer 'first' holds"),
        (_After(1, 2, _plant("norm", "moving_variance", np.inf)), "`moving_variance` of layer"),
        (_After(1, 2, _plant_momentum), "the optimizer's `.*kernel.*` holds"),
        (_AtEpochsEnd(1, 0, _plant("head", "kernel", np.nan)), "`kernel` of layer 'head' holds"),
        (_After(1, 0, _plant("head", "bias", np.nan)), "loss is not finite"),
    ],
    ids=["weight", "statistic", "optimizer", "by a callback", "loss"],
)
def test_a_diverged_epoch_replaces_no_checkpoint(
    callback: keras.callbacks.Callback, told: str, tmp_path: Path
) -> None:
    model = _model()
    with pytest.raises(DivergenceError, match=rf"diverged in epoch 2.*{told}") as raised:
        TUNING.fit(model, _data(), callbacks=[callback], folder=tmp_path)
    assert raised.value.epoch == 2
    state = json.loads((tmp_path / "tuning.json").read_text())
    assert (state["checkpoint"], len(state["history"])) == ("tuning-0001.keras", 1)
    assert [path.name for path in tmp_path.glob("*.keras")] == ["tuning-0001.keras"]
    kept = load_model(tmp_path / "tuning-0001.keras")
    assert broken_weights(kept) == broken_slots(kept) == []
    # The same call goes on from the good one.
    fresh = _model()
    assert len(TUNING.fit(fresh, _data(), folder=tmp_path)) == 3
    assert broken_weights(fresh) == broken_slots(fresh) == []


class _LastLabelIsLargest(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        label = 2.0 if index == 2 else 1.0
        return np.ones((4, 5), "float32"), np.full((4, 1), label, "float32")


@pytest.mark.parametrize("validated", [False, True])
def test_an_infinite_loss_in_an_epochs_last_step(validated: bool, tmp_path: Path) -> None:
    limit = keras.Variable(3.0)

    def infinite_above_the_limit(y: Any, predictions: Any) -> Any:
        return keras.ops.where(y > limit, float("inf"), keras.ops.square(predictions - y))

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    tuning = dprp.FineTuning(epochs=3, loss=infinite_above_the_limit)
    validation = (np.ones((4, 5), "float32"), np.ones((4, 1), "float32")) if validated else None
    lower = _AtEpochsEnd(0, 0, lambda _: limit.assign(1.5))
    with pytest.raises(DivergenceError, match="epoch 2, at or before step 3: loss is not finite"):
        tuning.fit(
            model,
            _LastLabelIsLargest(),
            validation_data=validation,
            callbacks=[lower],
            folder=tmp_path,
        )
    # No gradient came of it.
    assert broken_weights(model) == []
    assert len(json.loads((tmp_path / "tuning.json").read_text())["history"]) == 1


def test_a_rate_that_is_too_large_is_told_without_a_folder_too() -> None:
    tuning = dprp.FineTuning(epochs=2, learning_rate=1e30, batch_size=BATCH, schedule="constant")
    with pytest.raises(DivergenceError, match=r"diverged in epoch 1.*Lower the learning rate"):
        tuning.fit(_model(), _data())


def test_a_validation_figure_that_is_not_finite_is_missing_in_the_file(tmp_path: Path) -> None:
    x, y = _data()
    broken = (np.full_like(x, np.nan), y)
    logs = dprp.FineTuning(epochs=1).fit(_model(), (x, y), validation_data=broken, folder=tmp_path)
    text = (tmp_path / "tuning.json").read_text()
    entry = json.loads(text, parse_constant=lambda name: pytest.fail(name))["history"][0]
    assert entry["val_loss"] is None
    assert np.isfinite(entry["loss"])
    again = dprp.FineTuning(epochs=1).fit(_model(), (x, y), folder=tmp_path)
    assert np.isnan([logs[0].pop("val_loss"), again[0].pop("val_loss")]).all()
    assert again == logs


@pytest.mark.parametrize("where", ["weight", "optimizer"])
def test_what_is_not_finite_is_not_saved(where: str, tmp_path: Path) -> None:
    model = _model()
    TUNING._compile(model, 3)
    model.optimizer.build(model.trainable_variables)
    path = save_model(model, tmp_path / "model.keras")
    before = path.read_bytes()
    if where == "weight":
        _plant("norm", "moving_mean", np.nan)(model)
    else:
        _plant_momentum(model)
    with pytest.raises(ValueError, match="must hold finite weights to be saved"):
        save_model(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- seeds ---------------------------------------------------------------------------------------


def test_equal_seeds_train_equally_whatever_was_drawn_before() -> None:
    trained = []
    for seed, drawn in ((0, 0), (0, 3), (1, 0)):
        model = _model()
        # As in another process: the layers' generators are somewhere else.
        for generator in model.get_layer("drop")._seed_generators:
            generator.state.assign(generator.state + 12345 * drawn)
        dprp.FineTuning(epochs=1, batch_size=BATCH, seed=seed).fit(model, _data())
        trained.append(_values(model))
    for ours, theirs in zip(trained[0], trained[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any((a != b).any() for a, b in zip(trained[0], trained[2], strict=True))


def test_an_interrupted_fine_tuning_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    def interrupt(model: keras.Model) -> None:
        raise KeyboardInterrupt

    whole = _model()
    expected = TUNING.fit(whole, _data())
    with pytest.raises(KeyboardInterrupt):
        TUNING.fit(_model(), _data(), callbacks=[_After(1, 1, interrupt)], folder=tmp_path)
    resumed = _model()
    for generator in resumed.get_layer("drop")._seed_generators:
        generator.state.assign(generator.state + 12345)
    assert TUNING.fit(resumed, _data(), folder=tmp_path) == expected
    for ours, theirs in zip(_values(resumed), _values(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- what lies in the folder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after two epochs of three."""
    folder = tmp_path_factory.mktemp("tuned")

    def interrupt(model: keras.Model) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TUNING.fit(_model(), _data(), callbacks=[_After(2, 0, interrupt)], folder=folder)
    return folder


def _refused(folder: Path, message: str) -> None:
    model = _model()
    with pytest.raises(ValueError, match=message) as raised:
        TUNING.fit(model, _data(), folder=folder)
    assert "\n" not in str(raised.value)


_ENTRY = {"loss": 1.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"checkpoint": "../elsewhere.keras"}, "checkpoint"),
        ({"checkpoint": "/etc/passwd"}, "checkpoint"),
        ({"checkpoint": "tuning-0001.keras"}, "checkpoint"),
        ({"checkpoint": None}, "checkpoint"),
        ({"checkpoint": 3}, "checkpoint"),
        ({"history": None}, "history, checkpoint"),
        ({"history": 5}, "history, checkpoint"),
        ({"history": [], "checkpoint": "tuning-0000.keras"}, "history"),
        ({"history": [_ENTRY] * 4, "checkpoint": "tuning-0004.keras"}, "history"),
        ({"history": [_ENTRY, 7]}, "history"),
        ({"history": [_ENTRY, {"loss": "1"}]}, "history"),
        ({"history": [_ENTRY, {"loss": True}]}, "history"),
        ({"history": [_ENTRY, {"loss": float("nan")}]}, "history"),
        ({"history": [_ENTRY, {"loss": 10**400}]}, "history"),
        ({"seeds": "01"}, "seeds"),
        ({"seeds": [[1, 2, 3]]}, "seeds"),
        ({"seeds": [[1, 2**63]]}, "seeds"),
        ({"seeds": [[1, 0.5]]}, "seeds"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    change: dict[str, Any], named: str, tuned: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(tuned, folder)
    shutil.copy(folder / "tuning-0002.keras", tmp_path / "elsewhere.keras")
    state = json.loads((folder / "tuning.json").read_text())
    text = json.dumps({**state, **change})
    (folder / "tuning.json").write_text(text)
    fault = "which can't be read" if "NaN" in text else f"in which {named} is missing or does not"
    _refused(folder, fault)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "of another"),
        ("null", "of another"),
        ("{}", "of another"),
        ('{"identity": 3}', "of another"),
        ('{"identity": "FineTuning() on 24 samples, weights 0123456789abcdef"}', "of another"),
        ("", "can't be read"),
        ('{"identity": "Fine', "can't be read"),
        ("[" * 100_000, "can't be read"),
        (b"\xff\xfe\x00", "can't be read"),
    ],
    ids=["list", "null", "empty", "number", "another's", "nothing", "torn", "deep", "bytes"],
)
def test_a_state_that_is_none_is_refused(
    content: str | bytes, message: str, tuned: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    whole = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "tuning.json").write_bytes(whole)
    _refused(tmp_path, message)


def test_a_state_without_its_seeds_is_one_of_an_older_version(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    state = json.loads((tmp_path / "tuning.json").read_text())
    del state["seeds"]
    (tmp_path / "tuning.json").write_text(json.dumps(state))
    assert len(TUNING.fit(_model(), _data(), folder=tmp_path)) == 3
    state["seeds"] = [[1, 0], [2, 0]]
    (tmp_path / "tuning.json").write_text(json.dumps({**state, "checkpoint": "tuning-0002.keras"}))
    shutil.copy(tuned / "tuning-0002.keras", tmp_path)
    _refused(tmp_path, "`states` must hold one pair for each of the 1 seed generators")


def _poisoned(path: Path, act: Callable[[keras.Model], None]) -> None:
    model = keras.saving.load_model(path)
    act(model)
    model.save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "whole .keras archive"),
        (lambda path: path.write_bytes(b""), "whole .keras archive"),
        (
            lambda path: _poisoned(path, _plant("norm", "moving_mean", np.nan)),
            "must hold finite weights",
        ),
        (lambda path: _poisoned(path, _plant_momentum), "must hold a finite optimizer"),
        (
            lambda path: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(path),
            "whole .keras archive of this model",
        ),
    ],
    ids=["gone", "torn", "empty", "statistic", "optimizer", "another's"],
)
def test_a_checkpoint_that_is_unsound_is_refused(
    damage: Callable[[Path], Any], message: str, tuned: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "tuning-0002.keras")
    _refused(tmp_path, rf"sound checkpoint that .*tuning\.json names.*{message}")
