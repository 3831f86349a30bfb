"""What must hold of channels: truths that removing them is held against."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from dprp_tf.channels import ChannelGroups, follow
from dprp_tf.keras_internals.graphs import layer_keys

_LAYERS = keras.layers


def draw_removal(
    groups: ChannelGroups, rng: np.random.Generator, share: float = 0.4
) -> dict[str, list[int]]:
    """Return filters to remove, some of each group, so that each layer keeps one at least."""
    found: dict[str, set[int]] = {}
    for group in groups.values():
        free = [place for place, reason in enumerate(group.reasons) if reason is None]
        taken = set(rng.permutation(free)[: int(np.ceil(share * len(free)))].tolist())
        for filters in group.layers.values():
            held = [place for place, tied in enumerate(filters) if tied]
            if held and taken.issuperset(held):
                taken.discard(held[0])
        for place in taken:
            name, filters = next((n, f) for n, f in group.layers.items() if f[place])
            found.setdefault(name, set()).update(filters[place])
    return {name: sorted(filters) for name, filters in found.items()}


def masked_outputs(model: keras.Model, x: list[Any], removed: dict[str, list[int]]) -> list[Any]:
    """Run the whole model with zeros in place of the removed channels, wherever they are held."""
    followed = follow(model)
    keys = layer_keys(model)
    gone = np.concatenate(
        [
            followed.labels.find(followed.layers[id(keys[name])].makes)[filters]
            for name, filters in removed.items()
        ]
        or [np.zeros(0, int)]
    )
    graph = followed.graph
    values = dict(zip(graph.inputs, map(ops.convert_to_tensor, x), strict=True))
    for step in graph.steps:
        for number, value in zip(step.outputs, step.run(values), strict=True):
            kept = ~np.isin(followed.labels.find(followed.tensors[number]), gone)
            values[number] = value if kept.all() else value * kept[None].astype("float32")
    return [ops.convert_to_numpy(values[number]) for number in graph.outputs]


def require_confined_influence(
    model: keras.Model, x: list[Any], rng: np.random.Generator, most: int = 4
) -> int:
    """Assert that changing one filter changes what has its label, until weights read it.

    Labels say where a channel goes; this holds them against where it goes.
    """
    followed = follow(model)
    graph = followed.graph
    makers = [record for record in followed.layers.values() if record.produces]
    checked = 0
    for record in rng.permutation(np.array(makers, dtype=object))[:most]:
        at = int(rng.integers(record.makes.size))
        root = followed.labels.find(record.makes)[at]
        values = dict(zip(graph.inputs, map(ops.convert_to_tensor, x), strict=True))
        changed = dict(values)
        mixed: set[int] = set()
        for step in graph.steps:
            plain = step.run(values)
            touched = step.run(changed)
            if step.operation is record.layer:
                noise = np.zeros(touched[0].shape, "float32")
                # Where the channel lies in what the layer gives: `_placed` of its own labels.
                own = np.broadcast_to(followed.tensors[step.outputs[0]][None], noise.shape)
                noise[own == record.makes[at]] = 1.0
                touched = [touched[0] + noise]
            reads = step.operation is not record.layer and any(
                n in mixed or changed[n] is not values[n] for n in step.inputs
            )
            known = followed.layers.get(id(step.operation))
            through_weights = known is not None and known.produces
            for number, before, after in zip(step.outputs, plain, touched, strict=True):
                values[number], changed[number] = before, after
                if (reads and through_weights) or any(n in mixed for n in step.inputs):
                    mixed.add(number)
                    continue
                difference = np.asarray(after) != np.asarray(before)
                if not difference.any():
                    changed[number] = before
                    continue
                labels = followed.labels.find(followed.tensors[number])
                held = np.broadcast_to(labels[None], difference.shape)
                pinned = followed.labels.reason(root) is not None
                assert pinned or set(np.unique(held[difference])) <= {root}, step.operation.name
                checked += 1
    return checked


def neutralize(model: keras.Model, rng: np.random.Generator) -> None:
    """Draw weights with which a filter of zeros makes a channel of zeros, everywhere behind it."""
    for layer in layer_keys(model).values():
        if isinstance(layer, _LAYERS.BatchNormalization):
            for name in ("beta", "moving_mean"):
                variable = getattr(layer, name, None)
                if variable is not None:
                    variable.assign(np.zeros(variable.shape))
            layer.moving_variance.assign(rng.uniform(0.1, 0.4, layer.moving_variance.shape))
            if layer.gamma is not None:
                layer.gamma.assign(rng.uniform(0.5, 2, layer.gamma.shape))
        elif type(layer).__name__ == "LayerScale":
            layer.gamma.assign(rng.uniform(0.5, 2, layer.gamma.shape))
        elif getattr(layer, "bias", None) is not None:
            depthwise = isinstance(layer, (_LAYERS.DepthwiseConv1D, _LAYERS.DepthwiseConv2D))
            scale = 0.0 if depthwise else 0.1
            layer.bias.assign(rng.normal(0, scale, layer.bias.shape))


def zero_filters(model: keras.Model, groups: ChannelGroups, removed: dict[str, list[int]]) -> None:
    """Set the removed filters, and those that go with them, to zero in the model itself."""
    keys = layer_keys(model)
    for name, filters in removed.items():
        group = groups.of_layer(name)
        places = [p for p, tied in enumerate(group.layers[name]) if set(tied) & set(filters)]
        for other, tied in group.layers.items():
            together = [at for place in places for at in tied[place]]
            _zero(keys[other], together)


def _zero(layer: Any, filters: list[int]) -> None:
    separable = isinstance(layer, (_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D))
    variable = layer.pointwise_kernel if separable else layer.kernel
    kernel = np.array(ops.convert_to_numpy(variable))
    transposed = "Transpose" in type(layer).__name__
    (np.swapaxes(kernel, -1, -2) if transposed else kernel)[..., filters] = 0
    variable.assign(kernel)
    if layer.bias is not None:
        bias = np.array(ops.convert_to_numpy(layer.bias))
        bias[filters] = 0
        layer.bias.assign(bias)
