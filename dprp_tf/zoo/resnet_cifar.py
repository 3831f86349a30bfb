"""The CIFAR ResNets: three stages of 16, 32 and 64 filters, 6n + 2 layers."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.files.arguments import check_integer
from dprp_tf.zoo.preprocessing import Preprocess
from dprp_tf.zoo.residual import Shortcut, residual_network
from dprp_tf.zoo.variants import variant_of

__all__ = ["resnet20", "resnet32", "resnet56", "resnet_cifar"]


def resnet_cifar(
    depth: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    shortcut: Shortcut = "A",
    width: int = 16,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the CIFAR ResNet with `depth` layers, of `width`, `2 width` and `4 width` filters.

    Args:
        depth: Weighted layers, 6n + 2: 8, 14, 20, 26, 32, ...
        input_shape: Height, width and channels of one image. Defaults to `(32, 32, 3)`.
        classes: Number of logits, at least 2. Defaults to 10.
        shortcut: `"A"` (zero-padded channels, no parameters) or `"B"` (1x1 convolution).
            Defaults to `"A"`, the paper's choice on CIFAR.
        width: Filters of the first stage, at least 1. Defaults to 16.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `resnet<depth>`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: He et al., "Deep Residual Learning for Image Recognition", section 4.2.

    Example:

    >>> resnet_cifar(8, input_shape=(8, 8, 3), width=4).name
    'resnet8'
    """
    if depth < 8 or (depth - 2) % 6:
        lower = max(8, depth - (depth - 2) % 6)
        raise ValueError(
            "`depth` must be 6n + 2 with n at least 1 (8, 14, 20, 26, 32, ...). Received: "
            f"depth={depth}. The nearest are {lower} and {lower + 6}."
        )
    check_integer("width", width)
    return residual_network(
        input_shape,
        classes,
        widths=(width, 2 * width, 4 * width),
        blocks=(depth - 2) // 6,
        shortcut=shortcut,
        weight_decay=weight_decay,
        preprocess=preprocess,
        name=name or f"resnet{depth}",
    )


@variant_of(resnet_cifar, "depth")
def resnet20(**arguments: Any) -> keras.Model:
    """Build ResNet-20, 269,722 trainable parameters with 10 classes and shortcut `"A"`.

    Args:
        **arguments: Those of `resnet_cifar` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> resnet20(classes=100).output_shape
    (None, 100)
    """
    return resnet_cifar(20, **arguments)


@variant_of(resnet_cifar, "depth")
def resnet32(**arguments: Any) -> keras.Model:
    """Build ResNet-32, 464,154 trainable parameters with 10 classes and shortcut `"A"`.

    Args:
        **arguments: Those of `resnet_cifar` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> resnet32(width=4).output_shape
    (None, 10)
    """
    return resnet_cifar(32, **arguments)


@variant_of(resnet_cifar, "depth")
def resnet56(**arguments: Any) -> keras.Model:
    """Build ResNet-56, 853,018 trainable parameters with 10 classes and shortcut `"A"`.

    Args:
        **arguments: Those of `resnet_cifar` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> resnet56(width=4).output_shape
    (None, 10)
    """
    return resnet_cifar(56, **arguments)
