"""How far factors are from those of an SVD: orthonormality and order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

__all__ = ["gram_error", "gram_matrices", "gram_matrix", "orthogonality", "sorting"]

_TINY = 1e-12


def orthogonality(factor: Any, softening: Any = 0.0) -> Any:
    """Return how far a factor's columns are from orthonormal: 1/r^2 ||Q^T Q - I||_F.

    One half of a layer's term in Eq. 10; the other is the same function of V. The norm is not
    squared, so its gradient keeps its size however small the error: at a large learning rate the
    factors jitter. With `softening` d the norm x becomes sqrt(x^2 + d^2) - d, whose gradient
    falls off below d.

    Args:
        factor: Tensor of shape (..., h, r).
        softening: d, 0 or more. Default 0: Eq. 10 itself.

    Returns:
        Tensor of shape (...), in float32.

    Source: DPRP (arXiv 2401.08014) Eq. 10.

    Example:

    >>> import numpy as np
    >>> float(orthogonality(np.eye(4, 2, dtype="float32"))) < 1e-5
    True
    """
    return gram_error(gram_matrix(factor), softening)


def gram_matrix(factor: Any) -> Any:
    """Return Q^T Q of a factor Q, shape (..., h, r) -> (..., r, r), in float32.

    Args:
        factor: Tensor of shape (..., h, r).

    Returns:
        Tensor of shape (..., r, r).

    Example:

    >>> import numpy as np
    >>> gram_matrix(np.ones((4, 2), "float32")).shape
    TensorShape([2, 2])
    """
    factor = ops.cast(factor, "float32")
    return ops.matmul(ops.swapaxes(factor, -2, -1), factor)


def gram_matrices(factors: Sequence[Any]) -> Any:
    """Return Q^T Q of n factors Q, shapes (h_i, r) -> (n, r, r), in float32.

    Args:
        factors: Tensors of shape (h_i, r), one or more, of equal r.

    Returns:
        Tensor of shape (n, r, r).

    Example:

    >>> import numpy as np
    >>> tall, wide = np.ones((4, 2), "float32"), np.ones((3, 2), "float32")
    >>> [float(gram[0, 0]) for gram in gram_matrices([tall, wide, tall])]
    [4.0, 3.0, 4.0]
    """
    # One product each: a stack of tall factors costs more to make, and to multiply, than it saves.
    return ops.stack([gram_matrix(factor) for factor in factors])


def gram_error(gram: Any, softening: Any = 0.0) -> Any:
    """Return `orthogonality` from Gram matrices, so that layers of equal rank share operations.

    Args:
        gram: Tensor Q^T Q of shape (..., r, r).
        softening: d of `orthogonality`, broadcastable to (...).

    Returns:
        Tensor of shape (...).

    Source: DPRP (arXiv 2401.08014) Eq. 10.
    """
    rank = gram.shape[-1]
    squared = ops.sum(ops.square(gram - ops.eye(rank, dtype="float32")), axis=(-2, -1))
    # _TINY keeps the gradient of the root finite at exact orthonormality.
    return (ops.sqrt(squared + softening * softening + _TINY) - softening) / rank**2


def sorting(s: Any) -> Any:
    """Return a layer's term of L_sort: how far s is from descending and non-negative.

    chi(gamma) sum_j max(0, s_(j+1) - s_j) + chi(eta) sum_j max(0, -s_j), with gamma the number of
    entries out of order, eta the number of negative ones, chi(a) = 1/a or 0 at a = 0. The counts
    carry no gradient. The second sum runs to r (printed: r - 1), so the last value counts too.

    Args:
        s: Tensor of shape (..., r).

    Returns:
        Tensor of shape (...), in float32.

    Source: DPRP (arXiv 2401.08014) Eq. 11.

    Example:

    >>> import numpy as np
    >>> float(sorting(np.array([1.0, 3.0, -0.5], dtype="float32")))
    2.5
    """
    s = ops.cast(s, "float32")
    rises = ops.relu(s[..., 1:] - s[..., :-1])
    negatives = ops.relu(-s)
    return _mean_of_positive(rises) + _mean_of_positive(negatives)


def _mean_of_positive(values: Any) -> Any:
    count = ops.stop_gradient(ops.sum(ops.cast(values > 0, "float32"), axis=-1))
    return ops.sum(values, axis=-1) / ops.maximum(count, 1.0)
