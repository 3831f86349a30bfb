"""Plain vision transformers: patches, attention and two dense layers a block, no class token."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.files.arguments import check_integer
from dprp_tf.zoo.arguments import check_arguments, check_width
from dprp_tf.zoo.blocks import dropped, l2, logits_dense, sample_input
from dprp_tf.zoo.preprocessing import Preprocess

__all__ = ["vision_transformer", "vit_cifar", "vit_s16"]

_EPSILON = 1e-6


def vit_s16(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the plain ViT-S/16: 12 blocks of 6 heads and width 384, 21,974,632 parameters.

    That is torchvision's and timm's count of 22,050,664 less the class token and the positions,
    which are averaged over and computed here.

    Args:
        input_shape: Height, width and channels of one image, multiples of 16. Defaults to
            `(224, 224, 3)`.
        classes: Number of logits, at least 2. Defaults to 1000.
        dropout: Share dropped behind attention and both dense layers, in [0, 1). Defaults to 0.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `vit_s16`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580);
    Dosovitskiy et al. 2021 (arXiv 2010.11929).

    Example:

    >>> vit_s16((32, 32, 3), classes=5).count_params() < 22e6
    True
    """
    return vision_transformer(
        input_shape,
        classes,
        dropout=dropout,
        weight_decay=weight_decay,
        preprocess=preprocess,
        name=name or "vit_s16",
    )


def vit_cifar(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build a plain vision transformer for small images: patches of 4, 6 blocks of 4 heads.

    Of width 96 it has 676,906 parameters and, on 32x32 images, 43 MMACs in its kernels.

    Args:
        input_shape: Height, width and channels of one image, multiples of 4. Defaults to
            `(32, 32, 3)`.
        classes: Number of logits, at least 2. Defaults to 10.
        dropout: Share dropped behind attention and both dense layers, in [0, 1). Defaults to 0.
        weight_decay: Coupled weight decay on every kernel (an L2 penalty of half of it).
            Defaults to 0.
        preprocess: `(mean, std)` to take raw values and standardize them inside the model, or
            None for input as it is. Defaults to None.
        name: Name of the model. Defaults to `vit_cifar`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Source: Beyer et al. 2022 (arXiv 2205.01580), made small.

    Example:

    >>> vit_cifar().count_params()
    676906
    """
    return vision_transformer(
        input_shape,
        classes,
        patch=4,
        width=96,
        depth=6,
        heads=4,
        dropout=dropout,
        weight_decay=weight_decay,
        preprocess=preprocess,
        name=name or "vit_cifar",
    )


def vision_transformer(
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    patch: int = 16,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    name: str = "vision_transformer",
) -> keras.Model:
    """Build a plain vision transformer of any size.

    Positions are sines and cosines of both axes, added and not learned; the tokens are averaged in
    place of a class token.

    Args:
        input_shape: Height, width and channels of one image; height and width must be multiples
            of `patch`.
        classes: Number of logits, at least 2.
        patch: Side of a patch. Defaults to 16.
        width: Features of a token, a multiple of 4 and of `heads`. Defaults to 384.
        depth: Number of blocks. Defaults to 12.
        heads: Heads of attention in each. Defaults to 6.
        dropout: Share dropped behind attention and both dense layers, in [0, 1). Defaults to 0.
        weight_decay: Coupled weight decay on every kernel. Defaults to 0.
        preprocess: `(mean, std)` to standardize inside the model. Defaults to None.
        name: Name of the model. Defaults to `vision_transformer`.

    Returns:
        A functional model, `(batch, height, width, channels) -> (batch, classes)`, logits.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    >>> model = vision_transformer((8, 8, 3), 5, patch=4, width=8, depth=1, heads=2)
    >>> model.output_shape
    (None, 5)
    """
    check_arguments(input_shape, classes, weight_decay, network=name, least=patch)
    check_width(dropout=dropout)
    for argument, value in (("patch", patch), ("width", width), ("depth", depth), ("heads", heads)):
        check_integer(argument, value)
    if width % 4 or width % heads:
        raise ValueError(
            "`width` must be a multiple of 4 and of `heads`. "
            f"Received: width={width}, heads={heads}"
        )
    if any(size % patch for size in input_shape[:2]):
        raise ValueError(
            f"`input_shape` must have height and width in multiples of patch={patch}. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    decay = l2(weight_decay)
    inputs, x = sample_input(input_shape, preprocess)
    x = keras.layers.Conv2D(
        width,
        patch,
        strides=patch,
        data_format="channels_last",
        kernel_regularizer=decay,
        name="patches",
    )(x)
    rows, columns = input_shape[0] // patch, input_shape[1] // patch
    # (b, rows, columns, d) -> (b, tokens, d)
    x = keras.layers.Reshape((rows * columns, width), name="tokens")(x)
    x = keras.ops.add(x, _positions(rows, columns, width))
    for block in range(depth):
        x = _block(x, width, heads, dropout, decay, f"block{block}")
    x = keras.layers.LayerNormalization(epsilon=_EPSILON, name="norm")(x)
    x = keras.layers.GlobalAveragePooling1D(data_format="channels_last", name="pool")(x)
    return keras.Model(inputs, logits_dense(x, classes, weight_decay), name=name)


def _block(
    x: keras.KerasTensor,
    width: int,
    heads: int,
    dropout: float,
    decay: keras.regularizers.Regularizer | None,
    name: str,
) -> keras.KerasTensor:
    normalized = keras.layers.LayerNormalization(epsilon=_EPSILON, name=f"{name}_norm1")(x)
    attention = keras.layers.MultiHeadAttention(
        heads, width // heads, kernel_regularizer=decay, name=f"{name}_attention"
    )
    attended = dropped(attention(normalized, normalized), dropout, f"{name}_dropout1")
    x = keras.layers.Add(name=f"{name}_add1")([x, attended])
    y = keras.layers.LayerNormalization(epsilon=_EPSILON, name=f"{name}_norm2")(x)
    y = keras.layers.Dense(4 * width, "gelu", kernel_regularizer=decay, name=f"{name}_wide")(y)
    y = dropped(y, dropout, f"{name}_dropout2")
    y = keras.layers.Dense(width, kernel_regularizer=decay, name=f"{name}_narrow")(y)
    y = dropped(y, dropout, f"{name}_dropout3")
    return keras.layers.Add(name=f"{name}_add2")([x, y])


def _positions(rows: int, columns: int, width: int) -> NDArray[np.float32]:
    """Sines and cosines of row and column, (rows * columns, width)."""
    down, across = np.mgrid[:rows, :columns].reshape(2, -1)
    rates = 1.0 / 10_000 ** (np.arange(width // 4) / max(width // 4 - 1, 1))
    angles = [np.outer(axis, rates) for axis in (across, down)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)
