"""The matrices that a kernel can be seen as, whose singular values are cut softly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from keras import ops
from numpy.typing import NDArray

from dprp_tf.conversion.refitting import kernel_matrix, rows_of_channels
from dprp_tf.decomposition import regular_moments
from dprp_tf.decomposition.threads import threads_for
from dprp_tf.layers.kernels import kernel_of

__all__ = ["Unfolding", "unfoldings_of"]

_TINY = 1e-12


@dataclass(eq=False)
class Unfolding:
    """A kernel of L positions, C channels and S filters as a matrix with one of those as columns.

    With W the matrix as masked on the side that is not its columns, and a mask m of its columns:

        filters,  (L*C, S):  E = W^T P W,  R = I
        channels, (L*S, C):  E = W^T W,    R R^T = mean over the positions of P's blocks
        S^2 and V:           eigenvalues and -vectors of R^T diag(m) E diag(m) R

    P are the second moments of the layer's input, the identity where none are given: then S and V
    are singular values and vectors of the masked matrix, else those whose squares are energies of
    the layer's outputs, by the channels' unfolding as far as positions are alike. What is left
    of it is W diag(m) T with T = R V diag(p) V^T R^-1, which for p of ones and zeros is the
    truncation of its rank.

    Args:
        layer: The layer.
        axis: The kernel's axis that makes the columns: -1 for filters, -2 for channels.
        own: Numbers of the columns' places among masks, of shape (columns,); None for no mask.
        others: Those of the other of both axes.
        moments: P, of shape (C*L, C*L), as `input_moments` has it. Default: none.

    Source: the two unfoldings of a kernel's higher-order SVD, De Lathauwer et al. 2000; BSR/LeSS
    thesis 4.7.4.

    Example:

    >>> import keras
    >>> layer = keras.layers.Conv1D(1, 2, use_bias=False)
    >>> layer.build((None, 4, 2))
    >>> layer.set_weights([np.array([[[3.0], [0.0]], [[0.0], [1.0]]])])
    >>> side = Unfolding(layer, -2, None, None)
    >>> energies = side.energies(np.ones(1))
    >>> side.largest(energies), side.full_rank, np.abs(side.basis(energies, np.ones(2))).tolist()
    (3.0, 2, [[1.0, 0.0], [0.0, 1.0]])
    """

    layer: Any
    axis: int
    own: NDArray[np.int32] | None
    others: NDArray[np.int32] | None
    moments: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        shape = kernel_of(self.layer).shape
        self.size = shape[self.axis]
        self.shape = math.prod(shape) // self.size, self.size
        self.full_rank = min(self.shape)
        self._root = None
        if self.axis == -2 and self.moments is not None:
            channels, positions = rows_of_channels(self.layer).shape
            regular = regular_moments(self.moments, channels * positions)
            blocks = regular.reshape(channels, positions, channels, positions)
            # (C, C), lower triangular
            self._root = np.linalg.cholesky(np.einsum("cldl->cd", blocks) / positions)

    @property
    def turned(self) -> bool:
        """Whether R is another than the identity, and the inverse of R V another than V^T."""
        return self._root is not None

    def energies(self, whole: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return E of the matrix as it is masked on the other side.

        Args:
            whole: How much of each place is left, and 1 for what is no place.

        Returns:
            Array of shape (columns, columns).
        """
        rows = rows_of_channels(self.layer)
        matrix = kernel_matrix(self.layer)  # (C*L, S)
        with threads_for(self.shape):
            if self.axis == -1:
                if self.others is not None:
                    matrix = matrix * np.repeat(whole[self.others], rows.shape[1])[:, None]
                return matrix.T @ (matrix if self.moments is None else self.moments @ matrix)
            if self.others is not None:
                matrix = matrix * whole[self.others]
            matrix = matrix.reshape(len(rows), -1)  # (C, L*S)
            return matrix @ matrix.T

    def basis(
        self, energies: NDArray[np.float64], mask: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return R V, the largest singular value's column first.

        Args:
            energies: E.
            mask: m, of shape (columns,).

        Returns:
            Array of shape (columns, columns).
        """
        with threads_for(self.shape):
            vectors = np.linalg.eigh(self._gram(mask[:, None] * energies * mask))[1][:, ::-1]
        return vectors if self._root is None else self._root @ vectors

    def inverse(self, basis: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the inverse of a basis, V^T R^-1.

        Args:
            basis: What `basis` returned.

        Returns:
            Array of shape (columns, columns).
        """
        if self._root is None:
            return basis.T
        # (R V)^-1 = V^T R^-1 with V = R^-1 (R V), for V is orthogonal.
        vectors = scipy.linalg.solve_triangular(self._root, basis, lower=True)
        found: NDArray[np.float64] = scipy.linalg.solve_triangular(
            self._root, vectors, lower=True, trans="T"
        )
        return found.T

    def largest(self, energies: NDArray[np.float64]) -> float:
        """Return the largest singular value where no column is masked.

        Args:
            energies: E.

        Returns:
            The value, above 0.
        """
        with threads_for(self.shape):
            square = float(np.linalg.eigvalsh(self._gram(energies))[-1])
        return math.sqrt(max(square, _TINY))

    def turn(self, kernel: Any, basis: Any, inverse: Any, shares: Any) -> Any:
        """Return what is left of a kernel, W T.

        Args:
            kernel: A tensor of the kernel's shape.
            basis: R V.
            inverse: Its inverse.
            shares: p, what is left of each singular value, of shape (columns,).

        Returns:
            A tensor of the same shape.
        """
        columns = ops.matmul(basis * shares, inverse)
        if self.axis == -1:
            return ops.matmul(kernel, columns)
        # (C, C) by (*L, C, S): channels are rows there.
        return ops.matmul(ops.transpose(columns), kernel)

    def _gram(self, energies: NDArray[np.float64]) -> NDArray[np.float64]:
        """R^T E R."""
        return energies if self._root is None else self._root.T @ energies @ self._root


def unfoldings_of(
    layer: Any,
    decomposition: str,
    reads: NDArray[np.int32] | None,
    makes: NDArray[np.int32] | None,
    *,
    moments: NDArray[np.float64] | None = None,
    by_filters: bool = False,
) -> list[Unfolding]:
    """Return the unfoldings of a layer's kernel whose ranks are cut, in the order of its ranks.

    Args:
        layer: The layer.
        decomposition: `"channel"`, whose one matrix has the filters as columns, or `"tucker"`.
        reads: Numbers of the places that its channels are; None for none.
        makes: Numbers of the places that its filters are; likewise.
        moments: Second moments of its input. Default: none.
        by_filters: Whether masks act on filters, and never on the channels that are read.

    Returns:
        That of the filters; for Tucker-2 that of the channels before it.

    Example:

    >>> import keras
    >>> layer = keras.layers.Conv2D(5, 3)
    >>> layer.build((None, 8, 8, 4))
    >>> [side.shape for side in unfoldings_of(layer, "tucker", None, None)]
    [(45, 4), (36, 5)]
    """
    read = None if by_filters else reads
    found = [Unfolding(layer, -1, makes, read, moments)]
    if decomposition == "tucker":
        found.insert(0, Unfolding(layer, -2, read, makes, moments))
    return found
