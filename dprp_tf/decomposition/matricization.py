"""Unfold a kernel into the matrix whose rank is pruned, and fold it back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dprp_tf.files.arguments import check_choice

__all__ = ["MATRICIZATIONS", "dematricize", "full_rank", "matricize", "matrix_shape", "resolve"]

MATRICIZATIONS = ("spatial", "channel", "separable")


def resolve(kernel_shape: Sequence[int], matricization: str) -> str:
    """Return the matricization a kernel of this shape is really given.

    A pointwise convolution has L = 1, so its `spatial` matrix (S*C, 1) has rank 1 and can't be
    compressed: it is treated as the dense matrix (S, C), as is a dense kernel. Every form of
    those two is `channel`.

    Args:
        kernel_shape: Keras kernel shape, `(*spatial, C, S)` or `(D_in, D_out)`.
        matricization: One of `"spatial"`, `"channel"`, `"separable"`.

    Returns:
        The matricization to use.

    Raises:
        ValueError: If `matricization` is unknown or `kernel_shape` has fewer than two axes.

    Example:

    >>> resolve((1, 1, 16, 32), "spatial")
    'channel'
    """
    check_choice("matricization", matricization, MATRICIZATIONS)
    if len(kernel_shape) < 2 or any(int(size) < 1 for size in kernel_shape):
        raise ValueError(
            "`kernel_shape` must be (*spatial, input channels, filters) with positive sizes. "
            f"Received: kernel_shape={tuple(kernel_shape)}"
        )
    return "channel" if math.prod(kernel_shape[:-2]) == 1 else matricization


def matrix_shape(kernel_shape: Sequence[int], matricization: str) -> tuple[int, int]:
    """Return the shape (h, w) of the matricized kernel.

    With L the product of the spatial sizes, L1 the last of them and L2 the product of the
    others: `spatial` (S*C, L), `channel` (S, C*L), `separable` (S*L1, C*L2).

    Args:
        kernel_shape: Keras kernel shape, `(*spatial, C, S)` or `(D_in, D_out)`.
        matricization: One of `"spatial"`, `"channel"`, `"separable"`.

    Returns:
        The pair (h, w).

    Raises:
        ValueError: If an argument is unusable; see `resolve`.

    Example:

    >>> matrix_shape((3, 3, 16, 32), "spatial")
    (512, 9)
    """
    kind = resolve(kernel_shape, matricization)
    *spatial, channels, filters = (int(size) for size in kernel_shape)
    if kind == "spatial":
        return filters * channels, math.prod(spatial)
    if kind == "channel":
        return filters, channels * math.prod(spatial)
    return filters * spatial[-1], channels * math.prod(spatial[:-1])


def full_rank(kernel_shape: Sequence[int], matricization: str) -> int:
    """Return min(h, w), the largest rank the matricized kernel can have.

    Args:
        kernel_shape: Keras kernel shape.
        matricization: One of `"spatial"`, `"channel"`, `"separable"`.

    Returns:
        The full rank.

    Raises:
        ValueError: If an argument is unusable; see `resolve`.

    Example:

    >>> full_rank((3, 3, 16, 32), "spatial")
    9
    """
    return min(matrix_shape(kernel_shape, matricization))


def matricize(kernel: Any, matricization: str, *, ops: Any = np) -> Any:
    """Unfold a Keras kernel into its matrix M of shape (h, w).

    `spatial` is DPRP Eq. 1 counted from 0: K[l2, l1, c, s] = M[s*C + c, l2*L1 + l1]. `channel`
    puts filters against everything else, `separable` puts the last spatial axis with the
    filters and all others with the channels.

    Args:
        kernel: Array of shape `(*spatial, C, S)` or `(D_in, D_out)`.
        matricization: One of `"spatial"`, `"channel"`, `"separable"`.
        ops: Module with `reshape` and `transpose`; NumPy by default, `keras.ops` in layers.

    Returns:
        The matrix, of shape (h, w).

    Raises:
        ValueError: If an argument is unusable; see `resolve`.

    Source: DPRP (arXiv 2401.08014) Eq. 1 and 5; BSR/LeSS thesis, schemes 1 and 2.

    Example:

    >>> matricize(np.zeros((3, 5, 2, 4)), "separable").shape
    (20, 6)
    """
    shape = tuple(int(size) for size in kernel.shape)
    kind = resolve(shape, matricization)
    *spatial, channels, filters = shape
    height, width = matrix_shape(shape, matricization)
    if kind in ("spatial", "channel"):
        # (*L, C, S) -> (L, C, S) -> (S, C, L) -> (S*C, L) or (S, C*L)
        unfolded = ops.reshape(kernel, (math.prod(spatial), channels, filters))
        return ops.reshape(ops.transpose(unfolded, (2, 1, 0)), (height, width))
    # (*L, C, S) -> (L2, L1, C, S) -> (S, L1, C, L2) -> (S*L1, C*L2)
    unfolded = ops.reshape(kernel, (math.prod(spatial[:-1]), spatial[-1], channels, filters))
    return ops.reshape(ops.transpose(unfolded, (3, 1, 2, 0)), (height, width))


def dematricize(
    matrix: Any, kernel_shape: Sequence[int], matricization: str, *, ops: Any = np
) -> Any:
    """Fold a matrix (h, w) back into the Keras kernel it came from; the inverse of `matricize`.

    Args:
        matrix: Array of shape (h, w).
        kernel_shape: Shape of the kernel to return.
        matricization: The matricization that made `matrix`.
        ops: Module with `reshape` and `transpose`; NumPy by default, `keras.ops` in layers.

    Returns:
        The kernel, of shape `kernel_shape`.

    Raises:
        ValueError: If the matrix has not the shape this kernel and matricization give.

    Source: DPRP (arXiv 2401.08014) Eq. 2.

    Example:

    >>> kernel = np.arange(72.0).reshape(3, 3, 2, 4)
    >>> np.array_equal(dematricize(matricize(kernel, "spatial"), kernel.shape, "spatial"), kernel)
    True
    """
    shape = tuple(int(size) for size in kernel_shape)
    kind = resolve(shape, matricization)
    expected = matrix_shape(shape, matricization)
    if tuple(matrix.shape) != expected:
        raise ValueError(
            f"`matrix` must have shape {expected} for a kernel of shape {shape} in "
            f"{matricization!r} form. Received: matrix.shape={tuple(matrix.shape)}"
        )
    *spatial, channels, filters = shape
    if kind in ("spatial", "channel"):
        # (h, w) -> (S, C, L) -> (L, C, S) -> (*L, C, S)
        folded = ops.reshape(matrix, (filters, channels, math.prod(spatial)))
        return ops.reshape(ops.transpose(folded, (2, 1, 0)), shape)
    # (S*L1, C*L2) -> (S, L1, C, L2) -> (L2, L1, C, S) -> (*L, C, S)
    folded = ops.reshape(matrix, (filters, spatial[-1], channels, math.prod(spatial[:-1])))
    return ops.reshape(ops.transpose(folded, (3, 1, 2, 0)), shape)
