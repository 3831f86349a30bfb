"""What kernels cost: parameters of factors and stages, and the rank at which they pay."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dprp_tf import decomposition

__all__ = [
    "break_even_rank",
    "factor_parameters",
    "two_stage_effort",
    "two_stage_kernels",
    "two_stage_parameters",
]


def factor_parameters(kernel_shape: Sequence[int], matricization: str, rank: int) -> int:
    """Return r (h + w + 1), the weights of the factors U (h, r), s (r,), V (w, r) in training.

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The number of weights, without bias.

    Source: DPRP (arXiv 2401.08014) Eq. 4 and 7.

    Example:

    >>> factor_parameters((3, 3, 16, 16), "spatial", 9)
    2394
    """
    height, width = decomposition.matrix_shape(kernel_shape, matricization)
    return rank * (height + width + 1)


def break_even_rank(kernel_shape: Sequence[int], matricization: str) -> int:
    """Return the largest rank whose factors weigh no more than the kernel; 0 if none does.

    r <= h w / (h + w + 1).

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.

    Returns:
        The rank.

    Source: DPRP (arXiv 2401.08014) Eq. 3 and 6.

    Example:

    >>> break_even_rank((3, 3, 16, 16), "spatial")
    8
    """
    height, width = decomposition.matrix_shape(kernel_shape, matricization)
    return (height * width) // (height + width + 1)


def two_stage_kernels(
    kernel_shape: Sequence[int], matricization: str, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the kernel shapes of the two plain convolutions a layer of this rank folds into.

    With C channels and S filters: `spatial` gives r depthwise filters shared by all channels,
    stored once per channel, (*kernel_size, C, r), then a pointwise (C*r, S); `channel` gives
    (*kernel_size, C, r) then (r, S); `separable` gives (*leading axes, 1, C, r) then
    (1, ..., last axis, r, S). Dense and pointwise kernels give (D_in, r) then (r, D_out).

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The two shapes.

    Example:

    >>> two_stage_kernels((3, 3, 16, 32), "separable", 8)
    ((3, 1, 16, 8), (1, 3, 8, 32))
    """
    kind = decomposition.resolve(kernel_shape, matricization)
    *spatial, channels, filters = (int(size) for size in kernel_shape)
    ones = (1,) * len(spatial)
    if kind == "spatial":
        return (*spatial, channels, rank), (*ones, channels * rank, filters)
    if kind == "channel":
        return (*spatial, channels, rank), (*ones, rank, filters)
    first = (*spatial[:-1], 1, channels, rank)
    return first, (*ones[:-1], spatial[-1], rank, filters)


def two_stage_parameters(kernel_shape: Sequence[int], matricization: str, rank: int) -> int:
    """Return the weights of the two-stage fold, as stored, without bias.

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The number of weights of both kernels of `two_stage_kernels`.

    Example:

    >>> two_stage_parameters((3, 3, 16, 32), "separable", 8)
    1152
    """
    return sum(math.prod(shape) for shape in two_stage_kernels(kernel_shape, matricization, rank))


def two_stage_effort(kernel_shape: Sequence[int], matricization: str, rank: int) -> float:
    """Estimate the time of the two-stage fold relative to the dense convolution.

    A rule of thumb, MACs over MACs with a depthwise MAC counted four times: on x86-64 with LiteRT
    a depthwise branch took 2.3 to 4.4 times as long per MAC as a convolution, for 64 to 16
    channels. Below about 0.75 two stages were faster in every case measured but the smallest.

    Args:
        kernel_shape: Keras kernel shape.
        matricization: `"spatial"`, `"channel"` or `"separable"`.
        rank: Number of singular values r.

    Returns:
        The estimated ratio, above 0.

    Example:

    >>> two_stage_effort((3, 3, 32, 32), "spatial", 3) < 0.75
    True
    """
    first, second = two_stage_kernels(kernel_shape, matricization, rank)
    depthwise = decomposition.resolve(kernel_shape, matricization) == "spatial"
    effort = (4 if depthwise else 1) * math.prod(first) + math.prod(second)
    return effort / math.prod(kernel_shape)
