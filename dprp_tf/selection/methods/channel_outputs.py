"""Channels by what their readers' outputs lose, after the readers' kernels are fitted anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dprp_tf.decomposition import regular_moments

__all__ = ["Reader", "order_by_outputs"]


@dataclass
class Reader:
    """A layer that reads the channels of a group.

    Attributes:
        moments: G = E[p p^T] of its input patches p, of shape (n, n).
        kernel: Its kernel W as a matrix of shape (n, outputs).
        rows: By place of the group the rows of W that read it.
    """

    moments: NDArray[np.float64]
    kernel: NDArray[np.float64]
    rows: Sequence[NDArray[np.intp]]


def order_by_outputs(
    readers: Sequence[Reader], loose: NDArray[np.bool_]
) -> tuple[list[int], NDArray[np.float64]]:
    """Return the places that may go, each time the one whose removal changes outputs least.

    With K what is kept and W refitted as W_K = G_KK^-1 G_K: W, a reader's output W^T p loses
    tr(W^T (G - G_:K G_KK^-1 G_K:) W). Taking rows S out of a fitted kernel V adds
    tr(V_S^T (P_SS)^-1 V_S) with P = G_KK^-1, and leaves V - P_:S (P_SS)^-1 V_S and
    P - P_:S (P_SS)^-1 P_S:, so that one inverse serves for all. Losses are shares of a reader's
    mean squared output. With several readers the place goes that adds least to their sum, and what
    is left is the product of what is left to each.

    Args:
        readers: The layers that read the group.
        loose: Which places may go.

    Returns:
        The places in the order of their going, all that may but at least one of the group, and the
        share lost when k of them have gone, which starts with 0.

    Source: the optimal brain surgeon (Hassibi and Stork 1993), by blocks.

    Example:

    >>> reader = Reader(np.diag([1.0, 4.0]), np.ones((2, 1)), [np.array([0]), np.array([1])])
    >>> order, lost = order_by_outputs([reader], np.array([True, True]))
    >>> order, lost.round(3).tolist()
    ([0], [0.0, 0.2])
    """
    states = [_State(reader) for reader in readers]
    left = {int(at) for at in np.flatnonzero(loose)}
    keep_one = int(loose.all())
    order: list[int] = []
    lost = [0.0]
    each = np.zeros(len(states))
    while len(left) > keep_one:
        places = sorted(left)
        # (readers, places)
        added = np.array([state.losses(places) for state in states])
        best = int(np.argmin(added.sum(axis=0)))
        each = np.clip(each + np.maximum(added[:, best], 0.0), 0.0, 1.0)
        for state in states:
            state.take(places[best])
        left.discard(places[best])
        order.append(places[best])
        lost.append(1.0 - float(np.prod(1.0 - each)))
    return order, np.array(lost)


class _State:
    """A reader while places go: its kernel fitted to what is left, and P."""

    def __init__(self, reader: Reader) -> None:
        regular = regular_moments(reader.moments, len(reader.moments))
        self._inverse = np.linalg.inv(regular)
        self._kernel = reader.kernel.astype(np.float64)
        self._rows = reader.rows
        energy = float(np.einsum("io,ij,jo->", self._kernel, regular, self._kernel, optimize=True))
        self._energy = max(energy, np.finfo(float).tiny)

    def losses(self, places: Sequence[int]) -> NDArray[np.float64]:
        found = []
        for place in places:
            rows = self._rows[place]
            if not len(rows):
                found.append(0.0)
                continue
            block, kernel = self._inverse[np.ix_(rows, rows)], self._kernel[rows]
            found.append(float(np.sum(kernel * np.linalg.solve(block, kernel))) / self._energy)
        return np.array(found)

    def take(self, place: int) -> None:
        rows = self._rows[place]
        if not len(rows):
            return
        columns = self._inverse[:, rows]
        # (n, s) (s, s)^-1
        factor = np.linalg.solve(columns[rows], columns.T).T
        self._kernel -= factor @ self._kernel[rows]
        self._inverse -= factor @ columns.T
        self._kernel[rows] = 0.0
        # What has gone takes part in nothing any more.
        self._inverse[rows], self._inverse[:, rows] = 0.0, 0.0
        self._inverse[rows, rows] = 1.0
