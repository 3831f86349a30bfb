"""What a user's model has of its own survives a factorization: losses, logs, class, trainer."""

from __future__ import annotations

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


@pytest.mark.parametrize("names", [["app", "comp"], ["sort", "orth"], ["score", "sort"]])
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
