"""The ranks a model could have: per layer its truncations and what they cost when folded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np

from dprp_tf.costs.budget import METRICS, Budget
from dprp_tf.costs.form import OWN_KIND, Form
from dprp_tf.costs.latency_row import LayerLatency
from dprp_tf.costs.latency_table import LatencyTable
from dprp_tf.costs.layer_forms import obstacle
from dprp_tf.costs.map_entries import map_entries
from dprp_tf.costs.map_sizes import map_sizes
from dprp_tf.costs.models import model_cost
from dprp_tf.costs.rank_plan import PlannedRanks
from dprp_tf.decomposition import KernelTruncation, Truncation, resolve_decomposition
from dprp_tf.keras_internals.layer_calls import LayerCall, layer_calls
from dprp_tf.layers.factorizable import factorizable
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition

__all__ = ["Cost", "LayerChoices", "RankSpace", "Ranks"]

Ranks = tuple[int, ...] | None
"""`(r,)`, `(r_in, r_out)` for Tucker-2, or None for a layer that stays dense."""


@dataclass(frozen=True)
class Cost:
    """What a model costs folded, and what its dense one does.

    Attributes:
        values: Cost by metric, such as weights; a metric that is not known is missing.
        dense: The dense model's, likewise.
    """

    values: Mapping[str, float]
    dense: Mapping[str, float]

    def share(self, metric: str) -> float:
        """Return a cost relative to the dense model's.

        Args:
            metric: One of `METRICS`.

        Returns:
            The share.

        Raises:
            ValueError: If this cost is not known for the model.
        """
        if metric not in self.values:
            raise _unknown(metric)
        return self.values[metric] / self.dense[metric]

    @property
    def shares(self) -> dict[str, float]:
        """Costs as a `Budget` bounds them: shares of the dense model, and the time itself."""
        return {
            name: value if name == "milliseconds" else self.share(name)
            for name, value in self.values.items()
        }


class LayerChoices:
    """One layer that can be factorized: its kernel at every rank, and what each costs.

    Args:
        name: The layer's key in the model.
        layer: The dense layer.
        truncation: Its kernel at every rank.
        calls: The calls of the layer in the model's graph.

    Attributes:
        kernel_shape: Shape of the Keras kernel.
        full_ranks: The largest ranks.
    """

    def __init__(
        self,
        name: str,
        layer: keras.layers.Layer,
        truncation: Truncation,
        calls: Iterable[LayerCall],
    ) -> None:
        self.name = name
        self.layer = layer
        self.truncation = truncation
        self.kernel_shape = kernel_of(layer).shape
        self.full_ranks = truncation.full_ranks
        # Sizes before and after, the entries it gives, and how often one sample passes.
        self._places = [
            (map_sizes(call), _entries(call.output_shape), call.repeats) for call in calls
        ]

    @property
    def decomposition(self) -> str:
        """The decomposition, one of `decomposition.DECOMPOSITIONS`."""
        return self.truncation.decomposition

    def form(self, ranks: Ranks) -> Form:
        """Return the form the layer folds into at these ranks.

        Args:
            ranks: `(r,)`, `(r_in, r_out)`, or None for dense.

        Returns:
            The two- or three-stage form of its decomposition, or dense.
        """
        if ranks is None:
            return Form("dense")
        return Form(_form_kind(self.decomposition), ranks)

    def parameters(self, ranks: Ranks) -> int:
        """Return the weights of its kernels at these ranks, as the folded model stores them."""
        return self.form(ranks).parameters(self.kernel_shape)

    def macs(self, ranks: Ranks) -> int | None:
        """Return its MACs for one sample at these ranks; None where they are not known."""
        form, total = self.form(ranks), 0
        for places, _, repeats in self._places:
            if places is None or repeats is None:
                return None
            total += repeats * form.macs(self.kernel_shape, *places)
        return total

    def activations(self, ranks: Ranks) -> int | None:
        """Return the entries of the maps it computes for one sample: A_l (r + S), dense A_l S.

        In `spatial` form the map between the stages has C*r channels; Tucker-2 has two of them,
        the first of the input's size.
        """
        channels = self.kernel_shape[-2]
        total = 0
        for places, entries, repeats in self._places:
            if places is None or entries is None or repeats is None:
                return None
            before, after, _ = places
            area = math.prod(after)
            total += repeats * entries
            if ranks is None:
                continue
            if self.decomposition == "tucker":
                total += repeats * (math.prod(before) * ranks[0] + area * ranks[1])
            elif self.decomposition == "spatial":
                total += repeats * area * channels * ranks[0]
            elif self.decomposition == "separable":
                total += repeats * math.prod(after[:-1]) * before[-1] * ranks[0]
            else:
                total += repeats * area * ranks[0]
        return total

    def options(self, limit: int = 64) -> list[Ranks]:
        """List ranks to choose among, from the smallest to dense.

        Args:
            limit: Most ranks per coordinate; of more, a geometric selection. Default 64.

        Returns:
            Ranks, ascending; for Tucker-2 the pairs that no other pair of the selection beats in
            both weights and energy. None, for dense, comes last.
        """
        axes = [_thinned(full, limit) for full in self.full_ranks]
        if len(axes) == 1:
            return [*((rank,) for rank in axes[0] if rank <= self.break_even[0]), None]
        dense = self.parameters(None)
        pairs = [(inner, outer) for inner in axes[0] for outer in axes[1]]
        weighed = sorted(
            (self.parameters(pair), self.truncation.lost(pair), pair) for pair in pairs
        )
        kept: list[Ranks] = []
        least = math.inf
        for weight, share, pair in weighed:
            if weight < dense and share < least:
                least = share
                kept.append(pair)
        return [*kept, None]

    @cached_property
    def break_even(self) -> tuple[int, ...]:
        """The largest ranks worth having: above, the folded layer weighs what the dense one does.

        `(0,)` if even rank 1 does. For Tucker-2, where every pair has its own answer, the full
        ranks.
        """
        if self.decomposition == "tucker":
            return self.full_ranks
        dense = self.parameters(None)
        low, high = 0, self.full_ranks[0]
        while low < high:  # weights grow with the rank
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.parameters((middle,)) < dense else (low, middle - 1)
        return (low,)


class RankSpace:
    """The ranks that the layers of a dense model could have, with costs of the folded model.

    Args:
        model: A built dense Functional or Sequential model.
        decomposition: `"separable"`, `"channel"`, `"spatial"` or `"tucker"`.
        layers: Names or paths of the layers that may be cut, or a function that says so for a
            layer. Default: every one that can be.
        truncate: Makes the truncation of a layer from its key, kernel and the decomposition.
            Default: `KernelTruncation`, nearest to the kernel.
        latency: A latency table of the model, for costs in milliseconds.

    Attributes:
        layers: `LayerChoices` by layer key, in model order.
        skipped: "key: reason" of each other layer that holds a matrix.

    Raises:
        ValueError: If the model has no graph, nothing to factorize, or weights that are not
            finite, or the table lacks a layer.

    Example:

    >>> inputs = keras.Input((8, 8, 16))
    >>> outputs = keras.layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    >>> space = RankSpace(keras.Model(inputs, outputs), "channel")
    >>> space.layers["a"].break_even, space.cost({"a": (8,)}).values["parameters"]
    ((14,), 1280)
    """

    def __init__(
        self,
        model: keras.Model,
        decomposition: str,
        layers: Iterable[str] | Callable[[keras.layers.Layer], bool] | None = None,
        *,
        truncate: Callable[[str, Any, str], Truncation] | None = None,
        latency: LatencyTable | None = None,
    ) -> None:
        chosen, self.skipped = factorizable(model, layers)
        self.decomposition = decomposition
        self._latency = latency
        calls: dict[int, list[LayerCall]] = {}
        for call in layer_calls(model):
            calls.setdefault(id(call.layer), []).append(call)
        self.layers: dict[str, LayerChoices] = {}
        for key, layer in chosen.items():
            kernel = kernel_of(layer).array
            kernel = kernel if kernel.dtype == np.float64 else kernel.astype(np.float32)
            kind = layer_decomposition(layer, decomposition)
            truncation: Truncation = (
                KernelTruncation(kernel, kind) if truncate is None else truncate(key, kernel, kind)
            )
            reason = obstacle(layer, _form_kind(truncation.decomposition))
            if reason is None:
                self.layers[key] = LayerChoices(key, layer, truncation, calls[id(layer)])
            else:
                self.skipped.append(f"{key}: {reason}")
        if not self.layers:
            raise ValueError(
                f"`model` must have a layer that folds from {decomposition!r} form. Received: "
                f"{model.name!r} with none ({'; '.join(self.skipped)}); choose another "
                "`decomposition`."
            )
        if latency is not None:
            for own in self.layers.values():
                _require_fitting(latency.layer(own.name), own)
        self._fixed = self._outside(model, calls)
        self._dense = self._values(self.dense())

    @property
    def metric(self) -> str:
        """The cost that counts where no bound says which: the time if it is known, else weights."""
        return "parameters" if self._latency is None else "milliseconds"

    def dense(self) -> dict[str, Ranks]:
        """Return the ranks of the dense model: None for every layer."""
        return dict.fromkeys(self.layers)

    def smallest(self, metrics: Iterable[str] = ("parameters",)) -> dict[str, Ranks]:
        """Return rank 1 for every layer that it makes cheaper, None for the others.

        Args:
            metrics: The costs that count, as in `settled`. Default: the weights.

        Returns:
            The ranks.
        """
        ones = {name: (1,) * len(layer.full_ranks) for name, layer in self.layers.items()}
        return self.settled(ones, metrics)

    def settled(self, ranks: Mapping[str, Ranks], metrics: Iterable[str]) -> dict[str, Ranks]:
        """Return the ranks with every layer dense that they would not make cheaper.

        Args:
            ranks: Ranks by layer.
            metrics: The costs that count; one that falls is enough.

        Returns:
            The ranks, of all layers of the space.
        """
        metrics = tuple(metrics)

        def pays(name: str, entry: tuple[int, ...]) -> bool:
            return any(
                self.layer_cost(name, entry, metric) < self.layer_cost(name, None, metric)
                for metric in metrics
            )

        found = {name: ranks.get(name) for name in self.layers}
        return {
            name: entry if entry is not None and pays(name, entry) else None
            for name, entry in found.items()
        }

    @property
    def unit(self) -> str:
        """What the costs in "milliseconds" count: what the latency table does."""
        return "ms" if self._latency is None else self._latency.unit

    def bounds(self, budget: Budget) -> dict[str, float]:
        """Return the bounds of a budget in the costs' own units.

        Args:
            budget: The bounds.

        Returns:
            Largest cost of the whole model by metric.

        Raises:
            ValueError: If a cost that is bounded is not known for this model.
        """
        dense = self.cost({})
        for metric in budget.bounds:
            dense.share(metric)
        return {
            metric: bound if metric == "milliseconds" else bound * dense.dense[metric]
            for metric, bound in budget.bounds.items()
        }

    def cost(self, ranks: Mapping[str, Ranks]) -> Cost:
        """Return what the model costs at these ranks, folded.

        Args:
            ranks: Ranks by layer; a layer left out is dense.

        Returns:
            The cost by every metric that is known.

        Raises:
            ValueError: If a layer is unknown.
        """
        unknown = sorted(set(ranks) - set(self.layers))
        if unknown:
            raise ValueError(
                f"`ranks` must name layers of the space: {list(self.layers)}. Received: {unknown}"
            )
        return Cost(self._values(ranks), self._dense)

    def planned(self, ranks: Mapping[str, Ranks]) -> tuple[PlannedRanks, ...]:
        """Return the rows of a plan of these ranks.

        Args:
            ranks: Ranks by layer; a layer left out is dense.

        Returns:
            A row per layer of the space, in its order.
        """
        rows = []
        for name, layer in self.layers.items():
            own = ranks.get(name)
            rows.append(
                PlannedRanks(
                    name=name,
                    decomposition=layer.decomposition,
                    kernel_shape=layer.kernel_shape,
                    full_ranks=layer.full_ranks,
                    ranks=own,
                    lost=0.0 if own is None else layer.truncation.lost(own),
                    parameters=layer.parameters(own),
                    dense_parameters=layer.parameters(None),
                )
            )
        return tuple(rows)

    def layer_cost(self, name: str, ranks: Ranks, metric: str) -> float:
        """Return what one layer costs at these ranks by a metric, in its absolute unit.

        Args:
            name: The layer.
            ranks: Its ranks; None for dense.
            metric: One of `METRICS`.

        Returns:
            The cost.

        Raises:
            ValueError: If the metric is not known for this model.
        """
        value = self._layer_value(name, ranks, metric)
        if value is None:
            raise _unknown(metric)
        return float(value)

    def _values(self, ranks: Mapping[str, Ranks]) -> dict[str, float]:
        values: dict[str, float] = {}
        for metric in METRICS:
            total = self._fixed.get(metric)
            for name in self.layers:
                value = self._layer_value(name, ranks.get(name), metric)
                total = None if total is None or value is None else total + value
            if total is not None:
                values[metric] = total
        return values

    def _layer_value(self, name: str, ranks: Ranks, metric: str) -> float | None:
        if metric != "milliseconds":
            return getattr(self.layers[name], metric)(ranks)
        if self._latency is None:
            return None
        row = self._latency.layer(name)
        return row.dense if ranks is None else row.cost(ranks[0])

    def _outside(
        self, model: keras.Model, calls: Mapping[int, list[LayerCall]]
    ) -> dict[str, float | None]:
        """Costs of everything but the kernels of the layers of this space."""
        whole = model_cost(model)
        own = self.layers.values()
        macs = [layer.macs(None) for layer in own]
        maps = map_entries(call for found in calls.values() for call in found).values()
        volume = None if None in maps else sum(entry or 0 for entry in maps)
        inner = [layer.activations(None) for layer in own]
        fixed: dict[str, float | None] = {
            "parameters": whole.parameters - sum(layer.parameters(None) for layer in own),
            "macs": None
            if whole.macs is None or None in macs
            else whole.macs - sum(entry or 0 for entry in macs),
            "activations": None
            if volume is None or None in inner
            else volume - sum(entry or 0 for entry in inner),
        }
        if self._latency is not None:
            rows = (self._latency.layer(name) for name in self.layers)
            fixed["milliseconds"] = self._latency.dense - sum(row.dense for row in rows)
        return fixed


def _entries(shape: tuple[int | None, ...]) -> int | None:
    """Entries of a map for one sample."""
    sizes = shape[1:]
    return None if None in sizes else math.prod(int(size or 0) for size in sizes)


def _unknown(metric: str) -> ValueError:
    remedy = (
        "give a latency table made for it, `latency`, with deploy.measure_latency(model)."
        if metric == "milliseconds"
        else "an input size is undefined, so rebuild it with a fixed input shape, or a layer's own "
        "code multiplies out of sight: `summarize(model)` shows whose MACs are None."
    )
    return ValueError(
        f"`{metric}` of this model must be known. Received a model where it is not: {remedy}"
    )


def _thinned(full: int, limit: int) -> list[int]:
    if full <= limit:
        return list(range(1, full + 1))
    return sorted({round(float(rank)) for rank in np.geomspace(1, full, limit)})


def _require_fitting(row: LayerLatency, layer: LayerChoices) -> None:
    measured = resolve_decomposition(layer.kernel_shape, row.decomposition), (row.full_rank,)
    if measured != (layer.decomposition, layer.full_ranks):
        raise ValueError(
            f"`latency` must be a table measured for this model in {layer.decomposition!r} form. "
            f"Received: one of {row.decomposition!r} form and full rank {row.full_rank} for layer "
            f"{layer.name!r} of full rank {layer.full_ranks[0]}; make it anew."
        )


def _form_kind(decomposition: str) -> str:
    """Return the kind of form that the factors of a decomposition are as they stand."""
    return "tucker" if decomposition == "tucker" else OWN_KIND[decomposition]
