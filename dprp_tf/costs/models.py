"""What a layer and a model cost: parameters, MACs, and the rank at which factors pay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dprp_tf.costs.form import Form
from dprp_tf.costs.layer_forms import smallest_form
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.layer_calls import layer_calls
from dprp_tf.layers.factorized import FactorizedLayer

__all__ = ["LayerCost", "ModelCost", "folded_cost", "model_cost"]


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs.

    Attributes:
        name: The layer's name; its path where nested models have layers of the same name.
        parameters: Trainable and other weights, as they are.
        trainable_parameters: Those that train.
        macs: Multiply-accumulates for one sample; None where a size is undefined. For an SVD
            layer the convolution plus the h*w*r of rebuilding its kernel, likewise for Tucker.
        dense_parameters: Weights of the dense layer this one stands for.
        dense_macs: MACs of the dense layer this one stands for.
    """

    name: str
    parameters: int
    trainable_parameters: int
    macs: int | None
    dense_parameters: int
    dense_macs: int | None


@dataclass(frozen=True)
class ModelCost:
    """What a model costs: sums over its layers.

    Attributes:
        parameters: Trainable weights, as the papers count.
        non_trainable_parameters: The others, such as moving statistics.
        macs: Multiply-accumulates for one sample; None where a size is undefined.
        dense_parameters: Trainable weights with every low-rank layer counted as its dense one.
        dense_macs: MACs with every low-rank layer counted as its dense one.
        layers: The layers' own costs.
    """

    parameters: int
    non_trainable_parameters: int
    macs: int | None
    dense_parameters: int
    dense_macs: int | None
    layers: tuple[LayerCost, ...]

    @property
    def compression(self) -> float:
        """1 - parameters / dense parameters; negative when the factors are the larger."""
        return 1.0 - self.parameters / self.dense_parameters if self.dense_parameters else 0.0


def model_cost(model: Any) -> ModelCost:
    """Count the parameters and MACs of a Functional or Sequential model, nested ones included.

    A convolution costs (output positions) x (kernel entries per group); a dense layer one MAC
    per kernel entry and position. Shared layers count their MACs at each call, their weights
    once. Normalization, activations, pooling and additions count no MACs, as in the papers.

    Args:
        model: A built Keras model, factorized or not.

    Returns:
        The `ModelCost`.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 3))
    >>> outputs = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    >>> cost = model_cost(keras.Model(inputs, outputs))
    >>> cost.parameters, cost.macs
    (108, 6912)
    """
    calls: dict[int, tuple[Any, list[tuple[int | None, int | None]]]] = {}
    for call in layer_calls(model):
        # A transposed convolution spends its kernel once per input position, a recurrent layer
        # once per step.
        recurrent = hasattr(call.layer, "cell") or hasattr(call.layer, "forward_layer")
        by_input = recurrent or "Transpose" in type(call.layer).__name__
        visited = call.input_shape if by_input else call.output_shape
        calls.setdefault(id(call.layer), (call.layer, []))[1].append(_macs(call.layer, visited))
    names = {id(layer): key for key, layer in layer_keys(model).items()}
    rows = []
    for layer, macs in calls.values():
        parameters = sum(math.prod(w.shape) for w in layer.weights)
        trainable = sum(math.prod(w.shape) for w in layer.trainable_weights)
        saved = 0
        if isinstance(layer, FactorizedLayer):
            factors = sum(math.prod(value.shape) for value in layer.factor_variables)
            saved = math.prod(layer.kernel_shape) - factors
        rows.append(
            LayerCost(
                names.get(id(layer), layer.name),
                parameters,
                trainable,
                _sum(pair[0] for pair in macs),
                parameters + saved,
                _sum(pair[1] for pair in macs),
            )
        )
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    total = sum(row.parameters for row in rows)
    return ModelCost(
        parameters=trainable,
        non_trainable_parameters=total - trainable,
        macs=_sum(row.macs for row in rows),
        dense_parameters=trainable
        + sum(row.dense_parameters - row.parameters for row in rows if row.trainable_parameters),
        dense_macs=_sum(row.dense_macs for row in rows),
        layers=tuple(rows),
    )


def folded_cost(model: Any) -> tuple[int, int | None]:
    """Count what `dprp_tf.fold` would make of a model, from shapes alone: nothing is folded.

    Every low-rank layer counts as its `smallest_form`, every other layer as it is.

    Args:
        model: A built Keras model, factorized or not.

    Returns:
        Trainable parameters, and MACs for one sample (None where a size is undefined).

    Example:

    >>> import dprp_tf as dprp, keras
    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> folded_cost(dprp.factorize(keras.Model(inputs, outputs), ranks=2))  # (9, 16), (32, 16)
    (800, 28800)
    """
    cost = model_cost(model)
    parameters, macs = cost.dense_parameters, cost.dense_macs
    counted: set[int] = set()
    for call in layer_calls(model):
        layer = call.layer
        if not isinstance(layer, FactorizedLayer):
            continue
        form, dense = smallest_form(layer), Form("dense")
        if layer.trainable and id(layer) not in counted:
            parameters += form.parameters(layer.kernel_shape) - math.prod(layer.kernel_shape)
        counted.add(id(layer))
        if macs is not None and call.positions is not None:
            macs += form.macs(layer.kernel_shape, *call.positions)
            macs -= dense.macs(layer.kernel_shape, *call.positions)
    return parameters, macs


_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel")


def _macs(layer: Any, shape: Sequence[int | None]) -> tuple[int | None, int | None]:
    """Return (MACs as it is, MACs of the dense layer it stands for) of one call."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    sizes = shape[2:] if first else shape[1:-1]
    if type(layer).__name__ == "EinsumDense":
        return (_einsum_macs(layer, shape),) * 2
    if isinstance(layer, FactorizedLayer):
        entries, rebuild = math.prod(layer.kernel_shape), layer.rebuild_macs
    else:
        kernels = [w for w in layer.weights if w.name in _KERNELS]
        entries, rebuild = sum(math.prod(w.shape) for w in kernels), 0
    if not entries:
        return 0, 0
    if any(size is None for size in sizes):
        return None, None
    dense = math.prod(int(size) for size in sizes if size is not None) * entries
    return dense + rebuild, dense


def _einsum_macs(layer: Any, shape: Sequence[int | None]) -> int | None:
    """MACs of an EinsumDense: for each entry of the output one per entry that is summed over."""
    operands, output = layer.equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    summed = [n for axis, n in zip(kernel, layer.kernel.shape, strict=True) if axis not in output]
    sizes = [*shape[1:], *summed]
    if any(size is None for size in sizes):
        return None
    return math.prod(int(size) for size in sizes if size is not None)


def _sum(values: Any) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
