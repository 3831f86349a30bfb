"""DenseNet: each layer sees the outputs of all before it in its block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from dprp_tf.files.arguments import check_integer, check_number
from dprp_tf.zoo.arguments import check_arguments
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    activated,
    batch_normalized,
    convolution,
    global_average,
    logits_dense,
    sample_input,
)
from dprp_tf.zoo.preprocessing import Preprocess
from dprp_tf.zoo.variants import variant_of

__all__ = ["densenet40", "densenet121", "densenet_bc100", "densenet_cifar"]

_BLOCKS_121 = (6, 12, 24, 16)
_BOTTLENECK = 4
_LEAST = 29
_LEAST_CIFAR = 4


def densenet121(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    growth_rate: int = 32,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build DenseNet-121, 7,978,856 trainable parameters and 2.83 GMACs by default.

    A 7x7 stem with pooling, then blocks of 6, 12, 24 and 16 layers, each a 1x1 and a 3x3
    convolution that adds `growth_rate` channels; 1x1 convolutions with pooling between the
    blocks halve channels, height and width. Normalization and activation come before each
    convolution. The moving statistics, 83,648 more weights, are not counted, as in the table of
    torchvision; Keras' own count includes them. Padding is Keras' `"same"`, as in the ResNets.

    Args:
        input_shape: Height, width and channels of one image, 29 pixels or more. Defaults to
            `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        growth_rate: Channels that a layer adds, at least 1; the stem has twice as many. Defaults
            to 32.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `densenet121`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Huang et al., "Densely Connected Convolutional Networks", table 1; parameters and
    MACs of torchvision's `DenseNet121_Weights`.

    Example:

    >>> densenet121((32, 32, 3), classes=5, growth_rate=2).output_shape
    (None, 5)
    """
    hint = " For images of 32 pixels densenet40 and densenet_bc100 do better."
    check_arguments(
        input_shape, classes, weight_decay, network="DenseNet-121", least=_LEAST, hint=hint
    )
    check_integer("growth_rate", growth_rate)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = convolution(x, 2 * growth_rate, "stem", decay, kernel_size=7, strides=2)
    x = keras.layers.MaxPooling2D(
        3, strides=2, padding="same", data_format=CHANNELS_LAST, name="stem_pool"
    )(x)
    x = _dense_blocks(x, _BLOCKS_121, growth_rate, True, 0.5, decay)
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name or "densenet121")


def densenet_cifar(
    depth: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    growth_rate: int = 12,
    bottleneck: bool = False,
    compression: float = 1.0,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the CIFAR DenseNet with `depth` layers in three blocks of equal length.

    The stem has 16 filters, or twice the growth rate in the BC form, which has bottlenecks and
    halves the channels between blocks.

    Args:
        depth: Weighted layers: 3n + 4, or 6n + 4 with bottlenecks.
        input_shape: Height, width and channels of one image, 4 pixels or more. Defaults to
            `(32, 32, 3)`.
        classes: Number of logits, at least 2. Defaults to 10.
        growth_rate: Channels that a layer adds, at least 1. Defaults to 12.
        bottleneck: Whether a 1x1 convolution to four times the growth rate comes before each 3x3
            one (B). Defaults to False.
        compression: Share of the channels that a transition keeps, in (0, 1] (C below 1).
            Defaults to 1.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `densenet<depth>`, or `densenet_bc<depth>` with
            bottlenecks.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Huang et al., "Densely Connected Convolutional Networks", section 3 and table 2.

    Example:

    >>> densenet_cifar(10, growth_rate=4, bottleneck=True, compression=0.5).name
    'densenet_bc10'
    """
    step = 6 if bottleneck else 3
    if depth < 4 + step or (depth - 4) % step:
        raise ValueError(
            f"`depth` must be {step}n + 4 with n at least 1"
            f"{' for bottlenecks' if bottleneck else ''}. Received: depth={depth}."
        )
    check_arguments(
        input_shape, classes, weight_decay, network="DenseNet for CIFAR", least=_LEAST_CIFAR
    )
    check_integer("growth_rate", growth_rate)
    check_number("compression", compression, above=0, maximum=1)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    stem = 2 * growth_rate if bottleneck and compression < 1 else 16
    x = convolution(x, stem, "stem", decay, batch_norm=False, activation=None)
    blocks = 3 * ((depth - 4) // step,)
    x = _dense_blocks(x, blocks, growth_rate, bottleneck, compression, decay)
    name = name or f"densenet{'_bc' if bottleneck else ''}{depth}"
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name)


@variant_of(densenet_cifar, "depth", "bottleneck", "compression")
def densenet40(**arguments: Any) -> keras.Model:
    """Build DenseNet-40 with growth rate 12, 1,019,722 trainable parameters (the paper's 1.0 M).

    Args:
        **arguments: Those of `densenet_cifar` but `depth`, `bottleneck` and `compression`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> densenet40(growth_rate=2, classes=100).output_shape
    (None, 100)
    """
    return densenet_cifar(40, **arguments)


@variant_of(densenet_cifar, "depth", "bottleneck", "compression")
def densenet_bc100(**arguments: Any) -> keras.Model:
    """Build DenseNet-BC-100 with growth rate 12, 769,162 trainable parameters (0.8 M).

    Args:
        **arguments: Those of `densenet_cifar` but `depth`, `bottleneck` and `compression`.

    Returns:
        A functional model that returns logits.

    Source of the count: the CIFAR-10 table of github.com/osmr/imgclsmob, `DenseNet-BC-100 (k=12)`.

    Example:

    >>> densenet_bc100(growth_rate=2, classes=100).output_shape
    (None, 100)
    """
    return densenet_cifar(100, bottleneck=True, compression=0.5, **arguments)


def _dense_blocks(
    x: keras.KerasTensor,
    blocks: Sequence[int],
    growth_rate: int,
    bottleneck: bool,
    compression: float,
    decay: float,
) -> keras.KerasTensor:
    for block, layers in enumerate(blocks, start=1):
        if block > 1:
            name = f"transition{block - 1}"
            x = _preactivated(x, max(1, int(compression * x.shape[-1])), name, decay, kernel_size=1)
            x = keras.layers.AveragePooling2D(2, data_format=CHANNELS_LAST, name=f"{name}_pool")(x)
        for layer in range(layers):
            name = f"block{block}_layer{layer}"
            new = x
            if bottleneck:
                new = _preactivated(new, _BOTTLENECK * growth_rate, name, decay, "1", kernel_size=1)
            new = _preactivated(new, growth_rate, name, decay, "2" if bottleneck else "")
            x = keras.layers.Concatenate(axis=-1, name=f"{name}_concatenate")([x, new])
    return global_average(activated(batch_normalized(x, "final_bn"), "relu", "final"))


def _preactivated(
    x: keras.KerasTensor,
    filters: int,
    name: str,
    decay: float,
    number: str = "",
    kernel_size: int = 3,
) -> keras.KerasTensor:
    x = activated(batch_normalized(x, f"{name}_bn{number}"), "relu", name, number)
    return convolution(
        x,
        filters,
        name,
        decay,
        number=number,
        kernel_size=kernel_size,
        batch_norm=False,
        activation=None,
    )
