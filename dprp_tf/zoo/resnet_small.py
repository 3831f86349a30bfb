"""The demo's network: few blocks, wide enough for low rank to pay in time as well as in size."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from dprp_tf.zoo.preprocessing import Preprocess
from dprp_tf.zoo.residual import Shortcut, residual_network

__all__ = ["resnet_small"]


def resnet_small(
    input_shape: tuple[int, int, int] = (16, 16, 1),
    classes: int = 10,
    widths: Sequence[int] = (32, 64, 128),
    blocks: int = 1,
    shortcut: Shortcut = "A",
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build a small residual network for small images, by default 16x16 digits.

    Args:
        input_shape: Height, width and channels of one image. Defaults to `(16, 16, 1)`.
        classes: Number of logits, at least 2. Defaults to 10.
        widths: Filters of each stage; every stage after the first halves height and width.
            Defaults to `(32, 64, 128)`.
        blocks: Blocks per stage, at least 1. Defaults to 1.
        shortcut: `"A"` (zero-padded channels, no parameters) or `"B"` (1x1 convolution).
            Defaults to `"A"`.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `resnet_small`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    >>> resnet_small(widths=(8, 16)).output_shape
    (None, 10)
    """
    return residual_network(
        input_shape,
        classes,
        widths=widths,
        blocks=blocks,
        shortcut=shortcut,
        weight_decay=weight_decay,
        preprocess=preprocess,
        name=name or "resnet_small",
    )
