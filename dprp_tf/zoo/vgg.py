"""VGG: stages of 3x3 convolutions with a pooling after each, for ImageNet and for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from dprp_tf.files.arguments import check_choice
from dprp_tf.zoo.arguments import check_arguments, check_width
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    convolution,
    dropped,
    global_average,
    hidden_dense,
    logits_dense,
    pooled_to,
    sample_input,
    scaled,
)
from dprp_tf.zoo.preprocessing import Preprocess
from dprp_tf.zoo.variants import variant_of

__all__ = [
    "vgg",
    "vgg11",
    "vgg11_cifar",
    "vgg16",
    "vgg16_cifar",
    "vgg19",
    "vgg19_cifar",
    "vgg_cifar",
]

_LEAST = 32
_WIDTHS = (64, 128, 256, 512, 512)
_DEPTHS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(
    depth: int,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    batch_norm: bool = False,
    alpha: float = 1.0,
    dropout: float = 0.5,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the ImageNet VGG with `depth` layers: five stages and fully connected 4096, 4096.

    Maps of more than 7 pixels before the fully connected layers are averaged down to 7, smaller
    ones taken as they are, and the first fully connected layer is the smaller for it.

    Args:
        depth: 11 (the paper's configuration A), 16 (D) or 19 (E).
        input_shape: Height, width and channels of one image, 32 pixels or more. Defaults to
            `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        batch_norm: Whether to normalize after each convolution, which keeps its bias, as in
            torchvision's `vgg*_bn`. Defaults to False, the paper's form.
        alpha: Width multiplier of filters and hidden units, above 0. Defaults to 1.
        dropout: Share dropped after each hidden fully connected layer, in [0, 1). Defaults to
            0.5.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `vgg<depth>`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", table 1; parameters and MACs of torchvision's `VGG11_Weights`,
    `VGG11_BN_Weights` and so on.

    Example:

    >>> vgg(11, (32, 32, 3), classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    _check(depth, input_shape, classes, weight_decay)
    check_width(alpha, dropout)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = _features(x, depth, alpha, decay, batch_norm)
    x = pooled_to(x, 7, "pool")
    x = keras.layers.Flatten(data_format=CHANNELS_LAST, name="flatten")(x)
    units = scaled(4096, alpha)
    x = _classifier(x, (units, units), classes, decay, dropout)
    return keras.Model(inputs, x, name=name or f"vgg{depth}")


def vgg_cifar(
    depth: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    hidden: Sequence[int] = (512,),
    alpha: float = 1.0,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the CIFAR VGG of the compression papers: batch normalization, a small classifier.

    With one hidden layer, the default, VGG-16 has the 14.98 M parameters that the pruning papers
    quote: 14,982,474 kernels and biases, to which batch normalization adds 8,448. Without a
    hidden layer it has 14,728,266 (batch normalization included), with two of them 15.25 M.

    Args:
        depth: 11, 16 or 19.
        input_shape: Height, width and channels of one image, 32 pixels or more; what five
            poolings leave is averaged. Defaults to `(32, 32, 3)`.
        classes: Number of logits, at least 2. Defaults to 10.
        hidden: Units of the fully connected layers before the logits. Defaults to `(512,)`.
        alpha: Width multiplier of the filters, above 0. Defaults to 1.
        dropout: Share dropped after each hidden layer, in [0, 1). Defaults to 0.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `vgg<depth>_cifar`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Liu and Deng, "Very Deep Convolutional Neural Network Based Image Classification
    Using Small Training Sample Size"; 14.98 M in Lin et al., "HRank: Filter Pruning Using
    High-Rank Feature Map" (the ratios of the LeSS thesis' table 4.2 are of the same size);
    without a hidden layer NeuralFuse (arXiv 2306.16869), table 7; with two of 512 the CIFAR-10
    table of github.com/chenyaofo/pytorch-cifar-models.

    Example:

    >>> vgg_cifar(11, alpha=1 / 16, hidden=()).output_shape
    (None, 10)
    """
    _check(depth, input_shape, classes, weight_decay)
    check_width(alpha, dropout)
    if any(units < 1 for units in hidden):
        raise ValueError(
            "`hidden` must hold the units of each hidden layer, each at least 1, or nothing. "
            f"Received: hidden={tuple(hidden)}."
        )
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = global_average(_features(x, depth, alpha, decay, batch_norm=True))
    x = _classifier(x, hidden, classes, decay, dropout)
    return keras.Model(inputs, x, name=name or f"vgg{depth}_cifar")


@variant_of(vgg, "depth")
def vgg11(**arguments: Any) -> keras.Model:
    """Build VGG-11, 132,863,336 parameters and 7.61 GMACs by default.

    Args:
        **arguments: Those of `vgg` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> vgg11(input_shape=(32, 32, 3), classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    return vgg(11, **arguments)


@variant_of(vgg, "depth")
def vgg16(**arguments: Any) -> keras.Model:
    """Build VGG-16, 138,357,544 parameters and 15.47 GMACs by default.

    Args:
        **arguments: Those of `vgg` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> vgg16(input_shape=(32, 32, 3), classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    return vgg(16, **arguments)


@variant_of(vgg, "depth")
def vgg19(**arguments: Any) -> keras.Model:
    """Build VGG-19, 143,667,240 parameters and 19.63 GMACs by default.

    Args:
        **arguments: Those of `vgg` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> vgg19(input_shape=(32, 32, 3), classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    return vgg(19, **arguments)


@variant_of(vgg_cifar, "depth")
def vgg11_cifar(**arguments: Any) -> keras.Model:
    """Build VGG-11 for CIFAR, 9.49 M parameters and 153 MMACs by default.

    Args:
        **arguments: Those of `vgg_cifar` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> vgg11_cifar(classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    return vgg_cifar(11, **arguments)


@variant_of(vgg_cifar, "depth")
def vgg16_cifar(**arguments: Any) -> keras.Model:
    """Build VGG-16 for CIFAR, 14.98 M parameters and 313 MMACs by default.

    Args:
        **arguments: Those of `vgg_cifar` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> vgg16_cifar(classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    return vgg_cifar(16, **arguments)


@variant_of(vgg_cifar, "depth")
def vgg19_cifar(**arguments: Any) -> keras.Model:
    """Build VGG-19 for CIFAR, 20.30 M parameters and 398 MMACs by default.

    Args:
        **arguments: Those of `vgg_cifar` but `depth`.

    Returns:
        A functional model that returns logits.

    Example:

    >>> vgg19_cifar(classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    return vgg_cifar(19, **arguments)


def _features(
    x: keras.KerasTensor, depth: int, alpha: float, decay: float, batch_norm: bool
) -> keras.KerasTensor:
    for stage, (width, count) in enumerate(zip(_WIDTHS, _DEPTHS[depth], strict=True), start=1):
        for number in range(1, count + 1):
            x = convolution(
                x,
                scaled(width, alpha),
                f"stage{stage}",
                decay,
                number=str(number),
                use_bias=True,
                batch_norm=batch_norm,
            )
        x = keras.layers.MaxPooling2D(2, data_format=CHANNELS_LAST, name=f"stage{stage}_pool")(x)
    return x


def _classifier(
    x: keras.KerasTensor, hidden: Sequence[int], classes: int, decay: float, dropout: float
) -> keras.KerasTensor:
    for number, units in enumerate(hidden, start=1):
        x = hidden_dense(x, units, f"dense{number}", decay)
        x = dropped(x, dropout, f"dense{number}_dropout")
    return logits_dense(x, classes, decay)


def _check(
    depth: int, input_shape: tuple[int, int, int], classes: int, weight_decay: float
) -> None:
    check_choice("depth", depth, sorted(_DEPTHS))
    check_arguments(input_shape, classes, weight_decay, network=f"VGG-{depth}", least=_LEAST)
