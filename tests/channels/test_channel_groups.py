"""Which filters go together: held against groups found by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from channel_checks import require_confined_influence
from keras import layers

import dprp_tf as dprp
from dprp_tf import zoo
from dprp_tf.channels import ChannelGroups, channel_groups


def _conv(filters: int, name: str, **options: object) -> layers.Conv2D:
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def _told(groups: ChannelGroups) -> dict[str, tuple[list[str], list[str], int]]:
    return {
        name: (sorted(group.layers), sorted(group.readers), group.prunable)
        for name, group in groups.items()
    }


def test_a_residual_block_ties_both_sides() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(_conv(6, "stem")(inputs)))
    y = _conv(6, "second")(_conv(4, "first", activation="relu")(x))
    x = layers.Add()([x, layers.BatchNormalization()(y)])
    x = layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))
    groups = channel_groups(keras.Model(inputs, x))
    assert _told(groups) == {
        "stem": (["second", "stem"], ["first", "head"], 6),
        "first": (["first"], ["second"], 4),
        "head": (["head"], [], 0),
    }
    assert groups["head"].reason == "a model output"
    assert groups.of_layer("second").name == "stem"
    # 11 of the 18 filters: of each group one stays, of the outputs all do.
    assert groups.prunable_share == pytest.approx((5 + 3 + 5) / 18)
    with pytest.raises(KeyError):
        groups.of_layer("nobody")
    printed = str(groups)
    for part in ("stem", "second", "a model output", "together with"):
        assert part in printed


def test_concatenations_flattening_and_gates() -> None:
    inputs = keras.Input((4, 4, 3))
    a, b = _conv(4, "a")(inputs), _conv(2, "b")(inputs)
    joined = layers.Concatenate()([a, b])
    gate = layers.GlobalAveragePooling2D(keepdims=True)(joined)
    gate = layers.Conv2D(3, 1, activation="relu", name="squeeze")(gate)
    gate = layers.Conv2D(6, 1, activation="sigmoid", name="excite")(gate)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(
        layers.Multiply()([joined, gate])
    )
    x = layers.Dense(5, name="read")(layers.Flatten()(x))
    groups = channel_groups(keras.Model(inputs, layers.Dense(1, name="out")(x)))
    assert groups["a"].layers == {
        "a": ((0,), (1,), (2,), (3,), (), ()),
        "b": ((), (), (), (), (0,), (1,)),
        "excite": ((0,), (1,), (2,), (3,), (4,), (5,)),
    }
    assert groups["a"].readers == ("squeeze", "read")
    assert groups["squeeze"].prunable == 3


def test_grouped_convolutions_tie_the_same_places() -> None:
    inputs = keras.Input((6, 6, 3))
    x = _conv(6, "before")(inputs)
    x = _conv(8, "grouped", groups=2)(x)
    x = _conv(16, "each", groups=8)(x)  # depthwise, written as groups
    groups = channel_groups(keras.Model(inputs, _conv(1, "out")(x)))
    assert groups["before"].layers == {"before": ((0, 3), (1, 4), (2, 5))}
    assert groups["grouped"].layers == {"grouped": ((0, 4), (1, 5), (2, 6), (3, 7))}
    assert "each" not in groups
    assert groups["grouped"].readers == ("out",)


@pytest.mark.parametrize(
    ("mixing", "reason"),
    [
        (lambda: layers.LayerNormalization(name="it"), "'it' (LayerNormalization) works across"),
        (lambda: layers.Softmax(name="it"), "works across channels"),
        (lambda: layers.Activation("softmax", name="it"), "may mix its channels"),
        (lambda: layers.Lambda(lambda x: x[..., ::-1], name="it"), "'it' (Lambda) may mix"),
        (lambda: layers.Reshape((144, 3), name="it"), "'out' (Dense) reads it as more than"),
    ],
)
def test_what_is_not_known_keeps_its_channels(mixing: object, reason: str) -> None:
    inputs = keras.Input((6, 6, 3))
    x = _conv(12, "a")(inputs)
    x = layers.Dense(2, name="out")(mixing()(x))  # type: ignore[operator]
    group = channel_groups(keras.Model(inputs, x))["a"]
    assert group.prunable == 0
    assert reason in str(group.reason)


def test_rows_of_several_places_are_followed() -> None:
    inputs = keras.Input((6, 6, 3))
    # Four places of nine channels in each row: a channel is the same four columns of all rows.
    x = layers.Reshape((9, 36))(_conv(9, "a")(inputs))
    group = channel_groups(keras.Model(inputs, layers.Dense(2, name="out")(x)))["a"]
    assert group.prunable == 9


def test_an_activation_inside_a_layer_counts() -> None:
    inputs = keras.Input((5,))
    x = layers.Dense(4, activation="softmax", name="mixing")(inputs)
    x = layers.Dense(4, activation=lambda x: x, name="unknown")(x)
    x = layers.Dense(4, activation=keras.activations.gelu, name="known")(x)
    groups = channel_groups(keras.Model(inputs, layers.Dense(1, name="out")(x)))
    assert [groups[name].prunable for name in ("mixing", "unknown", "known")] == [0, 0, 4]
    assert "the activation of 'mixing' (Dense)" in str(groups["mixing"].reason)


def test_shared_layers_and_nested_models_tie_what_they_are_called_on() -> None:
    inputs = keras.Input((6, 6, 2))
    shared = _conv(4, "shared")
    one, other = _conv(4, "one")(inputs), _conv(4, "other")(inputs)
    within = keras.Input((6, 6, 4))
    nested = keras.Model(within, layers.ReLU()(_conv(5, "inner")(within)), name="nested")
    x = layers.Concatenate()([nested(shared(one)), shared(other)])
    groups = channel_groups(keras.Model(inputs, _conv(1, "out")(x)))
    assert sorted(groups["one"].layers) == ["one", "other"]
    assert groups["shared"].readers == ("inner", "out")
    assert groups["inner"].prunable == 5


def test_operations_are_followed_as_layers_are() -> None:
    ops = keras.ops
    inputs = keras.Input((4, 4, 2))
    x = ops.relu(_conv(8, "a")(inputs)) * 2.0
    left, right = ops.split(x, [3], axis=-1)
    x = ops.concatenate([right, ops.tanh(left)], axis=-1)
    x = ops.transpose(x, (0, 2, 1, 3))
    x = ops.mean(x, axis=(1, 2))
    x = ops.reshape(x, (-1, 1, 8))
    model = keras.Model(inputs, layers.Dense(1, name="out")(x))
    groups = channel_groups(model)
    assert groups["a"].prunable == 8
    assert groups["a"].readers == ("out",)
    rng = np.random.default_rng(0)
    assert require_confined_influence(model, [rng.random((2, 4, 4, 2), np.float32)], rng) > 5


def test_a_factor_that_differs_by_channel_keeps_them() -> None:
    inputs = keras.Input((4, 4, 2))
    x = _conv(3, "a")(inputs) * np.array([1.0, 2.0, 3.0], "float32")
    groups = channel_groups(keras.Model(inputs, _conv(1, "out")(x)))
    assert groups["a"].prunable == 0
    one = _conv(1, "map", activation="sigmoid")(inputs)
    x = layers.Multiply()([_conv(3, "b")(inputs), one])
    groups = channel_groups(keras.Model(inputs, _conv(1, "out2")(x)))
    assert groups["b"].prunable == 3
    assert "repeats it for other channels" in str(groups["map"].reason)


def test_factorized_models_have_the_groups_of_the_dense_one() -> None:
    dense = zoo.resnet_cifar(8, input_shape=(8, 8, 3))
    expected = channel_groups(dense)
    for decomposition in ("spatial", "separable", "tucker"):
        assert channel_groups(dprp.factorize(dense, decomposition=decomposition)) == expected


def test_only_graphs_have_groups() -> None:
    with pytest.raises(ValueError, match="Functional or Sequential"):
        channel_groups(keras.Sequential([layers.Dense(2)]))
