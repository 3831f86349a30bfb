"""The record of a training"s ranks, costs and singular values, epoch by epoch."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import keras

from dprp_tf.costs.models import folded_cost, model_cost
from dprp_tf.files.atomic import read_json, write_json
from dprp_tf.keras_internals.compiled import sync
from dprp_tf.keras_internals.graphs import graph_of
from dprp_tf.layers import low_rank_keys
from dprp_tf.training.held_networks import held_networks, trained_network
from dprp_tf.training.model import DPRPModel

__all__ = ["RankHistory"]


class RankHistory(keras.callbacks.Callback):
    """Record ranks, parameters, MACs and singular values before training and after each epoch.

    Place it after `RankPruning`, so that it sees the ranks an epoch ended with.

    Args:
        path: JSON file written after every epoch, whole or not at all. If it exists when
            training starts at a later epoch, its earlier entries are kept. Default: none.
        network: The `DPRPModel` to record, where the model in training holds several that train.
            Default: that model itself, or the only one it holds.

    Attributes:
        record: `{"layers", "full_ranks", "baseline_parameters", "baseline_macs", "epochs"}`; each
            entry of `epochs` has `epoch` (0 before training), `parameters` and `macs` of the
            factors in training, `folded_parameters` and `folded_macs` of the model `fold` would
            give, `total_rank`, `ranks` and `singular_values`.

    Example:

    >>> RankHistory().record["epochs"]
    []
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, network: DPRPModel | None = None
    ) -> None:
        super().__init__()
        self._network = network
        self.path = None if path is None else Path(path)
        self.record: dict[str, Any] = {"epochs": []}
        self._begun = False

    @property
    def network(self) -> Any:
        """The network that is recorded: the model in training, or one that it holds."""
        if (
            self._network is None
            and graph_of(self.model) is not None
            and not held_networks(self.model)
        ):
            return self.model  # a plain model with low-rank layers of its own
        return trained_network(self.model, type(self).__name__, self._network)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._begun = False
        cost = model_cost(self.network)
        layers = low_rank_keys(self.network)
        self.record = {
            "layers": list(layers),
            "full_ranks": {key: layer.full_rank for key, layer in layers.items()},
            "baseline_parameters": cost.dense_parameters,
            "baseline_macs": cost.dense_macs,
            "epochs": [],
        }

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._begun:
            return
        self._begun = True
        if epoch > 0 and self.path is not None and self.path.exists():
            try:
                earlier = [e for e in read_json(self.path)["epochs"] if e["epoch"] <= epoch]
            except (ValueError, KeyError, TypeError) as error:
                warnings.warn(
                    f"{self.path} could not be read and is begun anew: {error}", stacklevel=2
                )
                earlier = []
            self.record["epochs"] = earlier
        if not self.record["epochs"]:
            self._append(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._append(epoch + 1)

    def _append(self, epoch: int) -> None:
        sync(self.model)
        cost = model_cost(self.network)
        layers = low_rank_keys(self.network)
        folded_parameters, folded_macs = folded_cost(self.network)
        self.record["epochs"].append(
            {
                "epoch": epoch,
                "parameters": cost.parameters,
                "macs": cost.macs,
                "folded_parameters": folded_parameters,
                "folded_macs": folded_macs,
                "total_rank": sum(int(layer.rank or 0) for layer in layers.values()),
                "ranks": {key: layer.rank for key, layer in layers.items()},
                "singular_values": {
                    key: [round(float(value), 6) for value in layer.factors.s]
                    for key, layer in layers.items()
                },
            }
        )
        if self.path is not None:
            write_json(self.path, self.record)
