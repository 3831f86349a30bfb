"""LeNet-5, two convolutions and three fully connected layers for digits of 28 pixels."""

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

__all__ = ["lenet5"]

_LEAST = 12


def lenet5(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    activation: Activation = "tanh",
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build LeNet-5 in its common form, 61,706 parameters for digits of 28 pixels.

    Convolutions of 6 and 16 filters of 5x5, each followed by a 2x2 average pooling, then fully
    connected layers of 120 and 84 units and the logits. The first convolution pads, which is the
    paper's digit of 28 pixels on a field of 32. Where the paper has trainable poolings, a partly
    connected second convolution and radial basis outputs (60,000 trainable parameters), the
    common form has plain layers.

    Args:
        input_shape: Height, width and channels of one image, 12 pixels or more. Defaults to
            `(28, 28, 1)`.
        classes: Number of logits, at least 2. Defaults to 10.
        activation: `"tanh"` as in the paper, or `"relu"`. Defaults to `"tanh"`.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `lenet5`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", section II.B;
    parameters by layer 156, 2,416, 48,120, 10,164 and 850, as its reimplementations print them.

    Example:

    >>> lenet5().count_params()
    61706
    """
    check_arguments(input_shape, classes, weight_decay, network="LeNet-5", least=_LEAST)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    for number, (filters, padding) in enumerate(((6, "same"), (16, "valid")), start=1):
        x = convolution(
            x,
            filters,
            f"stage{number}",
            decay,
            kernel_size=5,
            padding=padding,
            use_bias=True,
            batch_norm=False,
            activation=activation,
        )
        x = keras.layers.AveragePooling2D(2, data_format=CHANNELS_LAST, name=f"stage{number}_pool")(
            x
        )
    x = keras.layers.Flatten(data_format=CHANNELS_LAST, name="flatten")(x)
    x = hidden_dense(x, 120, "dense1", decay, activation)
    x = hidden_dense(x, 84, "dense2", decay, activation)
    return keras.Model(inputs, logits_dense(x, classes, decay), name=name or "lenet5")
