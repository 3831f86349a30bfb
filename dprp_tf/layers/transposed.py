"""A transposed convolution whose kernel is rebuilt from factors, whatever the factorization."""

from __future__ import annotations

from typing import Any

from keras import ops

from dprp_tf.layers.convolution import FactorizedConvolution

__all__ = ["FactorizedTransposedConvolution"]


class FactorizedTransposedConvolution(FactorizedConvolution):
    """What factorized transposed convolutions share; `ndim` is fixed by each class.

    The kernel is factorized as (*kernel_size, C, filters), like that of a convolution; Keras holds
    it as (*kernel_size, filters, C).

    Args:
        filters: Number of output channels S.
        kernel_size: Size of the window, one integer or one per spatial axis.
        output_padding: Outputs added at the end of each axis, below the stride. Default: none, so
            that the output is as long as Keras makes it.
        **kwargs: What `FactorizedConvolution` takes.

    Raises:
        ValueError: If an argument is unusable.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        *,
        output_padding: int | tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        # Keras' own layer says what fits together and how long the output is.
        self._plain = self.stands_for(
            self.filters,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            output_padding=output_padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
            dtype="float32",
        )
        self.output_padding = self._plain.output_padding

    def as_held(self, kernel: Any, backend: Any = ops) -> Any:
        """Swap the two last axes of a kernel; see `FactorizedLayer`."""
        return backend.swapaxes(kernel, -1, -2)

    def call(self, inputs: Any) -> Any:
        outputs = ops.conv_transpose(
            inputs,
            ops.cast(self.kernel, self.compute_dtype),
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._with_bias(outputs)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the shape of the output for this input shape, as the dense layer would."""
        shape: tuple[int | None, ...] = tuple(self._plain.compute_output_shape(input_shape))
        return shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "output_padding": self.output_padding}
