"""Plain Keras layers put together so that they compute one form of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.conversion.form_weights import FormWeights, form_weights
from dprp_tf.costs.form import Form
from dprp_tf.decomposition import Factors, TuckerFactors
from dprp_tf.keras_internals.free_names import free_name
from dprp_tf.keras_internals.given_kernels import copy_unnamed_settings
from dprp_tf.keras_internals.quick_building import quick_build
from dprp_tf.layers import (
    FactorizedLayer,
    SVDDense,
    SVDRecurrent,
)

__all__ = ["assemble", "build_form"]

_DEPTHWISE = {1: keras.layers.DepthwiseConv1D, 2: keras.layers.DepthwiseConv2D}
_POINTWISE = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_FACTOR_ARGUMENTS = ("rank", "ranks", "matricization", "balanced_gradients")

_Step = tuple[keras.layers.Layer, list[NDArray[Any]]]


class _Chain:
    """Steps in a row, then branches side by side that are joined, then steps in a row.

    Each step is a layer and the weights it gets once built; it may be called several times.
    """

    def __init__(
        self,
        head: list[_Step],
        branches: list[list[_Step]] | None = None,
        join: keras.layers.Layer | None = None,
        tail: list[_Step] | None = None,
    ) -> None:
        self._head, self._branches, self._join = head, branches or [], join
        self._tail = tail or []

    def avoid(self, names: Collection[str], own: str) -> None:
        """Rename the layers, but the one that bears the name `own`, whose names are taken."""
        steps = [*self._head, *(step for branch in self._branches for step in branch), *self._tail]
        layers = [layer for layer, _ in steps] + ([] if self._join is None else [self._join])
        for layer in layers:
            if layer.name != own:
                layer.name = free_name(layer.name, names)

    def __call__(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        # What a call of a convolution may be given; none of these layers makes use of it.
        outputs = _apply(self._head, inputs)
        if self._branches:
            parts = [_apply(branch, outputs) for branch in self._branches]
            outputs = parts[0] if self._join is None else self._join(parts)
        return _apply(self._tail, outputs)


class _RecurrentChain(_Chain):
    """Steps in a row whose last one is recurrent: what a call is given beside inputs is for it."""

    def __call__(self, inputs: Any, *states: Any, **options: Any) -> Any:
        return _apply(self._head[-1:], _apply(self._head[:-1], inputs), *states, **options)


def _apply(steps: list[_Step], outputs: Any, *args: Any, **kwargs: Any) -> Any:
    for layer, weights in steps:
        fresh = not layer.built
        outputs = quick_build(layer)(outputs, *args, **kwargs)
        if weights and fresh:
            layer.set_weights(weights)
    return outputs


def build_form(
    layer: FactorizedLayer, form: Form, taken_names: Collection[str] = ()
) -> Callable[[Any], Any]:
    """Return a callable made of plain Keras layers that computes a form of `layer`.

    Exact for every stride, padding, dilation and data format, up to `form.error` in the kernel.
    The singular values go into the last stage (of Tucker into the core): intermediate channels
    then have like sizes, which loses least when activations are quantized.

    Args:
        layer: A built SVD or Tucker layer.
        form: One of the forms `layer_forms` lists.
        taken_names: Names that the layers of its stages must not have. Default: none.

    Returns:
        A callable from inputs to outputs; its last layer bears the name of `layer`.

    Raises:
        ValueError: If the layer can't take the form; see `obstacle`.

    Source: DPRP (arXiv 2401.08014) Eq. 2; BSR/LeSS thesis, schemes 1 and 2, and 4.7.4.
    """
    chain = assemble(layer, form, form_weights(layer, form))
    chain.avoid(taken_names, layer.name)
    return chain


def assemble(layer: Any, form: Form, weights: FormWeights) -> _Chain:
    """Return the plain layers of a form of `layer`, filled with the given weights.

    Args:
        layer: A built SVD or Tucker layer, whose geometry, bias and activation are taken.
        form: The form.
        weights: As `form_weights` or `random_weights` return them.

    Returns:
        A callable from inputs to outputs; its last layer bears the name of `layer`.
    """
    if form.kind == "dense":
        plain = layer.stands_for.from_config(_plain_config(layer))
        if isinstance(layer, SVDRecurrent):
            copy_unnamed_settings(layer.recurrent, plain)
        kernel = layer.as_held(np.asarray(weights), np)
        return _chain_of(layer)([(plain, [kernel, *layer.other_weights()])])
    if isinstance(weights, TuckerFactors):
        return _tucker(layer, weights)
    assert isinstance(weights, Factors)
    if isinstance(layer, (SVDDense, SVDRecurrent)):
        options = _shared(layer)
        first = keras.layers.Dense(
            weights.rank, use_bias=False, name=f"{layer.name}_stage1", **options
        )
        mixing = (weights.u * weights.s).T
        if isinstance(layer, SVDRecurrent):
            second = layer.stands_for.from_config(_plain_config(layer, without_kernel=True))
            copy_unnamed_settings(layer.recurrent, second)
        else:
            second = keras.layers.Dense(layer.units, name=layer.name, **_last(layer), **options)
        stages = [(first, [weights.v]), (second, [mixing, *layer.other_weights()])]
        return _chain_of(layer)(stages)
    return _BUILDERS[form.kind](layer, weights)


def _plain_config(layer: Any, *, without_kernel: bool = False) -> dict[str, Any]:
    """The configuration of the layer of Keras that a low-rank one stands for."""
    config = {k: v for k, v in layer.get_config().items() if k not in _FACTOR_ARGUMENTS}
    # The objects themselves, which may be functions that their names alone don't find.
    config |= {name: getattr(layer, name) for name in layer.object_arguments}
    if without_kernel:
        # What they say is of the whole kernel, which its second factor is not.
        config |= {"kernel_regularizer": None, "kernel_constraint": None}
    return config


def _chain_of(layer: Any) -> type[_Chain]:
    return _RecurrentChain if isinstance(layer, SVDRecurrent) else _Chain


def _concatenated(layer: Any, factors: Factors) -> _Chain:
    *spatial, channels, filters = layer.kernel_shape
    # V (L, r): column j is the filter of branch j, the same for every channel.
    branches = [
        [(_depthwise(layer, f"{layer.name}_branch{j}"), [_repeat(column, spatial, channels)])]
        for j, column in enumerate(factors.v.T)
    ]
    # U (S*C, r) -> (S, C, r) -> (r, C, S) -> (r*C, S)
    mixing = (factors.u * factors.s).reshape(filters, channels, -1).transpose(2, 1, 0)
    join = None
    if factors.rank > 1:
        join = keras.layers.Concatenate(
            axis=-1 if layer.data_format == "channels_last" else 1,
            name=f"{layer.name}_concatenate",
            dtype=layer.dtype_policy,
        )
    pointwise = _pointwise(layer, filters, layer.name, **_last(layer))
    kernel = mixing.reshape((*_ones(layer), factors.rank * channels, filters))
    return _Chain(
        _causal_pad(layer), branches, join, [(pointwise, [kernel, *layer.other_weights()])]
    )


def _summed(layer: Any, factors: Factors) -> _Chain:
    *spatial, channels, filters = layer.kernel_shape
    # U (S*C, r) -> (S, C, r) -> (r, C, S)
    mixing = (factors.u * factors.s).reshape(filters, channels, -1).transpose(2, 1, 0)

    def branch(j: int, name: str, options: dict[str, Any]) -> list[_Step]:
        kernel = mixing[j].reshape((*_ones(layer), channels, filters))
        bias = layer.other_weights() if options["use_bias"] else []
        return [
            (
                _depthwise(layer, f"{layer.name}_branch{j}"),
                [_repeat(factors.v[:, j], spatial, channels)],
            ),
            (_pointwise(layer, filters, name, **options), [kernel, *bias]),
        ]

    return _sum_of_branches(layer, factors.rank, branch)


def _pointwise_first(layer: Any, factors: Factors) -> _Chain:
    *spatial, channels, filters = layer.kernel_shape
    # U (S*C, r) -> (S, C, r) -> (r, C, S)
    mixing = factors.u.reshape(filters, channels, -1).transpose(2, 1, 0)
    taps = factors.v * factors.s

    def branch(j: int, name: str, options: dict[str, Any]) -> list[_Step]:
        pointwise = _pointwise(layer, filters, f"{layer.name}_branch{j}", use_bias=False)
        bias = layer.other_weights() if options["use_bias"] else []
        return [
            (pointwise, [mixing[j].reshape((*_ones(layer), channels, filters))]),
            (
                _depthwise(layer, name, **options),
                [_repeat(taps[:, j], spatial, filters), *bias],
            ),
        ]

    return _sum_of_branches(layer, factors.rank, branch)


def _sum_of_branches(
    layer: Any, rank: int, branch: Callable[[int, str, dict[str, Any]], list[_Step]]
) -> _Chain:
    """Branches that are added up; the bias is in the first, the activation behind the sum."""
    last = _last(layer)
    if rank == 1:
        return _Chain(_causal_pad(layer), [branch(0, layer.name, last)])
    output = {name: last.pop(name) for name in ("activation", "activity_regularizer")}
    without = {"use_bias": False}
    branches = [
        branch(j, f"{layer.name}_stage{j}", last if j == 0 else without) for j in range(rank)
    ]
    linear = output["activation"] is keras.activations.linear
    tail: list[_Step] = []
    name = layer.name
    if not linear or output["activity_regularizer"] is not None:
        name = f"{layer.name}_sum"
        tail = [
            (keras.layers.Activation(name=layer.name, dtype=layer.dtype_policy, **output), []),
        ]
    join = keras.layers.Add(name=name, dtype=layer.dtype_policy)
    return _Chain(_causal_pad(layer), branches, join, tail)


def _channel(layer: Any, factors: Factors) -> _Chain:
    *spatial, channels, filters = layer.kernel_shape
    # V (C*L, r) -> (C, L, r) -> (L, C, r) -> (*L, C, r)
    kernel = factors.v.reshape(channels, math.prod(spatial), -1).transpose(1, 0, 2)
    first = _window(layer, factors.rank, f"{layer.name}_stage1")
    second = _pointwise(layer, filters, layer.name, **_last(layer))
    mixing = (factors.u * factors.s).T.reshape((*_ones(layer), factors.rank, filters))
    kernel = kernel.reshape(*spatial, channels, factors.rank)
    return _Chain(
        [
            (first, [layer.as_held(kernel, np)]),
            (second, [mixing, *layer.other_weights()]),
        ]
    )


def _separable(layer: Any, factors: Factors) -> _Chain:
    *spatial, channels, filters = layer.kernel_shape
    rank, ones = factors.rank, _ones(layer)
    # V (C*L2, r) -> (C, L2, r) -> (L2, C, r); U (S*L1, r) -> (S, L1, r) -> (L1, r, S)
    along = factors.v.reshape(channels, math.prod(spatial[:-1]), rank).transpose(1, 0, 2)
    across = (factors.u * factors.s).reshape(filters, spatial[-1], rank).transpose(1, 2, 0)
    convolution = layer.stands_for
    options = {"data_format": layer.data_format, **_shared(layer)}
    first_added, second_added = _added_outputs(layer)
    first = convolution(
        rank,
        (*spatial[:-1], 1),
        strides=(*layer.strides[:-1], 1),
        dilation_rate=(*layer.dilation_rate[:-1], 1),
        padding="valid" if layer.padding == "causal" else layer.padding,
        use_bias=False,
        name=f"{layer.name}_stage1",
        **options,
        **first_added,
    )
    second = convolution(
        filters,
        (*ones[:-1], spatial[-1]),
        strides=(*ones[:-1], layer.strides[-1]),
        dilation_rate=(*ones[:-1], layer.dilation_rate[-1]),
        padding=layer.padding,
        name=layer.name,
        **_last(layer),
        **options,
        **second_added,
    )
    along = along.reshape(*spatial[:-1], 1, channels, rank)
    across = across.reshape(*ones[:-1], spatial[-1], rank, filters)
    return _Chain(
        [
            (first, [layer.as_held(along, np)]),
            (second, [layer.as_held(across, np), *layer.other_weights()]),
        ]
    )


def _added_outputs(layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a transposed convolution adds at the ends of its axes: all but the last, the last."""
    added = getattr(layer, "output_padding", None)
    if added is None:
        return {}, {}
    zeros = (0,) * (layer.ndim - 1)
    return {"output_padding": (*added[:-1], 0)}, {"output_padding": (*zeros, added[-1])}


def _tucker(layer: Any, factors: TuckerFactors) -> _Chain:
    inner, outer = factors.ranks
    channels, filters = layer.kernel_shape[-2:]
    ones = _ones(layer)
    first = _pointwise(layer, inner, f"{layer.name}_stage1", use_bias=False)
    middle = _window(layer, outer, f"{layer.name}_stage2")
    last = _pointwise(layer, filters, layer.name, **_last(layer))
    return _Chain(
        [
            (first, [factors.first.reshape((*ones, channels, inner))]),
            (middle, [layer.as_held(factors.core, np)]),
            (last, [factors.last.T.reshape((*ones, outer, filters)), *layer.other_weights()]),
        ]
    )


_BUILDERS: dict[str, Callable[[Any, Factors], _Chain]] = {
    "concatenated": _concatenated,
    "summed": _summed,
    "pointwise_first": _pointwise_first,
    "channel": _channel,
    "separable": _separable,
}


def _pointwise(layer: Any, filters: int, name: str, **options: Any) -> keras.layers.Layer:
    return _POINTWISE[layer.ndim](
        filters,
        _ones(layer),
        padding="valid",
        data_format=layer.data_format,
        name=name,
        **options,
        **_shared(layer),
    )


def _window(layer: Any, filters: int, name: str) -> keras.layers.Layer:
    """A convolution with the window of `layer`, transposed if that is, without bias."""
    added = getattr(layer, "output_padding", None)
    return layer.stands_for(
        filters,
        layer.kernel_size,
        strides=layer.strides,
        dilation_rate=layer.dilation_rate,
        padding=layer.padding,
        data_format=layer.data_format,
        use_bias=False,
        name=name,
        **({} if added is None else {"output_padding": added}),
        **_shared(layer),
    )


def _depthwise(layer: Any, name: str, **options: Any) -> keras.layers.Layer:
    one_axis = layer.ndim == 1
    # What a depthwise layer calls its bias arguments is the same; it has no other of `_last`.
    return _DEPTHWISE[layer.ndim](
        layer.kernel_size[0] if one_axis else layer.kernel_size,
        strides=layer.strides[0] if one_axis else layer.strides,
        padding="valid" if layer.padding == "causal" else layer.padding,
        dilation_rate=layer.dilation_rate[0] if one_axis else layer.dilation_rate,
        data_format=layer.data_format,
        name=name,
        **({"use_bias": False} | options),
        **_shared(layer),
    )


def _causal_pad(layer: Any) -> list[_Step]:
    if layer.padding != "causal":
        return []
    left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    pad = keras.layers.ZeroPadding1D(
        (left, 0), name=f"{layer.name}_pad", data_format=layer.data_format
    )
    return [(pad, [])]


def _repeat(taps: NDArray[Any], spatial: list[int], channels: int) -> NDArray[Any]:
    """(L,) -> (*L, channels, 1): the same filter for every channel."""
    return np.repeat(taps.reshape(*spatial, 1, 1), channels, axis=-2)


def _ones(layer: Any) -> tuple[int, ...]:
    return (1,) * layer.ndim


def _shared(layer: FactorizedLayer) -> dict[str, Any]:
    return {"dtype": layer.dtype_policy, "trainable": layer.trainable}


def _last(layer: FactorizedLayer) -> dict[str, Any]:
    return {
        "use_bias": layer.use_bias,
        "activation": layer.activation,
        "bias_initializer": layer.bias_initializer,
        "bias_regularizer": layer.bias_regularizer,
        "bias_constraint": layer.bias_constraint,
        "activity_regularizer": layer.activity_regularizer,
    }
