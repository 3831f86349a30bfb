"""Channels that go out of a model as it stands: what is left is what a smaller copy has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from channel_checks import draw_removal, masked_outputs
from hypothesis import given
from keras import layers
from random_networks import Program, build, programs, searching

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.channels import channel_groups
from dprp_tf.conversion.removing_in_place import Shape, remove_channels_in_place
from dprp_tf.conversion.shape_history import ShapeHistory
from dprp_tf.keras_internals.graphs import layer_keys, layers_inside
from dprp_tf.keras_internals.optimizers import optimizer_slots

# Rounding of sums in another order, of outputs scaled to 1; what is wrong shows as 1e-2 or more.
TOLERANCE = 2e-5


def _np(value: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))


def _outputs(model: keras.Model, x: list[np.ndarray]) -> list[np.ndarray]:
    given = x if len(x) > 1 else x[0]
    return [_np(value) for value in keras.tree.flatten(model(given, training=False))]


def _error(outputs: Any, expected: Any) -> float:
    pairs = list(zip(outputs, expected, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9)) for a, b in pairs)


def _inputs(model: keras.Model, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((2, *t.shape[1:])).astype("float32") for t in model.inputs]


def _sizes_told(model: keras.Model) -> dict[str, Any]:
    """What a model's layers tell of themselves: settings, specifications, shapes they have."""
    found = {}
    for key, layer in layer_keys(model).items():
        if not type(layer).__module__.startswith("keras."):
            continue
        spec = layer.input_spec
        found[key] = (
            layer.get_config(),
            layer.get_build_config(),
            None if spec is None else [repr(each) for each in keras.tree.flatten(spec)],
            [tuple(weight.shape) for weight in layer.weights],
            {tuple(x.shape) for node in layer._inbound_nodes for x in node.outputs},
        )
    return found


def _everything() -> keras.Model:
    """Layers of every kind that loses channels, with branches, a nested model and operations."""
    keras.utils.set_random_seed(0)
    within = keras.Input((8, 8, 6))
    y = layers.Conv2D(8, 1, name="inner")(within)
    nested = keras.Model(within, layers.BatchNormalization(name="inner_norm")(y), name="nested")
    chain = keras.Sequential(
        [keras.Input((8, 8, 8)), layers.Conv2D(8, 1, name="link"), layers.ReLU()], name="chain"
    )
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="first")(inputs)
    x = layers.PReLU(shared_axes=(1, 2), name="slopes")(layers.BatchNormalization(name="norm")(x))
    x = chain(nested(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depth")(x)
    x = layers.SeparableConv2D(12, 3, padding="same", depth_multiplier=2, name="apart")(x)
    x = layers.Conv2D(12, 3, padding="same", groups=3, name="grouped")(x)
    x = layers.Conv2DTranspose(8, 2, strides=2, name="up")(x)
    left, right = keras.ops.split(layers.MaxPooling2D()(x), 2, axis=-1)
    x = layers.Concatenate()([right, left, layers.Conv2D(4, 2, 2, name="side")(x)])
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Reshape((100, 12), name="rows")(x)
    x = keras.ops.reshape(x, (-1, 10, 10, 12))
    x = layers.Flatten()(layers.AveragePooling2D(5)(x))
    x = layers.Dense(9, activation="relu", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.uniform(0.3, 1, weight.shape) * rng.choice((-1, 1), weight.shape))
    for name in ("norm", "inner_norm"):
        layer = layer_keys(model)[name]
        layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    return model


@pytest.mark.backend
@pytest.mark.slow_on_jax
def test_it_is_the_smaller_copy_in_all_it_computes_and_tells(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = _everything()
    x = _inputs(model, rng)
    held = [model, *layer_keys(model).values(), *model.variables]
    for _ in range(2):  # what is left of it can lose more
        removed = draw_removal(channel_groups(model), rng, share=0.3)
        # Of each such layer some go: what is pinned by mistake would hide what is wrong.
        assert set(removed) == {
            "first", "inner", "link", "apart", "grouped", "up", "side", "hidden"
        }  # fmt: skip
        before, expected = _outputs(model, x), masked_outputs(model, x, removed)
        small = dprp.remove_channels(model, removed)
        remove_channels_in_place(model, removed)
        assert _error(_outputs(model, x), _outputs(small, x)) == 0
        assert _error(_outputs(model, x), expected) < TOLERANCE
        assert _error(_outputs(model, x), before) > 1e-2
        assert _error([model.predict(x[0], verbose=0)], expected) < TOLERANCE
        assert _sizes_told(model) == _sizes_told(small)
        assert {n: g.size for n, g in channel_groups(model).items()} == {
            n: g.size for n, g in channel_groups(small).items()
        }
    after = [model, *layer_keys(model).values(), *model.variables]
    assert all(a is b for a, b in zip(held, after, strict=True))
    model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert _error(_outputs(loaded, x), _outputs(model, x)) < TOLERANCE
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    assert _error(_outputs(again, x), _outputs(model, x)) < TOLERANCE


@searching(8)
@given(program=programs(1, 2, 3))
def test_random_networks_lose_channels_in_place(program: Program) -> None:
    _hold(program)


@pytest.mark.slow
@searching(100)
@given(program=programs(1, 2, 3))
def test_more_random_networks_lose_channels_in_place(program: Program) -> None:
    _hold(program)


def _hold(program: Program) -> None:
    model, rng = build(program), np.random.default_rng(program.seed)
    x = _inputs(model, rng)
    removed = draw_removal(channel_groups(model), rng)
    expected, whole = masked_outputs(model, x, removed), _outputs(model, x)
    small, before = dprp.remove_channels(model, removed), model.count_params()
    weights, shape = model.get_weights(), Shape(model)
    remove_channels_in_place(model, removed)
    assert (model.count_params() < before) == bool(removed)
    assert _error(_outputs(model, x), expected) < TOLERANCE
    assert _sizes_told(model) == _sizes_told(small)
    shape.restore()
    model.set_weights(weights)
    assert _error(_outputs(model, x), whole) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MobileNetV3Small", "EfficientNetB0", "DenseNet121", "InceptionV3", "NASNetMobile"]
)
def test_families_of_applications_lose_channels_in_place(name: str, tmp_path: Path) -> None:
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    size = 75 if name == "InceptionV3" else 32
    kind = getattr(keras.applications, name)
    model = kind(weights=None, input_shape=(size, size, 3), include_top=False, pooling="avg")
    rng = np.random.default_rng(0)
    x = _inputs(model, rng)
    removed = draw_removal(channel_groups(model), rng)
    small, told = dprp.remove_channels(model, removed), model.count_params()
    remove_channels_in_place(model, removed)
    assert _error(_outputs(model, x), _outputs(small, x)) == 0
    assert _sizes_told(model) == _sizes_told(small)
    assert model.count_params() < 0.8 * told
    model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert _error(_outputs(loaded, x), _outputs(model, x)) < TOLERANCE


# --- what an optimizer holds ------------------------------------------------------------------


def _small() -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(6, 3, padding="same", name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(5, 3, padding="same", use_bias=False, name="b")(x)
    x = layers.Flatten()(layers.MaxPooling2D(3)(x))
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.02),
    "Muon": lambda: keras.optimizers.Muon(0.01),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "accumulation": lambda: keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=3),
    "average of weights": lambda: keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


@pytest.mark.backend
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("SGD", "Adam") else pytest.mark.slow_on_jax)
        for name in OPTIMIZERS
    ],
)
def test_every_slot_loses_what_its_variable_loses(name: str) -> None:
    model = _small()
    model.compile(OPTIMIZERS[name](), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 6, 6, 2)), rng.normal(size=(16, 3))
    model.fit(x, y, batch_size=4, epochs=1, verbose=0)
    left_a, left_b = [0, 2, 3, 5], [1, 2, 4]
    # Of each variable what is left along each axis; a channel of "b" is a row of each place.
    places = [
        at for place in range(4) for at in range(5 * place, 5 * place + 5) if at % 5 in left_b
    ]
    by_hand = {
        "a/kernel": lambda v: v[:, :, :, left_a],
        "a/bias": lambda v: v[left_a],
        "norm/gamma": lambda v: v[left_a],
        "norm/beta": lambda v: v[left_a],
        "b/kernel": lambda v: v[:, :, left_a][:, :, :, left_b],
        "out/kernel": lambda v: v[places],
        "out/bias": lambda v: v,
    }
    variables = {variable.path: variable for variable in model.trainable_variables}
    assert set(variables) == set(by_hand)
    slots = {path: optimizer_slots(model.optimizer, v) for path, v in variables.items()}
    # Two moments and their maximum, and so on: plain SGD would have none.
    assert min(map(len, slots.values())) >= 1
    expected = {path: by_hand[path](_np(v)) for path, v in variables.items()}
    expected_slots = {
        (path, kind): by_hand[path](_np(slot))
        for path, found in slots.items()
        for kind, slot in found.items()
    }
    steps = int(_np(model.optimizer.iterations))
    whole = {id(v): tuple(v.shape) for v in model.optimizer.variables}
    remove_channels_in_place(model, {"a": [1, 4], "b": [0, 3]})
    for path, variable in variables.items():
        np.testing.assert_array_equal(_np(variable), expected[path])
    for (path, kind), value in expected_slots.items():
        np.testing.assert_array_equal(_np(slots[path][kind]), value)
        assert kind in optimizer_slots(model.optimizer, variables[path])
    assert int(_np(model.optimizer.iterations)) == steps
    # No variable of the optimizer was overlooked: each that has a model's shape has the new one.
    shapes = {tuple(v.shape) for v in model.trainable_variables}
    assert all(tuple(v.shape) in shapes for v in model.optimizer.variables if len(whole[id(v)]) > 0)
    if name == "average of weights" and keras.backend.backend() == "jax":
        return  # on JAX Keras 3.15 can't call fit twice with use_ema, on no model
    before = {path: _np(v) for path, v in variables.items()}
    history = model.fit(x, y, batch_size=4, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for path, variable in variables.items():
        # A bias before a normalization has no gradient.
        assert path == "a/bias" or np.abs(_np(variable) - before[path]).max() > 0, path


def test_frozen_layers_lose_channels_and_stay_frozen() -> None:
    model = _small()
    model.get_layer("b").trainable = False
    model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 6, 6, 2)), rng.normal(size=(16, 3))
    model.fit(x, y, epochs=1, verbose=0)
    kernel = _np(model.get_layer("b").kernel)[:, :, [0, 2, 3, 4, 5]][:, :, :, 1:]
    remove_channels_in_place(model, {"a": [1], "b": [0]})
    assert not model.get_layer("b").trainable
    model.fit(x, y, epochs=1, verbose=0)
    np.testing.assert_array_equal(_np(model.get_layer("b").kernel), kernel)
    assert model.get_layer("a").kernel.shape == (3, 3, 2, 5)


# --- what is refused, and leaves all as it was --------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "channels", "message"),
    [
        ("adafactor", {"a": [0]}, "Removing channels in place needs an optimizer whose slots"),
        ("sgd", {"a": range(6)}, "at least one filter"),
        ("sgd", {"out": [0]}, "a model output"),
        ("sgd", {"other": [0]}, "'other'"),
    ],
)
def test_what_is_refused_changes_nothing(optimizer: Any, channels: Any, message: str) -> None:
    model = _small()
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    _require_unchanged(model, channels, message)


def test_an_optimizer_of_several_is_refused() -> None:
    model = _small()
    model.compile(keras.optimizers.MultiOptimizer(lambda variable: OPTIMIZER), "mse")
    model.optimizer.build(model.trainable_variables)
    _require_unchanged(model, {"a": [0]}, "MultiOptimizer, which hands them on")


OPTIMIZER = keras.optimizers.SGD(0.1, momentum=0.5)


def test_factors_are_refused() -> None:
    lowrank = dprp.factorize(_small(), decomposition="channel", ranks=2)
    _require_unchanged(lowrank, {"a": [0]}, "'a', a SVDConv2D, which holds factors")


def _require_unchanged(model: keras.Model, channels: Any, message: str) -> None:
    rng = np.random.default_rng(0)
    x = _inputs(model, rng)
    before, told = _outputs(model, x), _sizes_told(model)
    with pytest.raises(ValueError, match=message):
        remove_channels_in_place(model, channels)
    assert _error(_outputs(model, x), before) == 0
    assert _sizes_told(model) == told


# --- fits to what is left -------------------------------------------------------------------------


@pytest.mark.backend
def test_what_is_left_is_fitted_as_a_cut_fits_it() -> None:
    model = _small()
    x = np.random.default_rng(0).normal(size=(200, 6, 6, 2)).astype("float32")
    plan = dprp.select_channels(model, method="l1", budget=0.7, multiple=1)
    fitted = dprp.cut(model, plan, calibration_data=x)
    whole, plain = _outputs(model, [x]), dprp.remove_channels(model, plan.removed)
    remove_channels_in_place(model, plan.removed, calibration_data=x)
    assert _error(_outputs(model, [x]), _outputs(fitted, [x])) < TOLERANCE
    ours, theirs = (
        float(np.mean((outputs[0] - whole[0]) ** 2))
        for outputs in (_outputs(model, [x]), _outputs(plain, [x]))
    )
    assert ours < 0.8 * theirs


# --- shapes that come back ----------------------------------------------------------------------


def test_a_history_goes_to_any_shape_and_its_files_tell_which(tmp_path: Path) -> None:
    model = _small()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6, 6, 2)).astype("float32"), rng.normal(size=(8, 3))
    history = ShapeHistory(model)
    history.attach()
    kept: list[tuple[list[np.ndarray], np.ndarray, Path]] = []
    for at, channels in enumerate(({}, {"a": [1]}, {"b": [0, 2]}, {"a": [0], "b": [1]})):
        if channels:
            history.remove(channels)
        model.fit(x, y, epochs=1, verbose=0)
        path = tmp_path / f"{at}.weights.h5"
        model.save_weights(path)
        kept.append((model.get_weights(), _outputs(model, [x])[0], path))
    steps = list(history.removed)
    for at in (0, 2, 1):
        weights, expected, path = kept[at]
        model.load_weights(path)
        assert history.removed == steps[:at]
        assert _error(_outputs(model, [x]), [expected]) == 0
        for variable in model.trainable_variables:
            for slot in optimizer_slots(model.optimizer, variable).values():
                assert slot.shape == variable.shape
        model.fit(x, y, epochs=1, verbose=0)
        model.set_weights(weights)
        assert _error(_outputs(model, [x]), [expected]) == 0
    model.load_weights(kept[3][2])
    for at in (2, 1, 0):
        model.set_weights(kept[at][0])
        assert _error(_outputs(model, [x]), [kept[at][1]]) == 0
    model.fit(x, y, epochs=1, verbose=0)
    # A model made anew takes them as well, with what the optimizer held.
    fresh = _small()
    fresh.compile(keras.optimizers.Adam(0.01), "mse")
    fresh.optimizer.build(fresh.trainable_variables)
    follower = ShapeHistory(fresh)
    follower.attach()
    fresh.load_weights(kept[2][2])
    assert follower.removed == steps[:2]
    assert _error(_outputs(fresh, [x]), [kept[2][1]]) == 0
    slots = optimizer_slots(fresh.optimizer, fresh.get_layer("a").kernel)
    assert all(np.abs(_np(slot)).max() > 0 for slot in slots.values())
    # To Keras it is a file of weights as any other.
    plain = _small()
    for step in steps[:2]:
        plain = dprp.remove_channels(plain, step)
    plain.load_weights(kept[2][2])
    assert _error(_outputs(plain, [x]), [kept[2][1]]) == 0
    other = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    ShapeHistory(other).attach()
    with pytest.raises(ValueError, match="was of this one's shape before channels went"):
        other.load_weights(kept[2][2])
    follower.detach()
    assert not {"set_weights", "load_weights", "save_weights"} & set(vars(fresh))


def test_an_average_of_weights_begins_at_what_comes_back() -> None:
    model = _small()
    model.compile(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9), "mse")
    history, whole = ShapeHistory(model), model.get_weights()
    history.attach()
    model.optimizer.build(model.trainable_variables)
    history.remove({"a": [1], "b": [0]})
    model.set_weights(whole)
    for variable in model.trainable_variables:
        average = optimizer_slots(model.optimizer, variable)["_model_variables_moving_average"]
        np.testing.assert_array_equal(_np(average), _np(variable))
    kernel = model.get_layer("a").kernel
    assert kernel.shape[-1] == 6


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    model, path = _small(), tmp_path / "a.weights.h5"
    history = ShapeHistory(model)
    history.attach()
    model.save_weights(path)
    for content in (b"[]", b"{", b'{"whole": [1], "removed": []}', b'{"whole": []}'):
        with h5py.File(path, "a") as file:
            del file["dprp_removed_channels"]
            file["dprp_removed_channels"] = np.frombuffer(content, np.uint8)
        with pytest.raises(ValueError, match="is damaged; use an earlier file"):
            model.load_weights(path)
    assert history.removed == []


def test_weights_of_a_file_without_a_record_load_as_ever(tmp_path: Path) -> None:
    model, other = _small(), _small()
    other.get_layer("a").kernel.assign(np.ones((3, 3, 2, 6)))
    other.save_weights(tmp_path / "plain.weights.h5")
    ShapeHistory(model).attach()
    model.load_weights(tmp_path / "plain.weights.h5")
    assert float(_np(model.get_layer("a").kernel).min()) == 1


def test_zoo_networks_hold_no_layer_whose_sizes_are_forgotten() -> None:
    # Against what a smaller copy tells; every part, whether or not in the graph.
    keras.utils.set_random_seed(0)
    model = zoo.build("resnet20")
    removed = draw_removal(channel_groups(model), np.random.default_rng(0))
    small = dprp.remove_channels(model, removed)
    remove_channels_in_place(model, removed)
    assert _sizes_told(model) == _sizes_told(small)
    assert len(layers_inside(model)) == len(layers_inside(small))
