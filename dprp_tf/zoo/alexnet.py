"""AlexNet in its one-tower form, for ImageNet and for CIFAR."""

from __future__ import annotations

import keras

from dprp_tf.zoo.arguments import check_arguments, check_width
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    convolution,
    dropped,
    hidden_dense,
    logits_dense,
    pooled_to,
    sample_input,
    scaled,
)
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["alexnet", "alexnet_cifar"]

_LEAST = 63
_LEAST_CIFAR = 29
# Filters and side of the kernel; a pooling follows the first, the second and the last.
_STAGES = ((64, 11), (192, 5), (384, 3), (256, 3), (256, 3))
_POOLED = (1, 2, 5)


def alexnet(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    alpha: float = 1.0,
    dropout: float = 0.5,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build AlexNet, 61,100,840 parameters and 0.714 GMACs by default.

    The one-tower form of Krizhevsky's second paper, as torchvision has it: five convolutions
    with biases, no groups and no local response normalization, whose 2012 form in two towers
    needs a layer that Keras lacks (60,965,224 parameters). Maps of more than 6 pixels before the
    fully connected layers are averaged down to 6, smaller ones taken as they are, and the first
    fully connected layer is the smaller for it.

    Args:
        input_shape: Height, width and channels of one image, 63 pixels or more. Defaults to
            `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        alpha: Width multiplier of filters and hidden units, above 0. Defaults to 1.
        dropout: Share dropped before each hidden fully connected layer, in [0, 1). Defaults to
            0.5.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `alexnet`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Krizhevsky, "One Weird Trick for Parallelizing Convolutional Neural Networks";
    parameters and MACs of torchvision's `AlexNet_Weights`.

    Example:

    >>> alexnet((64, 64, 3), classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    hint = " For images of 32 pixels use alexnet_cifar."
    check_arguments(input_shape, classes, weight_decay, network="AlexNet", least=_LEAST, hint=hint)
    check_width(alpha, dropout)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = keras.layers.ZeroPadding2D(2, data_format=CHANNELS_LAST, name="stage1_pad")(x)
    x = _features(x, alpha, decay, stem_padding="valid", pool_size=3)
    x = pooled_to(x, 6, "pool")
    x = keras.layers.Flatten(data_format=CHANNELS_LAST, name="flatten")(x)
    for number in (1, 2):
        x = dropped(x, dropout, f"dense{number}_dropout")
        x = hidden_dense(x, scaled(4096, alpha), f"dense{number}", decay)
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name or "alexnet")


def alexnet_cifar(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    alpha: float = 1.0,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build AlexNet for images of 32 pixels, 2,472,266 parameters (2.47 M) by default.

    The convolutions of `alexnet`, the first one padded, 2x2 poolings and no hidden fully
    connected layer.

    Args:
        input_shape: Height, width and channels of one image, 29 pixels or more. Defaults to
            `(32, 32, 3)`.
        classes: Number of logits, at least 2. Defaults to 10.
        alpha: Width multiplier of the filters, above 0. Defaults to 1.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `alexnet_cifar`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: the CIFAR table of github.com/bearpaw/pytorch-classification, `alexnet`.

    Example:

    >>> alexnet_cifar().count_params()
    2472266
    """
    check_arguments(
        input_shape, classes, weight_decay, network="AlexNet for CIFAR", least=_LEAST_CIFAR
    )
    check_width(alpha)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = _features(x, alpha, decay, stem_padding="same", pool_size=2)
    x = pooled_to(x, 1, "pool")
    x = keras.layers.Flatten(data_format=CHANNELS_LAST, name="flatten")(x)
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name or "alexnet_cifar")


def _features(
    x: keras.KerasTensor, alpha: float, decay: float, stem_padding: str, pool_size: int
) -> keras.KerasTensor:
    for number, (filters, kernel_size) in enumerate(_STAGES, start=1):
        x = convolution(
            x,
            scaled(filters, alpha),
            f"stage{number}",
            decay,
            kernel_size=kernel_size,
            strides=4 if number == 1 else 1,
            padding=stem_padding if number == 1 else "same",
            use_bias=True,
            batch_norm=False,
        )
        if number in _POOLED:
            x = keras.layers.MaxPooling2D(
                pool_size, strides=2, data_format=CHANNELS_LAST, name=f"stage{number}_pool"
            )(x)
    return x
