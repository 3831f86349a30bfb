"""Standardization inside a network, so that it takes raw values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

__all__ = ["Preprocess", "standardization"]

Preprocess = tuple[float | Sequence[float], float | Sequence[float]]


def standardization(preprocess: Preprocess, channels: int) -> keras.layers.Layer:
    """Return a layer named `preprocess` that computes `(x - mean) / std`.

    Args:
        preprocess: `(mean, std)`, each a number or one per channel.
        channels: Channels of the input.

    Returns:
        A `Rescaling` layer.

    Raises:
        ValueError: If `preprocess` is no such pair, or a std is not above 0.

    Example:

    >>> standardization((0.5, 0.25), channels=1).scale
    [4.0]
    """
    if not isinstance(preprocess, (tuple, list)) or len(preprocess) != 2:
        raise ValueError(
            "`preprocess` must be a pair (mean, std) or None. Received: "
            f"preprocess={preprocess!r}. A dataset of `dprp_tf.data` has both: "
            "preprocess=(dataset.mean, dataset.std)."
        )
    mean, std = (_per_channel(value, channels, preprocess) for value in preprocess)
    if any(value <= 0 for value in std):
        raise ValueError(
            f"`preprocess` must hold a std above 0 for every channel. Received: std={std}. "
            "Give 1 to a channel that never varies."
        )
    # One multiplication and one addition: both have int8 kernels, division has none.
    return keras.layers.Rescaling(
        scale=[1 / s for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        name="preprocess",
    )


def _per_channel(
    value: float | Sequence[float], channels: int, preprocess: Preprocess
) -> list[float]:
    try:
        values = [float(v) for v in value]  # type: ignore[union-attr]
    except TypeError:
        values = [float(value)] * channels  # type: ignore[arg-type]
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise ValueError(
            f"`preprocess` must hold one finite number or {channels}, one per channel of "
            f"`input_shape`, for mean and for std. Received: preprocess={preprocess!r}."
        )
    return values
