"""The plain Keras layers that compute exactly what one SVD layer computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf import factorization
from dprp_tf.layers import SVDConv1D, SVDConv2D, SVDConv3D, SVDDense, SVDLayer

__all__ = ["FORMS", "Chain", "build_form", "two_stage_obstacle"]

FORMS = ("dense", "two_stage")

_DENSE: dict[type[SVDLayer], type[keras.layers.Layer]] = {
    SVDConv1D: keras.layers.Conv1D,
    SVDConv2D: keras.layers.Conv2D,
    SVDConv3D: keras.layers.Conv3D,
    SVDDense: keras.layers.Dense,
}
_DEPTHWISE = {1: keras.layers.DepthwiseConv1D, 2: keras.layers.DepthwiseConv2D}
_FACTOR_ARGUMENTS = ("rank", "matricization", "balanced_gradients")


class Chain:
    """Layers applied one after the other, with the weights each is to get once built.

    The last layer has the name of the layer it stands for; a stage of several layers is applied
    to one input and concatenated along the channels.

    Args:
        stages: Per stage, its layers and their weights.
        join: Concatenates a stage of several layers; needed only then.
    """

    def __init__(
        self,
        stages: list[list[tuple[keras.layers.Layer, list[NDArray[Any]]]]],
        join: keras.layers.Layer | None = None,
    ) -> None:
        self._stages = stages
        self._join = join

    def __call__(self, inputs: Any) -> Any:
        outputs = inputs
        for stage in self._stages:
            branches = [layer(outputs) for layer, _ in stage]
            outputs = branches[0]
            if len(branches) > 1 and self._join is not None:
                outputs = self._join(branches)
            for layer, weights in stage:
                if weights:
                    layer.set_weights(weights)
        return outputs


def two_stage_obstacle(layer: SVDLayer) -> str | None:
    """Say why a layer has no exact two-stage form of plain layers; None if it has one.

    Args:
        layer: A built SVD layer.

    Returns:
        The reason, or None.
    """
    if layer.kernel_constraint is not None:
        return "its kernel constraint may change the rank of the kernel"
    kind = factorization.resolve(layer.kernel_shape, layer.matricization)
    if kind != "spatial":
        return None
    if isinstance(layer, SVDConv3D):
        return "Keras has no three-dimensional depthwise convolution"
    if len(set(layer.strides)) > 1:
        return "depthwise convolutions need equal strides on both axes"
    return None


def build_form(layer: SVDLayer, form: str) -> Callable[[Any], Any]:
    """Return a callable made of plain Keras layers that computes what `layer` computes.

    `dense` is the layer it replaced, with the kernel U diag(s) V^T. `two_stage`, with C channels,
    S filters and rank r, is exact for every stride, padding, dilation and data format:

    - `spatial`: r depthwise convolutions of multiplier 1, the j-th with column j of V (L,) as the
      filter of every channel; concatenated, (C*r); a pointwise (C*r, S) holding s_j U[s*C + c, j].
      Not one depthwise convolution of multiplier r, for which runtimes have no fast kernel.
    - `channel`: a full-size convolution to r channels with V, then a pointwise (r, S).
    - `separable`: all spatial axes but the last with V, C -> r, then the last with U, r -> S.
    - dense and pointwise kernels: (D_in, r), then (r, D_out).

    The singular values go into the second stage: intermediate channels then have like sizes,
    which loses least when activations are quantized.

    Args:
        layer: A built SVD layer.
        form: `"dense"` or `"two_stage"`.

    Returns:
        A callable from inputs to outputs; its last layer bears the name of `layer`.

    Raises:
        ValueError: If `form` is unknown, or the layer has no such form; see `two_stage_obstacle`.

    Source: DPRP (arXiv 2401.08014) Eq. 2; BSR/LeSS thesis, schemes 1 and 2.
    """
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {FORMS}. Received: form={form!r}")
    if form == "dense":
        return _dense(layer)
    obstacle = two_stage_obstacle(layer)
    if obstacle is not None:
        raise ValueError(
            f"`form` must be 'dense' for layer {layer.name!r}: {obstacle}. Received: form={form!r}"
        )
    if isinstance(layer, SVDDense):
        return _two_dense(layer)
    return _two_convolutions(layer)


def _dense(layer: SVDLayer) -> Callable[[Any], Any]:
    config = {k: v for k, v in layer.get_config().items() if k not in _FACTOR_ARGUMENTS}
    factors = layer.factors
    matrix = (factors.u.astype(np.float64) * factors.s) @ factors.v.astype(np.float64).T
    kernel = factorization.dematricize(matrix, layer.kernel_shape, layer.matricization)
    if layer.kernel_constraint is not None:
        kernel = ops.convert_to_numpy(layer.kernel_constraint(ops.convert_to_tensor(kernel)))
    plain = _DENSE[type(layer)].from_config(config)
    return Chain([[(plain, [kernel, *_bias(layer)])]])


def _two_dense(layer: SVDDense) -> Callable[[Any], Any]:
    factors = layer.factors
    first = keras.layers.Dense(
        factors.rank, use_bias=False, name=f"{layer.name}_stage1", **_shared(layer)
    )
    second = keras.layers.Dense(layer.units, name=layer.name, **_last(layer), **_shared(layer))
    return Chain([[(first, [factors.v])], [(second, [(factors.u * factors.s).T, *_bias(layer)])]])


def _two_convolutions(layer: Any) -> Callable[[Any], Any]:
    convolution = _DENSE[type(layer)]
    factors, rank, ndim = layer.factors, layer.factors.rank, layer.ndim
    *spatial, channels, filters = layer.kernel_shape
    ones = (1,) * ndim
    options = {"data_format": layer.data_format, **_shared(layer)}
    window = {"strides": layer.strides, "dilation_rate": layer.dilation_rate}
    kind = factorization.resolve(layer.kernel_shape, layer.matricization)
    pointwise_shape: tuple[int, ...]
    if kind == "spatial":
        # V (L, r): column j is the filter of branch j, the same for every channel.
        taps = factors.v.T.reshape(rank, *spatial, 1, 1)
        branches = [
            (_depthwise(layer, f"{layer.name}_branch{j}"), [_repeat(taps[j], channels)])
            for j in range(rank)
        ]
        # U (S*C, r) -> (S, C, r) -> (r, C, S) -> (r*C, S)
        mixing = (factors.u * factors.s).reshape(filters, channels, rank).transpose(2, 1, 0)
        axis = -1 if layer.data_format == "channels_last" else 1
        join = keras.layers.Concatenate(
            axis=axis, name=f"{layer.name}_concatenate", dtype=layer.dtype_policy
        )
        pointwise = convolution(
            filters, ones, padding="valid", name=layer.name, **_last(layer), **options
        )
        pointwise_shape = (*ones, rank * channels, filters)
        stages: list[Any] = [
            branches,
            [(pointwise, [mixing.reshape(pointwise_shape), *_bias(layer)])],
        ]
        if layer.padding == "causal":
            left = layer.dilation_rate[0] * (spatial[0] - 1)
            pad = keras.layers.ZeroPadding1D(
                (left, 0), name=f"{layer.name}_pad", data_format=layer.data_format
            )
            stages.insert(0, [(pad, [])])
        return Chain(stages, join)
    if kind == "channel":
        # V (C*L, r) -> (C, L, r) -> (L, C, r) -> (*L, C, r)
        first_kernel = factors.v.reshape(channels, math.prod(spatial), rank).transpose(1, 0, 2)
        second_kernel = (factors.u * factors.s).T.reshape(*ones, rank, filters)
        first_window = {**window, "kernel_size": tuple(spatial), "padding": layer.padding}
        second_window = {"kernel_size": ones, "padding": "valid"}
        first_shape = (*spatial, channels, rank)
    else:
        # V (C*L2, r) -> (C, L2, r) -> (L2, C, r); U (S*L1, r) -> (S, L1, r) -> (L1, r, S)
        leading = math.prod(spatial[:-1])
        first_kernel = factors.v.reshape(channels, leading, rank).transpose(1, 0, 2)
        second_kernel = (factors.u * factors.s).reshape(filters, spatial[-1], rank)
        second_kernel = second_kernel.transpose(1, 2, 0).reshape(
            *ones[:-1], spatial[-1], rank, filters
        )
        first_shape = (*spatial[:-1], 1, channels, rank)
        first_window = {
            "kernel_size": (*spatial[:-1], 1),
            "strides": (*layer.strides[:-1], 1),
            "dilation_rate": (*layer.dilation_rate[:-1], 1),
            "padding": "valid" if layer.padding == "causal" else layer.padding,
        }
        second_window = {
            "kernel_size": (*ones[:-1], spatial[-1]),
            "strides": (*ones[:-1], layer.strides[-1]),
            "dilation_rate": (*ones[:-1], layer.dilation_rate[-1]),
            "padding": layer.padding,
        }
    first = convolution(
        rank, use_bias=False, name=f"{layer.name}_stage1", **first_window, **options
    )
    second = convolution(filters, name=layer.name, **second_window, **_last(layer), **options)
    return Chain(
        [
            [(first, [first_kernel.reshape(first_shape)])],
            [(second, [second_kernel, *_bias(layer)])],
        ]
    )


def _depthwise(layer: Any, name: str) -> keras.layers.Layer:
    one_axis = layer.ndim == 1
    return _DEPTHWISE[layer.ndim](
        layer.kernel_size[0] if one_axis else layer.kernel_size,
        strides=layer.strides[0] if one_axis else layer.strides,
        padding="valid" if layer.padding == "causal" else layer.padding,
        dilation_rate=layer.dilation_rate[0] if one_axis else layer.dilation_rate,
        data_format=layer.data_format,
        use_bias=False,
        name=name,
        **_shared(layer),
    )


def _repeat(taps: NDArray[Any], channels: int) -> NDArray[Any]:
    """(*L, 1, 1) -> (*L, C, 1): the same filter for every channel."""
    return np.repeat(taps, channels, axis=-2)


def _bias(layer: SVDLayer) -> list[NDArray[Any]]:
    return [] if layer.bias is None else [ops.convert_to_numpy(layer.bias)]


def _shared(layer: SVDLayer) -> dict[str, Any]:
    return {"dtype": layer.dtype_policy, "trainable": layer.trainable}


def _last(layer: SVDLayer) -> dict[str, Any]:
    return {
        "use_bias": layer.use_bias,
        "activation": layer.activation,
        "bias_initializer": layer.bias_initializer,
        "bias_regularizer": layer.bias_regularizer,
        "bias_constraint": layer.bias_constraint,
        "activity_regularizer": layer.activity_regularizer,
    }
