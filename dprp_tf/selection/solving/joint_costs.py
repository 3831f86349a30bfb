"""What a model costs as a function of the widths of its groups and the ranks of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from dprp_tf.costs.form import OWN_KIND, Form
from dprp_tf.costs.layer_forms import obstacle
from dprp_tf.costs.map_sizes import MapSizes, map_sizes
from dprp_tf.costs.width_table import WidthTable
from dprp_tf.decomposition import full_rank
from dprp_tf.keras_internals.layer_calls import layer_calls
from dprp_tf.keras_internals.layer_kinds import RECURRENT
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition
from dprp_tf.selection.solving.width_costs import WidthCosts

__all__ = ["JointCosts"]

# Most ranks of a layer to choose among where no table says which were measured.
_RANKS = 10


class JointCosts:
    """What a model costs by widths and ranks, without building it.

    A layer of rank r in a form of two stages costs what its two kernels do at the channels that it
    reads and makes then; by time what a width table says of the stages.

    Args:
        model: The whole model.
        widths: What it costs by widths alone.
        decomposition: How kernels are unfolded; None to choose no ranks. Default None.
        layers: Names of the layers whose ranks may fall. Default: every one that can.
        latency: The table of the model's times. Default: none are known.

    Attributes:
        decomposition: As given.
        ranks: By layer the ranks to choose among, the largest first.

    Example:

    >>> from dprp_tf.channels import follow
    >>> inputs = keras.Input((64,))
    >>> layer = keras.layers.Dense(64, name="a", use_bias=False)
    >>> model = keras.Model(inputs, layer(inputs))
    >>> costs = JointCosts(model, WidthCosts(model, follow(model), []), "channel")
    >>> costs.shares({}, {"a": 16})
    {'parameters': 0.5, 'macs': 0.5, 'activations': 1.25}
    """

    def __init__(
        self,
        model: keras.Model,
        widths: WidthCosts,
        decomposition: str | None = None,
        layers: Iterable[str] | None = None,
        latency: WidthTable | None = None,
    ) -> None:
        self._widths, self._latency = widths, latency
        self.decomposition = decomposition
        self._kernels: dict[str, tuple[int, ...]] = {}
        self._kinds: dict[str, str] = {}
        self._places = {}
        self._recurrent: set[str] = set()
        self.ranks: dict[str, list[int]] = {}
        if decomposition is None:
            return
        calls = list(layer_calls(model))
        for name, layer in factorizable(model, layers)[0].items():
            shape = kernel_of(layer).shape
            kind = layer_decomposition(layer, decomposition)
            if obstacle(layer, OWN_KIND[kind]) is not None:
                continue
            self._kernels[name], self._kinds[name] = shape, kind
            if isinstance(layer, RECURRENT):
                self._recurrent.add(name)
            self._places[name] = [
                (map_sizes(call), call.repeats) for call in calls if call.layer is layer
            ]
            ranks = self._worth(name)
            if ranks:
                self.ranks[name] = ranks

    def _worth(self, name: str) -> list[int]:
        """Ranks of a layer that could pay, the largest first."""
        shape = self._kernels[name]
        full = full_rank(shape, self._kinds[name])
        if self._latency is not None:
            row = self._latency.by_name.get(name)
            measured = () if row is None or row.first is None else row.first.makes
            return [rank for rank in reversed(measured) if rank < full]
        some = {round(float(rank)) for rank in np.geomspace(1, full, 2 * _RANKS)}
        dense = math.prod(shape)
        kind = OWN_KIND[self._kinds[name]]
        paying = [
            r for r in sorted(some) if r < full and Form(kind, (r,)).parameters(shape) < dense
        ]
        return paying[::-1][:_RANKS]

    def shares(self, widths: Mapping[str, int], ranks: Mapping[str, int]) -> dict[str, float]:
        """Return the costs as shares of the whole model's.

        Args:
            widths: How many places each group keeps; groups left out are whole.
            ranks: Ranks by layer; layers left out are dense, and so is one whose rank saves
                nothing at its width.

        Returns:
            Shares by metric.
        """
        found = self._widths.shares(widths)
        channels = self._widths.channels(widths) if ranks else {}
        for name, rank in ranks.items():
            for metric, saved in self._saved(name, rank, channels.get(name)).items():
                if metric in found:
                    found[metric] -= saved / self._widths.dense[metric]
        return found

    def channels(self, widths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Return how many channels layers read and make, as `WidthCosts` does.

        Args:
            widths: How many places each group keeps.
        """
        return self._widths.channels(widths)

    def pays(
        self, name: str, rank: int, at: tuple[int, int] | None, metrics: Iterable[str]
    ) -> bool:
        """Say whether a rank saves anything of some costs.

        Args:
            name: The layer.
            rank: Its rank.
            at: The channels that it reads and makes; None for all.
            metrics: The costs that count.
        """
        saved = self._saved(name, rank, at)
        return any(saved.get(metric, 0.0) > 0 for metric in metrics)

    def _saved(self, name: str, rank: int, at: tuple[int, int] | None) -> dict[str, float]:
        *window, reads, makes = self._kernels[name]
        if at is not None:
            # A recurrent layer makes its gates of what it reads, and all its units stay.
            reads, makes = at[0], makes if name in self._recurrent else at[1]
        kernel = (*window, reads, makes)
        if rank >= full_rank(kernel, self._kinds[name]):
            return {}
        dense, form = Form("dense"), Form(OWN_KIND[self._kinds[name]], (rank,))
        saved = {"parameters": float(dense.parameters(kernel) - form.parameters(kernel))}
        known = [
            (places, repeats)
            for places, repeats in self._places[name]
            if places is not None and repeats is not None
        ]
        if len(known) == len(self._places[name]):
            saved["macs"] = sum(
                float(repeats * (dense.macs(kernel, *places) - form.macs(kernel, *places)))
                for places, repeats in known
            )
            # The map between the stages; the first one strides along all axes but the last.
            saved["activations"] = -sum(
                float(repeats * rank * _between(self._kinds[name], places))
                for places, repeats in known
            )
        if self._latency is not None:
            row = self._latency.by_name[name]
            assert row.first is not None
            assert row.second is not None
            two = row.first.cost(reads, rank) + row.second.cost(rank, makes)
            saved["milliseconds"] = row.dense.cost(reads, makes) - two
            if saved["milliseconds"] <= 0:
                # Then the layer stays dense.
                return {}
        return saved


def _between(kind: str, sizes: MapSizes) -> int:
    """Positions of the map between two stages."""
    if kind == "separable":
        return math.prod(sizes.after[:-1]) * sizes.before[-1]
    # A transposed window comes first, and makes the map as long as it gets.
    return math.prod(sizes.after)
