"""Matricization and SVD against index-by-index loops and literal readings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dprp_tf import decomposition
from dprp_tf.decomposition import (
    MATRICIZATIONS,
    canonical_order,
    decompose,
    dematricize,
    energy_rank,
    full_rank,
    matricize,
    matrix_shape,
    resolve,
    retained_rank,
    truncation_error,
)

KERNELS = [(5, 3, 4), (3, 2, 4, 5), (2, 3, 2, 3, 4), (6, 5)]


def _spatial_by_loop(kernel: np.ndarray) -> np.ndarray:
    """Eq. 1: row (s - 1) C + c, column (l2 - 1) L1 + l1, counted from 1 as printed."""
    *spatial, channels, filters = kernel.shape
    matrix = np.full((filters * channels, math.prod(spatial)), np.nan)
    for s, c in itertools.product(range(1, filters + 1), range(1, channels + 1)):
        for position in itertools.product(*(range(1, n + 1) for n in spatial)):
            column = 0
            for index, size in zip(position, spatial, strict=True):
                column = column * size + (index - 1)
            value = kernel[(*(i - 1 for i in position), c - 1, s - 1)]
            matrix[(s - 1) * channels + c - 1, column] = value
    return matrix


def _channel_by_loop(kernel: np.ndarray) -> np.ndarray:
    """Scheme 1: filters against everything else."""
    *spatial, channels, filters = kernel.shape
    size = math.prod(spatial)
    flat = kernel.reshape(size, channels, filters)
    matrix = np.full((filters, channels * size), np.nan)
    for s, c, k in itertools.product(range(filters), range(channels), range(size)):
        matrix[s, c * size + k] = flat[k, c, s]
    return matrix


def _separable_by_loop(kernel: np.ndarray) -> np.ndarray:
    """Scheme 2: the last spatial axis with the filters, the others with the channels."""
    *spatial, channels, filters = kernel.shape
    leading, last = math.prod(spatial[:-1]), spatial[-1]
    flat = kernel.reshape(leading, last, channels, filters)
    matrix = np.full((filters * last, channels * leading), np.nan)
    for s, c in itertools.product(range(filters), range(channels)):
        for k, j in itertools.product(range(leading), range(last)):
            matrix[s * last + j, c * leading + k] = flat[k, j, c, s]
    return matrix


BY_LOOP = {
    "spatial": _spatial_by_loop,
    "channel": _channel_by_loop,
    "separable": _separable_by_loop,
}


def test_eq_1_for_a_two_dimensional_kernel_in_the_papers_own_indices(
    rng: np.random.Generator,
) -> None:
    kernel = rng.standard_normal((3, 2, 4, 5))  # (L2, L1, C, S)
    matrix = matricize(kernel, "spatial")
    for l2, l1, c, s in itertools.product(range(3), range(2), range(4), range(5)):
        assert matrix[s * 4 + c, l2 * 2 + l1] == kernel[l2, l1, c, s]


@pytest.mark.parametrize("shape", KERNELS[:3], ids=str)
@pytest.mark.parametrize("matricization", MATRICIZATIONS)
def test_matricize_agrees_with_an_index_by_index_loop(
    shape: tuple[int, ...], matricization: str, rng: np.random.Generator
) -> None:
    kernel = rng.standard_normal(shape)
    np.testing.assert_array_equal(matricize(kernel, matricization), BY_LOOP[matricization](kernel))


@pytest.mark.parametrize("matricization", MATRICIZATIONS)
@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (1, 1, 6, 5), (1, 1, 1, 6, 5)], ids=str)
def test_dense_and_pointwise_kernels_are_filters_against_inputs(
    shape: tuple[int, ...], matricization: str, rng: np.random.Generator
) -> None:
    kernel = rng.standard_normal(shape)
    assert resolve(shape, matricization) == "channel"
    np.testing.assert_array_equal(matricize(kernel, matricization), kernel.reshape(6, 5).T)
    assert full_rank(shape, matricization) == 5


@st.composite
def _kernel_shapes(draw: st.DrawFn) -> tuple[int, ...]:
    ndim = draw(st.integers(0, 3))
    sizes = st.integers(1, 4)
    return tuple(draw(sizes) for _ in range(ndim + 2))


@given(shape=_kernel_shapes(), matricization=st.sampled_from(MATRICIZATIONS))
def test_matricize_and_back_is_exact(shape: tuple[int, ...], matricization: str) -> None:
    kernel = np.arange(math.prod(shape), dtype=float).reshape(shape)
    matrix = matricize(kernel, matricization)
    assert matrix.shape == matrix_shape(shape, matricization)
    assert full_rank(shape, matricization) == min(matrix.shape)
    assert sorted(matrix.ravel()) == sorted(kernel.ravel())
    np.testing.assert_array_equal(dematricize(matrix, shape, matricization), kernel)


@pytest.mark.parametrize("shape", KERNELS, ids=str)
def test_an_outer_product_in_the_right_axes_has_rank_one(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    *spatial, channels, filters = shape
    if not spatial:
        return
    taps = rng.standard_normal((*spatial, 1, 1))
    mixing = rng.standard_normal((channels, filters))
    s = decompose(matricize(taps * mixing, "spatial")).s
    assert s[0] > 0.1
    assert s[1:].max(initial=0.0) < 1e-12
    # And in the other two forms it has not: they must not be the same unfolding in disguise.
    assert decompose(matricize(taps * mixing, "channel")).s[1] > 1e-3


@pytest.mark.parametrize(("height", "width"), [(12, 5), (5, 12), (6, 6), (1, 4), (4, 1)])
def test_decompose_agrees_with_numpy(height: int, width: int, rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((height, width))
    factors = decompose(matrix)
    np.testing.assert_allclose(factors.s, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)
    np.testing.assert_allclose(factors.matrix(), matrix, atol=1e-12)
    np.testing.assert_allclose(factors.u.T @ factors.u, np.eye(factors.rank), atol=1e-12)
    np.testing.assert_allclose(factors.v.T @ factors.v, np.eye(factors.rank), atol=1e-12)


def test_a_truncated_decomposition_is_the_best_of_its_rank(rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((9, 6))
    full = decompose(matrix)
    for rank in range(1, 7):
        factors = decompose(matrix, rank)
        assert factors.u.shape == (9, rank)
        assert factors.s.shape == (rank,)
        assert factors.v.shape == (6, rank)
        error = np.linalg.norm(matrix - factors.matrix()) / np.linalg.norm(matrix)
        assert error == pytest.approx(truncation_error(full.s, rank), abs=1e-12)
        np.testing.assert_array_equal(factors.u, full.truncated(rank).u)
    assert truncation_error(np.zeros(3), 1) == 0.0


def test_the_dtype_is_kept_and_integers_become_floats(rng: np.random.Generator) -> None:
    single = decompose(rng.standard_normal((4, 3)).astype("float32"))
    assert {part.dtype for part in single} == {np.dtype("float32")}
    assert decompose(np.eye(3, dtype=int)).s.dtype == np.float64


def _retained_literally(s: np.ndarray, threshold: float) -> int:
    """The largest i such that |s_(j+1)| > eps |s_j| for every j < i, indices from 1."""
    r = len(s)
    magnitude = {j: abs(float(s[j - 1])) for j in range(1, r + 1)}
    best = 1
    for i in range(1, r + 1):
        if all(magnitude[j + 1] > threshold * magnitude[j] for j in range(1, i)):
            best = i
    return best


@pytest.mark.parametrize(
    ("s", "threshold", "expected"),
    [
        ([1.0], 0.1, 1),
        ([0.0], 0.1, 1),
        ([0.0, 0.0, 0.0], 0.1, 1),
        ([2.0, 2.0, 2.0], 0.5, 3),
        ([5.0, 4.0, 0.3, 0.2], 0.1, 2),
        ([5.0, 0.5, 0.4], 0.1, 1),  # exactly at the threshold counts as dropped
        ([5.0, 0.50001, 0.4], 0.1, 3),
        ([1.0, 0.0, 5.0], 0.1, 1),  # what follows a drop is lost, however large
        ([1.0, 2.0, 3.0], 0.9, 3),  # rising values never drop
        ([-4.0, 3.0, -2.0], 0.5, 3),  # signs don't matter
        ([3.0, 1e-30, 1e-30], 0.5, 1),
        ([1e-20, 9e-21], 0.5, 2),
    ],
)
def test_retained_rank_on_tricky_values(s: list[float], threshold: float, expected: int) -> None:
    values = np.array(s)
    assert _retained_literally(values, threshold) == expected
    assert retained_rank(values, threshold) == expected


TRICKY = st.lists(
    st.sampled_from([0.0, 0.0, 1.0, 1.0, -1.0, 2.0, 0.5, 0.25, 0.1, 1e-3, 3.0])
    | st.floats(-10, 10, allow_nan=False, width=32),
    min_size=1,
    max_size=9,
)


@settings(max_examples=300)
@given(values=TRICKY, threshold=st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9]))
def test_retained_rank_is_the_definition(values: list[float], threshold: float) -> None:
    s = np.array(values)
    assert retained_rank(s, threshold) == _retained_literally(s, threshold)


@given(values=TRICKY, minimum=st.integers(1, 12))
def test_retained_rank_keeps_the_minimum_and_no_more_than_there_is(
    values: list[float], minimum: int
) -> None:
    rank = retained_rank(np.array(values), 0.3, minimum)
    assert rank == min(max(_retained_literally(np.array(values), 0.3), minimum), len(values))


@given(values=TRICKY, discarded=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.75]))
def test_energy_rank_is_the_smallest_that_discards_no_more(
    values: list[float], discarded: float
) -> None:
    s = np.sort(np.abs(np.array(values)))[::-1]
    rank = energy_rank(s, discarded)
    total = sum(v**2 for v in s)
    slack = 1e-12 * total
    assert 1 <= rank <= len(s)
    assert sum(v**2 for v in s[rank:]) <= discarded * total + slack
    if rank > 1:
        assert sum(v**2 for v in s[rank - 1 :]) > discarded * total - slack
    assert energy_rank(s, discarded, 3) == min(max(rank, 3), len(s))


@given(
    s=arrays(np.float64, st.integers(1, 8), elements=st.floats(-5, 5, width=32)),
    seed=st.integers(0, 1000),
)
def test_canonical_order_keeps_the_product(s: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((6, len(s))), rng.standard_normal((4, len(s)))
    order, signs = canonical_order(s)
    ordered = np.abs(s[order])
    assert sorted(order.tolist()) == list(range(len(s)))
    assert set(np.unique(signs)) <= {-1.0, 1.0}
    assert np.all(np.diff(ordered) <= 0)
    np.testing.assert_allclose(
        (u[:, order] * signs * ordered) @ v[:, order].T, (u * s) @ v.T, atol=1e-12
    )


def _large(kind: str) -> np.ndarray:
    """Float32 matrices whose sides are large enough for the Gram matrix's eigenvectors."""
    rng = np.random.default_rng(3)
    if kind == "tall":
        return rng.standard_normal((700, 300)).astype(np.float32)
    if kind == "wide":
        return rng.standard_normal((260, 5000)).astype(np.float32)
    if kind == "square":  # its smallest value is about 1e-4 of the largest
        return rng.standard_normal((512, 512)).astype(np.float32)
    if kind == "dead rows and columns":
        matrix = rng.standard_normal((600, 300)).astype(np.float32)
        matrix[:, ::3], matrix[5:40] = 0.0, 0.0
        return matrix
    if kind == "rank 1":
        return np.outer(rng.standard_normal(400), rng.standard_normal(300)).astype(np.float32)
    if kind == "equal values":
        return np.linalg.qr(rng.standard_normal((300, 300)))[0].astype(np.float32)
    if kind == "zero":
        return np.zeros((300, 260), np.float32)
    # Values over 10 orders of magnitude, of which float32 holds 7.
    left, right = (np.linalg.qr(rng.standard_normal((n, 300)))[0] for n in (500, 300))
    return ((left * np.logspace(0, -10, 300)) @ right.T).astype(np.float32)


LARGE = [
    "tall",
    "wide",
    "square",
    "dead rows and columns",
    "rank 1",
    "equal values",
    "zero",
    "graded",
]


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("rank", [None, 200, 3])
def test_large_matrices_decompose_within_float32_rounding(kind: str, rank: int | None) -> None:
    matrix = _large(kind)
    factors = decompose(matrix, rank)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    kept = factors.rank
    assert factors.u.dtype == factors.s.dtype == factors.v.dtype == np.float32
    scale = max(float(exact[0]), 1e-30)
    np.testing.assert_allclose(factors.s / scale, exact[:kept] / scale, atol=2e-7)
    # Each by itself, as far down as float32 entries determine it.
    determined = exact[:kept] > 1e-4 * scale
    np.testing.assert_allclose(factors.s[determined], exact[:kept][determined], rtol=1e-6)
    assert np.all(np.diff(factors.s) <= 0)
    for q in (factors.u, factors.v):
        gram = q.T.astype(np.float64) @ q
        np.testing.assert_allclose(gram, np.eye(kept), atol=3e-7)
    # No approximation of this rank is nearer, but for rounding.
    u, s, v = (part.astype(np.float64) for part in factors)
    best = float(np.sqrt(np.sum(exact[kept:] ** 2)))
    size = max(float(np.linalg.norm(matrix)), 1e-30)
    assert float(np.linalg.norm((u * s) @ v.T - matrix)) <= best + 2e-7 * size


def test_canonical_order_leaves_ties_alone() -> None:
    order, signs = canonical_order(np.array([1.0, -1.0, 1.0, 2.0]))
    assert order.tolist() == [3, 0, 1, 2]
    assert signs.tolist() == [1.0, 1.0, -1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matricize(np.zeros((3, 3, 2, 2)), "rows"), r"`matricization`.*'rows'"),
        (lambda: matrix_shape((3,), "spatial"), r"`kernel_shape`.*\(3,\)"),
        (lambda: matrix_shape((3, 0, 2, 2), "spatial"), r"`kernel_shape`.*\(3, 0, 2, 2\)"),
        (
            lambda: dematricize(np.zeros((4, 9)), (3, 3, 2, 4), "spatial"),
            r"`matrix` must have shape \(8, 9\).*\(4, 9\)",
        ),
        (lambda: decompose(np.zeros(3)), r"`matrix`.*\(3,\)"),
        (lambda: decompose(np.array([[np.nan, 1.0]])), r"`matrix`.*finite"),
        (lambda: decompose(np.eye(3), 0), r"`rank`.*1 to 3.*rank=0"),
        (lambda: decompose(np.eye(3), 4), r"`rank`.*1 to 3.*rank=4"),
        (lambda: canonical_order(np.array([1.0, np.inf])), r"`s`.*inf"),
        (lambda: retained_rank(np.array([1.0, np.nan]), 0.1), r"`s`.*nan"),
        (lambda: retained_rank(np.ones(2), 0.0), r"`threshold`.*threshold=0\.0"),
        (lambda: retained_rank(np.ones(2), 1.0), r"`threshold`.*threshold=1\.0"),
        (lambda: retained_rank(np.ones(2), float("nan")), r"`threshold`.*nan"),
        (lambda: energy_rank(np.ones(2), 1.0), r"`discarded`.*discarded=1\.0"),
        (lambda: energy_rank(np.ones(2), -0.1), r"`discarded`.*discarded=-0\.1"),
        (lambda: energy_rank(np.array([np.inf]), 0.1), r"`s`.*inf"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_the_public_list_is_the_modules() -> None:
    assert set(decomposition.__all__) >= {"matricize", "decompose", "retained_rank"}
