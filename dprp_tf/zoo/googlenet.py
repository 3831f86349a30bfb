"""GoogLeNet, nine Inception modules of four branches, with auxiliary heads if asked for."""

from __future__ import annotations

from typing import Literal

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

__all__ = ["GoogLeNetForm", "googlenet"]

GoogLeNetForm = Literal["batch_norm", "paper"]

# 1x1; 1x1 then 3x3; 1x1 then the large kernel; 1x1 after pooling.
_MODULES = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
_POOLED = {"inception3b": "pool3", "inception4e": "pool4"}
_HEADS = {"inception4a": "auxiliary1", "inception4d": "auxiliary2"}
_HEAD_DROPOUT = 0.7


def googlenet(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    form: GoogLeNetForm = "batch_norm",
    auxiliary: bool = False,
    alpha: float = 1.0,
    dropout: float = 0.2,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build GoogLeNet (Inception v1), 6,624,904 trainable parameters and 1.50 GMACs by default.

    `form="batch_norm"` is torchvision's: batch normalization and no biases, and 3x3 kernels where
    the paper has 5x5; with the auxiliary heads it has 13,004,888 trainable parameters. (Its fourth
    pooling has windows of 2x2; here they are 3x3, as in the paper.)
    `form="paper"` has the paper's biases and 5x5 kernels, 6,998,552 parameters. The paper's local
    response normalization has no parameters and no layer in Keras; neither form has it.

    Args:
        input_shape: Height, width and channels of one image; height and width fall to 1/32 on
            the way. Defaults to `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        form: `"batch_norm"` or `"paper"`. Defaults to `"batch_norm"`.
        auxiliary: Whether the model also returns the logits of the two heads, on Inception 4a and
            4d, which the paper's loss counts 0.3 times and which are thrown away after training.
            Defaults to False.
        alpha: Width multiplier of filters and hidden units, above 0. Defaults to 1.
        dropout: Share dropped before the logits, in [0, 1). Defaults to 0.2.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `googlenet`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits; with
        `auxiliary` a list of three: the logits, then those of the heads.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Szegedy et al., "Going Deeper with Convolutions", table 1; parameters and MACs of
    torchvision's `GoogLeNet_Weights`; 6,998,552 in the models of Caffe and its descendants.

    Example:

    >>> googlenet((32, 32, 3), classes=5, alpha=1 / 16).output_shape
    (None, 5)
    """
    check_arguments(input_shape, classes, weight_decay)
    check_width(alpha, dropout)
    check_choice("form", form, ("batch_norm", "paper"))
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = _convolution(x, 64, "stem1", alpha, decay, form, kernel_size=7, strides=2)
    x = _pool(x, "pool1")
    x = _convolution(x, 64, "stem2", alpha, decay, form)
    x = _convolution(x, 192, "stem3", alpha, decay, form, kernel_size=3)
    x = _pool(x, "pool2")
    heads = []
    for module, filters in _MODULES.items():
        x = _inception(x, filters, module, alpha, decay, form)
        if auxiliary and module in _HEADS:
            heads.append(_head(x, classes, _HEADS[module], alpha, decay, form))
        if module in _POOLED:
            x = _pool(x, _POOLED[module])
    x = dropped(global_average(x), dropout, "dropout")
    logits = logits_dense(x, classes, decay)
    outputs = [logits, *heads] if auxiliary else logits
    return keras.Model(inputs, outputs, name=name or "googlenet")


def _inception(
    x: keras.KerasTensor,
    filters: tuple[int, int, int, int, int, int],
    name: str,
    alpha: float,
    decay: float,
    form: GoogLeNetForm,
) -> keras.KerasTensor:
    ones, reduced, three, reduced_large, large, projected = filters
    kernel_size = 5 if form == "paper" else 3
    branch1 = _convolution(x, ones, f"{name}_branch1", alpha, decay, form)
    branch2 = _convolution(x, reduced, f"{name}_branch2_reduce", alpha, decay, form)
    branch2 = _convolution(branch2, three, f"{name}_branch2", alpha, decay, form, kernel_size=3)
    branch3 = _convolution(x, reduced_large, f"{name}_branch3_reduce", alpha, decay, form)
    branch3 = _convolution(
        branch3, large, f"{name}_branch3", alpha, decay, form, kernel_size=kernel_size
    )
    branch4 = _pool(x, f"{name}_branch4_pool", strides=1)
    branch4 = _convolution(branch4, projected, f"{name}_branch4", alpha, decay, form)
    return keras.layers.Concatenate(axis=-1, name=f"{name}_concatenate")(
        [branch1, branch2, branch3, branch4]
    )


def _head(
    x: keras.KerasTensor,
    classes: int,
    name: str,
    alpha: float,
    decay: float,
    form: GoogLeNetForm,
) -> keras.KerasTensor:
    # At 224 pixels (14, 14) -> (4, 4), by the paper's 5x5 windows with stride 3.
    x = pooled_to(x, 4, f"{name}_pool")
    x = _convolution(x, 128, name, alpha, decay, form)
    x = keras.layers.Flatten(data_format=CHANNELS_LAST, name=f"{name}_flatten")(x)
    x = hidden_dense(x, scaled(1024, alpha), f"{name}_dense", decay)
    x = dropped(x, _HEAD_DROPOUT, f"{name}_dropout")
    return logits_dense(x, classes, decay, name=f"{name}_logits")


def _convolution(
    x: keras.KerasTensor,
    filters: int,
    name: str,
    alpha: float,
    decay: float,
    form: GoogLeNetForm,
    *,
    kernel_size: int = 1,
    strides: int = 1,
) -> keras.KerasTensor:
    return convolution(
        x,
        scaled(filters, alpha),
        name,
        decay,
        kernel_size=kernel_size,
        strides=strides,
        use_bias=form == "paper",
        batch_norm=form == "batch_norm",
    )


def _pool(x: keras.KerasTensor, name: str, strides: int = 2) -> keras.KerasTensor:
    return keras.layers.MaxPooling2D(
        3, strides=strides, padding="same", data_format=CHANNELS_LAST, name=name
    )(x)
