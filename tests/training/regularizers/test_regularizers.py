"""The losses against straightforward NumPy, with coefficients that are neither 0 nor 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf import decomposition
from dprp_tf.training import regularizers
from dprp_tf.training.regularizers import (
    FunnelPenalty,
    L1Penalty,
    L2Penalty,
    TailPenalty,
    orthogonality,
    retained_ranks,
    sorting,
)

pytestmark = pytest.mark.backend
Gradient = Callable[[Callable[[Any], Any], np.ndarray], np.ndarray]


def _array(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def _single(*values: float) -> np.ndarray:
    return np.array(values, dtype="float32")


# --- the formulas, read literally -------------------------------------------------------------


def _orthogonality(q: np.ndarray, softening: float = 0.0) -> float:
    """Half of Eq. 10's term, the norm itself and not its square."""
    r = q.shape[1]
    total = 0.0
    for i in range(r):
        for j in range(r):
            entry = sum(float(q[k, i]) * float(q[k, j]) for k in range(len(q))) - float(i == j)
            total += entry**2
    return (np.sqrt(total + softening**2) - softening) / r**2


def _sorting(s: np.ndarray) -> float:
    """Eq. 11, the second sum read to r."""
    rises = [max(0.0, float(s[j + 1] - s[j])) for j in range(len(s) - 1)]
    negatives = [max(0.0, float(-value)) for value in s]
    gamma = sum(rise > 0 for rise in rises)
    eta = sum(value > 0 for value in negatives)
    return (sum(rises) / gamma if gamma else 0.0) + (sum(negatives) / eta if eta else 0.0)


def _tail(s: np.ndarray, threshold: float) -> float:
    """Eq. 12 with the readings: the sum includes i = tau, the divisor is max(1, r - tau)."""
    r = len(s)
    tau = decomposition.retained_rank(s, threshold)
    total = sum(abs(float(s[i - 1])) for i in range(tau, r + 1))
    return total / (max(1, r - tau) * np.sqrt(sum(float(v) ** 2 for v in s)))


def _close(value: Any, expected: float) -> None:
    assert float(_array(value)) == pytest.approx(expected, rel=2e-5, abs=2e-6)


SPECTRA = [
    _single(4.0, 3.0, 2.0, 0.1),
    _single(4.0, 3.0, 2.5),
    _single(1.0, 3.0, -0.5, 2.0),
    _single(-1.0, -2.0),
    _single(0.7),
    _single(5.0, 0.1, 4.0, 0.3),
]


@pytest.mark.parametrize("shape", [(7, 3), (5, 5), (4, 1), (9, 2)])
@pytest.mark.parametrize("softening", [0.0, 0.3])
def test_orthogonality_is_eq_10(
    shape: tuple[int, int], softening: float, rng: np.random.Generator
) -> None:
    q = (0.6 * rng.standard_normal(shape)).astype("float32")
    assert _orthogonality(q) > 0.01
    _close(orthogonality(q, softening), _orthogonality(q, softening))


def test_gram_matrices_keep_the_order_of_their_factors() -> None:
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((height, 3)).astype("float32") for height in (7, 4, 7, 5, 4)]
    found = keras.ops.convert_to_numpy(regularizers.gram_matrices(factors))
    assert found.shape == (5, 3, 3)
    for gram, factor in zip(found, factors, strict=True):
        np.testing.assert_allclose(gram, factor.T @ factor, rtol=1e-5, atol=1e-5)
    one = keras.ops.convert_to_numpy(regularizers.gram_matrices(factors[:1]))
    np.testing.assert_allclose(one, found[:1], rtol=1e-6)


def test_orthogonality_is_a_norm_and_not_its_square() -> None:
    # Q = sqrt(1 + x) * I gives Q^T Q - I = x I: doubling x doubles the loss.
    loss = [
        float(_array(orthogonality(np.sqrt(1 + x) * np.eye(3, dtype="float32"))))
        for x in (0.2, 0.4)
    ]
    assert loss[1] / loss[0] == pytest.approx(2.0, rel=1e-3)
    assert loss[0] == pytest.approx(0.2 * np.sqrt(3) / 9, rel=1e-3)


@pytest.mark.parametrize("s", SPECTRA, ids=str)
def test_sorting_is_eq_11(s: np.ndarray) -> None:
    _close(sorting(s), _sorting(s))


def test_sorting_counts_the_last_negative_value() -> None:
    _close(sorting(_single(2.0, 1.0, -0.5)), 0.5)
    _close(sorting(_single(3.0, 2.0, 1.0)), 0.0)
    _close(sorting(_single(1.0, 2.0, 1.5, 4.0)), (1.0 + 2.5) / 2)


@pytest.mark.parametrize("threshold", [0.03, 0.2, 0.6])
@pytest.mark.parametrize("s", SPECTRA, ids=str)
def test_tail_is_eq_12(s: np.ndarray, threshold: float) -> None:
    _close(TailPenalty(threshold)(s), _tail(s, threshold))


def test_tail_presses_the_last_kept_value_when_nothing_is_below_the_threshold() -> None:
    # tau = r: the printed divisor is 0 and a sum from tau + 1 would be empty.
    s = _single(4.0, 3.0, 2.0)
    _close(TailPenalty(0.1)(s), 2.0 / np.sqrt(29.0))


def test_tail_includes_the_value_at_tau_and_divides_by_what_lies_beyond() -> None:
    s = _single(4.0, 3.0, 0.2, 0.1)  # tau = 2
    _close(TailPenalty(0.1)(s), (3.0 + 0.2 + 0.1) / (2 * np.sqrt(16 + 9 + 0.04 + 0.01)))


@pytest.mark.parametrize("s", SPECTRA, ids=str)
def test_the_ablations_penalties(s: np.ndarray) -> None:
    r = len(s)
    _close(L1Penalty()(s), sum(abs(float(v)) for v in s) / r)
    _close(L2Penalty()(s), np.sqrt(sum(float(v) ** 2 for v in s)) / r)
    _close(FunnelPenalty(0.35)(s), sum(abs(float(v)) / (abs(float(v)) + 0.35) for v in s) / r)


@pytest.mark.parametrize(
    "loss",
    [sorting, TailPenalty(0.2), L1Penalty(), L2Penalty(), FunnelPenalty(0.3)],
    ids=["sorting", "tail", "l1", "l2", "funnel"],
)
def test_layers_of_equal_rank_share_one_call(loss: Any) -> None:
    rows = np.stack([SPECTRA[0], SPECTRA[2], SPECTRA[5]])
    together = _array(loss(rows))
    assert together.shape == (3,)
    np.testing.assert_allclose(together, [float(_array(loss(row))) for row in rows], rtol=1e-6)


# --- gradients --------------------------------------------------------------------------------


def _numerical(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    at = at.astype(np.float64)
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        result[index] = (function(at + step) - function(at - step)) / 2e-5
    return result


@pytest.mark.parametrize("softening", [0.0, 0.3])
def test_gradient_of_orthogonality(
    gradient: Gradient, softening: float, rng: np.random.Generator
) -> None:
    q = 0.6 * rng.standard_normal((6, 3))
    np.testing.assert_allclose(
        gradient(lambda x: orthogonality(x, softening), q),
        _numerical(lambda x: _orthogonality(x, softening), q),
        atol=2e-4,
    )


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (sorting, _sorting),
        (TailPenalty(0.2), lambda s: _tail(s, 0.2)),
        (L1Penalty(), lambda s: np.abs(s).sum() / len(s)),
        (L2Penalty(), lambda s: np.sqrt((s**2).sum()) / len(s)),
        (FunnelPenalty(0.35), lambda s: (np.abs(s) / (np.abs(s) + 0.35)).mean()),
    ],
    ids=["sorting", "tail", "l1", "l2", "funnel"],
)
@pytest.mark.parametrize("s", SPECTRA, ids=str)
def test_gradients_on_the_values(
    gradient: Gradient, loss: Any, reference: Callable[[np.ndarray], float], s: np.ndarray
) -> None:
    # No test spectrum lies within 1e-5 of a kink; the counts and tau carry no gradient.
    np.testing.assert_allclose(gradient(loss, s), _numerical(reference, s), atol=2e-4)


@pytest.mark.parametrize("q", [np.eye(5, 3), np.eye(4), np.zeros((4, 2)), np.ones((3, 1))])
@pytest.mark.parametrize("softening", [0.0, 0.3])
def test_gradient_of_orthogonality_is_finite_at_its_kink_and_at_zero(
    gradient: Gradient, q: np.ndarray, softening: float
) -> None:
    assert np.all(np.isfinite(gradient(lambda x: orthogonality(x, softening), q)))


@pytest.mark.parametrize(
    "loss",
    [sorting, TailPenalty(0.2), L1Penalty(), L2Penalty(), FunnelPenalty(0.3)],
    ids=["sorting", "tail", "l1", "l2", "funnel"],
)
@pytest.mark.parametrize("s", [np.zeros(4), np.ones(3), np.zeros(1), _single(2.0, 0.0, 0.0)])
def test_gradients_are_finite_at_kinks(gradient: Gradient, loss: Any, s: np.ndarray) -> None:
    assert np.isfinite(float(_array(loss(s.astype("float32")))))
    assert np.all(np.isfinite(gradient(loss, s)))


def test_softening_takes_the_jitter_out_near_orthonormality(gradient: Gradient) -> None:
    q = np.eye(5, 3) + 1e-3 * np.eye(5, 3)
    sharp = np.linalg.norm(gradient(lambda x: orthogonality(x, 0.0), q))
    soft = np.linalg.norm(gradient(lambda x: orthogonality(x, 0.1), q))
    assert soft < 0.1 * sharp
    _close(orthogonality(np.eye(5, 3, dtype="float32"), 0.1), 0.0)


# --- tau ---------------------------------------------------------------------------------------

TRICKY = st.lists(
    st.sampled_from([0.0, 0.0, 1.0, 1.0, -1.0, 2.0, 0.5, 0.25, 1e-3, 3.0])
    | st.floats(-8, 8, allow_nan=False, width=16),
    min_size=4,
    max_size=4,
)


@settings(max_examples=150)
@given(values=TRICKY, threshold=st.sampled_from([0.0625, 0.25, 0.5, 0.75]))
def test_tau_on_tensors_is_tau_on_arrays(values: list[float], threshold: float) -> None:
    # Values and thresholds are exact in float32 and so are their products: no rounding decides.
    s = np.array(values, dtype="float32")
    assert float(_array(retained_ranks(s, threshold))) == decomposition.retained_rank(s, threshold)


def test_tau_of_several_layers_at_once_and_of_one_value() -> None:
    rows = np.array([[4, 3, 2], [4, 0.1, 3], [0, 0, 0]], dtype="float32")
    assert _array(retained_ranks(rows, 0.1)).tolist() == [3.0, 1.0, 1.0]
    assert float(_array(retained_ranks(_single(2.0), 0.1))) == 1.0


def test_tau_carries_no_gradient(gradient: Gradient) -> None:
    # A sum of tau and s has the gradient of s alone.
    result = gradient(
        lambda s: retained_ranks(s, 0.1) + keras.ops.sum(3.0 * s), _single(3.0, 2.0, 0.1)
    )
    np.testing.assert_array_equal(result, [3.0, 3.0, 3.0])


# --- names, configs, bad input -----------------------------------------------------------------


def test_names_and_instances() -> None:
    assert regularizers.get("tail", 0.07) == TailPenalty(0.07)
    assert regularizers.get("l1", 0.07) == L1Penalty()
    assert regularizers.get("l2", 0.07) == L2Penalty()
    assert regularizers.get("funnel", 0.07) == FunnelPenalty()
    assert regularizers.get(None, 0.07) is None
    mine = FunnelPenalty(0.4)
    assert regularizers.get(mine, 0.07) is mine


def test_penalties_differ_by_type_and_config() -> None:
    assert TailPenalty(0.1) != TailPenalty(0.2)
    assert L1Penalty() != L2Penalty()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TailPenalty(0.0), r"`threshold`.*threshold=0\.0"),
        (lambda: TailPenalty(1.5), r"`threshold`.*threshold=1\.5"),
        (lambda: FunnelPenalty(-1.0), r"`delta`.*delta=-1\.0"),
        (lambda: regularizers.get("nuclear", 0.1), r"`compression`.*'nuclear'"),
        (lambda: regularizers.get(3, 0.1), r"`compression`.*compression=3"),
        (lambda: regularizers.get("tail", 2.0), r"`threshold`.*2\.0"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
