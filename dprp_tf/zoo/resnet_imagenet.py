"""The ImageNet ResNets: a 7x7 stem with pooling, four stages of 64 to 512 filters."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.files.arguments import check_integer
from dprp_tf.zoo.preprocessing import Preprocess
from dprp_tf.zoo.residual import Block, Shortcut, residual_network
from dprp_tf.zoo.variants import variant_of

__all__ = ["resnet18", "resnet34", "resnet50", "resnet_imagenet"]

_DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}


def resnet_imagenet(
    depth: int,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    shortcut: Shortcut = "B",
    width: int = 64,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the ImageNet ResNet with `depth` layers, of `width` to `8 width` filters.

    Depths 18 and 34 are of basic blocks, 50 of bottlenecks that stride in their 3x3 convolution,
    as torchvision's do (often called v1.5; the paper strides in the first 1x1). Padding is
    Keras' `"same"`, which puts the odd pixel of a strided layer below and to the right, where
    torchvision pads evenly: equal parameters and MACs, but its weights would see a shifted grid.

    Args:
        depth: 18, 34 or 50.
        input_shape: Height, width and channels of one image; height and width fall to 1/32 on
            the way. Defaults to `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        shortcut: `"A"` (zero-padded channels, no parameters) or `"B"` (1x1 convolution).
            Defaults to `"B"`, whose parameters are the published ones.
        width: Filters of the first stage, at least 1. Defaults to 64.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `resnet<depth>`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: He et al., "Deep Residual Learning for Image Recognition", table 1; parameters and
    MACs of torchvision's `resnet18`, `resnet34` and `resnet50`.

    Example:

    >>> resnet_imagenet(18, input_shape=(64, 64, 3), width=4).output_shape
    (None, 1000)
    """
    if depth not in _DEPTHS:
        raise ValueError(
            f"`depth` must be one of {sorted(_DEPTHS)}. Received: depth={depth}. For images of "
            "32 pixels use resnet_cifar, whose depths are 6n + 2."
        )
    check_integer("width", width)
    block, blocks = _DEPTHS[depth]
    return residual_network(
        input_shape,
        classes,
        widths=(width, 2 * width, 4 * width, 8 * width),
        blocks=blocks,
        shortcut=shortcut,
        weight_decay=weight_decay,
        preprocess=preprocess,
        name=name or f"resnet{depth}",
        stem="imagenet",
        block=block,
    )


@variant_of(resnet_imagenet, "depth")
def resnet18(**arguments: Any) -> keras.Model:
    """Build ResNet-18, 11,689,512 trainable parameters and 1.81 GMACs by default.

    Args:
        **arguments: Those of `resnet_imagenet` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> resnet18(width=4, classes=100).output_shape
    (None, 100)
    """
    return resnet_imagenet(18, **arguments)


@variant_of(resnet_imagenet, "depth")
def resnet34(**arguments: Any) -> keras.Model:
    """Build ResNet-34, 21,797,672 trainable parameters and 3.66 GMACs by default.

    Args:
        **arguments: Those of `resnet_imagenet` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> resnet34(width=4, classes=100).output_shape
    (None, 100)
    """
    return resnet_imagenet(34, **arguments)


@variant_of(resnet_imagenet, "depth")
def resnet50(**arguments: Any) -> keras.Model:
    """Build ResNet-50, 25,557,032 trainable parameters and 4.09 GMACs by default.

    Args:
        **arguments: Those of `resnet_imagenet` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> resnet50(width=4, classes=100).output_shape
    (None, 100)
    """
    return resnet_imagenet(50, **arguments)
