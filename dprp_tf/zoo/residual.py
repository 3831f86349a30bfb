"""The residual network all of the zoo's ResNets are: a stem, then stages of residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import keras

from dprp_tf.files.arguments import check_choice, is_integer
from dprp_tf.zoo.arguments import check_arguments
from dprp_tf.zoo.blocks import (
    CHANNELS_LAST,
    activated,
    convolution,
    global_average,
    logits_dense,
    sample_input,
)
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["Block", "Shortcut", "Stem", "residual_network"]

Block = Literal["basic", "bottleneck"]
Shortcut = Literal["A", "B"]
Stem = Literal["cifar", "imagenet"]

_EXPANSION = 4


def residual_network(
    input_shape: tuple[int, int, int],
    classes: int,
    widths: Sequence[int],
    blocks: int | Sequence[int],
    shortcut: Shortcut = "A",
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
    *,
    stem: Stem = "cifar",
    block: Block = "basic",
) -> keras.Model:
    """Build a residual network that returns logits.

    A stem of `widths[0]` filters, then one stage per width; every stage after the first halves
    height and width in its first block. A basic block computes
    `relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))`. Only Keras' own layers are used, so a
    saved model loads without this library and converts to TFLite and ONNX.

    Args:
        input_shape: Height, width and channels of one image, each at least 1.
        classes: Number of logits, at least 2.
        widths: Filters of each stage, never falling from one stage to the next for `"A"`.
        blocks: Blocks per stage, at least 1; one number for all stages or one for each.
        shortcut: What bridges a change of shape. `"A"`: every second pixel, missing channels
            filled with zeros, no parameters. `"B"`: a strided 1x1 convolution with batch
            normalization. Defaults to `"A"`.
        weight_decay: Coupled weight decay; every kernel gets an L2 penalty of
            `weight_decay / 2 * sum(kernel ** 2)`, whose gradient is `weight_decay * kernel`.
            Defaults to 0.
        preprocess: `(mean, std)`, each a number or one per channel: the model then takes raw
            values and computes `(x - mean) / std` itself. Defaults to None, input as it is.
        name: Name of the model.
        stem: `"cifar"`, a 3x3 convolution, or `"imagenet"`, a 7x7 convolution and a 3x3 max
            pooling with stride 2 each. Defaults to `"cifar"`.
        block: `"basic"`, two 3x3 convolutions, or `"bottleneck"`: 1x1 to the stage's width, 3x3
            with the stage's stride, 1x1 to four times the width. Defaults to `"basic"`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`.

    Raises:
        ValueError: If an argument is outside its range.

    Source: He et al., "Deep Residual Learning for Image Recognition", sections 3.3, 4.1 and 4.2.

    Example:

    >>> residual_network((8, 8, 1), 2, widths=(4, 8), blocks=1).output_shape
    (None, 2)
    """
    counts = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
    _check(input_shape, classes, widths, counts, shortcut, weight_decay, stem, block)
    decay = weight_decay / 2
    inputs, x = sample_input(input_shape, preprocess)
    x = _stem(x, widths[0], stem, decay)
    build_block = _basic if block == "basic" else _bottleneck
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        for index in range(count):
            strides = 2 if stage > 1 and index == 0 else 1
            x = build_block(x, width, strides, shortcut, decay, f"stage{stage}_block{index}")
    logits = logits_dense(global_average(x), classes, decay)
    return keras.Model(inputs, logits, name=name)


def _stem(x: keras.KerasTensor, filters: int, stem: Stem, decay: float) -> keras.KerasTensor:
    if stem == "cifar":
        return convolution(x, filters, "stem", decay)
    x = convolution(x, filters, "stem", decay, kernel_size=7, strides=2)
    return keras.layers.MaxPooling2D(
        3, strides=2, padding="same", data_format=CHANNELS_LAST, name="stem_pool"
    )(x)


def _basic(
    x: keras.KerasTensor,
    filters: int,
    strides: int,
    shortcut: Shortcut,
    decay: float,
    name: str,
) -> keras.KerasTensor:
    residual = convolution(x, filters, name, decay, number="1", strides=strides)
    residual = convolution(residual, filters, name, decay, number="2", activation=None)
    return _joined(x, residual, strides, shortcut, decay, name, number="2")


def _bottleneck(
    x: keras.KerasTensor,
    filters: int,
    strides: int,
    shortcut: Shortcut,
    decay: float,
    name: str,
) -> keras.KerasTensor:
    wide = _EXPANSION * filters
    residual = convolution(x, filters, name, decay, number="1", kernel_size=1)
    residual = convolution(residual, filters, name, decay, number="2", strides=strides)
    residual = convolution(residual, wide, name, decay, number="3", kernel_size=1, activation=None)
    return _joined(x, residual, strides, shortcut, decay, name, number="3")


def _joined(
    x: keras.KerasTensor,
    residual: keras.KerasTensor,
    strides: int,
    shortcut: Shortcut,
    decay: float,
    name: str,
    number: str,
) -> keras.KerasTensor:
    filters = residual.shape[-1]
    if strides != 1 or x.shape[-1] != filters:
        bridge = _subsample_and_pad if shortcut == "A" else _project
        x = bridge(x, filters, strides, decay, f"{name}_shortcut")
    x = keras.layers.Add(name=f"{name}_add")([x, residual])
    return activated(x, "relu", name, number)


def _project(
    x: keras.KerasTensor, filters: int, strides: int, decay: float, name: str
) -> keras.KerasTensor:
    return convolution(x, filters, name, decay, kernel_size=1, strides=strides, activation=None)


def _subsample_and_pad(
    x: keras.KerasTensor, filters: int, strides: int, decay: float, name: str
) -> keras.KerasTensor:
    # A window of one pixel makes the pooling a strided slice that is an ordinary layer.
    if strides != 1:
        x = keras.layers.AveragePooling2D(
            1, strides=strides, data_format=CHANNELS_LAST, name=f"{name}_subsample"
        )(x)
    missing = filters - x.shape[-1]
    if missing == 0:
        return x
    # ZeroPadding2D pads the two middle axes:
    # (h, w, c) -> (h, c, w) -> (h, filters, w) -> (h, w, filters)
    # Permute beats Reshape, which converts to shape arithmetic that splits XNNPACK's graph.
    x = keras.layers.Permute((1, 3, 2), name=f"{name}_channels_in")(x)
    x = keras.layers.ZeroPadding2D(
        ((0, 0), (missing // 2, missing - missing // 2)),
        data_format=CHANNELS_LAST,
        name=f"{name}_pad",
    )(x)
    return keras.layers.Permute((1, 3, 2), name=f"{name}_channels_out")(x)


def _check(
    input_shape: tuple[int, int, int],
    classes: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    shortcut: str,
    weight_decay: float,
    stem: str,
    block: str,
) -> None:
    check_arguments(input_shape, classes, weight_decay)
    if not widths or not all(map(is_integer, widths)):
        raise ValueError(
            "`widths` must hold the filters of at least one stage, each at least 1. "
            f"Received: widths={tuple(widths)}."
        )
    if len(blocks) != len(widths) or not all(map(is_integer, blocks)):
        received = blocks[0] if len(set(blocks)) == 1 else tuple(blocks)
        raise ValueError(
            "`blocks` must be at least 1, one number for all stages or one for each of the "
            f"{len(widths)} in `widths`. Received: blocks={received}."
        )
    if stem not in ("cifar", "imagenet"):
        raise ValueError(
            '`stem` must be "cifar" (3x3) or "imagenet" (7x7 and pooling). Received: '
            f"stem={stem!r}."
        )
    check_choice("block", block, ("basic", "bottleneck"))
    if shortcut not in ("A", "B"):
        raise ValueError(
            '`shortcut` must be "A" (zero-padded channels, no parameters) or "B" (1x1 '
            f"convolution). Received: shortcut={shortcut!r}."
        )
    if shortcut == "A" and list(widths) != sorted(widths):
        raise ValueError(
            '`widths` must not fall from stage to stage with shortcut="A", which can only add '
            f'channels. Received: widths={tuple(widths)}. Use shortcut="B".'
        )
