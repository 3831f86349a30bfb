"""Kernels of a whole model that compute what layers of fewer channels and lower ranks would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dprp_tf.conversion.refitting import kernel_matrix, rows_of_channels
from dprp_tf.decomposition import OutputTruncation, dematricize, matricize, regular_moments
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.layers.layer_decomposition import layer_decomposition

__all__ = ["CutKernel"]

Gone = tuple[tuple[str, int], ...]
_Side = Mapping[str, Sequence[NDArray[np.intp]]]


class CutKernel:
    """The kernel of one layer when places of groups have gone and its rank has fallen.

    What reads channels that have gone has zeros there, and the rest fitted anew to what is left, as
    `refit_readers` does; so the whole model computes what the smaller one would. At a rank, the
    kernel of what is left is cut as `factorize` does with the same moments.

    Args:
        layer: A layer that `has_moments`.
        moments: Second moments of its input patches.
        sides: By group the channels it reads, in the order in which places go, an array each; and
            likewise those it makes.
        decomposition: How its kernel is unfolded, for ranks.

    Example:

    >>> import keras
    >>> layer = keras.layers.Dense(1, use_bias=False); layer.build((None, 2))
    >>> layer.set_weights([np.array([[1.0], [3.0]])])
    >>> reads = {"a": [np.array([0]), np.array([1])]}
    >>> kernel = CutKernel(layer, np.eye(2), (reads, {}), "channel")
    >>> kernel.at((("a", 1),), None).round(2).tolist()
    [[0.0], [3.0]]
    """

    def __init__(
        self,
        layer: Any,
        moments: NDArray[np.float64],
        sides: tuple[_Side, _Side],
        decomposition: str,
    ) -> None:
        self._reads, self._makes = sides
        self._decomposition = layer_decomposition(layer, decomposition)
        self._shape = kernel_of(layer).shape
        self._matrix, self._rows = kernel_matrix(layer), rows_of_channels(layer)
        self._moments = moments
        self._regular = regular_moments(moments, len(moments))
        self._truncations: dict[tuple[Gone, Gone], OutputTruncation] = {}

    def choice(self, gone: Mapping[str, int], rank: int | None) -> tuple[Gone, Gone, int] | None:
        """Return what stands for the kernel, or None for the layer's own.

        Args:
            gone: By group how many of its places have gone.
            rank: The rank; None for none.
        """
        reads = tuple((name, gone[name]) for name in self._reads if gone.get(name))
        if rank is None:
            # What others no longer read makes no difference to what is read.
            return (reads, (), 0) if reads else None
        makes = tuple((name, gone[name]) for name in self._makes if gone.get(name))
        return reads, makes, rank

    def at(self, reads: Gone, rank: int | None, makes: Gone = ()) -> NDArray[Any]:
        """Return the kernel, of the layer's own shape.

        Args:
            reads: Groups that it reads with how many places have gone.
            rank: The rank; None or 0 for none.
            makes: Groups that it makes, likewise; for a rank alone.
        """
        stay = _left(self._reads, reads, len(self._rows))
        rows = self._rows[stay].reshape(-1)
        fitted: NDArray[Any] = self._matrix[rows]
        if not stay.all():
            wanted = self._moments[rows] @ self._matrix
            fitted = np.linalg.solve(self._regular[np.ix_(rows, rows)], wanted)
        found = np.zeros_like(self._matrix)
        if not rank:
            found[rows] = fitted
        else:
            columns = np.flatnonzero(_left(self._makes, makes, self._matrix.shape[1]))
            shape = (*self._shape[:-2], int(stay.sum()), len(columns))
            key = reads, makes
            if key not in self._truncations:
                kernel = dematricize(fitted[:, columns].T, shape, "channel")
                moments = self._moments[np.ix_(rows, rows)]
                self._truncations[key] = OutputTruncation(kernel, self._decomposition, moments)
            truncation = self._truncations[key]
            if rank < truncation.full_ranks[0]:
                fitted = matricize(truncation.kernel((rank,)), "channel").T
            else:
                fitted = fitted[:, columns]
            found[np.ix_(rows, columns)] = fitted
        return dematricize(found.T, self._shape, "channel")


def _left(groups: _Side, gone: Gone, size: int) -> NDArray[np.bool_]:
    stay = np.ones(size, bool)
    for name, count in gone:
        for channels in groups[name][:count]:
            stay[channels] = False
    return stay
