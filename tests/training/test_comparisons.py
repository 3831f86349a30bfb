"""The comparison methods: their steps against NumPy, and what their trainings end in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import dprp_tf as dprp
from dprp_tf.decomposition import full_rank
from dprp_tf.training.comparisons import (
    CompressionAware,
    LearningCompression,
    LowRankTraining,
    TrainedRankPruning,
    best_rank,
    soft_thresholded,
)

Fit = Callable[..., Any]


def _array(value: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(value))


def _svd(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The SVD of the matrix (filters, the rest)."""
    matrix = kernel.reshape(-1, kernel.shape[-1]).T.astype("float64")
    return np.linalg.svd(matrix, full_matrices=False)


# --- the steps ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    threshold=st.floats(0.0, 3.0, width=16),
    seed=st.integers(0, 2**16),
)
def test_soft_thresholding_is_numpys_and_the_proximal_operator(
    height: int, width: int, threshold: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((height, width))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    found = soft_thresholded(matrix, threshold)
    np.testing.assert_allclose(found, (u * np.maximum(s - threshold, 0)) @ vt, atol=1e-10)

    def objective(x: np.ndarray) -> float:
        return threshold * np.linalg.norm(x, "nuc") + 0.5 * np.sum((x - matrix) ** 2)

    for _ in range(5):
        assert objective(found + 0.1 * rng.standard_normal(matrix.shape)) >= objective(found)


@given(
    values=st.lists(st.floats(0.0, 4.0, width=16), min_size=1, max_size=6),
    steps=st.lists(st.floats(0.0, 1.0, width=16), min_size=6, max_size=6),
    alpha=st.floats(0.0, 5.0, width=16),
    mu=st.floats(0.0, 5.0, width=16),
)
def test_the_c_step_is_the_best_of_all_ranks(
    values: list[float], steps: list[float], alpha: float, mu: float
) -> None:
    s = np.sort(values)[::-1]
    cost = np.cumsum(steps)[: len(s)]

    def objective(rank: int) -> float:
        matrix = np.diag(s)
        truncated = np.diag(np.where(np.arange(len(s)) < rank, s, 0.0))
        return alpha * cost[rank - 1] + mu / 2 * np.sum((matrix - truncated) ** 2)

    found = best_rank(s, cost, alpha, mu)
    best = min(objective(rank) for rank in range(1, len(s) + 1))
    assert objective(found) == pytest.approx(best, rel=1e-12, abs=1e-12)


# --- trainings ----------------------------------------------------------------------------------


def _network() -> keras.Model:
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(12, 3, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(12, 3, strides=2, activation="relu", name="second")(x)
    outputs = keras.layers.Dense(10, name="last")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


@pytest.fixture
def fit(small_digits: tuple[np.ndarray, np.ndarray]) -> Fit:
    """A function (model, *callbacks) -> history over the same batches in each epoch."""
    x, y = small_digits

    def run(model: keras.Model, *callbacks: Any, epochs: int = 6, **arguments: Any) -> Any:
        arguments = {"shuffle": False, "verbose": 0, "batch_size": 64, **arguments}
        return model.fit(
            x[:960], y[:960], epochs=epochs, callbacks=list(callbacks), **arguments
        ).history

    return run


@pytest.mark.parametrize(
    ("method", "decomposition"),
    [
        (CompressionAware(0.06, 0.02, decomposition="channel"), "channel"),
        (LearningCompression(0.6, 0.05, 1.5, decomposition="channel"), "channel"),
        (TrainedRankPruning(0.1, 5, 0.003, decomposition="separable"), "separable"),
    ],
    ids=["ca", "lc", "trp"],
)
def test_ranks_fall_and_the_factorized_model_computes_the_same(
    fit: Fit,
    small_digits: tuple[np.ndarray, np.ndarray],
    method: LowRankTraining,
    decomposition: str,
) -> None:
    x, y = small_digits
    model, plain = _network(), _network()
    history = fit(model, method)
    full = {
        name: full_rank(model.get_layer(name).kernel.shape, decomposition)
        for name in ("first", "second", "last")
    }
    assert set(method.ranks) == set(full)
    assert all(1 <= method.ranks[name] <= full[name] for name in full)
    assert sum(method.ranks.values()) < 0.75 * sum(full.values())
    low = dprp.factorize(model, decomposition=decomposition, ranks=method.ranks)
    assert low.ranks == method.ranks
    expected = model.predict(x[960:], verbose=0)
    np.testing.assert_allclose(low.predict(x[960:], verbose=0), expected, atol=2e-4)
    # Chance is 0.1, and an untrained network has no more.
    accuracy = np.mean(np.argmax(expected, axis=-1) == y[960:])
    assert accuracy > 0.6
    assert np.mean(np.argmax(plain.predict(x[960:], verbose=0), -1) == y[960:]) < 0.3
    assert history["loss"][-1] < history["loss"][0]
    assert "compute_loss" not in vars(model)


KERNEL = np.random.default_rng(2).standard_normal((6, 4)).astype("float32")
SLOPE = np.outer([1, -2, 0.5, 1.5, -1, 0.3], [0.6, -1, 1.2, 0.2]).astype("float32") / 3


def _linear(y: Any, y_pred: Any) -> Any:
    return ops.sum(ops.cast(y, "float32") * y_pred, axis=-1)


def _trained(callback: LowRankTraining, epochs: int, steps: int) -> tuple[np.ndarray, Any]:
    """The kernel after gradient descent at 0.1 on <W, SLOPE> and what the method adds."""
    layer = keras.layers.Dense(4, use_bias=False, name="only")
    model = keras.Sequential([keras.Input((6,)), layer])
    layer.kernel.assign(KERNEL)
    model.compile(keras.optimizers.SGD(0.1), _linear)
    x = np.tile(SLOPE[:, :1].T / SLOPE[0, 0], (2 * steps, 1))
    y = np.tile(SLOPE[:1], (2 * steps, 1))
    history = model.fit(
        x, y, batch_size=2, epochs=epochs, verbose=0, shuffle=False, callbacks=[callback]
    ).history
    return _array(layer.kernel), history


def _cut(w: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def _energy(w: np.ndarray, discarded: float) -> int:
    s = np.linalg.svd(w, compute_uv=False) ** 2
    return next(r for r in range(1, len(s) + 1) if s[r:].sum() <= discarded * s.sum())


@pytest.mark.backend
def test_compression_aware_thresholds_after_each_epoch() -> None:
    method = CompressionAware(0.7, 0.05, decomposition="channel")
    found, _ = _trained(method, epochs=2, steps=3)
    w = KERNEL.astype("float64")
    for _ in range(2):
        w = soft_thresholded(w - 3 * 0.1 * SLOPE, 0.7 * 0.1 * 3)
    assert method.ranks == {"only": _energy(w, 0.05)}
    np.testing.assert_allclose(found, _cut(w, _energy(w, 0.05)), atol=2e-6)


@pytest.mark.backend
def test_learning_compression_alternates_its_steps() -> None:
    method = LearningCompression(3.0, 0.5, 2.0, 2, decomposition="channel")
    found, history = _trained(method, epochs=5, steps=3)
    # Weights r (6 + 4), dense 24: at ranks 3 and 4 the dense layer is the smaller one.
    cost = np.array([10, 20, 24, 24]) / 24
    w = KERNEL.astype("float64")

    def rank(mu: float) -> int:
        s = np.linalg.svd(w, compute_uv=False)
        objective = [3.0 * cost[r - 1] + mu / 2 * np.sum(s[r:] ** 2) for r in (1, 2, 3, 4)]
        return int(np.argmin(objective)) + 1

    theta, ranks, distances = _cut(w, rank(0.5)), [rank(0.5)], []
    for epoch in range(5):
        mu = 0.5 * 2.0 ** (epoch // 2)
        seen = []
        for _ in range(3):
            seen.append(0.5 * np.sum((w - theta) ** 2))
            w = w - 0.1 * (SLOPE + mu * (w - theta))
        distances.append(np.mean(seen))
        if epoch % 2 == 1:
            theta = _cut(w, rank(mu))
            ranks.append(rank(mu))
    np.testing.assert_allclose(history["distance_loss"], distances, rtol=1e-4)
    np.testing.assert_allclose(history["mu"], [0.5, 0.5, 1.0, 1.0, 2.0], rtol=1e-6)
    assert method.ranks == {"only": rank(2.0)}
    assert min(ranks) < max(ranks)  # else a wrong C step would not show
    np.testing.assert_allclose(found, _cut(w, rank(2.0)), atol=5e-6)


@pytest.mark.backend
def test_trained_rank_pruning_truncates_every_few_steps() -> None:
    method = TrainedRankPruning(0.15, 2, 0.4, decomposition="channel")
    found, history = _trained(method, epochs=2, steps=3)
    w = KERNEL.astype("float64")
    ranks, seen = [], []
    for step in (0, 1, 2, 0, 1, 2):
        if step in (0, 2):
            u, _, vt = np.linalg.svd(w, full_matrices=False)
            ranks.append(_energy(w, 0.15))
            w = _cut(w, ranks[-1])
            slope = u[:, : ranks[-1]] @ vt[: ranks[-1]]
        seen.append(np.sum(w * slope))
        w = w - 0.1 * (SLOPE + 0.4 * slope)
    assert max(ranks) < 4
    np.testing.assert_allclose(
        history["nuclear_loss"], [np.mean(seen[:3]), np.mean(seen[3:])], rtol=1e-4
    )
    assert method.ranks == {"only": _energy(w, 0.15)}
    np.testing.assert_allclose(found, _cut(w, _energy(w, 0.15)), atol=5e-6)


def test_validation_sees_the_thresholded_kernels_and_no_term(
    fit: Fit, small_digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = small_digits
    validation = (x[960:1200], y[960:1200])
    model = _network()
    hard = CompressionAware(20.0, decomposition="channel")  # every value falls to 0
    history = fit(model, hard, epochs=1, validation_data=validation)
    assert history["val_loss"][0] == pytest.approx(np.log(10), abs=0.05)
    assert history["accuracy"][0] > history["val_accuracy"][0] + 0.1
    model = _network()
    pulled = LearningCompression(0.5, 5.0, decomposition="channel")
    history = fit(model, pulled, epochs=1, validation_data=validation)
    assert set(history) == {
        *("loss", "accuracy", "distance_loss", "mu"),
        *("val_loss", "val_accuracy"),
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CompressionAware(-1.0), r"`strength`.*-1\.0"),
        (lambda: CompressionAware(discarded_energy=1.0), r"`discarded_energy`.*1\.0"),
        (lambda: CompressionAware(decomposition="tucker"), r"`decomposition`.*'tucker'"),
        (lambda: LearningCompression(alpha=0.0), r"`alpha`.*alpha=0\.0"),
        (lambda: LearningCompression(growth=0.5), r"`growth`.*1 or more.*0\.5"),
        (lambda: LearningCompression(mu=float("inf")), r"`mu`.*inf"),
        (lambda: LearningCompression(cost="flops"), r"`cost`.*'flops'"),
        (lambda: LearningCompression(epochs_per_step=0), r"`epochs_per_step`.*0"),
        (lambda: TrainedRankPruning(period=2.5), r"`period`.*2\.5"),
        (lambda: TrainedRankPruning(strength=float("nan")), r"`strength`.*nan"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_only_the_layers_named_are_compressed(fit: Fit) -> None:
    model = _network()
    model.get_layer("second").trainable = False
    frozen = _array(model.get_layer("second").kernel)
    method = TrainedRankPruning(0.3, decomposition="channel")
    fit(model, method, epochs=1)
    assert set(method.ranks) == {"first", "last"}
    np.testing.assert_array_equal(_array(model.get_layer("second").kernel), frozen)
    named = TrainedRankPruning(0.3, decomposition="channel", layers="last")
    fit(model, named, epochs=1)
    assert set(named.ranks) == {"last"}
    with pytest.raises(ValueError, match=r"only frozen ones, \['second'\]"):
        fit(model, TrainedRankPruning(layers=["second"]), epochs=1)
