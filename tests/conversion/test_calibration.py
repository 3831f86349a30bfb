"""Input moments against Keras' own convolutions and patches cut out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from dprp_tf.conversion.calibration import input_moments, output_positions, patches
from dprp_tf.conversion.factorizing import factorize
from dprp_tf.costs.budget import Budget
from dprp_tf.decomposition import OutputTruncation, matricize
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.selection.selecting import select_ranks


def _np(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def _drawn(layer: keras.layers.Layer, shape: tuple[int, ...]) -> np.ndarray:
    """Inputs for a layer, which is built with a random kernel."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal(shape).astype("float32")
    layer.build(shape)
    layer.kernel.assign(rng.standard_normal(layer.kernel.shape).astype("float32"))
    return x


CASES = [
    (layers.Conv1D, (2, 9, 3), {"kernel_size": 3}),
    (layers.Conv1D, (2, 9, 3), {"kernel_size": 4, "padding": "same", "strides": 2}),
    (layers.Conv1D, (2, 9, 3), {"kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
    (layers.Conv1D, (2, 9, 3), {"kernel_size": 2, "padding": "causal", "strides": 3}),
    (layers.Conv2D, (2, 7, 6, 3), {"kernel_size": (3, 2)}),
    (layers.Conv2D, (2, 8, 7, 2), {"kernel_size": 3, "padding": "same", "strides": 2}),
    (layers.Conv2D, (2, 7, 8, 2), {"kernel_size": (5, 4), "padding": "same", "strides": (2, 3)}),
    (layers.Conv2D, (2, 8, 9, 2), {"kernel_size": 3, "padding": "same", "dilation_rate": (2, 1)}),
    (layers.Conv2D, (2, 8, 9, 2), {"kernel_size": (2, 3), "dilation_rate": 2}),
    (layers.Conv2D, (2, 5, 5, 4), {"kernel_size": 1, "strides": 2}),
    (layers.Conv3D, (2, 5, 4, 6, 2), {"kernel_size": (2, 3, 2)}),
    (layers.Conv3D, (1, 5, 4, 6, 2), {"kernel_size": 3, "padding": "same", "strides": 2}),
]


@pytest.mark.parametrize(
    ("kind", "shape", "options"), CASES, ids=lambda v: getattr(v, "__name__", None)
)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_patches_times_the_kernel_are_the_convolution(
    kind: type, shape: tuple[int, ...], options: dict[str, Any], data_format: str
) -> None:
    if data_format == "channels_first" and options.get("padding") == "causal":
        pytest.skip("Keras has causal padding for channels_last alone")
    layer = kind(4, use_bias=False, **options)
    x = _drawn(layer, shape)
    expected = _np(layer(x))
    moved = kind(4, use_bias=False, data_format=data_format, **options)
    if data_format == "channels_first":  # the CPU's convolution can't be asked
        x = np.moveaxis(x, -1, 1)
    moved.build(x.shape)
    found = patches(moved, x) @ matricize(_np(layer.kernel), "channel").T
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=2e-5)
    some = np.array([2, 0])
    np.testing.assert_array_equal(patches(moved, x, some), patches(moved, x)[:, some])


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("added", [None, 1])
def test_patches_of_a_transposed_convolution_have_zeros_between(
    padding: str, kernel_size: int, strides: int, added: int | None
) -> None:
    if added is not None and added >= strides:
        pytest.skip("Keras adds less than a stride")
    for size, dilation in ((1, 1), (4, 1), (5, 2)):
        if dilation > 1 and (strides > 1 or added):
            continue
        options = {"padding": padding, "strides": strides, "output_padding": added}
        layer = layers.Conv1DTranspose(
            4, kernel_size, use_bias=False, dilation_rate=dilation, **options
        )
        x = _drawn(layer, (2, size, 3))
        expected = _np(layer(x))
        if not expected.size:
            continue
        found = patches(layer, x) @ matricize(kernel_of(layer).array, "channel").T
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=2e-5)
        assert output_positions(layer, x.shape) == expected.shape[1]


def test_patches_of_a_dense_layer_are_its_inputs() -> None:
    layer = layers.Dense(4, use_bias=False)
    x = _drawn(layer, (2, 5, 3, 6))
    found = patches(layer, x) @ matricize(_np(layer.kernel), "channel").T
    np.testing.assert_allclose(found.reshape(2, 5, 3, 4), _np(layer(x)), atol=1e-5)


def _network() -> keras.Model:
    """Strided, causal, shared, nested and dense layers, without biases."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((12, 2))
    shared = layers.Conv1D(5, 3, padding="same", use_bias=False, name="shared")
    x = layers.Conv1D(5, 4, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(shared(layers.ReLU()(shared(x))))
    inner_in = keras.Input((6, 5))
    inner = layers.Conv1D(4, 2, padding="causal", use_bias=False, name="inner")(inner_in)
    x = keras.Model(inner_in, layers.ReLU()(inner), name="nested")(x)
    x = layers.Dropout(0.5)(x)
    x = layers.Dense(6, use_bias=False, name="rows")(x)
    return keras.Model(inputs, layers.Dense(3, use_bias=False, name="head")(layers.Flatten()(x)))


KEYS = ["stem", "shared", "inner", "rows", "head"]


def test_moments_are_those_of_patches_cut_out_by_hand() -> None:
    model = _network()
    x = np.random.default_rng(0).standard_normal((7, 12, 2)).astype("float32")
    found = input_moments(model, ["stem"], x, batch_size=3, positions=None)["stem"]
    # Of 12 positions a window of 4 with strides of 2 needs 14: one before, one after.
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0))).astype(np.float64)
    expected = np.zeros((8, 8))
    for image, place in itertools.product(range(7), range(6)):
        patch = np.array([padded[image, 2 * place + at, c] for c in range(2) for at in range(4)])
        expected += np.outer(patch, patch) / (7 * 6)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert found.dtype == np.float64


@pytest.mark.backend
def test_the_mean_squared_output_is_the_trace() -> None:
    model = _network()
    x = np.random.default_rng(1).standard_normal((9, 12, 2)).astype("float32")
    moments = input_moments(model, KEYS, x, batch_size=4, positions=None)
    assert list(moments) == KEYS
    # What each call makes, seen by a model of its own; the nested layer is called by itself.
    stem = model.get_layer("stem")
    shared, nested = model.get_layer("shared"), model.get_layer("nested")
    first = shared(stem(x))
    second = shared(keras.ops.relu(first))
    inner = nested.get_layer("inner")(keras.ops.relu(second))
    rows = model.get_layer("rows")(keras.ops.relu(inner))
    outputs = {
        "stem": [stem(x)],
        "shared": [first, second],
        "inner": [inner],
        "rows": [rows],
        "head": [model(x, training=False)],
    }
    for key, made in outputs.items():
        layer = nested.get_layer(key) if key == "inner" else model.get_layer(key)
        matrix = matricize(_np(layer.kernel), "channel").astype(np.float64)
        values = np.concatenate([_np(o).reshape(-1, o.shape[-1]) for o in made])
        energy = np.mean(np.sum(np.square(values.astype(np.float64)), axis=1))
        assert np.trace(matrix @ moments[key] @ matrix.T) == pytest.approx(energy, rel=1e-5), key


def test_neither_the_batches_nor_the_blocks_matter() -> None:
    model = _network()
    x = np.random.default_rng(2).standard_normal((10, 12, 2)).astype("float32")
    whole = input_moments(model, KEYS, x, batch_size=10, positions=None)
    parts = input_moments(model, KEYS, x, batch_size=3, positions=None)
    for key in KEYS:
        np.testing.assert_allclose(parts[key], whole[key], rtol=1e-5, atol=1e-6)


def test_fewer_positions_estimate_the_same_moments_from_a_seed() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((24, 24, 2))
    model = keras.Model(inputs, layers.Conv2D(3, 3, name="a")(inputs))
    x = np.random.default_rng(3).standard_normal((40, 24, 24, 2)).astype("float32")
    every = input_moments(model, ["a"], x, positions=None)["a"]
    drawn = [
        input_moments(model, ["a"], x, positions=4000, batch_size=8, seed=seed)["a"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-4
    # 4,000 of 19,360 positions: the error of a mean of products of variance 1 or 2.
    assert np.abs(drawn[0] - every).max() < 6 * math.sqrt(2 / 4000)


def test_several_inputs_and_outputs_that_leave_early() -> None:
    first, second = keras.Input((4,), name="p"), keras.Input((3,), name="q")
    a = layers.Dense(5, name="a", use_bias=False)(first)
    b = layers.Dense(2, name="b", use_bias=False)(layers.Concatenate()([a, second]))
    model = keras.Model([first, second], [a, b])
    rng = np.random.default_rng(5)
    x = [rng.standard_normal((6, n)).astype("float32") for n in (4, 3)]
    moments = input_moments(model, ["b", "a"], x)
    joined = np.concatenate([_np(model(x)[0]), x[1]], axis=1).astype(np.float64)
    np.testing.assert_allclose(moments["b"], joined.T @ joined / 6, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments["a"], x[0].T.astype("f8") @ x[0] / 6, rtol=1e-5, atol=1e-6)


def test_the_output_truncation_lowers_the_error_a_layer_really_makes(
    small_digits: tuple[np.ndarray, np.ndarray],
) -> None:
    x = small_digits[0][:200]
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 1))
    stem = layers.Conv2D(6, 3, activation="relu", name="stem")(inputs)
    body = layers.Conv2D(8, 3, padding="same", use_bias=False, name="body")
    model = keras.Model(inputs, body(stem))
    kernel, outputs = _np(body.kernel), _np(model(x)).astype(np.float64)
    moments = input_moments(model, ["body"], x, positions=None)["body"]
    for matricization in ("spatial", "channel", "separable", "tucker"):
        ours = OutputTruncation(kernel, matricization, moments, ridge=1e-6)
        ranks = tuple(max(1, full // 2) for full in ours.full_ranks)
        body.kernel.assign(ours.kernel(ranks))
        error = np.sum(np.square(_np(model(x)) - outputs)) / np.sum(np.square(outputs))
        assert error == pytest.approx(ours.lost(ranks), rel=1e-2, abs=1e-5)
        body.kernel.assign(kernel)


def test_ranks_by_outputs_keep_more_of_them_than_ranks_by_kernels(
    small_digits: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = small_digits[0][:300], small_digits[1][:300]
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 1))
    maps = layers.Conv2D(16, 3, activation="relu", name="stem")(inputs)
    maps = layers.Conv2D(24, 3, activation="relu", name="body")(maps)
    model = keras.Model(inputs, layers.Dense(10, name="head")(layers.Flatten()(maps)))
    outputs = _np(model(x))
    errors = {}
    for method in ("energy_product", "activation"):
        budget = Budget(parameters=0.4, tolerance=0.05)
        plan = select_ranks(
            model, method=method, budget=budget, data=(x, y), decomposition="channel"
        )
        assert plan.shares["parameters"] <= 0.4
        data = x if plan.truncation == "output" else None
        low = factorize(model, ranks=plan, calibration_data=data)
        errors[method] = np.linalg.norm(_np(low(x)) - outputs) / np.linalg.norm(outputs)
        if method == "activation":
            # What the plan says of the first layer is what the layer does.
            (row,) = [row for row in plan.layers if row.name == "stem"]
            stem, cut = model.get_layer("stem").kernel, low.get_layer("stem").kernel
            moments = input_moments(model, ["stem"], x, positions=None)["stem"]
            rows = [matricize(_np(k), "channel").astype("f8") for k in (stem, stem - cut)]
            whole, lost = (np.trace(m @ moments @ m.T) for m in rows)
            assert lost / whole == pytest.approx(row.lost, rel=0.05, abs=1e-4)
    assert errors["activation"] < 0.7 * errors["energy_product"]


def test_unusable_arguments_are_named() -> None:
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 3, groups=2, name="grouped")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    data = np.zeros((3, 6, 6, 4), "float32")
    for name in ("grouped", "depthwise", "flatten", "nowhere"):
        with pytest.raises(ValueError, match=f"`layers`.*'{name}'"):
            input_moments(model, [name], data)
    with pytest.raises(ValueError, match="`x`"):
        input_moments(model, ["head"], data[:0])
    with pytest.raises(ValueError, match="`positions` must be an integer of 1 or more"):
        input_moments(model, ["head"], data, positions=0)
    with pytest.raises(ValueError, match="`arrays`"):
        input_moments(model, ["head"], [data, data])


def test_steps_that_a_mask_leaves_out_count_for_nothing() -> None:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = layers.LSTM(5, return_sequences=True, name="a")(x)
    model = keras.Model(inputs, layers.GRU(3, name="b")(x))
    rng = np.random.default_rng(0)
    words = rng.integers(1, 9, (40, 6))
    words[:, 4:] = 0
    moments = input_moments(model, ["a", "b"], words, positions=None)
    table = _np(model.layers[1].embeddings)
    rows = table[words[:, :4]].reshape(-1, 4)
    np.testing.assert_allclose(moments["a"], rows.T @ rows / len(rows), rtol=1e-4)
    padded = table[words].reshape(-1, 4)
    assert np.abs(moments["a"] - padded.T @ padded / len(padded)).max() > 1e-5
    some = input_moments(model, ["a"], words, positions=60)
    assert np.abs(some["a"] - moments["a"]).max() < 0.5 * np.abs(moments["a"]).max()
