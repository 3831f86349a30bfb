"""The rank regularizers of the literature against closed forms and numerical gradients.

Twice: as functions of singular values, and of a kernel through its decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import dprp_tf as dprp
from dprp_tf.training import regularizers
from dprp_tf.training.rank_regularization import RankRegularization
from dprp_tf.training.regularizers import (
    CappedNuclearNorm,
    ElasticNet,
    GemanPenalty,
    LaplacePenalty,
    LogarithmPenalty,
    LogNuclearNorm,
    ModifiedStableRank,
    NuclearNorm,
    RankRegularizer,
    SchattenNorm,
    TruncatedNuclearNorm,
    WeightedNuclearNorm,
)

backend = pytest.mark.backend
Gradient = Callable[[Callable[[Any], Any], np.ndarray], np.ndarray]
Closed = Callable[[np.ndarray], float]

# The formulas as printed, for s descending and not negative. Schatten's is rounded at 0.
CASES: list[tuple[RankRegularizer, Closed]] = [
    (NuclearNorm(), lambda s: sum(s)),
    (ElasticNet(0.3), lambda s: sum(v + 0.3 * v**2 for v in s)),
    (SchattenNorm(0.6, epsilon=0.02), lambda s: sum((v + 0.02) ** 0.6 - 0.02**0.6 for v in s)),
    (TruncatedNuclearNorm(2), lambda s: sum(s[2:])),
    (WeightedNuclearNorm(1, weights=(0.3, 1.7, 2.5, 4.0)), lambda s: float(_weighted(s))),
    (CappedNuclearNorm(1, theta=0.8), lambda s: sum(min(v, 0.8) for v in s[1:])),
    (LogarithmPenalty(4.0), lambda s: sum(np.log(4.0 * v + 1) for v in s) / np.log(5.0)),
    (LogNuclearNorm(), lambda s: sum(np.log(v + 1) for v in s)),
    (GemanPenalty(0.35), lambda s: sum(v / (v + 0.35) for v in s)),
    (LaplacePenalty(0.6), lambda s: sum(1 - np.exp(-v / 0.6) for v in s)),
    (ModifiedStableRank(2), lambda s: sum(s[2:]) / sum(s[:2])),
]
EVERY = pytest.mark.parametrize(("penalty", "closed"), CASES, ids=lambda case: repr(case)[:24])
SPECTRA = [
    np.array([4.0, 2.5, 1.2, 0.4, 0.1]),
    np.array([0.9, 0.7, 0.5]),
    np.array([3.0, 0.3]),
]


def _weighted(s: np.ndarray) -> float:
    return float(np.dot((0.3, 1.7, 2.5, 4.0)[: len(s) - 1], s[1:]))


def _array(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def _numerical(function: Closed, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    result = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        shift = np.zeros(at.shape)
        shift[index] = step
        result[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return result


# --- functions of singular values --------------------------------------------------------------


@backend
@EVERY
@pytest.mark.parametrize("s", SPECTRA, ids=len)
def test_the_closed_form(penalty: RankRegularizer, closed: Closed, s: np.ndarray) -> None:
    assert float(_array(penalty(s.astype("float32")))) == pytest.approx(closed(s), rel=2e-5)


@EVERY
def test_rows_are_layers(penalty: RankRegularizer, closed: Closed) -> None:
    rows = np.stack([SPECTRA[0], 0.7 * SPECTRA[0]]).astype("float32")
    expected = [closed(row) for row in rows.astype("float64")]
    assert abs(expected[0] - expected[1]) > 1e-3 or isinstance(penalty, ModifiedStableRank)
    np.testing.assert_allclose(_array(penalty(rows)), expected, rtol=2e-5)


@EVERY
@pytest.mark.parametrize("s", SPECTRA, ids=len)
def test_the_gradient_on_the_values(
    gradient: Gradient, penalty: RankRegularizer, closed: Closed, s: np.ndarray
) -> None:
    # No value lies within the step of the cap.
    np.testing.assert_allclose(gradient(penalty, s), _numerical(closed, s), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("penalty", [case[0] for case in CASES], ids=lambda case: repr(case)[:24])
def test_signs_do_not_matter_and_zeros_are_harmless(
    gradient: Gradient, penalty: RankRegularizer
) -> None:
    s = SPECTRA[0].astype("float32")
    signs = np.array([1, -1, 1, -1, -1], "float32")
    np.testing.assert_allclose(_array(penalty(s * signs)), _array(penalty(s)), rtol=1e-6)
    assert float(_array(penalty(np.zeros(4, "float32")))) == 0.0
    for edge in (np.zeros(4), np.ones(3), np.array([2.0, 0.0, 0.0])):
        assert np.all(np.isfinite(gradient(penalty, edge)))


def test_weights_by_value_are_held_constant(gradient: Gradient) -> None:
    penalty = WeightedNuclearNorm(1, epsilon=0.05)
    s = SPECTRA[0]
    weights = 1 / (s[1:] + 0.05)
    assert float(_array(penalty(s.astype("float32")))) == pytest.approx(np.dot(weights, s[1:]))
    np.testing.assert_allclose(gradient(penalty, s), [0.0, *weights], rtol=1e-5)


def test_the_stable_rank_is_blind_to_scale_and_nothing_at_full_rank() -> None:
    s = SPECTRA[0].astype("float32")
    one, other = (float(_array(ModifiedStableRank(2)(scale * s))) for scale in (1.0, 37.0))
    assert one == pytest.approx(1.7 / 6.5, rel=1e-6)
    assert other == pytest.approx(one, rel=1e-6)
    assert float(_array(ModifiedStableRank(5)(s))) == 0.0


# --- functions of a kernel ---------------------------------------------------------------------


def _pressing(
    layer: keras.layers.Layer, kernel: np.ndarray, **arguments: Any
) -> RankRegularization:
    """A callback in the state it has in the first step of training a model of this one layer."""
    model = keras.Sequential([keras.Input((7, 7, kernel.shape[-2])[-layer.input_ndim :]), layer])
    layer.kernel.assign(kernel)
    model.compile("sgd", "mse")
    callback = RankRegularization(**arguments)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(0)
    return callback


def _dense(units: int) -> keras.layers.Layer:
    layer = keras.layers.Dense(units, use_bias=False, name="layer")
    layer.input_ndim = 1
    return layer


def _convolution(filters: int) -> keras.layers.Layer:
    layer = keras.layers.Conv2D(filters, (2, 3), use_bias=False, name="layer")
    layer.input_ndim = 3
    return layer


@backend
@EVERY
def test_the_gradient_on_a_kernel(
    layer_gradients: Callable[..., list[np.ndarray]],
    rng: np.random.Generator,
    penalty: RankRegularizer,
    closed: Closed,
) -> None:
    kernel = rng.standard_normal((5, 4)).astype("float32")
    layer = _dense(4)
    callback = _pressing(layer, kernel, penalty=penalty, decomposition="channel")
    assert callback._loss is not None
    (found,) = layer_gradients(layer, callback._loss.value)
    expected = _numerical(
        lambda w: closed(np.linalg.svd(w, compute_uv=False)), kernel.astype("float64")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert np.abs(expected).max() > 0.01


def _matrix(kernel: np.ndarray, kind: str) -> np.ndarray:
    """The matricized kernel (2, 3, C, S), spelled out index by index."""
    rows, columns, channels, filters = kernel.shape
    entry = {
        "spatial": lambda i, j, c, s: (s * channels + c, i * columns + j),
        "channel": lambda i, j, c, s: (s, (c * rows + i) * columns + j),
        "separable": lambda i, j, c, s: (s * columns + j, c * rows + i),
        "inputs": lambda i, j, c, s: (c, (i * columns + j) * filters + s),
    }[kind]
    shape = tuple(n + 1 for n in entry(*(n - 1 for n in kernel.shape)))
    matrix = np.zeros(shape)
    for index in np.ndindex(kernel.shape):
        matrix[entry(*index)] = kernel[index]
    return matrix


@backend
@pytest.mark.parametrize("decomposition", ["spatial", "channel", "separable", "tucker"])
def test_the_stable_rank_of_a_convolution(
    layer_gradients: Callable[..., list[np.ndarray]],
    rng: np.random.Generator,
    decomposition: str,
) -> None:
    kernel = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    layer = _convolution(5)
    ranks: Any = (2, 3) if decomposition == "tucker" else 2
    callback = _pressing(layer, kernel, ranks={"layer": ranks}, decomposition=decomposition)
    kinds = {"inputs": 2, "channel": 3} if decomposition == "tucker" else {decomposition: 2}

    def total(w: np.ndarray) -> float:
        spectra = [np.linalg.svd(_matrix(w, kind), compute_uv=False) for kind in kinds]
        pairs = zip(spectra, kinds.values(), strict=True)
        return sum(s[rank:].sum() / s[:rank].sum() for s, rank in pairs)

    assert callback._loss is not None
    assert float(_array(callback._loss.value())) == pytest.approx(total(kernel), rel=1e-5)
    (found,) = layer_gradients(layer, callback._loss.value)
    np.testing.assert_allclose(found, _numerical(total, kernel.astype("float64")), atol=1e-4)


def test_the_stable_ranks_gradient_is_eq_3_6(
    layer_gradients: Callable[..., list[np.ndarray]], rng: np.random.Generator
) -> None:
    kernel = rng.standard_normal((6, 4)).astype("float32")
    layer = _dense(4)
    callback = _pressing(layer, kernel, ranks={"layer": 1}, decomposition="channel")
    assert callback._loss is not None
    (found,) = layer_gradients(layer, callback._loss.value)
    u, s, vt = np.linalg.svd(kernel.astype("float64"), full_matrices=False)
    head, tail = s[:1].sum(), s[1:].sum()
    expected = tail / head * (u[:, 1:] @ vt[1:] / tail - u[:, :1] @ vt[:1] / head)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("penalty", [case[0] for case in CASES], ids=lambda case: repr(case)[:24])
def test_kernels_whose_svd_has_no_derivative(
    layer_gradients: Callable[..., list[np.ndarray]], penalty: RankRegularizer
) -> None:
    layer = _dense(3)
    callback = _pressing(layer, np.zeros((4, 3)), penalty=penalty, decomposition="channel")
    assert callback._loss is not None
    for kernel in (np.zeros((4, 3)), np.eye(4, 3), np.ones((4, 3))):
        layer.kernel.assign(kernel)
        callback.on_epoch_begin(0)
        callback.on_train_batch_begin(0)
        (found,) = layer_gradients(layer, callback._loss.value)
        assert np.all(np.isfinite(found))


# --- names, configs, bad input -----------------------------------------------------------------


def test_every_name_gives_a_penalty_of_its_own() -> None:
    made = [regularizers.get(name, rank=3) for name in regularizers.NAMES]
    assert len({type(penalty) for penalty in made}) == len(regularizers.NAMES) == 15
    assert {type(penalty) for penalty in made} >= {type(case[0]) for case in CASES}
    for name in regularizers.RANKED_NAMES:
        assert regularizers.get(name, rank=7).rank == 7  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=rf"`compression`.*rank=4.*{name}"):
            regularizers.get(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ElasticNet(0.0), r"`gamma`.*gamma=0\.0"),
        (lambda: SchattenNorm(1.5), r"`p`.*p=1\.5"),
        (lambda: SchattenNorm(0.5, epsilon=0.0), r"`epsilon`.*0\.0"),
        (lambda: TruncatedNuclearNorm(0), r"`rank`.*rank=0"),
        (lambda: ModifiedStableRank(2.5), r"`rank`.*rank=2\.5"),
        (lambda: ModifiedStableRank(True), r"`rank`.*rank=True"),
        (lambda: CappedNuclearNorm(2, theta=float("nan")), r"`theta`.*nan"),
        (lambda: WeightedNuclearNorm(2, weights=(1.0, -1.0)), r"`weights`.*-1\.0"),
        (lambda: WeightedNuclearNorm(1, (2.0,))(np.ones(4, "float32")), r"`weights`.*3.*1 weights"),
        (lambda: LaplacePenalty(float("inf")), r"`gamma`.*inf"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_factorized_model_takes_them_by_name() -> None:
    inputs = keras.Input((6, 6, 2))
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(keras.layers.Conv2D(3, 3)(inputs)))
    model = dprp.factorize(
        keras.Model(inputs, outputs), settings=dprp.DPRPSettings(compression="geman")
    )
    assert model.settings.compression == GemanPenalty()
    s = [np.asarray(_array(layer.s), "float64") for layer in model.low_rank_layers]
    expected = np.mean([np.sum(v / (v + 0.1)) for v in s])
    assert float(_array(model.structural_losses()["comp"])) == pytest.approx(expected, rel=1e-4)
