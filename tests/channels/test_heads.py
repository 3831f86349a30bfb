"""Heads of attention as channels that go together, and channels that recurrent layers read."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from channel_checks import draw_removal, masked_outputs, require_confined_influence
from keras import layers, ops

import dprp_tf as dprp
from dprp_tf.channels import channel_groups

_LONG, _WIDE = 5, 8


def _attending(kind: str) -> tuple[keras.Model, list[np.ndarray]]:
    rng = np.random.default_rng(1)
    x, y = keras.Input((_LONG, _WIDE)), keras.Input((7, 6))
    given = [rng.normal(size=(2, _LONG, _WIDE)), rng.normal(size=(2, 7, 6))]
    inputs: list[Any] = [x]
    if kind == "itself":
        a = layers.MultiHeadAttention(4, 3, name="a")(x, x)
        a = layers.Add()([a, x])
    elif kind == "others, causal, dropout":
        attention = layers.MultiHeadAttention(4, 3, value_dim=5, dropout=0.2, name="a")
        inputs = [x, y]
        a = layers.LayerNormalization()(attention(x, y, use_causal_mask=True))
    elif kind == "shared heads":
        a = layers.GroupQueryAttention(6, 4, 2, name="a")(x, x)
    else:
        mask = keras.Input((_LONG, _LONG), dtype="bool")
        inputs = [x, mask]
        given = [given[0], np.tril(np.ones((2, _LONG, _LONG), bool))]
        a = layers.MultiHeadAttention(4, 3, name="a")(x, x, attention_mask=mask)
    model = keras.Model(inputs, layers.Dense(2, name="out")(a))
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.4)
    given = [one if one.dtype == bool else one.astype("float32") for one in given]
    return dprp.write_out(model), given[: len(inputs)]


@pytest.mark.parametrize("kind", ["itself", "others, causal, dropout", "shared heads", "masked"])
def test_a_head_goes_whole_and_leaves_what_zeros_leave(kind: str) -> None:
    model, x = _attending(kind)
    groups = channel_groups(model)
    (group,) = (one for one in groups.values() if "a_query" in one.layers)
    heads = 2 if kind == "shared heads" else 4
    assert (group.size, group.prunable) == (heads, heads)
    # All that a head has of each projection: 2 heads of keys serve two queries each.
    widths = {name: len(filters[0]) for name, filters in group.layers.items()}
    if kind == "shared heads":
        assert widths == {"a_query": 12, "a_key": 6, "a_value": 6}
    else:
        value = 5 if kind.startswith("others") else 3
        assert widths == {"a_query": 3, "a_key": 3, "a_value": value}
    assert "a_output" in group.readers
    removed = draw_removal(groups, np.random.default_rng(0))
    small = dprp.remove_channels(model, removed)
    assert small.count_params() < model.count_params()
    given = x if len(x) > 1 else x[0]
    found = keras.tree.flatten(small(given))
    for one, other, whole in zip(
        found, masked_outputs(model, x, removed), keras.tree.flatten(model(given)), strict=True
    ):
        np.testing.assert_allclose(ops.convert_to_numpy(one), other, atol=1e-5)
        assert np.abs(other - ops.convert_to_numpy(whole)).max() > 1e-2
    floats = [one for one in x if one.dtype != bool]
    if len(floats) == len(x):
        assert require_confined_influence(model, x, np.random.default_rng(2)) > 3


def test_scores_that_are_returned_keep_the_heads() -> None:
    x = keras.Input((_LONG, _WIDE))
    a, scores = layers.MultiHeadAttention(4, 3, name="a")(x, x, return_attention_scores=True)
    model = dprp.write_out(keras.Model(x, [layers.Dense(2)(a), scores]))
    groups = channel_groups(model)
    (group,) = (one for one in groups.values() if "a_query" in one.layers)
    assert group.prunable == 0
    assert "model output" in str(group.reason)


def test_a_mask_for_each_head_keeps_them() -> None:
    x, mask = keras.Input((_LONG, _WIDE)), keras.Input((4, _LONG, _LONG), dtype="bool")
    a = layers.MultiHeadAttention(4, 3, name="a")(x, x, attention_mask=mask)
    groups = channel_groups(dprp.write_out(keras.Model([x, mask], layers.Dense(2)(a))))
    assert all(one.prunable == 0 for one in groups.values() if "a_query" in one.layers)


def test_heads_are_selected_and_cut_for_a_budget() -> None:
    model, (x,) = _attending("itself")
    plan = dprp.select_channels(model, method="l2", budget=0.6, multiple=1)
    assert any(group.name.startswith("a_") and group.kept < group.size for group in plan.groups)
    small = dprp.cut(model, plan)
    assert small.count_params() <= 0.65 * model.count_params()
    assert np.abs(small.predict(x, verbose=0) - model.predict(x, verbose=0)).max() > 1e-2


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_recurrent_layers_read_channels_and_keep_their_units(kind: Any) -> None:
    rng = np.random.default_rng(3)
    x = keras.Input((_LONG, 4))
    y = layers.Dense(6, "relu", name="a")(x)
    y = kind(5, return_sequences=True, name="r")(y)
    model = keras.Model(x, layers.Dense(2, name="out")(y))
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.4)
    groups = channel_groups(model)
    assert (groups["a"].prunable, groups["a"].readers) == (6, ("r",))
    assert groups["r"].prunable == 0
    assert "feed each other" in str(groups["r"].reason)
    given = rng.normal(size=(2, _LONG, 4)).astype("float32")
    for each in (model, dprp.factorize(model, ranks=2)):
        removed = {"a": [1, 4]}
        small = dprp.remove_channels(each, removed)
        (expected,) = masked_outputs(each, [given], removed)
        np.testing.assert_allclose(ops.convert_to_numpy(small(given)), expected, atol=1e-5)
        assert small.count_params() < each.count_params()
    plan = dprp.select_channels(model, method="activation", budget=0.9, data=given, multiple=1)
    fitted = dprp.cut(model, plan, calibration_data=given)
    assert fitted.count_params() < model.count_params()


def _constant(*shape: int) -> np.ndarray:
    return np.tril(np.ones(shape, "float32"))


@pytest.mark.parametrize(
    ("mixing", "prunable"),
    [
        (lambda q, k, v: ops.dot_product_attention(q, k, v), 4),
        (lambda q, k, v: ops.dot_product_attention(q, k, v, bias=_constant(4, 6, 6)), 0),
        (lambda q, k, v: ops.dot_product_attention(q, k, v, bias=_constant(1, 6, 6)), 4),
        (lambda q, k, v: ops.dot_product_attention(q, k[:, :, :2], v[:, :, :2]), 0),
        (lambda q, k, v: _scored(q, k, v, None), 4),
        (lambda q, k, v: _scored(q, k, v, _constant(1, 4, 6, 6) > 0), 0),
        (lambda q, k, v: _scored(q, k, v, _constant(1, 1, 6, 6) > 0), 4),
    ],
)
def test_what_differs_by_head_keeps_the_heads(mixing: Any, prunable: int) -> None:
    x = keras.Input((6, 8))
    parts = [layers.Reshape((6, 4, 3))(layers.Dense(12, name=name)(x)) for name in ("q", "k", "v")]
    attended = layers.Reshape((6, 12))(mixing(*parts))
    model = keras.Model(x, layers.Dense(2, name="out")(attended))
    group = next(one for one in channel_groups(model).values() if "q" in one.layers)
    assert group.prunable == prunable
    if prunable:
        given = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
        removed = draw_removal(channel_groups(model), np.random.default_rng(1))
        (expected,) = masked_outputs(model, [given], removed)
        small = dprp.remove_channels(model, removed)
        np.testing.assert_allclose(ops.convert_to_numpy(small(given)), expected, atol=1e-5)


def _scored(q: Any, k: Any, v: Any, mask: Any) -> Any:
    scores = ops.einsum("btnh,bsnh->bnts", q, k)
    weights = layers.Softmax()(scores) if mask is None else layers.Softmax()(scores, mask=mask)
    return ops.einsum("bnts,bsnv->btnv", weights, v)


def test_fewer_heads_of_keys_than_of_queries_go_with_them() -> None:
    x = keras.Input((6, 8))
    q = layers.Reshape((6, 6, 2))(layers.Dense(12, name="q")(x))
    k, v = (layers.Reshape((6, 3, 2))(layers.Dense(6, name=name)(x)) for name in ("k", "v"))
    attended = layers.Reshape((6, 12))(ops.dot_product_attention(q, k, v))
    model = keras.Model(x, layers.Dense(2, name="out")(attended))
    group = next(one for one in channel_groups(model).values() if "q" in one.layers)
    assert (group.size, group.prunable) == (3, 3)
    given = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
    removed = {"k": [2, 3]}
    (expected,) = masked_outputs(model, [given], removed)
    found = dprp.remove_channels(model, removed)(given)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)


@pytest.mark.parametrize("kept", [True, False])
def test_reshapes_into_the_batch_and_repeats_of_it_are_followed_or_keep_all(kept: bool) -> None:
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, padding="same", name="a")(x)
    if kept:
        # Windows of 4x4 as rows of the batch, and back.
        y = ops.reshape(y, (-1, 2, 4, 2, 4, 6))
        y = ops.transpose(y, (0, 1, 3, 2, 4, 5))
        y = layers.Dense(5, "relu", name="b")(ops.reshape(y, (-1, 16, 6)))
        y = ops.reshape(y, (-1, 2, 2, 16, 5))
    else:
        y = ops.repeat(y, 2, axis=0)
    model = keras.Model(x, layers.Dense(2, name="out")(y))
    groups = channel_groups(model)
    assert groups["a"].prunable == (6 if kept else 0)
    if kept:
        given = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
        removed = {"a": [0, 3], "b": [1]}
        (expected,) = masked_outputs(model, [given], removed)
        found = dprp.remove_channels(model, removed)(given)
        np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)


def test_no_plan_leaves_a_layer_without_a_filter() -> None:
    x = keras.Input((5,))
    a = layers.Dense(6, name="a")(x)
    joined = layers.Add()([layers.Concatenate()([x, a]), layers.Dense(11, name="c")(x)])
    model = keras.Model(x, layers.Dense(2, name="out")(joined))
    group = channel_groups(model).of_layer("a")
    assert group.prunable == 5
    plan = dprp.select_channels(model, method="l1", budget=0.7, multiple=1)
    small = dprp.cut(model, plan)
    assert small.get_layer("a").units >= 1
