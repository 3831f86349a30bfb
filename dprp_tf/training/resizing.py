"""Lower and raise the ranks of layers inside a training, optimizer slots included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf import decomposition
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.optimizers import (
    AVERAGE_SLOTS,
    LINEAR_SLOTS,
    model_slots,
    require_slots_like,
)
from dprp_tf.keras_internals.payloads import exchange_payloads, set_payload
from dprp_tf.layers import SVDLayer, low_rank_layers

__all__ = ["ranks_of_weights", "resize", "set_ranks", "start_averages"]


def resize(model: keras.Model, ranks: dict[SVDLayer, int]) -> None:
    """Bring layers into canonical order and cut them to new ranks, optimizer slots included.

    Column j of a layer's new factors is old column order[j], with the sign of its value moved
    into U, for the j < rank largest |s|; the slots of u, s and v are permuted, signed and cut the
    same way. The compiled train, test and predict functions are made anew, and other layers, the
    iteration count, the learning rate and metrics stay as they are.

    Args:
        model: The model, compiled or not, inside `fit` or not.
        ranks: The new rank of each layer to change, 1 to its present rank.

    Raises:
        ValueError: If a rank is out of range, if a factor is not finite, or if the optimizer
            keeps slots whose shape does not follow the variable's.
    """
    sync(model)
    plans = []
    for layer, rank in ranks.items():
        factors = layer.factors
        if layer.broken_factor is not None:
            raise ValueError(
                "The ranks of a model can't be cut while its factors are not finite. Received "
                f"NaN or infinite entries in `{layer.broken_factor}` of layer {layer.name!r}; "
                "lower the learning rate or restore an earlier checkpoint."
            )
        if not 1 <= rank <= factors.rank:
            raise ValueError(
                f"`ranks` must lie between 1 and the present rank. Received: {rank} for layer "
                f"{layer.name!r} of rank {factors.rank}"
            )
        order, signs = decomposition.canonical_order(factors.s)
        plans.append((layer, order[:rank], signs[:rank]))
        require_slots_like(model, _factors(layer), "Rank pruning")
    with exchange_payloads(model):
        for layer, order, signs in plans:
            for slot, variable, name in model_slots(model, _factors(layer)):
                flips = signs if name in LINEAR_SLOTS and variable is not layer.v else None
                set_payload(slot, _cut(ops.convert_to_numpy(slot), order, flips))
            for variable in _factors(layer):
                flips = None if variable is layer.v else signs
                set_payload(variable, _cut(ops.convert_to_numpy(variable), order, flips))


def ranks_of_weights(model: keras.Model, weights: Sequence[Any]) -> dict[SVDLayer, int]:
    """Return the ranks at which a model's weights have the shapes of given ones.

    Args:
        model: The model, whose ranks of now do not matter.
        weights: What the `get_weights` of such a model gave. Another number of them is left for
            Keras to refuse.

    Returns:
        Rank by SVD layer; empty for another number of weights.

    Raises:
        ValueError: If a shape does not fit the model at any rank.
    """
    own = model.weights
    ranks: dict[SVDLayer, int] = {}
    if len(own) != len(weights):
        return ranks
    place = {id(variable): index for index, variable in enumerate(own)}
    fitting: set[int] = set()
    for layer in low_rank_layers(model):
        factors = (layer.u, layer.s, layer.v)
        shapes = [np.shape(weights[place[id(v)]]) for v in factors]
        rank = shapes[1][-1:]
        if rank and shapes == [(*v.shape[:-1], *rank) for v in factors]:
            ranks[layer] = int(rank[0])
            fitting.update(id(v) for v in factors)
    # All shapes before any change: emptied factors must not be left behind.
    for variable, value in zip(own, weights, strict=True):
        if id(variable) not in fitting and np.shape(value) != tuple(variable.shape):
            raise ValueError(
                "`weights` must have the shapes of this model's, at some rank. Received: "
                f"shape {np.shape(value)} for {variable.path} of shape {tuple(variable.shape)}"
            )
    return ranks


def set_ranks(model: keras.Model, ranks: dict[SVDLayer, int]) -> list[keras.Variable]:
    """Give layers room for factors of other ranks, lower or higher, which are then to be assigned.

    The factors of a layer whose rank changes hold zeros afterwards, as do the optimizer's slots of
    them: a momentum belongs to the factors it was made with. All else stays as it is.

    Args:
        model: The model, compiled or not, inside `fit` or not.
        ranks: The new rank of each layer, 1 to its full rank.

    Returns:
        The factors whose shape changed.

    Raises:
        ValueError: If a rank is out of range, or if the optimizer keeps slots whose shape does
            not follow the variable's.
    """
    sync(model)
    for layer, rank in ranks.items():
        if not 1 <= rank <= layer.full_rank:
            raise ValueError(
                f"`ranks` must lie between 1 and the full rank. Received: {rank} for layer "
                f"{layer.name!r} of full rank {layer.full_rank}"
            )
    changed = {layer: rank for layer, rank in ranks.items() if rank != layer.rank}
    if not changed:
        return []
    for layer in changed:
        require_slots_like(model, _factors(layer), "Rank pruning")
    with exchange_payloads(model):
        for layer, rank in changed.items():
            slots = [slot for slot, _, _ in model_slots(model, _factors(layer))]
            for held in [*slots, *_factors(layer)]:
                set_payload(held, np.zeros((*held.shape[:-1], rank), dtype=np.float32))
    return [factor for layer in changed for factor in _factors(layer)]


def start_averages(model: keras.Model, variables: Sequence[keras.Variable]) -> None:
    """Start the averages of variables at their values, where new payloads left them empty.

    Args:
        model: A model whose variables got payloads of other shapes, their values assigned.
        variables: Those of other shapes.
    """
    for slot, variable, name in model_slots(model, variables):
        if name in AVERAGE_SLOTS and not np.any(ops.convert_to_numpy(slot)):
            # Through NumPy: a buffer that two variables share would be donated twice on JAX.
            slot.assign(ops.convert_to_numpy(variable))


def _cut(
    values: NDArray[Any], order: NDArray[np.intp], signs: NDArray[np.floating] | None
) -> NDArray[Any]:
    """Take the last axis' entries in this order, (..., r) -> (..., len(order)), and sign them."""
    taken = values[..., order]
    return taken if signs is None else (taken * signs).astype(values.dtype)


def _factors(layer: SVDLayer) -> tuple[keras.Variable, keras.Variable, keras.Variable]:
    return layer.u, layer.s, layer.v
