"""Retraction: the matrix unchanged, the structure exact, the momentum of the matrix carried."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dprp_tf.training.retraction import TrainedFactors, retract

pytestmark = pytest.mark.backend
CASES = [(12, 4, 4), (9, 9, 9), (20, 6, 3), (5, 3, 1), (64, 9, 9)]


def _numpy(factors: TrainedFactors | None) -> TrainedFactors:
    assert factors is not None
    return TrainedFactors(*(keras.ops.convert_to_numpy(part) for part in factors))


def _matrix(f: TrainedFactors) -> np.ndarray:
    return (f.u.astype(np.float64) * f.s) @ f.v.astype(np.float64).T


def _velocity(f: TrainedFactors, m: TrainedFactors) -> np.ndarray:
    """How M = U diag(s) V^T moves when the factors move by m, to first order."""
    u, s, v = (part.astype(np.float64) for part in f)
    m_u, m_s, m_v = (part.astype(np.float64) for part in m)
    return (m_u * s) @ v.T + (u * m_s) @ v.T + (u * s) @ m_v.T


def _orthonormal(rng: np.random.Generator, height: int, rank: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((height, rank)))[0]


def _near_svd(
    rng: np.random.Generator, case: tuple[int, int, int], s: np.ndarray, distance: float
) -> TrainedFactors:
    height, width, _ = case
    rank = len(s)
    return TrainedFactors(
        *(
            (part + distance * rng.standard_normal(part.shape)).astype("float32")
            for part in (_orthonormal(rng, height, rank), s, _orthonormal(rng, width, rank))
        )
    )


def _momentum(rng: np.random.Generator, f: TrainedFactors) -> TrainedFactors:
    return TrainedFactors(*(rng.standard_normal(p.shape).astype("float32") for p in f))


def _check(before: TrainedFactors, after: TrainedFactors, tolerance: float = 5e-6) -> None:
    rank = len(before.s)
    assert [part.shape for part in after] == [part.shape for part in before]
    assert all(np.all(np.isfinite(part)) for part in after)
    scale = np.abs(before.u).max() * np.abs(before.s).max() * np.abs(before.v).max() + 1e-12
    np.testing.assert_allclose(_matrix(after) / scale, _matrix(before) / scale, atol=tolerance * 10)
    for q in (after.u, after.v):
        np.testing.assert_allclose(q.T @ q, np.eye(rank), atol=2e-5 if tolerance < 1e-5 else 1e-3)
    assert np.all(after.s >= 0)
    assert np.all(np.diff(after.s) <= 1e-6 * scale)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("distance", [0.01, 0.2])
def test_the_matrix_stays_and_the_structure_is_exact(
    case: tuple[int, int, int], distance: float, rng: np.random.Generator
) -> None:
    before = _near_svd(rng, case, np.linspace(2.0, 0.3, case[2]), distance)
    after = _numpy(retract([before])[0][0])
    _check(before, after)
    expected = np.linalg.svd(_matrix(before), compute_uv=False)[: case[2]]
    np.testing.assert_allclose(after.s, expected, atol=1e-5 * expected[0])


def test_unsorted_and_negative_values_are_put_in_order(rng: np.random.Generator) -> None:
    before = _near_svd(rng, (8, 5, 4), np.array([0.5, -3.0, 1.0, -0.2]), 0.0)
    after = _numpy(retract([before])[0][0])
    _check(before, after)
    np.testing.assert_allclose(after.s, [3.0, 1.0, 0.5, 0.2], rtol=1e-5)


def test_layers_of_equal_and_other_rank_keep_their_places(rng: np.random.Generator) -> None:
    cases = [(8, 5, 3), (10, 4, 2), (6, 6, 3), (7, 3, 1)]
    before = [_near_svd(rng, c, np.linspace(2, 0.5, c[2]), 0.05) for c in cases]
    momenta = [_momentum(rng, before[0]), None, _momentum(rng, before[2]), None]
    after, carried = retract(before, momenta)
    assert [m is None for m in carried] == [False, True, False, True]
    for old, new in zip(before, after, strict=True):
        _check(old, _numpy(new))
    for index in (0, 2):
        alone, moved = retract([before[index]], [momenta[index]])
        pairs = zip(
            (*after[index], *_numpy(carried[index])), (*alone[0], *_numpy(moved[0])), strict=True
        )
        for together, single in pairs:
            np.testing.assert_allclose(_np(together), _np(single), atol=1e-5)


def _np(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def test_a_retracted_factor_is_left_as_it_is(rng: np.random.Generator) -> None:
    # Column signs and order stay: otherwise momentum and weights would flip between steps.
    before = _near_svd(rng, (12, 6, 5), np.array([3.0, 2.0, 1.2, 0.7, 0.2]), 0.0)
    momentum = _momentum(rng, before)
    factors, carried = retract([before], [momentum])
    for new, old in zip((*factors[0], *_numpy(carried[0])), (*before, *momentum), strict=True):
        np.testing.assert_allclose(_np(new), old, atol=2e-5)


# --- momentum ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [(12, 6, 5), (64, 9, 9), (6, 6, 6)], ids=str)
@pytest.mark.parametrize("distance", [1e-4, 1e-3, 1e-2])
def test_the_matrix_goes_on_moving_as_it_did(
    case: tuple[int, int, int], distance: float, rng: np.random.Generator
) -> None:
    # At distance 0 the carried momentum moves the matrix exactly as the old one did. The remainder
    # is what turns out of diag(m_s): off-diagonal entries of first order in the distance, over
    # the gaps of s (a factor 0.7 here). Measured over ten seeds: at most 2.4 times the distance.
    s = 3.0 * 0.7 ** np.arange(case[2])
    before = _near_svd(rng, case, s, distance)
    momentum = _momentum(rng, before)
    factors, carried = retract([before], [momentum])
    old = _velocity(before, momentum)
    new = _velocity(_numpy(factors[0]), _numpy(carried[0]))
    error = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert error < 4 * distance + 1e-5, f"relative change of the velocity {error:.2e}"


def test_momentum_follows_a_permutation_and_signs_exactly(rng: np.random.Generator) -> None:
    before = _near_svd(rng, (10, 6, 4), np.array([0.5, -3.0, 1.0, -0.2]), 0.0)
    momentum = _momentum(rng, before)
    factors, carried = retract([before], [momentum])
    old = _velocity(before, momentum)
    new = _velocity(_numpy(factors[0]), _numpy(carried[0]))
    np.testing.assert_allclose(new, old, atol=2e-5 * np.abs(old).max())


def test_the_carried_momentum_is_not_what_leaving_it_would_do(rng: np.random.Generator) -> None:
    before = _near_svd(rng, (10, 6, 4), np.array([0.5, -3.0, 1.0, -0.2]), 0.0)
    momentum = _momentum(rng, before)
    factors, _ = retract([before], [momentum])
    old, left = _velocity(before, momentum), _velocity(_numpy(factors[0]), momentum)
    assert np.linalg.norm(left - old) > 0.5 * np.linalg.norm(old)


# --- degenerate factors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "s",
    [[1.5, 1.5, 1.5, 1.5], [2.0, 1.0, 1.0, 0.5], [2.0, 1.0, 0.5, 0.0], [2.0, 0.0, 0.0, 0.0]],
    ids=["all equal", "two equal", "a zero", "rank one"],
)
@pytest.mark.parametrize("distance", [0.0, 0.02])
def test_degenerate_values(s: list[float], distance: float, rng: np.random.Generator) -> None:
    before = _near_svd(rng, (11, 7, 4), np.array(s), distance)
    momentum = _momentum(rng, before)
    factors, carried = retract([before], [momentum])
    _check(before, _numpy(factors[0]))
    assert all(np.all(np.isfinite(part)) for part in _numpy(carried[0]))
    # No entry of the momentum may explode: T is close to a rotation.
    for new, old in zip(_numpy(carried[0]), momentum, strict=True):
        assert np.linalg.norm(new) < 2 * np.linalg.norm(old)


def test_a_matrix_of_zeros(rng: np.random.Generator) -> None:
    before = _near_svd(rng, (6, 4, 3), np.zeros(3), 0.0)
    after = _numpy(retract([before])[0][0])
    _check(before, after)
    np.testing.assert_array_equal(after.s, np.zeros(3))


def test_two_columns_that_became_one_give_finite_factors_of_the_same_matrix(
    rng: np.random.Generator,
) -> None:
    before = _near_svd(rng, (8, 5, 3), np.array([2.0, 1.0, 0.5]), 0.0)
    before.u[:, 2] = before.u[:, 1]
    after = _numpy(retract([before])[0][0])
    assert all(np.all(np.isfinite(part)) for part in after)
    np.testing.assert_allclose(_matrix(after), _matrix(before), atol=1e-4)


@settings(max_examples=40)
@given(
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    seed=st.integers(0, 10_000),
    distance=st.floats(0.0, 0.15),
)
def test_any_factors_keep_their_matrix(height: int, width: int, seed: int, distance: float) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, min(height, width) + 1))
    s = rng.uniform(-2, 2, rank)
    before = _near_svd(rng, (height, width, rank), s, distance)
    after = _numpy(retract([before])[0][0])
    scale = np.abs(_matrix(before)).max()
    np.testing.assert_allclose(_matrix(after), _matrix(before), atol=2e-4 * scale + 1e-6)
    assert np.all(np.isfinite(np.concatenate([part.ravel() for part in after])))


@pytest.mark.parametrize("broken", range(3))
def test_values_that_are_not_finite_stay_visible(broken: int) -> None:
    parts = [np.eye(4, 2, dtype="float32"), np.array([2.0, 1.0], "float32")]
    parts.append(np.eye(3, 2, dtype="float32"))
    parts[broken] = parts[broken] * np.nan
    (after,), _ = retract([TrainedFactors(*(keras.ops.convert_to_tensor(p) for p in parts))])
    assert not all(np.all(np.isfinite(keras.ops.convert_to_numpy(part))) for part in after)
