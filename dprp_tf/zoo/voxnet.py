"""VoxNet, two 3D convolutions for occupancy grids of 32 voxels."""

from __future__ import annotations

import keras

from dprp_tf.zoo.arguments import check_arguments, check_width
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    convolution,
    dropped,
    hidden_dense,
    logits_dense,
    sample_input,
)
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["voxnet"]

_LEAST = 11
_AXES = ("depth", "height", "width")
# Of both convolutions and of the fully connected layer, relative to the last.
_DROPOUT = (0.5, 0.75, 1.0)


def voxnet(
    input_shape: tuple[int, int, int, int] = (32, 32, 32, 1),
    classes: int = 40,
    dropout: float = 0.4,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build VoxNet, 921,736 parameters for ModelNet40 and 917,866 for ModelNet10.

    A 5x5x5 convolution with stride 2 and a 3x3x3 one, 32 filters each, no padding, leaky ReLU of
    slope 0.1; a 2x2x2 max pooling, a fully connected layer of 128 units and the logits.

    Args:
        input_shape: Depth, height, width and channels of one grid, 11 voxels or more. Defaults
            to `(32, 32, 32, 1)`.
        classes: Number of logits, at least 2. Defaults to 40, ModelNet40's.
        dropout: Share dropped before the logits, in [0, 1); half of it is dropped after the first
            convolution and three quarters after the second. Defaults to 0.4, the authors'.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `voxnet`.

    Returns:
        A functional model, `(batch, depth, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Maturana and Scherer, "VoxNet: A 3D Convolutional Neural Network for Real-Time Object
    Recognition", section III.B; the count is that of its `Conv(32,5,2)-Conv(32,3,1)-Pool(2)-
    FC(128)-FC(K)`, biases included, which the literature rounds to 0.92 M.

    Example:

    >>> voxnet(classes=10).count_params()
    917866
    """
    check_arguments(input_shape, classes, weight_decay, network="VoxNet", axes=_AXES, least=_LEAST)
    check_width(dropout=dropout)
    decay = weight_decay / 2
    rates = [dropout * share for share in _DROPOUT]
    inputs, x = sample_input(input_shape, preprocess, name="voxels")
    for number, (kernel_size, strides) in enumerate(((5, 2), (3, 1)), start=1):
        x = convolution(
            x,
            32,
            f"stage{number}",
            decay,
            kernel_size=kernel_size,
            strides=strides,
            padding="valid",
            use_bias=True,
            batch_norm=False,
            activation="leaky_relu",
        )
        if number == 2:
            x = keras.layers.MaxPooling3D(2, data_format=CHANNELS_LAST, name="pool")(x)
        x = dropped(x, rates[number - 1], f"stage{number}_dropout")
    x = keras.layers.Flatten(data_format=CHANNELS_LAST, name="flatten")(x)
    x = hidden_dense(x, 128, "dense1", decay)
    x = dropped(x, rates[2], "dense1_dropout")
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name or "voxnet")
