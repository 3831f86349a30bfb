"""How many singular values stand out of the noise: variational Bayesian matrix factorization."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from dprp_tf.files.arguments import check_number

__all__ = ["VariationalRank", "variational_rank"]

_GRID = 1024
_REFINED = 4


@dataclass(frozen=True)
class VariationalRank:
    """What empirical variational Bayes finds in a matrix.

    Attributes:
        rank: Singular values above the threshold; 0 where it finds nothing but noise.
        noise_variance: Variance of the entries' noise, estimated or as given.
        threshold: Smallest singular value that counts, in the matrix's own unit.
        singular_values: The shrunk ones, shape (rank,), descending: those of the posterior mean.
    """

    rank: int
    noise_variance: float
    threshold: float
    singular_values: NDArray[np.float64]


def variational_rank(
    matrix_or_spectrum: ArrayLike,
    shape: tuple[int, int] | None = None,
    noise_variance: float | None = None,
) -> VariationalRank:
    """Return the rank that empirical variational Bayes gives a matrix, in closed form.

    For a matrix of shape (h, w) with singular values g_i, L = min(h, w), M = max(h, w) and
    a = L / M, the model "low-rank product plus Gaussian noise of variance v" with Gaussian priors
    of unknown variance has its global optimum at

        g_i kept if g_i >= sqrt(M v (1 + t)(1 + a / t)), where log(t + 1) / t
        + a log(t / a + 1) / t = 1, and then shrunk to
        g_i / 2 (1 - (L + M) v / g_i^2 + sqrt((1 - (L + M) v / g_i^2)^2 - 4 L M v^2 / g_i^4)).

    An unknown v is the one of least free energy, a function of one variable searched over the
    bracket that the paper proves to hold it. The result does not depend on the matrix's unit or
    on transposing it.

    Args:
        matrix_or_spectrum: A matrix (h, w), or all its min(h, w) singular values, in any order.
        shape: (h, w) of the matrix. Default: its own; needed with a spectrum.
        noise_variance: Variance v of the noise, above 0. Default: estimated.

    Returns:
        The rank, the noise and the shrunk singular values.

    Raises:
        ValueError: If an argument is not finite or does not fit the others.

    Source: Nakajima, Sugiyama, Babacan and Tomioka 2013 (JMLR 14): the global empirical solution
    and the estimator of the noise variance.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> signal = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 90))
    >>> variational_rank(signal + 0.1 * rng.normal(size=(40, 90))).rank
    3
    """
    values, (height, width) = _spectrum(matrix_or_spectrum, shape)
    if noise_variance is not None:
        check_number("noise_variance", noise_variance, above=0)
    small, large = min(height, width), max(height, width)
    scale = float(values[0])
    if scale == 0.0:
        return VariationalRank(0, noise_variance or 0.0, 0.0, np.zeros(0))
    values = values / scale
    edge = _edge(small / large)
    variance = (
        _noise_variance(values, small, large, edge)
        if noise_variance is None
        else noise_variance / scale**2
    )
    threshold = math.sqrt(large * variance * edge)
    kept = values[values >= threshold]
    square = np.square(kept)
    apart = 1.0 - (small + large) * variance / square
    root = np.sqrt(np.maximum(apart**2 - 4.0 * small * large * (variance / square) ** 2, 0.0))
    return VariationalRank(
        len(kept), variance * scale**2, threshold * scale, scale * kept / 2.0 * (apart + root)
    )


def _spectrum(
    given: ArrayLike, shape: tuple[int, int] | None
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the singular values, descending, and the matrix's shape."""
    array = np.asarray(given, dtype=np.float64)
    if array.ndim not in (1, 2) or not array.size or not np.all(np.isfinite(array)):
        raise ValueError(
            "`matrix_or_spectrum` must be a finite matrix or its singular values. "
            f"Received: shape={array.shape}{'' if np.all(np.isfinite(array)) else ', not finite'}"
        )
    if array.ndim == 2:
        if shape is not None and tuple(shape) != array.shape:
            raise ValueError(
                f"`shape` must be the matrix's own, {array.shape}. Received: shape={tuple(shape)}"
            )
        values = np.linalg.svd(array, compute_uv=False).astype(np.float64, copy=False)
        return values, (array.shape[0], array.shape[1])
    if shape is None or len(shape) != 2 or min(shape) != len(array) or np.any(array < 0):
        raise ValueError(
            "`shape` must be that of the matrix whose min(h, w) singular values are given, none of "
            f"them negative. Received: {len(array)} values, least {array.min():.3g}, shape={shape}"
        )
    return np.sort(array)[::-1], (int(shape[0]), int(shape[1]))


@functools.lru_cache(maxsize=1024)
def _edge(ratio: float) -> float:
    """Return (1 + t)(1 + a / t), the smallest g^2 / (M v) that is kept."""

    def zero(logarithm: float) -> float:
        t = math.exp(logarithm)
        return math.log1p(t) + ratio * math.log1p(t / ratio) - t

    # t grows as sqrt(a), and is 2.5129 at a = 1.
    near = math.log(2.5129 * math.sqrt(ratio))
    t = math.exp(scipy.optimize.brentq(zero, near - 2.0, near + 2.0, xtol=1e-13))
    return (1.0 + t) * (1.0 + ratio / t)


def _free_energy(
    variances: NDArray[np.float64], squares: NDArray[np.float64], large: int, edge: float
) -> NDArray[np.float64]:
    """Return the free energy per M, less what does not depend on the variance, at each variance."""
    ratio = len(squares) / large
    # Those above the threshold at the smallest variance may be kept, the others never.
    bound = edge * large * np.min(variances)
    x = squares[squares > bound] / (large * variances[:, None])  # (variances, values)
    kept = x > edge
    apart = np.where(kept, x, edge) - (1.0 + ratio)
    t = 0.5 * (apart + np.sqrt(np.maximum(apart**2 - 4.0 * ratio, 0.0)))
    # x - t = 1 + a + a / t, free of the difference of two large numbers
    signal = np.log1p(t) + ratio * np.log1p(t / ratio) + 1.0 + ratio + ratio / t
    total: NDArray[np.float64] = np.sum(np.where(kept, signal, x), axis=1)
    noise = np.sum(squares[squares <= bound]) / (large * variances)
    return total + noise + len(squares) * np.log(variances)


def _noise_variance(values: NDArray[np.float64], small: int, large: int, edge: float) -> float:
    """Return the variance of least free energy; the largest singular value is 1."""
    squares = np.square(values)
    bound = math.ceil(small / (1.0 + small / large)) - 1
    rest = float(np.sum(squares[bound:]))
    low = max(squares[bound] / (large * edge), rest / (large * (small - bound)))
    # A matrix without noise: rounding takes its part.
    low = max(low, (large * np.finfo(np.float64).eps) ** 2 / large)
    high = float(np.sum(squares)) / (small * large)
    if high <= low:
        return float(low)

    def energy(logarithm: float) -> float:
        return float(_free_energy(np.exp([logarithm]), squares, large, edge)[0])

    # Between the thresholds of the singular values the free energy may have a minimum each.
    grid = np.linspace(math.log(low), math.log(high), _GRID)
    coarse = _free_energy(np.exp(grid), squares, large, edge)
    padded = np.concatenate([[np.inf], coarse, [np.inf]])
    minima = np.flatnonzero((coarse <= padded[:-2]) & (coarse <= padded[2:]))
    minima = minima[np.argsort(coarse[minima])][:_REFINED]
    found = [(float(coarse[at]), float(grid[at])) for at in minima]
    for at in minima.tolist():
        inside = (float(grid[max(at - 1, 0)]), float(grid[min(at + 1, _GRID - 1)]))
        result = scipy.optimize.minimize_scalar(
            energy, bounds=inside, method="bounded", options={"xatol": 1e-10}
        )
        found.append((float(result.fun), float(result.x)))
    return math.exp(min(found)[1])
