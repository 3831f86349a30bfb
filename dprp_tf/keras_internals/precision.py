"""Models that compute in another precision, and what they are in float32."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.keras_internals.graphs import graph_of, layers_inside, nodes
from dprp_tf.keras_internals.rewriting import rebuild_configured

__all__ = ["in_bfloat16", "in_float32", "other_precisions"]


def other_precisions(model: keras.Model) -> list[str]:
    """Return the floating-point types besides float32 that a model computes in.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        Their names, sorted: those of layers, at any depth, and of tensors in the graph.

    Example:

    >>> inputs = keras.Input((3,))
    >>> half = keras.layers.Dense(2, dtype="mixed_float16")(inputs)
    >>> other_precisions(keras.Model(inputs, keras.ops.cast(half, "float32")))
    ['float16']
    """
    found: set[str] = set()
    for layer in layers_inside(model):
        graph = graph_of(layer)
        # Models and inputs have a policy too, and compute nothing by it.
        if graph is not None:
            found.update(str(tensor.dtype) for node in nodes(graph) for tensor in node.outputs)
        elif not isinstance(layer, keras.layers.InputLayer):
            found.add(str(layer.compute_dtype))
    return sorted(name for name in found if _is_other_float(name))


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy of a model that computes in float32 all through, with the same weights.

    Layers, layers within layers, casts in the graph and the inputs are float32 where they were of
    another floating-point type; integers stay what they are.

    Args:
        model: A built Functional or Sequential model; it is not changed.

    Returns:
        The copy, not compiled, for inference: layers that share a weight get one each.

    Raises:
        ValueError: If a layer can't be copied.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="mixed_float16")])
    >>> other_precisions(model), other_precisions(in_float32(model))
    (['float16'], [])
    """
    return rebuild_configured(model, _widened)


def in_bfloat16(model: keras.Model) -> keras.Model:
    """Return a copy that computes in bfloat16, for quicker training where the processor has it.

    Weights stay float32. So do layers that give the outputs, whose loss needs the digits, and
    those that compute in something else than float32 already.

    Args:
        model: A built Functional or Sequential model; it is not changed.

    Returns:
        The copy, not compiled, with the same weights.

    Raises:
        ValueError: If a layer can't be copied.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    >>> [layer.compute_dtype for layer in in_bfloat16(model).layers[-2:]]
    ['bfloat16', 'float32']
    """
    graph = graph_of(model) or model
    last = {tensor._keras_history.operation.name for tensor in keras.tree.flatten(graph.outputs)}

    def narrowed(config: Any) -> Any:
        # Inputs have the name of a type there, and stay what they are.
        policy = config.get("dtype")
        plain = isinstance(policy, dict) and policy.get("config", {}).get("name") == "float32"
        if not plain or config.get("name") in last:
            return config
        return {**config, "dtype": "mixed_bfloat16"}

    return rebuild_configured(model, narrowed)


def _widened(config: Any) -> Any:
    """A configuration with each floating-point dtype or policy in it replaced by float32."""
    if isinstance(config, dict):
        return {
            key: "float32"
            if str(key).endswith("dtype") and _is_other_policy(value)
            else _widened(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)) and type(config) in (list, tuple):
        return type(config)(_widened(value) for value in config)
    return config


def _is_other_policy(value: Any) -> bool:
    if isinstance(value, dict) and "config" in value:
        policy = value["config"]
        # A map gives policies to the layers inside, by their paths.
        return "policy_map" in policy or _is_other_float(policy.get("name"))
    return _is_other_float(getattr(value, "name", value))


def _is_other_float(name: Any) -> bool:
    return isinstance(name, str) and "float" in name and name != "float32"
