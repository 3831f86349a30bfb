"""The traffic-sign network, one column of the committee that won GTSRB."""

from __future__ import annotations

import keras

from dprp_tf.zoo.arguments import check_arguments
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    Activation,
    convolution,
    hidden_dense,
    logits_dense,
    sample_input,
)
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["traffic_sign"]

_LEAST = 32
_STAGES = ((100, 7), (150, 4), (250, 4))


def traffic_sign(
    input_shape: tuple[int, int, int] = (48, 48, 3),
    classes: int = 43,
    activation: Activation = "tanh",
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the traffic-sign network, 1,543,443 parameters for GTSRB at 48 pixels.

    Convolutions of 100 (7x7), 150 (4x4) and 250 (4x4) filters without padding, a 2x2 max pooling
    after each, a fully connected layer of 300 units and the logits: maps of 42, 21, 18, 9, 6 and
    3 pixels. The paper's tanh is scaled; a plain one stands for it here.

    Args:
        input_shape: Height, width and channels of one image, 32 pixels or more. Defaults to
            `(48, 48, 3)`.
        classes: Number of logits, at least 2. Defaults to 43, GTSRB's.
        activation: `"tanh"` as in the paper, or `"relu"`. Defaults to `"tanh"`.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `traffic_sign`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Ciresan et al., "Multi-Column Deep Neural Network for Traffic Sign Classification",
    Neural Networks 32 (2012), table 1; the count is that of the weights and biases in its table.

    Example:

    >>> traffic_sign().count_params()
    1543443
    """
    check_arguments(
        input_shape, classes, weight_decay, network="the traffic-sign network", least=_LEAST
    )
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    for number, (filters, kernel_size) in enumerate(_STAGES, start=1):
        x = convolution(
            x,
            filters,
            f"stage{number}",
            decay,
            kernel_size=kernel_size,
            padding="valid",
            use_bias=True,
            batch_norm=False,
            activation=activation,
        )
        x = keras.layers.MaxPooling2D(2, data_format=CHANNELS_LAST, name=f"stage{number}_pool")(x)
    x = keras.layers.Flatten(data_format=CHANNELS_LAST, name="flatten")(x)
    x = hidden_dense(x, 300, "dense1", decay, activation)
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name or "traffic_sign")
