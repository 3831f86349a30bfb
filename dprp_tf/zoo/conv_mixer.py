"""ConvMixer: patches, then depthwise convolutions over places and pointwise ones over channels."""

from __future__ import annotations

import keras

from dprp_tf.files.arguments import check_integer
from dprp_tf.zoo.arguments import check_arguments
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    batch_normalized,
    global_average,
    l2,
    logits_dense,
    sample_input,
)
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["conv_mixer", "conv_mixer_1536_20", "conv_mixer_cifar"]


def conv_mixer_1536_20(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build ConvMixer-1536/20 of patches of 7 and windows of 9, 51,625,960 trainable parameters.

    Args:
        input_shape: Height, width and channels of one image. Defaults to `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `conv_mixer_1536_20`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Trockman and Kolter 2022, "Patches Are All You Need?" (arXiv 2201.09792), table 1.

    Example:

    >>> conv_mixer_1536_20.__name__
    'conv_mixer_1536_20'
    """
    return conv_mixer(
        input_shape,
        classes,
        weight_decay=weight_decay,
        preprocess=preprocess,
        name=name or "conv_mixer_1536_20",
    )


def conv_mixer_cifar(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build ConvMixer-96/8 of patches of 2 and windows of 5: 99,946 trainable parameters.

    Args:
        input_shape: Height, width and channels of one image. Defaults to `(32, 32, 3)`.
        classes: Number of logits, at least 2. Defaults to 10.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `conv_mixer_cifar`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Trockman and Kolter 2022 (arXiv 2201.09792), whose CIFAR network is 256 wide.

    Example:

    >>> conv_mixer_cifar(classes=5).output_shape
    (None, 5)
    """
    return conv_mixer(
        input_shape,
        classes,
        patch=2,
        window=5,
        width=96,
        depth=8,
        weight_decay=weight_decay,
        preprocess=preprocess,
        name=name or "conv_mixer_cifar",
    )


def conv_mixer(
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    patch: int = 7,
    window: int = 9,
    width: int = 1536,
    depth: int = 20,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str = "conv_mixer",
) -> keras.Model:
    """Build a ConvMixer of any size.

    Args:
        input_shape: Height, width and channels of one image.
        classes: Number of logits, at least 2.
        patch: Side of a patch. Defaults to 7.
        window: Side of the depthwise windows. Defaults to 9.
        width: Channels. Defaults to 1536.
        depth: Number of blocks. Defaults to 20.
        weight_decay: Coupled weight decay on every kernel. Defaults to 0.
        preprocess: `(mean, std)` to standardize inside the model. Defaults to None.
        name: Name of the model. Defaults to `conv_mixer`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    >>> conv_mixer((8, 8, 3), 5, patch=2, window=3, width=8, depth=1).output_shape
    (None, 5)
    """
    check_arguments(input_shape, classes, weight_decay, network=name, least=patch)
    for argument, value in (("patch", patch), ("window", window), ("width", width)):
        check_integer(argument, value)
    check_integer("depth", depth)
    decay = l2(weight_decay)
    inputs, x = sample_input(input_shape, preprocess)
    x = keras.layers.Conv2D(
        width,
        patch,
        strides=patch,
        data_format=CHANNELS_LAST,
        kernel_initializer="he_normal",
        kernel_regularizer=decay,
        name="patches",
    )(x)
    x = _normalized(x, "patches")
    for block in range(depth):
        name_of = f"block{block}"
        y = keras.layers.DepthwiseConv2D(
            window,
            padding="same",
            data_format=CHANNELS_LAST,
            depthwise_initializer="he_normal",
            depthwise_regularizer=decay,
            name=f"{name_of}_places",
        )(x)
        x = keras.layers.Add(name=f"{name_of}_add")([x, _normalized(y, f"{name_of}_places")])
        x = keras.layers.Conv2D(
            width,
            1,
            data_format=CHANNELS_LAST,
            kernel_initializer="he_normal",
            kernel_regularizer=decay,
            name=f"{name_of}_channels",
        )(x)
        x = _normalized(x, f"{name_of}_channels")
    return keras.Model(inputs, logits_dense(global_average(x), classes, weight_decay), name=name)


def _normalized(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """The activation comes first, as in the paper."""
    x = keras.layers.Activation("gelu", name=f"{name}_gelu")(x)
    return batch_normalized(x, f"{name}_bn")
