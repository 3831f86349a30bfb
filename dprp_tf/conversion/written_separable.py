"""Separable convolutions written out: a depthwise convolution, then a pointwise one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras
from keras import ops

from dprp_tf.keras_internals.free_names import free_name

__all__ = ["WrittenSeparable"]

_PARTS = {
    keras.layers.SeparableConv1D: (keras.layers.DepthwiseConv1D, keras.layers.Conv1D),
    keras.layers.SeparableConv2D: (keras.layers.DepthwiseConv2D, keras.layers.Conv2D),
}


class WrittenSeparable:
    """A separable convolution as a depthwise and a pointwise one, called as the layer is.

    Args:
        layer: The layer, built; the pointwise convolution gets its name.
        taken: Names that the depthwise convolution must not have. Default: none.

    Example:

    >>> layer = keras.layers.SeparableConv2D(4, 3, name="it")
    >>> x = keras.Input((8, 8, 3))
    >>> _ = layer(x)
    >>> WrittenSeparable(layer)(x).shape
    (None, 6, 6, 4)
    """

    def __init__(self, layer: Any, taken: Collection[str] = ()) -> None:
        depthwise, pointwise = _PARTS[type(layer)]
        options: dict[str, Any] = {
            "data_format": layer.data_format,
            "dtype": layer.dtype_policy,
            "trainable": layer.trainable,
        }
        one = len(layer.kernel_size) == 1
        self._first = depthwise(
            layer.kernel_size[0] if one else layer.kernel_size,
            strides=layer.strides[0] if one else layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate[0] if one else layer.dilation_rate,
            use_bias=False,
            depthwise_initializer=layer.depthwise_initializer,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            name=free_name(f"{layer.name}_depthwise", taken),
            **options,
        )
        self._second = pointwise(
            layer.filters,
            1,
            activation=layer.activation,
            use_bias=layer.use_bias,
            kernel_initializer=layer.pointwise_initializer,
            bias_initializer=layer.bias_initializer,
            kernel_regularizer=layer.pointwise_regularizer,
            bias_regularizer=layer.bias_regularizer,
            activity_regularizer=layer.activity_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_constraint=layer.bias_constraint,
            name=layer.name,
            **options,
        )
        self._source = layer

    def __call__(self, x: Any, **_: Any) -> Any:
        """Apply it.

        Args:
            x: A symbolic tensor.

        Returns:
            The output.
        """
        fresh = not self._second.built
        outputs = self._second(self._first(x))
        if fresh:
            # The depthwise kernel, the pointwise one and the bias, if there is one.
            for own, source in zip(
                [*self._first.weights, *self._second.weights], self._source.weights, strict=True
            ):
                own.assign(ops.convert_to_numpy(source))
                own.trainable = source.trainable
        return outputs
