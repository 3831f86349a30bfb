"""A convolution whose kernel is rebuilt from factors, whatever the factorization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dprp_tf.files.arguments import check_choice, check_integer, is_integer
from dprp_tf.layers.factorized import FactorizedLayer

__all__ = ["FactorizedConvolution"]


class FactorizedConvolution(FactorizedLayer):
    """What factorized convolutions share; `ndim`, the spatial axes, is fixed by each class.

    Args:
        filters: Number of output channels S.
        kernel_size: Size of the window, one integer or one per spatial axis.
        strides: Step of the window. Default 1.
        padding: `"valid"`, `"same"`, or `"causal"` of one spatial axis. Default `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`. Default: Keras' own setting.
        dilation_rate: Spacing of the window's points. Default 1.
        **kwargs: What the factorization takes, and `FactorizedLayer`.

    Raises:
        ValueError: If an argument is unusable, or the input is smaller than the window.
    """

    ndim: int

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        *,
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = check_integer("filters", filters)
        self.kernel_size = self._axes("kernel_size", kernel_size)
        self.strides = self._axes("strides", strides)
        self.dilation_rate = self._axes("dilation_rate", dilation_rate)
        paddings = ("valid", "same", "causal") if self.ndim == 1 else ("valid", "same")
        self.padding = str(padding).lower()
        check_choice("padding", self.padding, paddings)
        self.data_format = data_format or keras.config.image_data_format()
        check_choice("data_format", self.data_format, ("channels_last", "channels_first"))
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                "`strides` above 1 and `dilation_rate` above 1 can't be combined. "
                f"Received: strides={self.strides}, dilation_rate={self.dilation_rate}"
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=self.ndim + 2, max_ndim=self.ndim + 2)

    def _axes(self, name: str, value: int | tuple[int, ...]) -> tuple[int, ...]:
        sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.ndim
        if len(sizes) != self.ndim or not all(map(is_integer, sizes)):
            raise ValueError(
                f"`{name}` must be a positive integer or {self.ndim} of them. "
                f"Received: {name}={value!r}"
            )
        return tuple(map(int, sizes))

    def build(self, input_shape: Any) -> None:
        axis = -1 if self.data_format == "channels_last" else 1
        channels = input_shape[axis]
        if channels is None:
            raise ValueError(
                f"The channel axis of the input to {self.name!r} must be defined. "
                f"Received: input_shape={input_shape}"
            )
        self._build_weights((*self.kernel_size, channels, self.filters))
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self.ndim + 2, max_ndim=self.ndim + 2, axes={axis: channels}
        )

    def call(self, inputs: Any) -> Any:
        padding = self.padding
        if padding == "causal":
            left = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            pads = [[0, 0], [left, 0], [0, 0]]
            if self.data_format == "channels_first":
                pads = [[0, 0], [0, 0], [left, 0]]
            inputs = ops.pad(inputs, pads)
            padding = "valid"
        outputs = ops.conv(
            inputs,
            ops.cast(self.kernel, self.compute_dtype),
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._with_bias(outputs)

    def _with_bias(self, outputs: Any) -> Any:
        """Add the bias and apply the activation."""
        if self.bias is not None:
            shape = (1,) * (self.ndim + 1) + (self.filters,)
            if self.data_format == "channels_first":
                shape = (1, self.filters) + (1,) * self.ndim
            outputs = outputs + ops.reshape(self.bias, shape)
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the shape of the output for this input shape, as the dense layer would."""
        last = self.data_format == "channels_last"
        spatial = input_shape[1:-1] if last else input_shape[2:]
        sizes: list[int | None] = []
        for size, kernel, stride, dilation in zip(
            spatial, self.kernel_size, self.strides, self.dilation_rate, strict=True
        ):
            if size is None:
                sizes.append(None)
            elif self.padding == "valid":
                sizes.append((size - dilation * (kernel - 1) - 1) // stride + 1)
            else:
                sizes.append((size - 1) // stride + 1)
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(
                f"The input of {self.name!r} is too small for kernel_size={self.kernel_size} with "
                f"padding={self.padding!r}. Received: input_shape={tuple(input_shape)}"
            )
        if last:
            return (input_shape[0], *sizes, self.filters)
        return (input_shape[0], self.filters, *sizes)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }
