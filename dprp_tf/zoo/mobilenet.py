"""MobileNetV2: inverted residuals, for ImageNet and for CIFAR."""

from __future__ import annotations

import keras

from dprp_tf.zoo.arguments import check_arguments, check_width
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    activated,
    batch_normalized,
    convolution,
    dropped,
    global_average,
    l2,
    logits_dense,
    sample_input,
)
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["mobilenet_v2", "mobilenet_v2_cifar"]

# Expansion, filters, blocks and stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM = 32
_HEAD = 1280
_DIVISOR = 8


def mobilenet_v2(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    alpha: float = 1.0,
    dropout: float = 0.2,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build MobileNetV2, 3,504,872 trainable parameters and 0.30 GMACs by default.

    An inverted residual widens by a 1x1 convolution, filters by a depthwise 3x3 one, both with
    ReLU6, and narrows by a linear 1x1 convolution; where the shapes agree, its input is added.
    The moving statistics, 34,112 more weights, are not counted, as in the table of torchvision;
    Keras' own count includes them.

    Args:
        input_shape: Height, width and channels of one image; height and width fall to 1/32 on
            the way. Defaults to `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        alpha: Width multiplier, above 0; filters are rounded to multiples of 8 and the last
            convolution is never narrowed. Defaults to 1.
        dropout: Share dropped before the logits, in [0, 1). Defaults to 0.2.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `mobilenet_v2`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2;
    parameters and MACs of torchvision's `MobileNet_V2_Weights`.

    Example:

    >>> mobilenet_v2((32, 32, 3), classes=5, alpha=0.35).output_shape
    (None, 5)
    """
    name = name or "mobilenet_v2"
    return _mobilenet(
        input_shape, classes, alpha, dropout, weight_decay, preprocess, name, early_strides=2
    )


def mobilenet_v2_cifar(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    alpha: float = 1.0,
    dropout: float = 0.2,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build MobileNetV2 for small images, 2,236,682 parameters and 88 MMACs by default.

    The stem and the second stage keep height and width, which fall to 1/8 instead of 1/32;
    everything else, and so every kernel, is that of `mobilenet_v2`.

    Args:
        input_shape: Height, width and channels of one image. Defaults to `(32, 32, 3)`.
        classes: Number of logits, at least 2. Defaults to 10.
        alpha: Width multiplier, above 0; filters are rounded to multiples of 8 and the last
            convolution is never narrowed. Defaults to 1.
        dropout: Share dropped before the logits, in [0, 1). Defaults to 0.2.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `mobilenet_v2_cifar`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: the CIFAR-10 table of github.com/chenyaofo/pytorch-cifar-models, `mobilenetv2_x1_0`:
    2.24 M parameters and 87.98 MMACs.

    Example:

    >>> mobilenet_v2_cifar((8, 8, 3), classes=5, alpha=0.35).output_shape
    (None, 5)
    """
    name = name or "mobilenet_v2_cifar"
    return _mobilenet(
        input_shape, classes, alpha, dropout, weight_decay, preprocess, name, early_strides=1
    )


def _mobilenet(
    input_shape: tuple[int, int, int],
    classes: int,
    alpha: float,
    dropout: float,
    weight_decay: float,
    preprocess: Preprocess | None,
    name: str,
    early_strides: int,
) -> keras.Model:
    check_arguments(input_shape, classes, weight_decay)
    check_width(alpha, dropout)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = convolution(
        x, _divisible(_STEM * alpha), "stem", decay, strides=early_strides, activation="relu6"
    )
    for stage, (expansion, filters, blocks, strides) in enumerate(_STAGES, start=1):
        for block in range(blocks):
            first = early_strides if stage == 2 else strides
            x = _inverted_residual(
                x,
                expansion,
                _divisible(filters * alpha),
                first if block == 0 else 1,
                f"stage{stage}_block{block}",
                decay,
            )
    last = _divisible(_HEAD * max(1.0, alpha))
    x = convolution(x, last, "head", decay, kernel_size=1, activation="relu6")
    x = dropped(global_average(x), dropout, "dropout")
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name)


def _inverted_residual(
    x: keras.KerasTensor, expansion: int, filters: int, strides: int, name: str, decay: float
) -> keras.KerasTensor:
    residual = x
    if expansion != 1:
        residual = convolution(
            residual,
            expansion * x.shape[-1],
            f"{name}_expand",
            decay,
            kernel_size=1,
            activation="relu6",
        )
    residual = keras.layers.DepthwiseConv2D(
        3,
        strides=strides,
        padding="same",
        data_format=CHANNELS_LAST,
        use_bias=False,
        depthwise_initializer="he_normal",
        depthwise_regularizer=l2(decay),
        name=f"{name}_depthwise_conv",
    )(residual)
    residual = batch_normalized(residual, f"{name}_depthwise_bn")
    residual = activated(residual, "relu6", f"{name}_depthwise")
    residual = convolution(
        residual, filters, f"{name}_project", decay, kernel_size=1, activation=None
    )
    if strides == 1 and x.shape[-1] == filters:
        return keras.layers.Add(name=f"{name}_add")([x, residual])
    return residual


def _divisible(filters: float) -> int:
    """Round to a multiple of 8, but not down by more than a tenth."""
    rounded = max(_DIVISOR, int(filters + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded if rounded >= 0.9 * filters else rounded + _DIVISOR
