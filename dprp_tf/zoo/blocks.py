"""The pieces that the zoo's families share: input, convolution, hidden layer, pooling, logits."""

from __future__ import annotations

from typing import Literal

import keras

from dprp_tf.zoo.preprocessing import Preprocess, standardization

__all__ = [
    "CHANNELS_LAST",
    "Activation",
    "activated",
    "batch_normalized",
    "convolution",
    "dropped",
    "global_average",
    "hidden_dense",
    "l2",
    "logits_dense",
    "pooled_to",
    "sample_input",
    "scaled",
]

Activation = Literal["relu", "relu6", "leaky_relu", "tanh"]

CHANNELS_LAST = "channels_last"
_LEAKY_SLOPE = 0.1


def sample_input(
    input_shape: tuple[int, ...], preprocess: Preprocess | None, name: str = "image"
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return a model's input, and what its first layer gets.

    Args:
        input_shape: Shape of one sample, channels last.
        preprocess: `(mean, std)` to standardize inside the model, or None.
        name: Name of the input. Defaults to `"image"`.

    Returns:
        The input and the tensor to go on with, the same one without `preprocess`.

    Example:

    >>> inputs, x = sample_input((8, 8, 1), preprocess=None)
    >>> x is inputs
    True
    """
    inputs = keras.Input(shape=tuple(input_shape), name=name)
    if preprocess is None:
        return inputs, inputs
    return inputs, standardization(preprocess, channels=input_shape[-1])(inputs)


def convolution(
    x: keras.KerasTensor,
    filters: int,
    name: str,
    decay: float,
    *,
    number: str = "",
    kernel_size: int = 3,
    strides: int = 1,
    padding: str = "same",
    use_bias: bool = False,
    batch_norm: bool = True,
    activation: Activation | None = "relu",
) -> keras.KerasTensor:
    """Convolve, normalize and activate: layers `<name>_conv`, `<name>_bn`, `<name>_<activation>`.

    Args:
        x: `(batch, height, width, channels)`, or one axis more for a 3D convolution.
        filters: Output channels.
        name: What the layers' names begin with.
        decay: Factor of the kernel's L2 penalty, half the coupled weight decay.
        number: What the layers' names end with. Defaults to nothing.
        kernel_size: Side of the kernel. Defaults to 3.
        strides: Defaults to 1.
        padding: `"same"` or `"valid"`. Defaults to `"same"`.
        use_bias: Whether the convolution adds a bias. Defaults to False.
        batch_norm: Whether to normalize. Defaults to True.
        activation: Name of the activation, or None. Defaults to `"relu"`.

    Returns:
        The result, `(batch, height, width, filters)`.

    Example:

    >>> _, image = sample_input((8, 8, 1), None)
    >>> convolution(image, 4, "stem", decay=0.0, strides=2).shape
    (None, 4, 4, 4)
    """
    kind = keras.layers.Conv3D if len(x.shape) == 5 else keras.layers.Conv2D
    x = kind(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        data_format=CHANNELS_LAST,
        use_bias=use_bias,
        kernel_initializer=_initializer(activation),
        kernel_regularizer=l2(decay),
        name=f"{name}_conv{number}",
    )(x)
    if batch_norm:
        x = batch_normalized(x, f"{name}_bn{number}")
    return x if activation is None else activated(x, activation, name, number)


def hidden_dense(
    x: keras.KerasTensor,
    units: int,
    name: str,
    decay: float,
    activation: Activation = "relu",
) -> keras.KerasTensor:
    """Apply a fully connected layer named `name` and its activation, `<name>_<activation>`.

    Args:
        x: `(batch, features)`.
        units: Output features.
        name: Name of the layer.
        decay: Factor of the kernel's L2 penalty, half the coupled weight decay.
        activation: Name of the activation. Defaults to `"relu"`.

    Returns:
        The result, `(batch, units)`.

    Example:

    >>> hidden_dense(keras.Input((8,)), 4, "dense1", decay=0.0).shape
    (None, 4)
    """
    x = keras.layers.Dense(
        units,
        kernel_initializer=_initializer(activation),
        kernel_regularizer=l2(decay),
        name=name,
    )(x)
    return activated(x, activation, name)


def logits_dense(
    x: keras.KerasTensor, classes: int, decay: float, name: str = "logits"
) -> keras.KerasTensor:
    """Apply the classifier, a fully connected layer without activation.

    Args:
        x: `(batch, features)`.
        classes: Number of logits.
        decay: Factor of the kernel's L2 penalty, half the coupled weight decay.
        name: Name of the layer. Defaults to `"logits"`.

    Returns:
        `(batch, classes)`.

    Example:

    >>> logits_dense(keras.Input((8,)), 3, decay=0.0).shape
    (None, 3)
    """
    return keras.layers.Dense(
        int(classes), kernel_initializer="he_normal", kernel_regularizer=l2(decay), name=name
    )(x)


def batch_normalized(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Normalize over the batch, with the papers' momentum 0.9 and epsilon 1e-5.

    Args:
        x: Channels last.
        name: Name of the layer.

    Returns:
        A tensor of the same shape.

    Example:

    >>> batch_normalized(keras.Input((8, 8, 3)), "bn").shape
    (None, 8, 8, 3)
    """
    return keras.layers.BatchNormalization(axis=-1, momentum=0.9, epsilon=1e-5, name=name)(x)


def activated(
    x: keras.KerasTensor, activation: Activation, name: str, number: str = ""
) -> keras.KerasTensor:
    """Apply an activation as a layer of its own, `<name>_<activation><number>`.

    Args:
        x: Any tensor.
        activation: `"relu"`, `"relu6"` (named `_relu` too), `"leaky_relu"` (slope 0.1) or `"tanh"`.
        name: What the layer's name begins with.
        number: What it ends with. Defaults to nothing.

    Returns:
        A tensor of the same shape.

    Example:

    >>> activated(keras.Input((8,)), "tanh", "dense1").shape
    (None, 8)
    """
    if activation in ("relu", "relu6"):
        most = 6.0 if activation == "relu6" else None
        return keras.layers.ReLU(most, name=f"{name}_relu{number}")(x)
    if activation == "leaky_relu":
        return keras.layers.LeakyReLU(_LEAKY_SLOPE, name=f"{name}_leaky_relu{number}")(x)
    return keras.layers.Activation(activation, name=f"{name}_{activation}{number}")(x)


def dropped(x: keras.KerasTensor, rate: float, name: str) -> keras.KerasTensor:
    """Apply dropout, or nothing at all at rate 0.

    Args:
        x: Any tensor.
        rate: Share that is dropped in training, in [0, 1).
        name: Name of the layer.

    Returns:
        A tensor of the same shape.

    Example:

    >>> x = keras.Input((8,))
    >>> dropped(x, 0.0, "dropout") is x
    True
    """
    return keras.layers.Dropout(rate, name=name)(x) if rate else x


def global_average(x: keras.KerasTensor, name: str = "pool") -> keras.KerasTensor:
    """Average over height and width.

    Args:
        x: `(batch, height, width, channels)`.
        name: Name of the layer. Defaults to `"pool"`.

    Returns:
        `(batch, channels)`.

    Example:

    >>> global_average(keras.Input((8, 8, 3))).shape
    (None, 3)
    """
    return keras.layers.GlobalAveragePooling2D(data_format=CHANNELS_LAST, name=name)(x)


def pooled_to(x: keras.KerasTensor, size: int, name: str) -> keras.KerasTensor:
    """Average a larger map down to `size` by `size`, and leave a smaller one as it is.

    What PyTorch calls adaptive pooling, with windows of one size and even spacing, so that it is
    an ordinary pooling layer that every runtime has.

    Args:
        x: `(batch, height, width, channels)`.
        size: Most rows and columns, at least 1.
        name: Name of the layer.

    Returns:
        `(batch, min(height, size), min(width, size), channels)`.

    Example:

    >>> pooled_to(keras.Input((14, 3, 8)), 4, "pool").shape
    (None, 4, 3, 8)
    """
    sides = x.shape[1:3]
    strides = [max(1, side // size) for side in sides]
    windows = [max(1, side - (size - 1) * step) for side, step in zip(sides, strides, strict=True)]
    if windows == [1, 1]:
        return x
    return keras.layers.AveragePooling2D(
        tuple(windows), strides=tuple(strides), data_format=CHANNELS_LAST, name=name
    )(x)


def scaled(filters: int, alpha: float) -> int:
    """Return `filters` times the width multiplier, at least 1.

    Args:
        filters: Filters at `alpha` 1.
        alpha: Width multiplier.

    Returns:
        The number of filters.

    Example:

    >>> scaled(96, 0.25)
    24
    """
    return max(1, round(filters * alpha))


def l2(decay: float) -> keras.regularizers.Regularizer | None:
    """Return the L2 penalty `decay * sum(w ** 2)`, or None for none.

    Args:
        decay: Half the coupled weight decay.

    Returns:
        The regularizer.

    Example:

    >>> l2(0.0) is None
    True
    """
    return keras.regularizers.L2(decay) if decay else None


def _initializer(activation: Activation | None) -> str:
    return "glorot_uniform" if activation == "tanh" else "he_normal"
