"""Tucker-2: a kernel as two channel mixes around a small core."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dprp_tf.decomposition.svd import energy_rank

__all__ = ["TuckerFactors", "full_tucker_ranks", "tucker2", "tucker_ranks"]


class TuckerFactors(NamedTuple):
    """A (C, r_in), G (*L, r_in, r_out), B (S, r_out): W[l, c, s] = sum A[c, i] G[l, i, o] B[s, o].

    Example:

    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
    >>> factors = tucker2(kernel, (4, 5))
    >>> bool(np.allclose(factors.kernel(), kernel))
    True
    """

    first: NDArray[np.floating]
    core: NDArray[np.floating]
    last: NDArray[np.floating]

    @property
    def ranks(self) -> tuple[int, int]:
        """(r_in, r_out)."""
        return self.first.shape[1], self.last.shape[1]

    def kernel(self) -> NDArray[np.floating]:
        """Return the kernel these factors stand for, (*L, C, S)."""
        mixed: NDArray[np.floating] = np.einsum(
            "...io,ci,so->...cs", self.core, self.first, self.last, optimize=True
        )
        return mixed


def full_tucker_ranks(kernel_shape: Sequence[int]) -> tuple[int, int]:
    """Return (min(C, L S), min(S, L C)), the largest ranks the two unfoldings can have.

    Args:
        kernel_shape: Keras kernel shape (*L, C, S).

    Returns:
        (R_in, R_out), at which Tucker-2 is exact.

    Example:

    >>> full_tucker_ranks((3, 3, 2, 32))
    (2, 18)
    """
    *spatial, channels, filters = (int(size) for size in kernel_shape)
    positions = math.prod(spatial)
    return min(channels, positions * filters), min(filters, positions * channels)


def tucker2(
    kernel: NDArray[np.floating], ranks: tuple[int, int], *, iterations: int = 20
) -> TuckerFactors:
    """Return the Tucker-2 decomposition of a convolution kernel, computed by tensorly.

    W (*L, C, S) is approximated by A (C, r_in), G (*L, r_in, r_out) and B (S, r_out): the modes of
    the channels and of the filters are compressed, the spatial ones kept.

    Args:
        kernel: Array of shape (*L, C, S) with one spatial axis or more, finite.
        ranks: (r_in, r_out), in 1..C and 1..S.
        iterations: Most sweeps of higher-order orthogonal iteration, 0 or more; 0 is the
            higher-order SVD alone, near the best and much quicker. Default 20.

    Returns:
        The factors in the kernel's dtype; A and B have orthonormal columns.

    Raises:
        ValueError: If the kernel has no spatial axis or a rank is out of range.

    Source: Kim et al. 2016 (arXiv 1511.06530); BSR/LeSS thesis 4.7.4.

    Example:

    >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
    >>> tucker2(kernel, (2, 3)).core.shape
    (3, 3, 2, 3)
    """
    from tensorly.decomposition import partial_tucker

    kernel = np.asarray(kernel)
    if kernel.ndim < 3:
        raise ValueError(
            "`kernel` must be (*spatial, channels, filters) with a spatial axis. "
            f"Received: shape={kernel.shape}"
        )
    channels, filters = kernel.shape[-2:]
    if not (1 <= ranks[0] <= channels and 1 <= ranks[1] <= filters):
        raise ValueError(
            f"`ranks` must lie in (1..{channels}, 1..{filters}). Received: ranks={ranks}"
        )
    flat = kernel.astype(np.float64).reshape(-1, channels, filters)
    full = full_tucker_ranks(kernel.shape)
    if ranks[0] >= full[0] and ranks[1] >= full[1]:
        iterations = 0  # the first projection is exact already
    with warnings.catch_warnings():
        # Of a rank above the other one's times L, which is completed by any orthonormal columns.
        warnings.filterwarnings("ignore", message="Trying to compute SVD with n_eigenvecs")
        (core, (first, last)), _ = partial_tucker(
            flat, rank=list(ranks), modes=[1, 2], init="svd", n_iter_max=iterations, tol=1e-8
        )
    dtype = kernel.dtype if np.issubdtype(kernel.dtype, np.floating) else np.dtype(np.float64)
    return TuckerFactors(
        np.asarray(first).astype(dtype),
        np.asarray(core).reshape(*kernel.shape[:-2], *ranks).astype(dtype),
        np.asarray(last).astype(dtype),
    )


def tucker_ranks(kernel: NDArray[np.floating], tolerance: float) -> tuple[int, int]:
    """Return the smallest (r_in, r_out) whose truncated unfoldings stay within a tolerance.

    Each of the two unfoldings, (C, L*S) and (S, L*C), may lose a share tolerance / sqrt(2) of the
    kernel's Frobenius norm, so the kernel loses at most `tolerance` of it.

    Args:
        kernel: Array of shape (*L, C, S), finite.
        tolerance: Allowed error relative to the kernel's Frobenius norm, in [0, 1).

    Returns:
        (r_in, r_out).

    Source: De Lathauwer et al. 2000, the error bound of the truncated higher-order SVD.

    Example:

    >>> kernel = np.zeros((3, 3, 4, 5)); kernel[..., 0, 0] = 1.0
    >>> tucker_ranks(kernel, 1e-6)
    (1, 1)
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    discarded = tolerance**2 / 2
    ranks = []
    for axis in (-2, -1):
        unfolded = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
        s = np.linalg.svd(unfolded, compute_uv=False)
        ranks.append(energy_rank(s, discarded) if np.any(s) else 1)
    return ranks[0], ranks[1]
