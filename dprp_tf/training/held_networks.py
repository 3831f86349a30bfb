"""The low-rank networks that a model with a training of its own holds and trains."""

from __future__ import annotations

from typing import Any

import keras

from dprp_tf.keras_internals.graphs import layers_inside
from dprp_tf.training.model import DPRPModel

__all__ = ["held_networks", "trained_network"]


def held_networks(trainer: keras.Model) -> list[DPRPModel]:
    """Return the networks inside a model whose SVD layers train, each once.

    Args:
        trainer: A model that holds networks as attributes or as layers, such as a distiller.

    Returns:
        The networks; those whose SVD layers are all frozen, as a teacher's are, are left out.

    Example:

    >>> held_networks(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    []
    """
    found = [
        part for part in layers_inside(trainer, include_self=False) if isinstance(part, DPRPModel)
    ]
    inner = {id(part) for network in found for part in layers_inside(network, include_self=False)}
    return [
        network
        for network in found
        if id(network) not in inner and any(layer.trainable for layer in network.low_rank_layers)
    ]


def trained_network(model: Any, callback: str, network: DPRPModel | None = None) -> DPRPModel:
    """Return the network that a callback of a training is about.

    Args:
        model: The model in training: a `DPRPModel`, or one that holds it.
        callback: The callback's class, for the message.
        network: Which of several, as the user gave it. Default: the only one.

    Returns:
        The network.

    Raises:
        ValueError: If there is none, or several and none was given, or the given one is not there.
    """
    if isinstance(model, DPRPModel):
        networks = [model]
    else:
        networks = held_networks(model) if isinstance(model, keras.Model) else []
    if not networks:
        raise ValueError(
            f"`{callback}` works on a DPRPModel, or on a model that holds one which trains. "
            f"Received: {type(model).__name__}; make one with dprp_tf.factorize(model)."
        )
    names = [held.name for held in networks]
    if network is None and len(networks) > 1:
        raise ValueError(
            f"`network` must say which of the DPRPModels of a {type(model).__name__} the "
            f"`{callback}` is for: {names}. Received: network=None; give one for each."
        )
    if network is not None and not any(held is network for held in networks):
        raise ValueError(
            f"`network` must be a DPRPModel that the model in training holds, and that trains: "
            f"{names}. Received: {getattr(network, 'name', network)!r}"
        )
    return networks[0] if network is None else network
