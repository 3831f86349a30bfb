"""Second moments of what a layer multiplies by its kernel, made fit to be inverted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RIDGE", "regular_moments"]

RIDGE = 1e-4


def regular_moments(covariance: ArrayLike, size: int, ridge: float = RIDGE) -> NDArray[np.float64]:
    """Return second moments that can be inverted: symmetric, and with a ridge on the diagonal.

    P + ridge (tr P / n) I of P (n, n); the identity where there is no input.

    Args:
        covariance: P = E[p p^T] of the inputs p.
        size: n, the number of weights of one filter.
        ridge: Share of the mean of P's diagonal that is added to it. Default 1e-4.

    Returns:
        Array of shape (n, n).

    Raises:
        ValueError: If P has another shape or is not finite.

    Example:

    >>> regular_moments([[1.0, 0.0], [0.0, 3.0]], 2, 0.5).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    moments = np.asarray(covariance, dtype=np.float64)
    if moments.shape != (size, size) or not np.all(np.isfinite(moments)):
        raise ValueError(
            f"`covariance` must be a finite matrix of shape {(size, size)}, (C*L, C*L) of the "
            f"kernel. Received: shape={moments.shape}"
            + ("" if np.all(np.isfinite(moments)) else ", not finite")
        )
    mean = float(np.trace(moments)) / size
    if mean <= 0:
        return np.eye(size)
    return (moments + moments.T) / 2.0 + ridge * mean * np.eye(size)
