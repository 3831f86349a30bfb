"""Truncation by the output's error against generic minimisers and closed forms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.optimize import least_squares

from dprp_tf.decomposition import DECOMPOSITIONS, KernelTruncation, OutputTruncation, matrix_shape

RIDGE = 1e-4


def _rows(kernel: np.ndarray) -> np.ndarray:
    """(S, C*L), entry by entry: the row of a filter holds channel c at position l at c*L + l."""
    *spatial, channels, filters = kernel.shape
    size = math.prod(spatial)
    matrix = np.zeros((filters, channels * size))
    for at, position in enumerate(itertools.product(*map(range, spatial))):
        for c in range(channels):
            matrix[:, c * size + at] = kernel[(*position, c)]
    return matrix


def _energy(difference: np.ndarray, moments: np.ndarray) -> float:
    rows = _rows(difference)
    return float(np.trace(rows @ moments @ rows.T))


def _moments(rng: np.random.Generator, size: int, samples: int = 0) -> np.ndarray:
    """Second moments of strongly correlated inputs; singular with fewer samples than entries."""
    count = samples or 4 * size
    mixed = rng.standard_normal((count, size)) * np.geomspace(1.0, 0.05, size)
    mixed = mixed @ rng.standard_normal((size, size)) + 0.5
    return mixed.T @ mixed / count


def _ridged(moments: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    return moments + ridge * np.mean(np.diag(moments)) * np.eye(len(moments))


def _case(shape: tuple[int, ...], seed: int = 3, samples: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), _moments(rng, math.prod(shape[:-1]), samples)


def _half(truncation: Any) -> tuple[int, ...]:
    return tuple(max(1, full // 2) for full in truncation.full_ranks)


# --- against the plain truncation ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (4, 3, 6), (2, 2, 3, 2, 4), (7, 9), (1, 1, 6, 4)])
@pytest.mark.parametrize("matricization", DECOMPOSITIONS)
def test_white_inputs_give_the_plain_truncation(shape: tuple[int, ...], matricization: str) -> None:
    kernel = np.random.default_rng(1).standard_normal(shape)
    plain = KernelTruncation(kernel, matricization)
    # Inputs of any strength: the share that is lost has no unit.
    ours = OutputTruncation(kernel, matricization, 7.0 * np.eye(math.prod(shape[:-1])))
    assert (ours.decomposition, ours.full_ranks) == (plain.decomposition, plain.full_ranks)
    for mine, theirs in zip(ours.spectra, plain.spectra, strict=True):
        np.testing.assert_allclose(mine / mine[0], theirs / theirs[0], atol=1e-6)
    ranks = _half(plain)
    if ours.decomposition == "tucker":
        # The plain one is the higher-order SVD, not the best of its ranks.
        assert ours.lost(ranks) <= plain.lost(ranks) + 1e-9
        assert ours.lost(ranks) > 0.8 * plain.lost(ranks)
    else:
        assert ours.lost(ranks) == pytest.approx(plain.lost(ranks), abs=1e-9)
        np.testing.assert_allclose(ours.kernel(ranks), plain.kernel(ranks), atol=1e-7)


@given(
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from(DECOMPOSITIONS),
    st.sampled_from([None, 0, 3]),
    st.integers(0, 2**16),
    st.data(),
)
def test_the_output_error_is_never_larger_than_the_plain_truncations(
    spatial: list[int],
    channels: int,
    filters: int,
    matricization: str,
    sweeps: int | None,
    seed: int,
    data: st.DataObject,
) -> None:
    shape = (*spatial, channels, filters)
    samples = data.draw(st.sampled_from([0, 2]))  # 2: far fewer than entries, P is singular
    kernel, moments = _case(shape, seed, samples)
    plain = KernelTruncation(kernel, matricization)
    ours = OutputTruncation(kernel, matricization, moments, sweeps=sweeps)
    ranks = tuple(data.draw(st.integers(1, full)) for full in plain.full_ranks)
    moments = _ridged(moments)
    whole = _energy(kernel, moments)
    error = _energy(kernel - ours.kernel(ranks), moments)
    assert error <= _energy(kernel - plain.kernel(ranks), moments) * (1 + 1e-6) + 1e-9 * whole
    assert ours.lost(ranks) == pytest.approx(error / whole, abs=1e-7)
    # It really has these ranks.
    again = KernelTruncation(ours.kernel(ranks), matricization)
    for spectrum, rank in zip(again.spectra, ranks, strict=True):
        assert np.all(spectrum[rank:] <= 1e-6 * spectrum[0])


@pytest.mark.parametrize("matricization", DECOMPOSITIONS)
def test_on_correlated_inputs_far_less_is_lost(matricization: str) -> None:
    kernel, moments = _case((3, 3, 8, 12))
    plain = KernelTruncation(kernel, matricization)
    ours = OutputTruncation(kernel, matricization, moments)
    ranks = _half(plain)
    before = _energy(kernel - plain.kernel(ranks), moments)
    assert _energy(kernel - ours.kernel(ranks), moments) < 0.6 * before


@pytest.mark.parametrize("matricization", DECOMPOSITIONS)
def test_full_ranks_reproduce_the_kernel_in_its_dtype(matricization: str) -> None:
    kernel, moments = _case((3, 2, 4, 5))
    kernel = kernel.astype(np.float32)
    ours = OutputTruncation(kernel, matricization, moments)
    np.testing.assert_array_equal(ours.kernel(ours.full_ranks), kernel)
    assert ours.lost(ours.full_ranks) == 0.0
    assert ours.kernel(_half(ours)).dtype == np.float32
    # The way all other ranks go leads there too: one unused direction away, nothing is lost.
    padded = np.concatenate([kernel, np.zeros_like(kernel)], axis=-2)
    rng = np.random.default_rng(0)
    wider = OutputTruncation(padded, matricization, _moments(rng, 2 * len(moments)))
    if wider.full_ranks != ours.full_ranks:
        ranks = ours.full_ranks
        np.testing.assert_allclose(wider.kernel(ranks), padded, atol=2e-5)


# --- against the best there is ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (9, 6), (2, 9)])
def test_channel_and_dense_are_the_svd_of_the_whitened_matrix(shape: tuple[int, ...]) -> None:
    kernel, moments = _case(shape)
    root = np.real(sqrtm(moments))
    u, s, vt = np.linalg.svd(_rows(kernel) @ root, full_matrices=False)
    ours = OutputTruncation(kernel, "channel", moments, ridge=0.0)
    np.testing.assert_allclose(ours.spectra[0], s, rtol=1e-6)
    for rank in range(1, len(s)):
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank] @ np.linalg.inv(root)
        np.testing.assert_allclose(_rows(ours.kernel((rank,))), expected, atol=1e-6)
        assert ours.lost((rank,)) == pytest.approx(np.sum(s[rank:] ** 2) / np.sum(s**2), rel=1e-6)


def _built(kind: str, values: np.ndarray, shape: tuple[int, ...], ranks: tuple[int, ...]) -> Any:
    """A kernel from its factors, index by index as each form is defined."""
    *spatial, channels, filters = shape
    if kind == "tucker":
        inner, outer = ranks
        first, core, last = np.split(
            values, np.cumsum([channels * inner, math.prod(spatial) * inner * outer])
        )
        return np.einsum(
            "ci,lio,so->lcs",
            first.reshape(channels, inner),
            core.reshape(-1, inner, outer),
            last.reshape(filters, outer),
        ).reshape(shape)
    height, width = matrix_shape(shape, kind)
    u, v = np.split(values, [height * ranks[0]])
    matrix = u.reshape(height, -1) @ v.reshape(width, -1).T
    if kind == "spatial":
        return np.einsum("scl->lcs", matrix.reshape(filters, channels, -1)).reshape(shape)
    last_axis, leading = spatial[-1], math.prod(spatial[:-1])
    return np.einsum("sjck->kjcs", matrix.reshape(filters, last_axis, channels, leading)).reshape(
        shape
    )


def _count(kind: str, shape: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    *spatial, channels, filters = shape
    if kind == "tucker":
        inner, outer = ranks
        return channels * inner + math.prod(spatial) * inner * outer + filters * outer
    return ranks[0] * sum(matrix_shape(shape, kind))


@pytest.mark.parametrize(
    ("kind", "shape", "ranks", "global_minimum"),
    [
        ("spatial", (2, 2, 2, 3), (1,), False),
        ("spatial", (2, 2, 2, 3), (2,), True),
        ("spatial", (4, 3, 2), (2,), False),
        ("separable", (2, 2, 2, 3), (1,), True),
        ("separable", (2, 2, 2, 3), (3,), True),
        ("separable", (3, 3, 2), (1,), False),
        ("tucker", (2, 2, 3, 3), (1, 2), False),
        ("tucker", (3, 3, 4), (2, 2), True),
    ],
)
def test_it_ends_in_a_minimum_that_a_generic_minimiser_finds_too(
    kind: str, shape: tuple[int, ...], ranks: tuple[int, ...], global_minimum: bool
) -> None:
    kernel, moments = _case(shape)
    root = np.linalg.cholesky(moments)
    ours = OutputTruncation(kernel, kind, moments, ridge=0.0, sweeps=300)
    mine = _energy(kernel - ours.kernel(ranks), moments)

    def residuals(values: np.ndarray) -> np.ndarray:
        return (_rows(kernel - _built(kind, values, shape, ranks)) @ root).ravel()

    rng = np.random.default_rng(0)
    minima = [
        2 * least_squares(residuals, rng.standard_normal(_count(kind, shape, ranks))).cost
        for _ in range(6)
    ]
    assert mine > 0
    assert min(abs(mine - found) for found in minima) < 5e-3 * mine
    if global_minimum:
        assert mine < 1.005 * min(minima)
    else:  # tiny random kernels have several minima, of which ours is a good one
        assert mine < 1.52 * min(minima)
        assert mine < np.mean(minima) * 1.04


def test_large_bases_by_conjugate_gradients_end_in_a_minimum() -> None:
    # K r = 192 * 4 unknowns of the basis, more than are solved for directly.
    shape, rank = (3, 3, 64, 6), 4
    kernel, moments = _case(shape)
    moments = _ridged(moments)
    start = OutputTruncation(kernel, "separable", moments, ridge=0.0, sweeps=0)
    ours = OutputTruncation(kernel, "separable", moments, ridge=0.0, sweeps=200)
    cut = ours.kernel((rank,))
    error = _energy(kernel - cut, moments)
    assert error < 0.995 * _energy(kernel - start.kernel((rank,)), moments)
    # Improved factors by SVD, then the gradient of the error in each of them.
    height, width = matrix_shape(shape, "separable")
    by_hand = np.einsum("kjcs->sjck", cut).reshape(height, width)
    u, s, vt = np.linalg.svd(by_hand, full_matrices=False)
    left, right = u[:, :rank] * s[:rank], vt[:rank].T

    def along(step_left: np.ndarray, step_right: np.ndarray, length: float) -> float:
        values = np.concatenate(
            [(left + length * step_left).ravel(), (right + length * step_right).ravel()]
        )
        return _energy(kernel - _built("separable", values, shape, (rank,)), moments)

    rng = np.random.default_rng(0)
    for _ in range(10):
        steps = rng.standard_normal(left.shape) * 0.1, rng.standard_normal(right.shape) * 0.01
        # A parabola through three points: how much lower its bottom lies.
        low, middle, high = (along(*steps, t) for t in (-1e-2, 0.0, 1e-2))
        gained = (high - low) ** 2 / (8 * (high + low - 2 * middle))
        assert 0 <= gained < 1e-3 * middle


@pytest.mark.parametrize("kind", ["spatial", "separable", "tucker"])
def test_more_sweeps_never_lose_more(kind: str) -> None:
    kernel, moments = _case((3, 3, 6, 8), seed=5)
    ranks = (2, 3) if kind == "tucker" else (3,)
    lost = [
        OutputTruncation(kernel, kind, moments, sweeps=sweeps).lost(ranks)
        for sweeps in (0, 1, 2, 5, 30)
    ]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 0.99 * lost[0]


@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_energies_of_the_starts_grow_with_the_rank(kind: str) -> None:
    kernel, moments = _case((3, 3, 4, 6))
    ours = OutputTruncation(kernel, kind, moments, sweeps=0)
    grid = [
        [ours.lost((a, b)) for b in range(1, ours.full_ranks[1] + 1)]
        if kind == "tucker"
        else ours.lost((a,))
        for a in range(1, ours.full_ranks[0] + 1)
    ]
    table = np.asarray(grid)
    for axis in range(table.ndim):
        assert np.all(np.diff(table, axis=axis) <= 1e-9)
    assert table.flat[-1] == 0.0


# --- degenerate input ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_where_no_input_was_seen_the_plain_truncation_remains(kind: str) -> None:
    kernel = np.random.default_rng(2).standard_normal((3, 3, 4, 5))
    ours = OutputTruncation(kernel, kind, np.zeros((36, 36)))
    white = OutputTruncation(kernel, kind, np.eye(36))
    np.testing.assert_allclose(ours.kernel(_half(ours)), white.kernel(_half(ours)), atol=1e-6)


@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_a_zero_kernel_loses_nothing(kind: str) -> None:
    kernel, moments = _case((3, 3, 4, 5))
    ours = OutputTruncation(np.zeros_like(kernel), kind, moments)
    assert ours.lost(_half(ours)) == 0.0
    assert not np.any(ours.kernel(_half(ours)))


@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_weights_on_inputs_that_are_never_on_cost_no_rank(kind: str) -> None:
    rng = np.random.default_rng(4)
    kernel = rng.standard_normal((3, 3, 4, 6))
    moments = np.kron(np.diag([0.0, 1.0, 1.0, 1.0]), _moments(rng, 9))
    loud = kernel.copy()
    loud[:, :, 0] *= 30.0  # of the channel without input
    errors = []
    for weights in (kernel, loud):
        ours = OutputTruncation(weights, kind, moments, ridge=1e-9, sweeps=50)
        plain = KernelTruncation(weights, kind)
        ranks = _half(ours)
        errors.append([_energy(weights - cut.kernel(ranks), moments) for cut in (ours, plain)])
    assert errors[1][0] < 1.1 * errors[0][0]
    assert errors[1][1] > 1.3 * errors[0][1]


def test_unusable_arguments_are_named() -> None:
    kernel, moments = _case((3, 3, 2, 4))
    with pytest.raises(ValueError, match="`covariance`"):
        OutputTruncation(kernel, "channel", moments[:5, :5])
    with pytest.raises(ValueError, match="`covariance`"):
        OutputTruncation(kernel, "channel", np.full((18, 18), np.nan))
    with pytest.raises(ValueError, match="`ridge`"):
        OutputTruncation(kernel, "channel", moments, ridge=-1.0)
    with pytest.raises(ValueError, match="`sweeps`"):
        OutputTruncation(kernel, "channel", moments, sweeps=-1)
    with pytest.raises(ValueError, match="`decomposition`"):
        OutputTruncation(kernel, "rows", moments)
    with pytest.raises(ValueError, match="`kernel`"):
        OutputTruncation(np.full((3, 3, 2, 4), np.inf), "channel", moments)
    for ranks in [(0,), (5,), (1, 1), ()]:
        with pytest.raises(ValueError, match="`ranks`"):
            OutputTruncation(kernel, "channel", moments).kernel(ranks)
        with pytest.raises(ValueError, match="`ranks`"):
            OutputTruncation(kernel, "channel", moments).lost(ranks)
    singular = np.ones((18, 18))
    with pytest.raises(ValueError, match="`ridge`"):
        OutputTruncation(kernel, "spatial", singular, ridge=0.0).kernel((2,))
