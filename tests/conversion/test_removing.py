"""Models without some of their channels compute what the whole ones do with zeros there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from channel_checks import (
    draw_removal,
    masked_outputs,
    neutralize,
    require_confined_influence,
    zero_filters,
)
from hypothesis import given
from keras import layers
from random_networks import Program, build, programs, searching

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.channels import channel_groups
from dprp_tf.conversion.removing import remove_channels
from dprp_tf.layers import factorized_layers

Record = Callable[[str, str, float], None]
# Rounding of sums in another order, of outputs scaled to 1; what is wrong shows as 1e-2 or more.
TOLERANCE = 2e-5


def _error(outputs: Any, expected: Any) -> float:
    a, b = keras.ops.convert_to_numpy(outputs), keras.ops.convert_to_numpy(expected)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))


def _sides() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(8, 3, padding="same", name="b")(layers.ReLU()(x))
    x = layers.Add(name="sum")([x, y])
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.uniform(0.2, 1, weight.shape) * rng.choice((-1, 1), weight.shape))
    model.get_layer("norm").moving_variance.assign(rng.uniform(0.5, 2, 8))
    return model


def test_removing_is_masking_by_hand() -> None:
    model = _sides()
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    small = remove_channels(model, {"b": [1, 6]})
    # The same network with masks behind the last layers that treat each channel by itself.
    kept = np.isin(np.arange(8), [1, 6], invert=True).astype("float32")
    masked = model.get_layer("norm")(model.get_layer("a")(x)) * kept
    total = masked + np.asarray(model.get_layer("b")(np.maximum(masked, 0))) * kept
    expected = model.get_layer("out")(layers.Flatten()(layers.MaxPooling2D()(total)))
    assert _error(small(x), expected) < TOLERANCE
    assert _error(small(x), model(x)) > 1e-2
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert small.get_layer("out").kernel.shape == (3 * 3 * 6, 3)
    assert small.get_layer("norm").gamma.shape == (6,)


def test_the_model_given_stays_and_shares_nothing() -> None:
    model = _sides()
    model.compile("adam", "mse", metrics=["mae"])
    model.get_layer("b").trainable = False
    before = [np.array(weight) for weight in model.weights]
    small = remove_channels(model, {"a": [0]})
    assert small.loss == "mse"
    assert not small.get_layer("b").trainable
    assert small.get_layer("a").trainable
    for weight in small.weights:
        weight.assign(np.zeros(weight.shape))
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), value)
    nothing = remove_channels(model, {})
    assert nothing.count_params() == model.count_params()


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"nobody": [0]}, "'nobody'"),
        ({"norm": [0]}, "'norm'"),
        ({"a": [8]}, "numbers from 0 to 7"),
        ({"a": [-1]}, "each once. Received: \\[-1\\]"),
        ({"a": [1, 1]}, "each once"),
        ({"a": [0.5]}, "Received: \\[0.5\\]"),
        ({"out": [0]}, "stays: a model output"),
        ({"a": range(8)}, "at least one filter"),
        ({"a": range(4), "b": range(4, 8)}, "at least one filter"),
    ],
)
def test_what_cannot_be_removed_is_said(channels: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove_channels(_sides(), channels)


@pytest.mark.parametrize("decomposition", ["spatial", "channel", "separable", "tucker"])
def test_a_factorized_model_loses_channels_in_its_factors(decomposition: str) -> None:
    rng = np.random.default_rng(0)
    dense = zoo.resnet_cifar(8, input_shape=(8, 8, 3))
    lowrank = dprp.factorize(dense, decomposition=decomposition, ranks=3)
    removed = draw_removal(channel_groups(lowrank), rng)
    small = remove_channels(lowrank, removed)
    assert isinstance(small, dprp.DPRPModel)
    assert small.settings == lowrank.settings
    x = [rng.normal(size=(2, 8, 8, 3)).astype("float32")]
    assert _error(small(x[0]), masked_outputs(lowrank, x, removed)[0]) < TOLERANCE
    assert _error(small(x[0]), lowrank(x[0])) > 1e-2
    for before, after in zip(factorized_layers(lowrank), factorized_layers(small), strict=True):
        assert after.name == before.name
        assert all(a <= b for a, b in zip(after.ranks, before.ranks, strict=True))
        assert [v.shape[-1] for v in after.factor_variables][1] == after.ranks[-1]


def test_nested_models_reshapes_and_splits_are_made_anew() -> None:
    keras.utils.set_random_seed(0)
    within = keras.Input((4, 4, 6))
    nested = keras.Model(within, layers.Conv2D(4, 1, name="inner")(within), name="nested")
    inputs = keras.Input((4, 4, 2))
    x = nested(layers.Conv2D(6, 3, padding="same", name="a")(inputs))
    left, right = keras.ops.split(x, 2, axis=-1)
    x = layers.Reshape((16, 4), name="rows")(keras.ops.concatenate([right, left], axis=-1))
    x = keras.ops.reshape(x, (-1, 4, 4, 4))
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(3, 4, 4, 2)).astype("float32")]
    for removed in ({"a": [5]}, {"inner": [0]}, {"inner": [1, 3], "a": [0, 1, 2]}):
        small = remove_channels(model, removed)
        assert _error(small(x[0]), masked_outputs(model, x, removed)[0]) < TOLERANCE
        assert _error(small(x[0]), model(x[0])) > 1e-2
    loaded = keras.Model.from_config(small.get_config())
    assert loaded.get_layer("rows").target_shape == (16, 2)


def test_a_shortcut_widened_by_zeros_is_followed() -> None:
    model = zoo.resnet_cifar(8, input_shape=(8, 8, 3))
    groups = channel_groups(model)
    assert groups.prunable_share > 0.9
    # Option A: 8 zeros on each side of the 16 channels of the stage before.
    trunk = groups.of_layer("stage2_block0_conv2")
    assert trunk.name == "stem_conv"
    place = trunk.layers["stem_conv"].index((3,))
    assert trunk.layers["stage2_block0_conv2"][place] == (11,)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(2, 8, 8, 3)).astype("float32")]
    removed = {"stem_conv": [3], "stage2_block0_conv2": [0, 30]}
    small = remove_channels(model, removed)
    assert small.get_layer("stage2_block0_conv2").filters == 29
    assert _error(small(x[0]), masked_outputs(model, x, removed)[0]) < TOLERANCE
    inputs = keras.Input((4, 2))
    y = keras.ops.pad(layers.Dense(3, name="a")(inputs), [(0, 0), (1, 0), (2, 1)])
    model = keras.Model(inputs, layers.Dense(2, name="out")(y))
    x = [rng.normal(size=(2, 4, 2)).astype("float32")]
    small = remove_channels(model, {"a": [1]})
    assert _error(small(x[0]), masked_outputs(model, x, {"a": [1]})[0]) < TOLERANCE


@searching(8)
@given(program=programs(1, 2, 3))
def test_random_networks_without_channels(program: Program) -> None:
    _hold(program)


@pytest.mark.slow
@searching(150)
@given(program=programs(1, 2, 3))
def test_more_random_networks_without_channels(program: Program) -> None:
    _hold(program)


def _hold(program: Program) -> None:
    model, rng = build(program), np.random.default_rng(program.seed)
    x = [rng.standard_normal((2, *t.shape[1:])).astype("float32") for t in model.inputs]
    require_confined_influence(model, x, rng)
    removed = draw_removal(channel_groups(model), rng)
    small = remove_channels(model, removed)
    assert (small.count_params() < model.count_params()) == bool(removed)
    outputs = keras.tree.flatten(small(x if len(x) > 1 else x[0]))
    for ours, expected in zip(outputs, masked_outputs(model, x, removed), strict=True):
        assert _error(ours, expected) < TOLERANCE


# --- the networks of keras.applications and of the papers --------------------------------------

# Options, the smallest input, and the least share of filters that may go.
_PLAIN = {"include_top": False, "pooling": "avg"}
FAMILIES: dict[str, tuple[dict[str, Any], int, float]] = {
    "VGG16": (_PLAIN, 32, 0.85),
    "ResNet50": (_PLAIN, 32, 0.65),
    "ResNet50V2": (_PLAIN, 32, 0.65),
    "MobileNet": ({"alpha": 0.25, **_PLAIN}, 32, 0.75),
    "MobileNetV2": ({"alpha": 0.35, **_PLAIN}, 32, 0.7),
    "MobileNetV3Small": (_PLAIN, 32, 0.8),
    "MobileNetV3Large": (_PLAIN, 32, 0.8),
    "EfficientNetB0": (_PLAIN, 32, 0.85),
    "EfficientNetV2B0": (_PLAIN, 32, 0.85),
    "DenseNet121": (_PLAIN, 32, 0.85),
    "Xception": (_PLAIN, 71, 0.85),
    "InceptionV3": (_PLAIN, 75, 0.85),
    "InceptionResNetV2": (_PLAIN, 75, 0.85),
    "NASNetMobile": (_PLAIN, 32, 0.85),
    # Its trunk is normalized across channels.
    "ConvNeXtTiny": (_PLAIN, 32, 0.6),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_applications(name: str, record_error: Record) -> None:
    options, size, least = FAMILIES[name]
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    kind = getattr(keras.applications, name)
    model = kind(weights=None, input_shape=(size, size, 3), **options)
    _compare(name, model, least, record_error)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_every_network_of_the_papers(name: str, record_error: Record) -> None:
    keras.utils.set_random_seed(0)
    _compare(name, zoo.build(name), 0.3, record_error)


def _compare(name: str, model: keras.Model, least: float, record_error: Record) -> None:
    rng = np.random.default_rng(0)
    neutralize(model, rng)
    groups = channel_groups(model)
    record_error("share of filters that may go", name, groups.prunable_share)
    assert groups.prunable_share >= least
    removed = draw_removal(groups, rng)
    x = rng.normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
    whole = model(x, training=False)
    small = remove_channels(model, removed)
    zero_filters(model, groups, removed)
    masked = model(x, training=False)
    error = _error(small(x, training=False), masked)
    record_error("removed = masked", name, error)
    assert error < TOLERANCE
    assert _error(whole, masked) > 1e-3
    assert small.count_params() < 0.8 * model.count_params()
