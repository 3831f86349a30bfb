"""What a layer and a model cost: parameters, MACs, and the rank at which factors pay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dprp_tf.costs.call_macs import call_macs, sum_of_known
from dprp_tf.costs.form import Form
from dprp_tf.costs.layer_forms import smallest_form
from dprp_tf.costs.map_sizes import map_sizes
from dprp_tf.keras_internals.graphs import layer_keys, layers_inside
from dprp_tf.keras_internals.input_sizes import sized_inputs
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
        macs: Multiply-accumulates for one sample; None where they are not known. For an SVD
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
        macs: Multiply-accumulates for one sample; None where those of a layer are not known.
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


def model_cost(model: Any, *, input_shape: Any = None) -> ModelCost:
    """Count the parameters and MACs of a Functional or Sequential model, nested ones included.

    A convolution costs (output positions) x (kernel entries per group); a dense layer one MAC
    per kernel entry and position. Shared layers count their MACs at each call, their weights
    once; nested models at the sizes that they are called with. Layers that hold layers are
    counted inside: wrappers, attention, blocks of your own. Normalization, activations, pooling
    and additions count no MACs, as in the papers, nor do products without a kernel, such as the
    scores of attention.

    MACs are None, never a guess, where a size is undefined or what a layer's own `call()` does
    with a weight of two axes or more can't be seen.

    Args:
        model: A built Keras model, factorized or not.
        input_shape: Sizes of one sample, without the batch axis, for a model that declares open
            ones: (224, 224, 3); for several inputs a list of shapes, or a dict by input name.
            Default: the sizes that the model declares.

    Returns:
        The `ModelCost`.

    Raises:
        ValueError: If the model's graph is not known, or `input_shape` does not fit its inputs.

    Example:

    >>> import keras
    >>> inputs = keras.Input((8, 8, 3))
    >>> outputs = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    >>> cost = model_cost(keras.Model(inputs, outputs))
    >>> cost.parameters, cost.macs
    (108, 6912)
    """
    inputs = None if input_shape is None else sized_inputs(model, input_shape)
    calls: dict[int, tuple[Any, list[tuple[int | None, int | None]]]] = {}
    for call in layer_calls(model, inputs):
        calls.setdefault(id(call.layer), (call.layer, []))[1].append(call_macs(call))
    names = {id(layer): key for key, layer in layer_keys(model).items()}
    rows = []
    for layer, macs in calls.values():
        parameters = sum(math.prod(w.shape) for w in layer.weights)
        trainable = sum(math.prod(w.shape) for w in layer.trainable_weights)
        saved = 0
        for part in layers_inside(layer):
            if isinstance(part, FactorizedLayer):
                factors = sum(math.prod(value.shape) for value in part.factor_variables)
                saved += math.prod(part.kernel_shape) - factors
        rows.append(
            LayerCost(
                names.get(id(layer), layer.name),
                parameters,
                trainable,
                sum_of_known(pair[0] for pair in macs),
                parameters + saved,
                sum_of_known(pair[1] for pair in macs),
            )
        )
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    total = sum(row.parameters for row in rows)
    return ModelCost(
        parameters=trainable,
        non_trainable_parameters=total - trainable,
        macs=sum_of_known(row.macs for row in rows),
        dense_parameters=trainable
        + sum(row.dense_parameters - row.parameters for row in rows if row.trainable_parameters),
        dense_macs=sum_of_known(row.dense_macs for row in rows),
        layers=tuple(rows),
    )


def folded_cost(model: Any) -> tuple[int, int | None]:
    """Count what `dprp_tf.fold` would make of a model, from shapes alone: nothing is folded.

    Every low-rank layer counts as its `smallest_form`, every other layer as it is.

    Args:
        model: A built Keras model, factorized or not.

    Returns:
        Trainable parameters, and MACs for one sample (None where they are not known).

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
        sizes = map_sizes(call)
        if macs is not None and sizes is not None and call.repeats is not None:
            macs += call.repeats * form.macs(layer.kernel_shape, *sizes)
            macs -= call.repeats * dense.macs(layer.kernel_shape, *sizes)
    return parameters, macs
