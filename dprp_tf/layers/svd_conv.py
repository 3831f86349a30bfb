"""Convolutions whose kernels are held as SVD factors."""

from __future__ import annotations

import keras

from dprp_tf.layers.convolution import FactorizedConvolution
from dprp_tf.layers.registry import low_rank_layer
from dprp_tf.layers.svd_layer import SVDLayer
from dprp_tf.layers.transposed import FactorizedTransposedConvolution

__all__ = [
    "SVDConv1D",
    "SVDConv1DTranspose",
    "SVDConv2D",
    "SVDConv2DTranspose",
    "SVDConv3D",
    "SVDConv3DTranspose",
]


class _SVDConv(FactorizedConvolution, SVDLayer):
    """A convolution of one, two or three spatial axes, its kernel held as SVD factors."""


_SHARED = """

    The kernel (*kernel_size, C, filters) is matricized to M = U diag(s) V^T, and U, s, V are the
    weights. Use it through `dprp_tf.factorize`, or in a new network in the place of the Keras
    layer, whose arguments it takes.

    Args:
        filters: Number of output channels S.
        kernel_size: Size of the window, one integer or one per spatial axis.
        strides: Step of the window. Default 1.
        padding: {padding}. Default `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`. Default: Keras' own setting.
        dilation_rate: Spacing of the window's points. Default 1.
        **kwargs: What `SVDLayer` takes: `rank`, `matricization`, `balanced_gradients`,
            `activation`, `use_bias`, initializers, regularizers, constraints, `name`, `dtype`.

    Input shape:
        `(batch, *spatial, C)`, or `(batch, C, *spatial)` for `"channels_first"`.

    Output shape:
        `(batch, *new spatial, filters)`, or `(batch, filters, *new spatial)`.

    Raises:
        ValueError: If an argument is unusable, or the input is smaller than the window.

    Source: DPRP (arXiv 2401.08014) Eq. 1 and 2.

    Example:

    >>> layer = {example}
    >>> layer(keras.ops.zeros({shape})).shape, layer.rank
    {result}
    """


@low_rank_layer(keras.layers.Conv1D)
class SVDConv1D(_SVDConv):
    __doc__ = "A one-dimensional convolution that trains the SVD factors of its kernel." + (
        _SHARED.format(
            padding='`"valid"`, `"same"` or `"causal"`',
            example='SVDConv1D(8, 5, rank=2, padding="causal")',
            shape="(1, 12, 3)",
            result="(TensorShape([1, 12, 8]), 2)",
        )
    )
    ndim = 1


@low_rank_layer(keras.layers.Conv2D)
class SVDConv2D(_SVDConv):
    __doc__ = "A two-dimensional convolution that trains the SVD factors of its kernel." + (
        _SHARED.format(
            padding='`"valid"` or `"same"`',
            example='SVDConv2D(8, 3, rank=2, padding="same")',
            shape="(1, 6, 6, 3)",
            result="(TensorShape([1, 6, 6, 8]), 2)",
        )
    )
    ndim = 2


@low_rank_layer(keras.layers.Conv3D)
class SVDConv3D(_SVDConv):
    __doc__ = "A three-dimensional convolution that trains the SVD factors of its kernel." + (
        _SHARED.format(
            padding='`"valid"` or `"same"`',
            example="SVDConv3D(8, 3, rank=2)",
            shape="(1, 5, 5, 5, 3)",
            result="(TensorShape([1, 3, 3, 3, 8]), 2)",
        )
    )
    ndim = 3


class _SVDConvTranspose(FactorizedTransposedConvolution, SVDLayer):
    """A transposed convolution, its kernel held as SVD factors."""


_TRANSPOSED = """

    The kernel, as (*kernel_size, C, filters), is matricized to M = U diag(s) V^T as that of a
    convolution is, and U, s, V are the weights. It folds into a transposed convolution and a
    pointwise one (`"channel"`), or two transposed ones of an axis each (`"separable"`); in
    `"spatial"` form it folds dense alone, since Keras has no depthwise transposed convolution,
    and `dprp_tf.factorize` takes `"channel"` there.

    Args:
        filters: Number of output channels S.
        kernel_size: Size of the window, one integer or one per spatial axis.
        strides: Step of the window in the output. Default 1.
        padding: `"valid"` or `"same"`. Default `"valid"`.
        output_padding: Outputs added at the end of each axis. Default: none.
        data_format: `"channels_last"` or `"channels_first"`. Default: Keras' own setting.
        dilation_rate: Spacing of the window's points. Default 1.
        **kwargs: What `SVDLayer` takes: `rank`, `matricization`, `balanced_gradients`,
            `activation`, `use_bias`, initializers, regularizers, constraints, `name`, `dtype`.

    Input shape:
        `(batch, *spatial, C)`, or `(batch, C, *spatial)` for `"channels_first"`.

    Output shape:
        `(batch, *new spatial, filters)`, or `(batch, filters, *new spatial)`.

    Raises:
        ValueError: If an argument is unusable.

    Source: DPRP (arXiv 2401.08014) Eq. 1 and 2, of the kernel with its channels swapped.

    Example:

    >>> layer = {example}
    >>> layer(keras.ops.zeros({shape})).shape, layer.rank
    {result}
    """


@low_rank_layer(keras.layers.Conv1DTranspose)
class SVDConv1DTranspose(_SVDConvTranspose):
    __doc__ = (
        "A one-dimensional transposed convolution that trains the SVD factors of its kernel."
        + _TRANSPOSED.format(
            example='SVDConv1DTranspose(8, 4, strides=2, rank=2, matricization="channel")',
            shape="(1, 6, 3)",
            result="(TensorShape([1, 14, 8]), 2)",
        )
    )
    ndim = 1


@low_rank_layer(keras.layers.Conv2DTranspose)
class SVDConv2DTranspose(_SVDConvTranspose):
    __doc__ = (
        "A two-dimensional transposed convolution that trains the SVD factors of its kernel."
        + _TRANSPOSED.format(
            example='SVDConv2DTranspose(8, 2, strides=2, rank=2, matricization="channel")',
            shape="(1, 6, 6, 3)",
            result="(TensorShape([1, 12, 12, 8]), 2)",
        )
    )
    ndim = 2


@low_rank_layer(keras.layers.Conv3DTranspose)
class SVDConv3DTranspose(_SVDConvTranspose):
    __doc__ = (
        "A three-dimensional transposed convolution that trains the SVD factors of its kernel."
        + _TRANSPOSED.format(
            example='SVDConv3DTranspose(4, 2, strides=2, rank=2, matricization="channel")',
            shape="(1, 3, 3, 3, 3)",
            result="(TensorShape([1, 6, 6, 6, 4]), 2)",
        )
    )
    ndim = 3
