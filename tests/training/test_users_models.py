"""What a user's model has of its own survives a factorization: losses, logs, class, trainer."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import dprp_tf as dprp
from dprp_tf.keras_internals.call_losses import added_in_calls

pytestmark = pytest.mark.backend


def _np(value: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(value))


def _images(samples: int = 24) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((samples, 6, 6, 2)).astype("float32")


# --- the application's loss ----------------------------------------------------------------------


class Pull(layers.Layer):
    """Adds how far its input is from a number, as a VAE or a CTC layer adds its loss."""

    def __init__(self, target: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target = target

    def call(self, x: Any) -> Any:
        self.add_loss(ops.mean(ops.square(x - self.target)))
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "target": self.target}


def _pulled(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="conv", **options)(inputs)
    x = Pull(0.5, name="first")(layers.Flatten()(x))
    return keras.Model(inputs, Pull(1.5, name="second")(layers.Dense(3, name="head")(x)))


def _pull_of(model: keras.Model, x: np.ndarray) -> float:
    """The sum of what both layers add, computed beside Keras."""
    features = keras.Model(
        model.inputs[0], [model.get_layer("first").output, model.get_layer("second").output]
    )
    first, second = (_np(y).astype("float64") for y in features(x))
    return float(np.mean((first - 0.5) ** 2) + np.mean((second - 1.5) ** 2))


def test_what_layers_add_is_application_loss() -> None:
    x = _images()
    low = dprp.factorize(_pulled(), settings=dprp.DPRPSettings(compression_weight=0.3))
    low.compile(keras.optimizers.SGD(0.0))
    expected = _pull_of(low, x)
    logs = low.fit(x, batch_size=len(x), verbose=0).history
    assert logs["app_loss"][0] == pytest.approx(expected, rel=1e-4)
    weighted = 0.3 * logs["comp_loss"][0]
    assert logs["loss"][0] == pytest.approx(expected + weighted, rel=1e-4)
    assert low.evaluate(x, verbose=0, return_dict=True)["app_loss"] == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("kernel_regularizer", [None, keras.regularizers.L2(0.07)])
def test_regularizers_of_weights_are_none(kernel_regularizer: Any) -> None:
    x, y = _images(), np.full((24, 3), 0.25, "float32")
    bias = keras.regularizers.L1(0.11)
    dense = _pulled(
        kernel_regularizer=kernel_regularizer,
        bias_regularizer=bias,
        bias_initializer=keras.initializers.Constant(0.2),
    )
    low = dprp.factorize(dense, settings=dprp.DPRPSettings(compression=None))
    low.compile(keras.optimizers.SGD(0.0), loss="mse")
    expected = _pull_of(low, x) + float(np.mean((_np(low(x)) - y) ** 2))
    regular = 0.11 * 4 * 0.2
    if kernel_regularizer is not None:
        regular += 0.07 * float(np.sum(_np(dense.get_layer("conv").kernel) ** 2))
    logs = low.fit(x, y, batch_size=len(x), verbose=0).history
    assert logs["app_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"][0] == pytest.approx(expected + regular, rel=1e-4)


def test_an_activity_regularizer_is_application_loss_however_often_its_layer_is_called() -> None:
    x = _images(8)
    inputs = keras.Input((6, 6, 2))
    twice = layers.Conv2D(2, 3, padding="same", name="twice", activity_regularizer="l2")
    dense = keras.Model(inputs, twice(twice(inputs)))
    low = dprp.factorize(dense, settings=dprp.DPRPSettings(compression=None))
    low.compile(keras.optimizers.SGD(0.0), loss="mae")
    once = _np(low.get_layer("twice")(x))
    both = [once, _np(low.get_layer("twice")(once))]
    expected = sum(0.01 * float(np.sum(y**2)) / 8 for y in both) + float(np.mean(np.abs(both[1])))
    logs = low.fit(x, np.zeros_like(x), batch_size=8, verbose=0).history
    if keras.backend.backend() == "jax":
        # There Keras 3.15 itself counts the last call of a layer alone.
        expected -= 0.01 * float(np.sum(both[0] ** 2)) / 8
    assert logs["app_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_rate_that_follows_the_application_loss_is_not_lowered_while_it_falls() -> None:
    x = _images()
    low = dprp.factorize(_pulled())
    low.compile(keras.optimizers.Adam(1e-3))
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="app_loss", patience=1)
    logs = low.fit(x, epochs=4, batch_size=8, verbose=0, callbacks=[plateau]).history
    assert np.all(np.diff(logs["app_loss"]) < 0)
    assert np.allclose(logs["learning_rate"], 1e-3)


def test_stale_losses_of_calls_outside_of_a_step_are_not_taken_for_this_ones() -> None:
    low = dprp.factorize(_pulled(kernel_regularizer="l2"))
    for samples in (2, 3):
        low(_images(samples))
        found = added_in_calls(low, low.losses)
        assert found.count(True) == 2
        assert found.count(False) == 1


# --- logs ----------------------------------------------------------------------------------------


def _heads(names: list[str]) -> keras.Model:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((6, 6, 2))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, name="conv")(inputs))
    return keras.Model(inputs, {name: layers.Dense(2, name=name)(x) for name in names})


TERMS = ("app", "orth", "sort", "comp")


@pytest.mark.parametrize(
    "names", [["app", "comp"], pytest.param(["score", "sort"], marks=pytest.mark.slow)]
)
def test_outputs_named_as_our_terms_keep_their_logs(names: list[str]) -> None:
    x = _images()
    y = {name: np.full((24, 2), 1.0 + i, "float32") for i, name in enumerate(names)}
    logs, tested = {}, {}
    dense = _heads(names)
    for kind, model in (("dense", dense), ("low", dprp.factorize(dense))):
        model.compile(keras.optimizers.SGD(0.0), dict.fromkeys(names, "mse"))
        logs[kind] = model.fit(x, y, verbose=0, validation_data=(x, y)).history
        tested[kind] = model.evaluate(x, y, verbose=0, return_dict=True)
    for name in names:
        for key in (f"{name}_loss", f"val_{name}_loss"):
            assert logs["low"][key] == pytest.approx(logs["dense"][key], rel=1e-4)
        assert tested["low"][f"{name}_loss"] == pytest.approx(
            tested["dense"][f"{name}_loss"], rel=1e-4
        )
    own = {f"dprp_{t}_loss" if t in names else f"{t}_loss" for t in TERMS}
    assert own <= set(logs["low"])
    assert {key for key in logs["low"] if key.startswith("dprp_")} <= own | {
        f"val_dprp_{t}_loss" for t in TERMS
    }
    app = "dprp_app_loss" if "app" in names else "app_loss"
    assert logs["low"][app] == pytest.approx(logs["dense"]["loss"], rel=1e-4)


def test_a_metric_named_as_our_terms_keeps_its_log_and_ours_can_be_watched() -> None:
    low = dprp.factorize(_heads(["score"]))
    metric = keras.metrics.MeanAbsoluteError(name="app_loss")
    count = keras.metrics.MeanMetricWrapper(lambda y, p: ops.ones_like(y) * 7.0, name="parameters")
    low.compile(keras.optimizers.SGD(0.0), loss="mse", metrics=[metric, count])
    x, y = _images(), np.zeros((24, 2), "float32")
    stopping = keras.callbacks.EarlyStopping("dprp_app_loss", patience=0)
    watched = [stopping, dprp.RankPruning()]
    logs = low.fit(x, {"score": y}, epochs=2, verbose=0, callbacks=watched).history
    assert stopping.mode == "min"
    predicted = _np(low(x)["score"])
    metric_key = next(key for key in logs if key.endswith("app_loss") and "dprp" not in key)
    assert logs[metric_key][0] == pytest.approx(float(np.mean(np.abs(predicted))), rel=1e-4)
    own_key = "dprp_app_loss" if metric_key == "app_loss" else "app_loss"
    assert logs[own_key][0] == pytest.approx(float(np.mean(predicted**2)), rel=1e-4)
    assert set(logs["parameters"]) == {7.0}
    assert logs["dprp_parameters"][-1] == low.rank_logs()["parameters"]
    assert logs["total_rank"][-1] == low.rank_logs()["total_rank"]


@pytest.mark.slow
def test_a_term_that_a_callback_adds_leaves_an_output_of_its_name_its_log() -> None:
    x = _images()
    names = ["rank", "other"]
    y = {name: np.full((24, 2), 2.0, "float32") for name in names}
    logs = []
    for callbacks in ([], [dprp.RankRegularization(ranks={"conv": 2})]):
        model = _heads(names)
        model.compile(keras.optimizers.SGD(0.0), dict.fromkeys(names, "mse"))
        logs.append(model.fit(x, y, verbose=0, callbacks=callbacks).history)
    assert logs[1]["rank_loss"] == pytest.approx(logs[0]["rank_loss"], rel=1e-5)
    assert logs[1]["dprp_rank_loss"][0] > 0
    assert "rank_strength" in logs[1]


# --- averages of weights -------------------------------------------------------------------------


def _small(**settings: Any) -> dprp.DPRPModel:
    keras.utils.set_random_seed(6)
    inputs = keras.Input((6, 6, 2))
    x = layers.Flatten()(layers.Conv2D(4, 3, name="conv", activation="relu")(inputs))
    dense = keras.Model(inputs, layers.Dense(3, name="head")(x))
    return dprp.factorize(dense, settings=dprp.DPRPSettings(**settings))


AVERAGING = {
    "plain": lambda: keras.optimizers.Adam(1e-3, use_ema=True),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, use_ema=True)),
    "overwriting": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2),
}


@pytest.mark.parametrize("kind", AVERAGING)
def test_averages_of_factors_that_turn_are_refused(kind: str) -> None:
    low = _small()
    with pytest.raises(ValueError, match=r"`optimizer` must not .* use_ema=True.*smoothed"):
        low.compile(AVERAGING[kind](), loss="mse")
    with pytest.raises(ValueError, match="compile"):
        low.fit(_images(), np.zeros((24, 3)), verbose=0)
    # What the averages would be of is not there, or does not turn.
    low.compile(keras.optimizers.Adam(1e-3), loss="mse")
    _small(structure="smoothed").compile(AVERAGING[kind](), loss="mse")
    for layer in low.low_rank_layers:
        layer.trainable = False
    low.compile(AVERAGING[kind](), loss="mse")


def test_averages_need_an_optimizer_that_makes_them() -> None:
    low = _small()
    low.compile(keras.optimizers.Adam(1e-3), loss="mse")
    with pytest.raises((ValueError, AttributeError), match="use_ema"):
        low.evaluate(
            _images(), np.zeros((24, 3)), verbose=0, callbacks=[keras.callbacks.SwapEMAWeights()]
        )


def test_a_model_saved_with_averages_is_loaded_without_its_optimizer(tmp_path: Any) -> None:
    smoothed = _small(structure="smoothed")
    smoothed.compile(keras.optimizers.SGD(0.1, use_ema=True), loss="mse")
    # As a version before the refusal saved it.
    smoothed._settings = dprp.DPRPSettings(retraction_period=1)
    smoothed.save(tmp_path / "old.keras")
    with pytest.warns(UserWarning, match="without its optimizer"):
        loaded = dprp.load_model(tmp_path / "old.keras")
    assert loaded.optimizer is None
    x = _images()
    np.testing.assert_allclose(_np(loaded(x)), _np(smoothed(x)), atol=1e-6)
    expected = float(np.mean(_np(smoothed(x)) ** 2))
    tested = loaded.evaluate(x, np.zeros((24, 3)), verbose=0, return_dict=True)
    assert tested["app_loss"] == pytest.approx(expected, rel=1e-4)


# --- classes -------------------------------------------------------------------------------------


class Shift:
    """What a user's class may do: the same methods for a dense and a low-rank model."""

    shift = 2.0

    def train_step(self, *args: Any) -> Any:
        *state, (x, y) = args
        return super().train_step(*state, (x + self.shift, y))

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) + 10.0

    def predict_step(self, *args: Any) -> Any:
        *state, x = args
        x = x[0] if isinstance(x, tuple) else x
        return super().predict_step(*state, (x + self.shift,))


@keras.saving.register_keras_serializable(package="users")
class DenseShift(Shift, keras.Model):
    pass


@keras.saving.register_keras_serializable(package="users")
class LowRankShift(Shift, dprp.DPRPModel):
    pass


class Plain(keras.Model):
    def note(self) -> str:
        return "nothing that Keras calls"


class Mapped(keras.Model):
    @property
    def metrics(self) -> list[Any]:
        return super().metrics


class Twice(keras.Model):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * super().__call__(*args, **kwargs)


class Own(DenseShift):
    def __init__(self, *args: Any, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = alpha


class Row(keras.Sequential):
    def test_step(self, *args: Any) -> Any:
        return super().test_step(*args)


def _of(kind: type, **arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(8)
    inputs = keras.Input((6, 6, 2))
    x = layers.Flatten()(layers.Conv2D(8, 3, name="conv", activation="tanh")(inputs))
    return kind(inputs, layers.Dense(3, name="head")(x), **arguments)


def _row() -> keras.Model:
    keras.utils.set_random_seed(8)
    conv, head = layers.Conv2D(8, 3, name="conv"), layers.Dense(3, name="head")
    return Row([keras.Input((6, 6, 2)), conv, layers.Flatten(), head])


def _plan(model: keras.Model) -> dprp.RankPlan:
    return dprp.select_ranks(
        model, method="energy", budget=dprp.Budget(parameters=0.6, tolerance=0.2)
    )


@pytest.mark.slow_on_jax
def test_a_class_derived_from_ours_trains_as_its_dense_twin() -> None:
    x, y = _images(), np.full((24, 3), 0.5, "float32")
    dense = _of(DenseShift)
    low = dprp.factorize(
        dense,
        model_class=LowRankShift,
        settings=dprp.DPRPSettings(compression_weight=0.3, retraction_period=1),
    )
    assert type(low) is LowRankShift
    losses = {}
    for kind, model in (("dense", dense), ("low", low)):
        model.compile(keras.optimizers.SGD(0.0), loss="mse")
        losses[kind] = model.fit(x, y, verbose=0, batch_size=7).history
        tested = model.evaluate(x, y, verbose=0, return_dict=True)
        assert tested["loss"] > 10
        if kind == "low":
            assert tested["app_loss"] == pytest.approx(tested["loss"], rel=1e-5)
    expected = 10 + float(np.mean((_np(dense(x + 2.0)) - y) ** 2))
    assert losses["dense"]["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert losses["low"]["app_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert losses["low"]["comp_loss"][0] > 0.01
    assert losses["low"]["loss"][0] == pytest.approx(
        expected + 0.3 * losses["low"]["comp_loss"][0], rel=1e-4
    )
    np.testing.assert_allclose(low.predict(x, verbose=0), _np(dense(x + 2.0)), atol=1e-4)
    low.compile(keras.optimizers.SGD(0.1), loss="mse")
    before = _np(low.get_layer("conv").kernel)
    low.fit(x, y, verbose=0, epochs=2)
    assert np.abs(_np(low.get_layer("conv").kernel) - before).max() > 1e-3
    for layer in low.low_rank_layers:
        u = _np(layer.u)
        np.testing.assert_allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-4)


def test_a_class_derived_from_ours_is_saved_and_loaded_and_factorized_again(tmp_path: Any) -> None:
    low = dprp.factorize(
        _of(DenseShift),
        model_class=LowRankShift,
        layers=["conv"],
        settings=dprp.DPRPSettings(threshold=0.07),
    )
    low.save(tmp_path / "low.keras")
    loaded = dprp.load_model(tmp_path / "low.keras")
    assert type(loaded) is LowRankShift
    assert loaded.settings == low.settings
    x = _images()
    np.testing.assert_allclose(loaded.predict(x, verbose=0), low.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "methods"),
    [
        (lambda: _of(DenseShift), "`compute_loss`, `predict_step` and `train_step`"),
        (lambda: _of(Mapped), "`metrics`"),
        (lambda: _of(Twice), "`__call__`"),
        (lambda: _of(Own, alpha=2.0), "`compute_loss`, `predict_step` and `train_step`"),
        (_row, "`test_step`"),
    ],
)
def test_factorize_names_what_would_be_lost(make: Any, methods: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=f"`model_class` must .* {methods} of its own"):
        dprp.factorize(model)
    dropped = dprp.factorize(model, model_class=dprp.DPRPModel)
    assert type(dropped) is dprp.DPRPModel
    with pytest.raises(ValueError, match="`model_class` must be DPRPModel, a class derived"):
        dprp.factorize(model, model_class=type(model))


def test_classes_without_methods_of_their_own_need_nothing() -> None:
    row = keras.Sequential([keras.Input((6, 6, 2)), *_row().layers])
    for model in (_of(Plain), _of(keras.Model), row):
        assert type(dprp.factorize(model)) is dprp.DPRPModel
        assert type(dprp.cut(model, _plan(model))) is type(_of(keras.Model))


def test_cut_keeps_a_class_that_can_be_made_of_inputs_and_outputs() -> None:
    x = _images()
    model = _of(DenseShift)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.fit(x, np.zeros((24, 3)), verbose=0)
    small = dprp.cut(model, _plan(model))
    assert type(small) is DenseShift
    assert small.count_params() < model.count_params()
    np.testing.assert_allclose(small.predict(x, verbose=0), _np(small(x + 2.0)), atol=1e-5)
    unlike = dprp.cut(model, _plan(model), model_class=keras.Model)
    np.testing.assert_allclose(unlike.predict(x, verbose=0), _np(small(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: _of(Own, alpha=2.0), "its constructor is its own"),
        (_row, "it is a Sequential model"),
    ],
)
def test_cut_refuses_a_class_that_can_not_be_kept(make: Any, reason: str) -> None:
    model = make()
    plan = _plan(model)
    with pytest.raises(ValueError, match=f"can't be kept: {reason}.*model_class"):
        dprp.cut(model, plan)
    assert dprp.cut(model, plan, model_class=keras.Model).count_params() < model.count_params()
    with pytest.raises(ValueError, match="`model_class` must be Model, a class derived"):
        dprp.cut(model, plan, model_class="Model")


def test_cut_refuses_to_lose_attributes_set_on_a_model() -> None:
    model = _of(DenseShift)
    model.shift = 3.0
    with pytest.raises(ValueError, match=r"attributes of its own, \['shift'\]"):
        dprp.cut(model, _plan(model))


def test_a_class_with_arguments_is_made_by_a_partial() -> None:
    model = _of(Own, alpha=2.0)
    small = dprp.cut(model, _plan(model), model_class=functools.partial(Own, alpha=3.0))
    assert (type(small), small.alpha) == (Own, 3.0)


def test_fold_keeps_plain_classes_and_refuses_to_lose_methods_of_low_rank_ones() -> None:
    x = _images()
    low = dprp.factorize(_of(DenseShift), model_class=LowRankShift)
    with pytest.raises(ValueError, match=r"can't be kept: it is a DPRPModel.*model_class"):
        dprp.fold(low)
    folded = dprp.fold(low, model_class=DenseShift)
    assert type(folded) is DenseShift
    np.testing.assert_allclose(folded.predict(x, verbose=0), low.predict(x, verbose=0), atol=1e-4)
    inner = dprp.factorize(_of(keras.Model))
    kept = dprp.fold(DenseShift(inner.inputs, inner.outputs))
    assert type(kept) is DenseShift
    assert type(dprp.fold(inner)) is type(_of(keras.Model))
