"""Singular value decomposition of matrices, and the rank a threshold leaves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dprp_tf.files.arguments import check_integer, check_number

__all__ = [
    "Factors",
    "canonical_order",
    "decompose",
    "energy_rank",
    "retained_rank",
    "truncation_error",
]

# From this size of the smaller side the Gram matrix is the faster way; values below this share of
# the largest are computed apart.
_GRAM_SIDE = 256
_GRAM_RANGE = 1e-4
_BLOCK_ROWS = 4096


class Factors(NamedTuple):
    """The factors U (h, r), s (r,), V (w, r) of M = U diag(s) V^T.

    Example:

    >>> factors = decompose(np.eye(3), rank=2)
    >>> factors.matrix().shape, factors.rank
    ((3, 3), 2)
    """

    u: NDArray[np.floating]
    s: NDArray[np.floating]
    v: NDArray[np.floating]

    @property
    def rank(self) -> int:
        """The number of singular values kept."""
        return len(self.s)

    def matrix(self) -> NDArray[np.floating]:
        """Return U diag(s) V^T, of shape (h, w)."""
        return (self.u * self.s) @ self.v.T

    def truncated(self, rank: int) -> Factors:
        """Return the first `rank` columns of U and V and entries of s."""
        return Factors(self.u[:, :rank], self.s[:rank], self.v[:, :rank])


def decompose(matrix: NDArray[np.floating], rank: int | None = None) -> Factors:
    """Return the SVD of M, shape (h, w): M = U diag(s) V^T, cut to `rank` values.

    Computed in float64 and returned in the dtype of `matrix`, so a float32 kernel comes back
    within float32 rounding at full rank. That of a float32 matrix whose sides are 256 or more is
    computed from the eigenvectors of the smaller Gram matrix, several times as fast and as
    exact: orthonormality and singular values stay within float32 rounding too.

    Args:
        matrix: Array of shape (h, w), finite.
        rank: Number of singular values kept, 1 to min(h, w). Default: all.

    Returns:
        `Factors` with U (h, r), s (r,) descending, V (w, r).

    Raises:
        ValueError: If the matrix is not two-dimensional or not finite, or `rank` is out of range.

    Example:

    >>> decompose(np.diag([1.0, 3.0])).s
    array([3., 1.])
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"`matrix` must have 2 axes. Received: matrix.shape={matrix.shape}")
    if not np.all(np.isfinite(matrix)):
        raise ValueError(
            "`matrix` must be finite. Received NaN or infinite entries; repair the weights first."
        )
    limit = min(matrix.shape)
    rank = limit if rank is None else rank
    check_integer("rank", rank, 1, limit)
    dtype = matrix.dtype if np.issubdtype(matrix.dtype, np.floating) else np.dtype(np.float64)
    if limit >= _GRAM_SIDE and dtype.itemsize <= 4:
        factors = _from_gram(matrix, rank, dtype)
        if factors is not None:
            return factors
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return Factors(
        np.ascontiguousarray(u[:, :rank]).astype(dtype),
        s[:rank].astype(dtype),
        np.ascontiguousarray(vt[:rank].T).astype(dtype),
    )


def _from_gram(
    matrix: NDArray[np.floating], rank: int, dtype: np.dtype[np.floating]
) -> Factors | None:
    """Return the SVD from the eigenvectors of M^T M; None for a zero matrix.

    An eigenvalue s_j^2 comes with an error of about 2e-16 s_1^2: s_j and the angles between the
    columns M v_j / s_j of U then have one of 1e-16 (s_1 / s_j)^2, 1e-8 down to s_j = 1e-4 s_1. The
    directions below are decomposed once more by themselves. M V V^T = M holds whatever the
    eigenvalues' errors are.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    # (m, n) with m >= n, in blocks of rows: a float64 copy of a large matrix is never made.
    long = matrix if tall else matrix.T
    gram = np.zeros((long.shape[1],) * 2)
    for rows in _blocks(long):
        block = long[rows].astype(np.float64)
        gram += block.T @ block
    values, vectors = np.linalg.eigh(gram)
    del gram
    s, vectors = np.sqrt(np.maximum(values[::-1], 0.0)), vectors[:, ::-1]
    if not s[0] > 0:
        return None
    sound = min(int(np.sum(s > _GRAM_RANGE * s[0])), rank)
    other = np.empty((len(long), rank), dtype)
    for rows in _blocks(long):
        other[rows, :sound] = (long[rows].astype(np.float64) @ vectors[:, :sound]) / s[:sound]
    if sound < rank:
        rest, s_rest, turned = _smallest(long, other[:, :sound], vectors[:, sound:], s[0])
        other[:, sound:] = rest[:, : rank - sound]
        s = np.concatenate([s[:sound], s_rest])
        vectors = np.concatenate([vectors[:, :sound], turned], axis=1)
    short = np.ascontiguousarray(vectors[:, :rank], dtype)
    u, v = (other, short) if tall else (short, other)
    return Factors(u, s[:rank].astype(dtype), v)


def _smallest(
    long: NDArray[np.floating],
    found: NDArray[np.floating],
    vectors: NDArray[np.float64],
    largest: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Decompose M on the span of `vectors` (n, k); return (m, k), (k,), (n, k).

    The left vectors are orthogonal to `found` as well, also where the values vanish.
    """
    # M V (m, k), whose columns are orthogonal to `found` but for rounding
    image = np.concatenate([long[rows].astype(np.float64) @ vectors for rows in _blocks(long)])
    left, s, turn = np.linalg.svd(_off(image, found), full_matrices=False)
    kept = int(np.sum(s > _GRAM_RANGE**2 * largest))
    if kept < len(s):
        s[kept:] = 0.0
        drawn = np.random.default_rng(0).standard_normal((len(left), len(s) - kept))
        for _ in range(2):
            drawn = _off(_off(drawn, found), left[:, :kept])
            drawn = np.linalg.qr(drawn)[0]
        left[:, kept:] = drawn
    return left, s, vectors @ turn.T


def _off(columns: NDArray[np.float64], basis: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return columns (m, k) less their part in the span of the orthonormal basis (m, g)."""
    inside = np.zeros((basis.shape[1], columns.shape[1]))
    for rows in _blocks(basis):
        inside += basis[rows].astype(np.float64).T @ columns[rows]
    parts = [columns[rows] - basis[rows].astype(np.float64) @ inside for rows in _blocks(basis)]
    return np.concatenate(parts)


def _blocks(matrix: NDArray[np.floating]) -> list[slice]:
    return [slice(at, at + _BLOCK_ROWS) for at in range(0, len(matrix), _BLOCK_ROWS)]


def canonical_order(
    s: NDArray[np.floating],
) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
    """Return the permutation and signs that make trained values s look like singular values.

    Column j of the reordered factors is old column `order[j]`, with the sign of its value moved
    into U: s' = |s[order]| descending, U' = U[:, order] * signs, V' = V[:, order]. The product
    U diag(s) V^T is unchanged, and a late large value can't be lost behind an early small one.

    Args:
        s: Trained values, shape (r,), finite.

    Returns:
        `(order, signs)`, both of shape (r,); ties keep their order.

    Raises:
        ValueError: If `s` is not finite.

    Source: DPRP (arXiv 2401.08014) III-D, with the reading that order comes before truncation.

    Example:

    >>> order, signs = canonical_order(np.array([0.5, -2.0, 1.0]))
    >>> order.tolist(), signs.tolist()
    ([1, 2, 0], [-1.0, 1.0, 1.0])
    """
    s = np.asarray(s)
    if not np.all(np.isfinite(s)):
        raise ValueError(f"`s` must be finite. Received: s={s}")
    order = np.argsort(-np.abs(s), kind="stable")
    return order, np.where(s[order] < 0, -1.0, 1.0).astype(s.dtype)


def retained_rank(s: NDArray[np.floating], threshold: float, minimum: int = 1) -> int:
    """Return tau, the rank left by cutting at the first relative drop below `threshold`.

    tau is the largest i such that |s_(j+1)| > threshold * |s_j| for every j < i, at least
    `minimum` and at most the number of values.

    Args:
        s: Values in descending order of magnitude, shape (r,).
        threshold: The pruning threshold epsilon, in (0, 1).
        minimum: Smallest rank returned, 1 or more. Default 1.

    Returns:
        The rank, between 1 and r.

    Raises:
        ValueError: If `threshold` lies outside (0, 1) or `s` is not finite.

    Source: DPRP (arXiv 2401.08014), before Eq. 12.

    Example:

    >>> retained_rank(np.array([5.0, 4.0, 0.3, 0.2]), threshold=0.1)
    2
    """
    check_number("threshold", threshold, above=0, below=1)
    magnitudes = np.abs(np.asarray(s, dtype=np.float64))
    if not np.all(np.isfinite(magnitudes)):
        raise ValueError(f"`s` must be finite. Received: s={s}")
    dropped = np.flatnonzero(~(magnitudes[1:] > threshold * magnitudes[:-1]))
    rank = int(dropped[0]) + 1 if len(dropped) else len(magnitudes)
    return min(max(rank, minimum), len(magnitudes))


def energy_rank(s: NDArray[np.floating], discarded: float, minimum: int = 1) -> int:
    """Return the smallest rank that discards at most a share of the energy sum_i s_i^2.

    Wide matrices have spectra that fade without a drop, where `retained_rank` cuts nothing; the
    relative error of the cut is at most sqrt(discarded).

    Args:
        s: Singular values, shape (r,), descending.
        discarded: Largest share of sum_i s_i^2 that may be cut, in [0, 1).
        minimum: Smallest rank returned, 1 or more. Default 1.

    Returns:
        The rank, between 1 and r.

    Raises:
        ValueError: If `discarded` lies outside [0, 1) or `s` is not finite.

    Source: the energy share of BSR/LeSS thesis Eq. 2.1, beta = 1 - discarded.

    Example:

    >>> energy_rank(np.array([3.0, 1.0, 0.1]), discarded=0.01)
    2
    """
    check_number("discarded", discarded, minimum=0, below=1)
    squares = np.square(np.asarray(s, dtype=np.float64))
    if not np.all(np.isfinite(squares)):
        raise ValueError(f"`s` must be finite. Received: s={s}")
    # tail[i] is the energy of s_(i+1)..s_r, what keeping i values would discard.
    tail = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
    rank = int(np.flatnonzero(tail <= discarded * tail[0])[0])
    return min(max(rank, minimum, 1), len(squares))


def truncation_error(s: NDArray[np.floating], rank: int) -> float:
    """Return the relative Frobenius error ||M - M_rank|| / ||M|| of keeping `rank` values.

    By Eckart-Young it is sqrt(sum_(i>rank) s_i^2 / sum_i s_i^2).

    Args:
        s: Singular values, shape (r,), descending.
        rank: Number kept, 0 or more.

    Returns:
        The relative error, 0 to 1; 0 for a zero matrix.

    Example:

    >>> truncation_error(np.array([4.0, 3.0]), rank=1)
    0.6
    """
    squares = np.square(np.asarray(s, dtype=np.float64))
    total = squares.sum()
    return float(np.sqrt(squares[rank:].sum() / total)) if total > 0 else 0.0
