"""A dense layer whose kernel is held as SVD factors."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dprp_tf.files.arguments import check_integer
from dprp_tf.layers.registry import low_rank_layer
from dprp_tf.layers.svd_layer import SVDLayer

__all__ = ["SVDDense"]


@low_rank_layer(keras.layers.Dense)
class SVDDense(SVDLayer):
    """A dense layer that trains the SVD factors of its kernel.

    The kernel W^T of shape (D_out, D_in) is held as U diag(s) V^T with weights U (D_out, r),
    s (r,) and V (D_in, r); the output is x W + b over the last axis of x.

    Args:
        units: Number of outputs D_out.
        **kwargs: What `SVDLayer` takes. Any `matricization` gives the same matrix.

    Input shape:
        `(batch, ..., D_in)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: If `units` or `rank` is unusable.

    Source: DPRP (arXiv 2401.08014) Eq. 5.

    Example:

    >>> layer = SVDDense(4, rank=2)
    >>> layer(keras.ops.zeros((3, 6))).shape, layer.rank
    (TensorShape([3, 4]), 2)
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = check_integer("units", units)
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape: Any) -> None:
        inputs = input_shape[-1]
        if inputs is None:
            raise ValueError(
                f"The last axis of the input to {self.name!r} must be defined. "
                f"Received: input_shape={input_shape}"
            )
        self._build_weights((inputs, self.units))
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: inputs})

    def call(self, inputs: Any) -> Any:
        outputs = ops.matmul(inputs, ops.cast(self.kernel, self.compute_dtype))
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the shape of the output for this input shape."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}
