"""Tucker-2 beside the SVD forms: layers, factorizing, costs, folding, saving, exporting."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from made_plans import fold_plan

import dprp_tf as dprp
from dprp_tf import deploy
from dprp_tf.conversion.factorizing import factorize
from dprp_tf.conversion.folding import choose_forms, fold
from dprp_tf.conversion.form_weights import layer_forms
from dprp_tf.costs.form import Form
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.rank_plan import PlannedRanks, RankPlan
from dprp_tf.decomposition import TuckerFactors, full_tucker_ranks, tucker2
from dprp_tf.deploy.planning.probes import layer_sites
from dprp_tf.layers import (
    SVDLayer,
    TuckerConv1D,
    TuckerConv2D,
    TuckerConv3D,
    TuckerConvolution,
    factorized_layers,
    low_rank_layers,
)
from dprp_tf.runs.settings import TrainSettings
from dprp_tf.training.rank_history import RankHistory
from dprp_tf.training.rank_pruning import RankPruning
from dprp_tf.training.saving import load_model
from dprp_tf.training.settings import DPRPSettings

# float32 sums of up to a few hundred products, relative to the largest output.
TOLERANCE = 1e-5
TUCKER: dict[int, type[TuckerConvolution]] = {1: TuckerConv1D, 2: TuckerConv2D, 3: TuckerConv3D}
DENSE: dict[int, Any] = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
SPATIAL = {1: (12,), 2: (9, 8), 3: (6, 5, 7)}
WINDOWS: list[tuple[int, dict[str, Any]]] = [
    (1, {"padding": "same", "strides": 2, "activation": "softplus"}),
    (1, {"padding": "causal", "dilation_rate": 2}),
    (1, {"padding": "causal", "strides": 3, "data_format": "channels_first"}),
    (2, {"padding": "same"}),
    (2, {"padding": "valid", "strides": (2, 1), "kernel_size": (2, 4), "use_bias": False}),
    (2, {"padding": "same", "strides": 2, "activation": "relu"}),
    (2, {"padding": "same", "dilation_rate": 2}),
    (2, {"padding": "valid", "dilation_rate": (1, 2), "data_format": "channels_first"}),
    (3, {"padding": "same", "strides": (1, 2, 2), "kernel_size": (3, 2, 3)}),
    (3, {"padding": "valid", "data_format": "channels_first"}),
]
EVERY = pytest.mark.parametrize(("ndim", "options"), WINDOWS, ids=str)


def _np(value: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(value))


def _model(ndim: int = 2, channels: int = 6, filters: int = 8, **options: Any) -> keras.Model:
    """One convolution named "it", of random bias."""
    first = options.get("data_format") == "channels_first"
    spatial = SPATIAL[ndim]
    inputs = keras.Input((channels, *spatial) if first else (*spatial, channels))
    options = {"kernel_size": 3, "name": "it", "bias_initializer": "random_normal", **options}
    return keras.Model(inputs, DENSE[ndim](filters, **options)(inputs))


def _network() -> keras.Model:
    """Convolutions with and without window, a depthwise one, a shared one, and a dense layer."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    x = layers.Add(name="add")([x, shared(shared(x))])
    x = layers.DepthwiseConv2D(3, name="shift")(x)
    x = layers.Conv2D(12, 1, activation="relu", name="point")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x), name="network")


def _outputs(model: keras.Model, seed: int = 1) -> np.ndarray:
    shape = (2, *model.inputs[0].shape[1:])
    return _np(model(np.random.default_rng(seed).standard_normal(shape).astype("float32")))


def _error(first: keras.Model, second: keras.Model) -> float:
    a, b = _outputs(first), _outputs(second)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def _factors(rng: np.random.Generator, *sizes: int, spatial: tuple[int, ...]) -> TuckerFactors:
    channels, inner, outer, filters = sizes
    shapes = (channels, inner), (*spatial, inner, outer), (filters, outer)
    return TuckerFactors(*(rng.standard_normal(shape).astype("float32") for shape in shapes))


def _tensorly_kernel(kernel: np.ndarray, ranks: tuple[int, int]) -> np.ndarray:
    """Tucker-2 by tensorly itself, on the unreshaped kernel."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    modes = [kernel.ndim - 2, kernel.ndim - 1]
    (core, factors), _ = partial_tucker(
        kernel.astype(np.float64), list(ranks), modes, n_iter_max=20, init="svd", tol=1e-8
    )
    return np.asarray(tensorly.tenalg.multi_mode_dot(core, factors, modes=modes))


# --- the layers --------------------------------------------------------------------------------


@pytest.mark.backend
@settings(max_examples=12)
@given(
    ndim=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    window=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_the_kernel_is_the_sum_over_the_factors(
    ndim: int, sizes: tuple[int, ...], window: tuple[int, ...]
) -> None:
    channels, inner, outer, filters = sizes
    spatial = window[:ndim]
    limits = full_tucker_ranks((*spatial, channels, filters))
    inner, outer = min(inner, limits[0]), min(outer, limits[1])
    rng = np.random.default_rng(sum(sizes))
    factors = _factors(rng, channels, inner, outer, filters, spatial=spatial)
    layer = TUCKER[ndim](filters, spatial, ranks=(inner, outer))
    layer.start_from(factors)
    layer.build((None, *(8,) * ndim, channels))
    expected = np.zeros((*spatial, channels, filters))
    for at in np.ndindex(*spatial, inner, outer):
        a, b = factors.first[:, at[-2]], factors.last[:, at[-1]]
        expected[at[:-2]] += float(factors.core[at]) * np.multiply.outer(a, b).astype(float)
    np.testing.assert_allclose(_np(layer.kernel), expected, atol=1e-5 * np.abs(expected).max())
    assert [w.name for w in layer.trainable_variables] == ["first", "core", "last", "bias"]
    weights = channels * inner + math.prod(spatial) * inner * outer + filters * outer + filters
    assert layer.count_params() == weights
    # Either order of the two products, as a product of its matrices' sizes.
    length = math.prod(spatial)
    assert layer.rebuild_macs == min(
        length * inner * outer * filters + length * channels * inner * filters,
        length * channels * inner * outer + length * channels * outer * filters,
    )


@EVERY
def test_the_layer_computes_what_the_dense_convolution_computes(
    ndim: int, options: dict[str, Any]
) -> None:
    model = _model(ndim, **options)
    dense = model.get_layer("it")
    config = {k: v for k, v in dense.get_config().items() if k != "groups"}
    for ranks in ((2, 3), (6, 8)):
        layer = TUCKER[ndim].from_config({**config, "ranks": ranks})
        outputs = layer(model.input)
        assert tuple(outputs.shape) == tuple(model.outputs[0].shape)
        assert layer.ranks == ranks
        assert layer.full_ranks == (6, 8)
        dense.kernel.assign(layer.factors.kernel())
        if layer.bias is not None:
            layer.bias.assign(dense.bias)
        assert _error(keras.Model(model.input, outputs), model) < TOLERANCE
    assert np.std(_outputs(model)) > 0.05


@pytest.mark.parametrize("ranks", [(2, 5), (6, 2)], ids=["last first", "first first"])
def test_gradients_are_the_numerical_ones(
    ranks: tuple[int, int], layer_gradients: Callable[..., list[np.ndarray]]
) -> None:
    rng = np.random.default_rng(4)
    x, target = rng.standard_normal((2, 7, 6)), rng.standard_normal((2, 5, 8))
    layer = TuckerConv1D(8, 3, ranks=ranks, dtype="float64")
    layer.build(x.shape)
    last_first, first_first = layer._orders()
    assert (last_first < first_first) == (ranks == (2, 5)), "both orders are to be tried"

    def loss(factors: TuckerFactors) -> float:
        # y[n, t, s] = sum_{l, c} x[n, t + l, c] W[l, c, s]
        kernel = factors.kernel()
        y = sum(x[:, position : position + 5] @ kernel[position] for position in range(3))
        return float(np.sum(np.sin(y) * target))

    ours = layer_gradients(layer, lambda: ops.sum(ops.sin(layer(x)) * target))
    factors = layer.factors
    assert factors.core.dtype == np.float64
    for index, name in enumerate(("first", "core", "last")):
        values = getattr(factors, name)
        numerical = np.zeros_like(values)
        for at in np.ndindex(values.shape):
            step = np.zeros_like(values)
            step[at] = 1e-5
            above = loss(factors._replace(**{name: values + step}))
            below = loss(factors._replace(**{name: values - step}))
            numerical[at] = (above - below) / 2e-5
        assert np.abs(numerical).max() > 0.1
        np.testing.assert_allclose(ours[index], numerical, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_config_holds_every_argument_and_comes_back(ndim: int) -> None:
    unusual = {
        "ranks": (2, 3),
        "strides": 2,
        "padding": "same",
        "data_format": "channels_first",
        "use_bias": True,
        "activation": "tanh",
        "kernel_initializer": keras.initializers.HeNormal(seed=4),
        "bias_initializer": keras.initializers.Constant(0.3),
        "kernel_regularizer": keras.regularizers.L2(0.07),
        "bias_regularizer": keras.regularizers.L1(0.03),
        "activity_regularizer": keras.regularizers.L2(0.02),
        "kernel_constraint": keras.constraints.MaxNorm(1.7),
        "bias_constraint": keras.constraints.NonNeg(),
        "name": "unusual",
        "trainable": False,
        "dtype": "mixed_float16",
    }
    layer = TUCKER[ndim](5, 3, **unusual)
    config = layer.get_config()
    arguments = set(DENSE[ndim](5, 3).get_config()) - {"groups"} | {"ranks"}
    assert set(config) == arguments
    default = TUCKER[ndim](5, 3).get_config()
    assert default["ranks"] is None
    same = [name for name in unusual if config[name] == default[name] and name != "use_bias"]
    assert not same, f"the test's values equal the defaults of {same}"
    assert TUCKER[ndim].from_config(config).get_config() == config
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is TUCKER[ndim]
    assert again.get_config() == config
    other = TUCKER[ndim](5, 3, dilation_rate=2).get_config()
    assert other["dilation_rate"] == (2,) * ndim
    built = TUCKER[ndim](5, 3)
    built.build((None, *(6,) * ndim, 4))
    assert built.get_config()["ranks"] == (4, 5)


def test_the_kernels_regularizer_and_constraint_are_the_dense_layers() -> None:
    options = {
        "kernel_regularizer": keras.regularizers.L1L2(0.03, 0.07),
        "bias_regularizer": keras.regularizers.L2(0.05),
    }
    model = _model(**options)
    low = factorize(model, decomposition="tucker", ranks=(2, 3))
    dense = model.get_layer("it")
    dense.kernel.assign(low.get_layer("it").kernel)
    _outputs(low)
    ours, theirs = [float(v) for v in low.losses], [float(v) for v in dense.losses]
    assert sorted(ours) == pytest.approx(sorted(theirs), rel=1e-5)
    assert len(ours) == 2
    low.get_layer("it").trainable = False
    assert low.losses == []
    held = TuckerConv2D(
        8, 3, ranks=(2, 3), kernel_constraint=keras.constraints.MaxNorm(0.4, [0, 1, 2])
    )
    held.build((None, 8, 8, 6))
    free = held.factors.kernel()
    norms = np.sqrt(np.sum(np.square(_np(held.kernel)), axis=(0, 1, 2)))
    assert norms.max() <= 0.4001 < np.sqrt(np.sum(np.square(free), axis=(0, 1, 2))).max()


@pytest.mark.parametrize("ranks", [None, (3, 5)])
def test_it_starts_as_its_initializer_says(ranks: tuple[int, int] | None) -> None:
    layer = TuckerConv2D(
        16, 3, ranks=ranks, kernel_initializer=keras.initializers.HeNormal(seed=11)
    )
    layer.build((None, 8, 8, 6))
    drawn = _np(keras.initializers.HeNormal(seed=11)((3, 3, 6, 16)))
    first, core, last = layer.factors
    np.testing.assert_allclose(first.T @ first, np.eye(layer.ranks[0]), atol=1e-5)
    np.testing.assert_allclose(last.T @ last, np.eye(layer.ranks[1]), atol=1e-5)
    error = np.linalg.norm(_np(layer.kernel) - drawn) / np.linalg.norm(drawn)
    if ranks is None:
        assert layer.ranks == (6, 16)
        assert error < 1e-6
        return
    # The higher-order SVD: the first singular vectors of the two unfoldings.
    for axis, basis in ((2, first), (3, last)):
        unfolded = np.moveaxis(drawn, axis, 0).reshape(drawn.shape[axis], -1)
        u = np.linalg.svd(unfolded, full_matrices=False)[0][:, : basis.shape[1]]
        np.testing.assert_allclose(basis @ basis.T, u @ u.T, atol=1e-4)
    assert core.shape == (3, 3, 3, 5)
    assert 0.3 < error < 1


def test_mixed_precision_computes_in_half_and_keeps_single() -> None:
    layer = TuckerConv2D(5, 3, ranks=(2, 3), dtype="mixed_float16")
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 4)).astype("float32")
    result = layer(x)
    assert keras.backend.standardize_dtype(result.dtype) == "float16"
    assert {keras.backend.standardize_dtype(v.dtype) for v in layer.variables} == {"float32"}
    single = TuckerConv2D.from_config({**layer.get_config(), "dtype": "float32"})
    single.build(x.shape)
    single.set_weights(layer.get_weights())
    np.testing.assert_allclose(_np(result).astype("float32"), _np(single(x)), atol=0.01)


def test_tucker2_of_ranks_no_unfolding_has_still_computes_and_does_not_warn() -> None:
    kernel = np.random.default_rng(1).standard_normal((3, 12, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factors = tucker2(kernel, (5, 1))  # 5 input channels, where one output's core has 3
    np.testing.assert_allclose(factors.first.T @ factors.first, np.eye(5), atol=1e-9)
    best = np.linalg.norm(kernel - _tensorly_kernel(kernel, (3, 1)))
    assert np.linalg.norm(kernel - factors.kernel()) == pytest.approx(best, rel=1e-3)
    assert full_tucker_ranks((3, 20, 4)) == (12, 4)
    np.testing.assert_allclose(tucker2(kernel, (12, 4), iterations=0).kernel(), kernel, atol=1e-9)


# --- factorize ---------------------------------------------------------------------------------


def test_at_full_rank_a_network_keeps_its_function() -> None:
    network = _network()
    low = factorize(network, decomposition="tucker")
    assert _error(low, network) < TOLERANCE
    assert [type(layer).__name__ for layer in factorized_layers(low)] == [
        "TuckerConv2D",
        "TuckerConv2D",
        "SVDConv2D",
        "SVDDense",
    ]
    assert low.ranks == {"stem": (3, 8), "shared": (8, 8), "point": 8, "head": 10}
    assert [layer.matricization for layer in low_rank_layers(low)] == ["channel", "channel"]
    rows = {row.name: row for row in dprp.summarize(low).rows}
    assert (rows["stem"].decomposition, rows["stem"].rank) == ("tucker", (3, 8))
    assert "depthwise" in str(rows["shift"].skipped)
    assert "8, 8 of 8, 8" in str(dprp.summarize(low))


@pytest.mark.parametrize(("ndim", "options"), WINDOWS[:-1], ids=str)
def test_cut_and_folded_it_computes_the_kernel_of_tensorly(
    ndim: int, options: dict[str, Any]
) -> None:
    original = _model(ndim, **options)
    low = factorize(original, decomposition="tucker", ranks=(3, 4))
    assert _error(low, original) > 1e-2, "cut ranks must show, or the test is vacuous"
    reference = _model(ndim, **options)
    kernel = _np(original.get_layer("it").kernel)
    reference.get_layer("it").set_weights(original.get_layer("it").get_weights())
    cut = _tensorly_kernel(kernel, (3, 4))
    reference.get_layer("it").kernel.assign(cut)
    assert _error(low, reference) < TOLERANCE
    # No worse than projecting on each unfolding's first singular vectors, where it starts.
    flat = kernel.reshape(-1, *kernel.shape[-2:]).astype(np.float64)
    for axis, rank in ((1, 3), (2, 4)):
        unfolded = np.moveaxis(flat, axis, 0).reshape(flat.shape[axis], -1)
        u = np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
        flat = np.moveaxis(np.tensordot(u @ u.T, flat, (1, axis)), 0, axis)
    projected = np.linalg.norm(flat.reshape(kernel.shape) - kernel)
    assert np.linalg.norm(_np(low.get_layer("it").kernel) - kernel) < 1.0001 * projected
    # What the fold computes is the layer's own kernel to the last digits.
    for form in ("smallest", "two_stage", "dense"):
        folded = fold(low, form=form)
        assert _error(folded, low) < TOLERANCE
        assert all(type(layer).__module__.startswith("keras.") for layer in folded.layers)
        assert folded.layers[-1].name == "it"
        assert len(folded.layers) == (2 if form == "dense" else 4)
    bias = 8 if options.get("use_bias", True) else 0
    window = math.prod(kernel.shape[:-2])
    assert fold(low).count_params() - bias == 6 * 3 + window * 3 * 4 + 4 * 8
    first = options.get("data_format") == "channels_first"
    cut_axes = slice(2, None) if first else slice(1, -1)
    places = low.inputs[0].shape[cut_axes], low.outputs[0].shape[cut_axes]
    assert model_cost(fold(low)).macs == Form("tucker", (3, 4)).macs(kernel.shape, *places)


def test_pointwise_and_dense_layers_become_their_truncated_svd() -> None:
    network = _network()
    low = factorize(
        network, decomposition="tucker", ranks={"point": 3, "head": 4, "stem": (2, 5), "shared": 6}
    )
    assert low.ranks == {"stem": (2, 5), "shared": (6, 6), "point": 3, "head": 4}
    for name, rank in (("point", 3), ("head", 4)):
        kernel = _np(network.get_layer(name).kernel)
        matrix = kernel.reshape(-1, kernel.shape[-1])
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        expected = ((u * s)[:, :rank] @ vt[:rank]).reshape(kernel.shape)
        np.testing.assert_allclose(_np(low.get_layer(name).kernel), expected, atol=1e-5)
        assert np.abs(expected - kernel).max() > 1e-2


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (5, {"stem": (3, 5), "shared": (5, 5), "point": 5, "head": 5}),
        (100, {"stem": (3, 8), "shared": (8, 8), "point": 8, "head": 10}),
        ((6, 4), {"stem": (3, 4), "shared": (6, 4), "point": 4, "head": 4}),
        ({"shared": [2, 3]}, {"stem": (3, 8), "shared": (2, 3), "point": 8, "head": 10}),
    ],
    ids=str,
)
def test_ranks_for_all_are_cut_to_what_a_layer_has(ranks: Any, expected: dict[str, Any]) -> None:
    assert factorize(_network(), decomposition="tucker", ranks=ranks).ranks == expected


def _rank_plan(matricization: str = "tucker", **ranks: Any) -> RankPlan:
    """A plan written by hand; only what `factorize` reads has a meaning."""
    rows = tuple(
        PlannedRanks(
            name,
            "tucker" if matricization == "tucker" and chosen and len(chosen) == 2 else "channel",
            (3, 3, 8, 8),
            (8, 8) if chosen and len(chosen) == 2 else (8,),
            chosen,
            0.1,
            10,
            20,
        )
        for name, chosen in ranks.items()
    )
    costs = {"parameters": 100.0}
    return RankPlan("energy", matricization, "kernel", {}, rows, costs, costs)


def test_a_rank_plan_says_matricization_ranks_and_layers(tmp_path: Path) -> None:
    network = _network()
    plan = _rank_plan(stem=None, shared=(3, 4), point=None, head=(5,))
    low = factorize(network, ranks=RankPlan.load(plan.save(tmp_path / "ranks.json")))
    assert low.ranks == {"shared": (3, 4), "head": 5} == plan.ranks
    assert type(low.get_layer("stem")) is layers.Conv2D
    assert type(low.get_layer("shared")) is TuckerConv2D
    ranks: Any = {"shared": (3, 4), "head": 5}
    same = factorize(network, decomposition="tucker", ranks=ranks, layers=list(ranks))
    assert _error(low, same) == 0.0
    channel = factorize(network, decomposition="channel", ranks=_rank_plan("channel", shared=(3,)))
    layer = channel.get_layer("shared")
    assert isinstance(layer, SVDLayer)
    assert (layer.matricization, channel.ranks) == ("channel", {"shared": 3})


def _classifier() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, activation="relu", name="stem")(inputs)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="body")(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(layers.Flatten()(x)))


@pytest.mark.parametrize("matricization", ["tucker", "channel"])
def test_calibration_data_keep_the_outputs(matricization: str) -> None:
    network = _network()
    x = np.random.default_rng(5).standard_normal((64, 8, 8, 3)).astype("float32")
    x *= np.array([0.05, 1.0, 4.0], "float32")  # of the first channel little is seen
    ranks: Any = {"stem": (2, 6) if matricization == "tucker" else 3}
    only = keras.Model(network.input, network.get_layer("stem").output)
    only.get_layer("stem").activation = keras.activations.linear
    outputs = _np(only(x))
    errors = []
    for data in (None, x):
        low = factorize(only, decomposition=matricization, ranks=ranks, calibration_data=data)
        assert low.ranks == ranks
        errors.append(np.linalg.norm(_np(low(x)) - outputs) / np.linalg.norm(outputs))
    assert errors[1] < 0.9 * errors[0]
    if matricization == "channel":
        # The best rank 3 keeps the principal directions of the outputs, here without a bias.
        rows = outputs.reshape(-1, 8).astype(np.float64)
        principal = np.linalg.eigh(rows.T @ rows)[1][:, -3:]
        kernel = _np(only.get_layer("stem").kernel) @ principal @ principal.T
        np.testing.assert_allclose(_np(low.get_layer("stem").kernel), kernel, atol=2e-3)
    # At full rank there is nothing to keep, and no cut to tell the data's from the kernel's.
    full = factorize(only, decomposition=matricization, calibration_data=x)
    assert _error(full, factorize(only, decomposition=matricization)) == 0.0


def test_it_trains_saves_and_loads(
    tmp_path: Path, small_digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = small_digits[0][:512], small_digits[1][:512]
    low = factorize(
        _classifier(),
        decomposition="tucker",
        ranks=(3, 5),
        settings=DPRPSettings(compression_weight=1.0, threshold=0.3),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    low.compile(keras.optimizers.Adam(0.02), loss)
    before = {layer.name: layer.factors for layer in factorized_layers(low)}
    record = RankHistory()
    callbacks = [RankPruning(start_epoch=2), record]
    history = low.fit(x, y, epochs=2, batch_size=64, verbose=0, callbacks=callbacks).history
    assert history["app_loss"][-1] < 0.9 * history["app_loss"][0]
    for name, ranks in (("stem", (1, 5)), ("body", (3, 5))):
        # Every factor trains; ranks are what they were, whatever the SVD layers did.
        assert low.ranks[name] == ranks
        for old, new in zip(before[name], low.get_layer(name).factors, strict=True):
            assert np.abs(old - new).max() > 1e-4
    assert record.record["full_ranks"] == {"head": 10}
    folded = fold(low)
    assert record.record["epochs"][-1]["folded_parameters"] == model_cost(folded).parameters

    low.save(tmp_path / "low.keras")
    again = load_model(tmp_path / "low.keras")
    assert isinstance(again, dprp.DPRPModel)
    assert again.ranks == low.ranks
    np.testing.assert_array_equal(_outputs(again), _outputs(low))
    # A model at its first ranks takes over what training left, Tucker layers included.
    low.save_weights(tmp_path / "low.weights.h5")
    fresh = factorize(_classifier(), decomposition="tucker", ranks=(3, 5))
    fresh.load_weights(tmp_path / "low.weights.h5")
    assert fresh.ranks == low.ranks
    np.testing.assert_array_equal(_outputs(fresh), _outputs(low))


def test_a_folded_model_exports(tmp_path: Path, small_digits: tuple[np.ndarray, Any]) -> None:
    x = small_digits[0][:8]
    original = _classifier()
    low = factorize(original, decomposition="tucker", ranks=(3, 5))
    folded = fold(low)
    assert [row.form for row in choose_forms(low)] == ["dense", "tucker", "channel"]
    report = deploy.export(folded, tmp_path / "low.tflite", verification_data=x)
    outputs = deploy.run_file(report.path, x)
    assert isinstance(outputs, np.ndarray)
    np.testing.assert_allclose(outputs, _np(low(x)), atol=1e-5)
    assert np.abs(outputs - _np(original(x))).max() > 1e-2


# --- costs and folding -------------------------------------------------------------------------


def test_costs_are_those_counted_by_hand() -> None:
    model = _model(padding="same", strides=2)  # 9 x 8 x 6 -> 5 x 4 x 8
    low = factorize(model, decomposition="tucker", ranks=(2, 3))
    cost = model_cost(low)
    factors = 6 * 2 + 9 * 2 * 3 + 8 * 3
    assert cost.parameters == factors + 8 == low.get_layer("it").count_params()
    assert cost.dense_parameters == model.count_params() == 9 * 6 * 8 + 8
    assert cost.dense_macs == 20 * 9 * 6 * 8
    # (r_in r_out S + C r_in S) L is the cheaper order
    assert cost.macs == 20 * 9 * 6 * 8 + 9 * (2 * 3 * 8 + 6 * 2 * 8)
    folded = model_cost(fold(low))
    assert folded.parameters == factors + 8
    assert folded.macs == 72 * 12 + 20 * (54 + 24)
    assert cost.compression == pytest.approx(1 - (factors + 8) / (9 * 6 * 8 + 8))


def test_the_rule_takes_the_smaller_form_and_obeys() -> None:
    low = factorize(
        _network(), decomposition="tucker", ranks={"shared": (2, 3)}, layers=["stem", "shared"]
    )
    rows = {row.name: row for row in choose_forms(low)}
    # The stem has full ranks (3, 8): 9 + 216 + 64 weights instead of 216.
    assert (rows["stem"].form, rows["stem"].folded_parameters) == ("dense", 216)
    assert "three stages would store 289 weights instead of 216" in rows["stem"].reason
    assert (rows["shared"].form, rows["shared"].folded_parameters) == ("tucker", 16 + 54 + 24)
    assert (rows["shared"].rank, rows["shared"].full_rank) == ((2, 3), (8, 8))
    assert [row.form for row in choose_forms(low, form="dense")] == ["dense"] * 2
    assert [row.form for row in choose_forms(low, form="two_stage")] == ["tucker"] * 2
    fast = {row.name: row for row in choose_forms(low, form="fast")}
    assert (fast["stem"].form, fast["shared"].form) == ("dense", "tucker")
    assert f"{94 / 576:.2f}" in fast["shared"].reason
    named = choose_forms(low, forms={"stem": "tucker", "shared": Form("dense")})
    assert [row.form for row in named] == ["tucker", "dense"]
    for form in ("smallest", "dense", "two_stage"):
        assert _error(fold(low, form=form), low) < TOLERANCE
    constrained = factorize(_model(kernel_constraint="max_norm"), decomposition="tucker", ranks=2)
    assert [row.form for row in choose_forms(constrained, form="two_stage")] == ["dense"]
    assert "constraint" in choose_forms(constrained)[0].reason


def test_strides_count_against_the_stage_before_them() -> None:
    low = factorize(_model(padding="same", strides=2), decomposition="tucker", ranks=(5, 3))
    # Per output: 4 x 30 + 135 + 24 MACs of the dense 432.
    assert f"about {279 / 432:.2f} of" in choose_forms(low, form="fast")[0].reason


def test_its_forms_are_dense_its_own_and_what_the_kernel_allows() -> None:
    layer = factorize(_model(), decomposition="tucker", ranks=(2, 3)).get_layer("it")
    forms = {form.kind: form for form in layer_forms(layer)}
    assert list(forms)[:2] == ["dense", "tucker"]
    assert forms["tucker"].ranks == (2, 3)
    assert forms["channel"].ranks == (3,), "its filters span three dimensions"
    assert [form.kind for form in layer_forms(layer, None)] == ["dense", "tucker"]
    low = factorize(_model(), decomposition="tucker", ranks=(2, 3))
    for form in forms.values():
        assert _error(fold(low, forms={"it": form}), low) < TOLERANCE


def test_a_fold_plan_holds_for_tucker_layers_too(tmp_path: Path) -> None:
    import dataclasses

    low = factorize(_model(), decomposition="tucker", ranks=(2, 3))
    (site,) = layer_sites(low)
    assert site.geometries[0].layer().kernel_shape == (3, 3, 6, 8)
    form = Form("tucker", (2, 3))
    made = fold_plan(form)
    row = dataclasses.replace(
        made.layers[0], kernel_shape=(3, 3, 6, 8), decomposition="tucker", rank=(2, 3)
    )
    plan = dataclasses.replace(made, layers=(row,))
    path = plan.save(tmp_path / "plan.json")
    folded = fold(low, plan=path)
    assert len(folded.layers) == 4
    assert _error(folded, low) < TOLERANCE
    other = factorize(_model(), decomposition="tucker", ranks=(3, 3))
    with pytest.raises(ValueError, match=r"`plan` must have been made for.*\['it'\]"):
        fold(other, plan=path)


@pytest.mark.long
def test_the_planner_measures_tucker_layers(tmp_path: Path) -> None:
    low = factorize(_network(), decomposition="tucker", ranks=(3, 4))
    found = deploy.plan_fold(low, rounds=3, cache=tmp_path)
    assert [layer.name for layer in found.layers] == ["stem", "shared", "point", "head"]
    shared = found.layers[1]
    assert "tucker" in {candidate.form.kind for candidate in shared.candidates}
    assert _error(fold(low, plan=found), low) < TOLERANCE


def test_nested_models_are_rewritten_and_found_by_path() -> None:
    def inner(name: str) -> keras.Model:
        inputs = keras.Input((8, 8, 6))
        x = layers.Conv2D(6, 3, padding="same", name="conv")(inputs)
        return keras.Model(inputs, x, name=name)

    inputs = keras.Input((8, 8, 6))
    model = keras.Model(inputs, inner("b")(inner("a")(inputs)))
    low = factorize(model, decomposition="tucker", ranks={"a/conv": (2, 3), "conv": (4, 5)})
    assert low.ranks == {"a/conv": (2, 3), "b/conv": (4, 5)}
    assert _error(fold(low), low) < TOLERANCE
    plan = _rank_plan("tucker", **{"b/conv": (2, 2)})
    assert factorize(model, ranks=plan).ranks == {"b/conv": (2, 2)}


# --- bad input ---------------------------------------------------------------------------------


def _broken() -> keras.Model:
    low = factorize(_model(), decomposition="tucker", ranks=2)
    core = low.get_layer("it").core
    core.assign(np.full(core.shape, np.nan))
    return low


def _layer(ranks: Any) -> TuckerConv2D:
    return TuckerConv2D(8, 3, ranks=ranks)


def _factorized(ranks: Any) -> keras.Model:
    return factorize(_model(), decomposition="tucker", ranks=ranks)


def _misfit() -> None:
    layer = TuckerConv2D(8, 3, ranks=(2, 3), name="it")
    layer.start_from(_factors(np.random.default_rng(0), 5, 2, 3, 8, spatial=(3, 3)))
    layer.build((None, 8, 8, 6))


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: _layer(4), r"`ranks`.*\(r_in, r_out\).*ranks=4"),
    (lambda: _layer((4,)), r"`ranks`.*ranks=\(4,\)"),
    (lambda: _layer((0, 4)), r"`ranks`.*ranks=\(0, 4\)"),
    (lambda: _layer("44"), r"`ranks`.*ranks='44'"),
    (
        lambda: TuckerConv2D(8, 3, ranks=(7, 4), name="it").build((None, 8, 8, 6)),
        r"`ranks` of layer 'it'.*1\.\.6, 1\.\.8.*\(7, 4\)",
    ),
    (lambda: TuckerConv2D(0, 3), r"`filters`.*filters=0"),
    (_misfit, r"factors of layer 'it'.*\(6, 2\).*Received.*\(5, 2\)"),
    (
        lambda: factorize(_model(), decomposition="tucker", ranks={"it": (7, 2)}),
        r"`ranks` of layer 'it'.*1\.\.6, 1\.\.8.*\(7, 2\)",
    ),
    (
        lambda: factorize(_network(), decomposition="tucker", ranks={"head": (2, 2)}),
        r"`ranks` of layer 'head'.*1\.\.10.*\(2, 2\)",
    ),
    (lambda: _factorized({"it": (2, 2, 2)}), r"pairs.*'it': \(2, 2, 2\)"),
    (
        lambda: factorize(_model(), decomposition="tucker", ranks=(0, 2)),
        r"`ranks`.*pairs.*\(0, 2\)",
    ),
    (
        lambda: factorize(_model(), decomposition="channel", ranks=(2, 2)),
        r"`ranks`.*integer.*\(2, 2\)",
    ),
    (
        lambda: factorize(_model(), decomposition="channel", ranks={"it": (2, 2)}),
        r"`ranks`.*\(2, 2\)",
    ),
    (
        lambda: factorize(_model(), decomposition="spatial", ranks=_rank_plan(it=(2, 2))),
        r"`decomposition` must be left out.*'tucker'.*'spatial'",
    ),
    (
        lambda: factorize(_model(), ranks=_rank_plan(it=(2, 2)), layers=["it"]),
        r"`layers` must be left out",
    ),
    (lambda: factorize(_model(), ranks=_rank_plan(at=(2, 2))), r"`ranks`.*\['it'\].*\['at'\]"),
    (lambda: factorize(_model(), ranks=_rank_plan(it=None)), r"every layer dense"),
    (lambda: fold(_broken()), r"`model` must have finite.*`core`.*'it'"),
    (
        lambda: fold(factorize(_model(), decomposition="tucker", ranks=2), forms={"it": "channel"}),
        r"`forms`.*'channel'.*'it'.*'tucker'",
    ),
    (
        lambda: deploy.measure_latency(factorize(_model(), decomposition="tucker", ranks=2)),
        r"SVD layers.*Tucker layers alone",
    ),
    (lambda: TrainSettings(decomposition="tucker"), r"`decomposition`.*'tucker'"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=map(str, itertools.count()))
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
