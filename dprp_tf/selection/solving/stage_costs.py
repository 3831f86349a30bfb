"""What the stages of factorized kernels cost at ranks and channels that need not be whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.keras_internals.layer_calls import LayerCall
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition

__all__ = ["StageCosts"]


class StageCosts:
    """Weights, MACs and maps of the stages of some layers, differentiable by ranks and channels.

    With a kernel of L positions, C channels and S filters, of which c and s are left, at A_0
    positions of the layer's input and A of its output:

        channel, rank r:         weights L c r + r s,          MACs A (L c r + r s),
                                 maps A r
        tucker, ranks p and q:   weights c p + L p q + q s,    MACs A_0 c p + A (L p q + q s),
                                 maps A_0 p + A q

    Args:
        layers: The layers by key, in order.
        decomposition: `"channel"`, or `"tucker"`, which pointwise and dense kernels have none of:
            those stay in `channel` form.
        calls: The calls of the model's layers.

    Attributes:
        decompositions: By layer the decomposition of its kernel.
        count: How many ranks there are, one for each layer, two for each in Tucker-2.

    Example:

    >>> from dprp_tf.keras_internals.layer_calls import layer_calls
    >>> layer = keras.layers.Conv2D(8, 3, strides=2, name="a")
    >>> model = keras.Sequential([keras.Input((9, 9, 4)), layer])
    >>> stages = StageCosts({"a": layer}, "tucker", list(layer_calls(model)))
    >>> stages.count, stages.by_layer(np.array([1.0, 2.0]))
    (2, {'a': (1.0, 2.0)})
    >>> whole = np.ones(1, dtype="float32")
    >>> [round(float(stages.shares(metric, np.array([1.0, 2.0]), whole, whole)[0]) * 288)
    ...  for metric in ("parameters", "macs")]
    [38, 54]
    """

    def __init__(
        self,
        layers: Mapping[str, keras.layers.Layer],
        decomposition: str,
        calls: Sequence[LayerCall],
    ) -> None:
        shapes = [kernel_of(layer).shape for layer in layers.values()]
        self.decompositions = {
            key: layer_decomposition(layer, decomposition) for key, layer in layers.items()
        }
        # (layers,) each.
        pairs = np.array([kind == "tucker" for kind in self.decompositions.values()], dtype=bool)
        sizes = [(math.prod(shape[:-2]), *shape[-2:]) for shape in shapes]
        window, channels, filters = np.array(sizes, dtype=np.float32).reshape(-1, 3).T
        before, after = _positions(layers.values(), calls)
        self.count = len(pairs) + int(pairs.sum())
        # Where a layer's first rank stands and where its last one does: the same, if it has one.
        self._last = np.cumsum(1 + pairs, dtype=np.int32) - 1
        self._first = (self._last - pairs).astype(np.int32)
        self._whole = window * channels * filters
        # What a first rank costs for each channel read, a last one for each made, and both.
        ratio = before / np.maximum(after, 1)
        self._reading = {
            "parameters": channels * np.where(pairs, 1, window).astype(np.float32),
            "macs": channels * np.where(pairs, ratio, window).astype(np.float32),
        }
        self._making = filters
        self._between = np.where(pairs, window, 0).astype(np.float32)
        self._maps = np.where(pairs, before, 0).astype(np.float32), after

    def by_layer(self, ranks: NDArray[np.float64]) -> dict[str, tuple[float, ...]]:
        """Return ranks by layer.

        Args:
            ranks: The ranks of all layers, of shape (count,).

        Returns:
            `(r,)` by layer, or `(r_in, r_out)`.
        """
        return {
            key: tuple(float(rank) for rank in ranks[first : last + 1])
            for key, first, last in zip(self.decompositions, self._first, self._last, strict=True)
        }

    def shares(self, metric: str, ranks: Any, reads: Any, makes: Any) -> Any:
        """Return what the stages cost, as shares of the whole dense kernels.

        Args:
            metric: `"parameters"` or `"macs"`.
            ranks: The ranks of all layers, of shape (count,).
            reads: Share of its channels that each layer still takes, of shape (layers,).
            makes: Share of its filters that are left, likewise.

        Returns:
            Shares, of shape (layers,).
        """
        first, last = self._of(ranks)
        outer = first * self._reading[metric] * reads + last * self._making * makes
        return (outer + self._between * first * last) / self._whole

    def maps(self, ranks: Any) -> Any:
        """Return the entries of the maps between stages, for a sample.

        Args:
            ranks: The ranks of all layers, of shape (count,).

        Returns:
            Entries, of shape (layers,).
        """
        first, last = self._of(ranks)
        before, after = self._maps
        return before * first + after * last

    def _of(self, ranks: Any) -> tuple[Any, Any]:
        """The first and the last rank of each layer, of shape (layers,) each."""
        ranks = ops.cast(ranks, "float32")
        return ops.take(ranks, self._first), ops.take(ranks, self._last)


def _positions(
    layers: Iterable[keras.layers.Layer], calls: Sequence[LayerCall]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Positions of the maps that layers take and give, for a sample; 0 where not known."""
    totals = {id(layer): [0, 0] for layer in layers}
    for call in calls:
        if id(call.layer) in totals and call.positions is not None:
            for side, sizes in enumerate(call.positions):
                totals[id(call.layer)][side] += math.prod(sizes) * (call.repeats or 0)
    found = np.array(list(totals.values()), dtype=np.float32).reshape(-1, 2)
    return found[:, 0], found[:, 1]
