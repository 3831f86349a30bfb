"""U-Net: a map of classes from an image, down by pooling and up by transposed convolutions."""

from __future__ import annotations

import keras

from dprp_tf.files.arguments import check_integer
from dprp_tf.zoo.arguments import check_arguments
from dprp_tf.zoo.blocks import CHANNELS_LAST, convolution, l2, sample_input
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["unet"]


def unet(
    input_shape: tuple[int, int, int] = (64, 64, 3),
    classes: int = 2,
    width: int = 16,
    depth: int = 3,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build a U-Net with batch normalization and padded convolutions.

    Each level has two 3x3 convolutions of twice the channels of the one above it; the way up
    doubles the map by a transposed convolution of 2x2 windows and concatenates what was there on
    the way down. A 1x1 convolution gives the logits of each place. The paper's is 64 wide and 4
    deep; 16 wide and 3 deep it has 482,754 trainable parameters for two classes.

    Args:
        input_shape: Height, width and channels of one image; height and width must be multiples of
            2^depth. Defaults to `(64, 64, 3)`.
        classes: Number of logits at each place, at least 2. Defaults to 2.
        width: Channels of the first level. Defaults to 16.
        depth: How often the map is halved. Defaults to 3.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `unet`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, height, width, classes)`,
        logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Ronneberger et al. 2015 (arXiv 1505.04597).

    Example:

    >>> unet((16, 16, 3), classes=4, width=4, depth=2).output_shape
    (None, 16, 16, 4)
    """
    check_integer("width", width)
    check_integer("depth", depth)
    check_arguments(input_shape, classes, weight_decay, network="U-Net", least=2**depth)
    if any(size % 2**depth for size in input_shape[:2]):
        raise ValueError(
            f"`input_shape` must have height and width in multiples of {2**depth}, 2^depth. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    inputs, x = sample_input(input_shape, preprocess)
    beside = []
    for level in range(depth):
        x = _twice(x, width * 2**level, f"down{level}", weight_decay)
        beside.append(x)
        x = keras.layers.MaxPooling2D(2, data_format=CHANNELS_LAST, name=f"down{level}_pool")(x)
    x = _twice(x, width * 2**depth, "bottom", weight_decay)
    for level in reversed(range(depth)):
        x = keras.layers.Conv2DTranspose(
            width * 2**level,
            2,
            strides=2,
            data_format=CHANNELS_LAST,
            kernel_initializer="he_normal",
            kernel_regularizer=l2(weight_decay),
            name=f"up{level}",
        )(x)
        x = keras.layers.Concatenate(name=f"up{level}_beside")([beside[level], x])
        x = _twice(x, width * 2**level, f"up{level}", weight_decay)
    outputs = keras.layers.Conv2D(
        classes, 1, data_format=CHANNELS_LAST, kernel_regularizer=l2(weight_decay), name="logits"
    )(x)
    return keras.Model(inputs, outputs, name=name or "unet")


def _twice(x: keras.KerasTensor, filters: int, name: str, decay: float) -> keras.KerasTensor:
    for number in (1, 2):
        x = convolution(x, filters, f"{name}_{number}", decay)
    return x
