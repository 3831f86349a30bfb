"""A kernel at every rank: truncated as often as asked, decomposed once."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dprp_tf.decomposition.matricization import (
    MATRICIZATIONS,
    dematricize,
    full_rank,
    matricize,
    resolve,
)
from dprp_tf.decomposition.svd import Factors, decompose
from dprp_tf.decomposition.tucker import full_tucker_ranks
from dprp_tf.files.arguments import check_choice

__all__ = ["DECOMPOSITIONS", "KernelTruncation", "Truncation", "resolve_decomposition"]

DECOMPOSITIONS = (*MATRICIZATIONS, "tucker")


def resolve_decomposition(kernel_shape: tuple[int, ...], decomposition: str) -> str:
    """Return the decomposition a kernel of this shape is really given.

    Tucker-2 of a dense or pointwise kernel is its SVD, `channel`, as every other form of those.

    Args:
        kernel_shape: Keras kernel shape, `(*spatial, C, S)` or `(D_in, D_out)`.
        decomposition: `"spatial"`, `"channel"`, `"separable"` or `"tucker"`.

    Returns:
        The decomposition to use.

    Raises:
        ValueError: If `decomposition` is unknown.

    Example:

    >>> resolve_decomposition((3, 3, 4, 8), "tucker"), resolve_decomposition((4, 8), "tucker")
    ('tucker', 'channel')
    """
    check_choice("decomposition", decomposition, DECOMPOSITIONS)
    if decomposition != "tucker":
        return resolve(kernel_shape, decomposition)
    return "tucker" if resolve(kernel_shape, "spatial") == "spatial" else "channel"


class Truncation(Protocol):
    """One kernel that can be cut to any of its ranks: the interface of all truncations.

    `ranks` is `(r,)`, or `(r_in, r_out)` where `decomposition` is `"tucker"`.
    """

    decomposition: str
    full_ranks: tuple[int, ...]

    @property
    def spectra(self) -> tuple[NDArray[np.floating], ...]:
        """One descending spectrum per rank."""

    def kernel(self, ranks: tuple[int, ...]) -> NDArray[np.floating]:
        """Return the kernel cut to these ranks, in its own shape and dtype."""

    def lost(self, ranks: tuple[int, ...]) -> float:
        """Return the share of the energy that the cut loses, 0 to 1."""


class KernelTruncation:
    """A kernel W at every rank, nearest in the Frobenius norm: its truncated SVD or Tucker-2.

    For `"tucker"` the kernel is projected on the first r_in and r_out left singular vectors of
    its unfoldings (C, L*S) and (S, L*C), the higher-order SVD: close to the best for its ranks,
    and nested, so that one decomposition serves every pair of them.

    Args:
        kernel: Keras kernel, `(*spatial, C, S)` or `(D_in, D_out)`, finite.
        decomposition: `"spatial"`, `"channel"`, `"separable"` or `"tucker"`.

    Attributes:
        decomposition: The decomposition really used; see `resolve_decomposition`.
        full_ranks: The largest ranks, `(R,)` or `(R_in, R_out)`.

    Raises:
        ValueError: If the kernel is not finite or `decomposition` is unknown.

    Source: Eckart and Young 1936; De Lathauwer et al. 2000 for `"tucker"`.

    Example:

    >>> truncation = KernelTruncation(np.diag([2.0, 1.0]), "channel")
    >>> truncation.full_ranks, round(truncation.lost((1,)), 6)
    ((2,), 0.2)
    >>> truncation.kernel((1,)).round(6) + 0.0
    array([[2., 0.],
           [0., 0.]])
    """

    def __init__(self, kernel: Any, decomposition: str) -> None:
        self._kernel = np.asarray(kernel)
        if not np.all(np.isfinite(self._kernel)):
            raise ValueError(
                "`kernel` must be finite. Received NaN or infinite entries; load sound weights."
            )
        self.decomposition = resolve_decomposition(self._kernel.shape, decomposition)
        shape = self._kernel.shape
        self.full_ranks: tuple[int, ...] = (
            full_tucker_ranks(shape)
            if self.decomposition == "tucker"
            else (full_rank(shape, self.decomposition),)
        )

    @property
    def spectra(self) -> tuple[NDArray[np.floating], ...]:
        """One descending spectrum per rank: of the matrix, or of the two unfoldings."""
        if self.decomposition == "tucker":
            return self._modes[1], self._modes[3]
        return (self._factors.s,)

    def kernel(self, ranks: tuple[int, ...]) -> NDArray[np.floating]:
        """Return the kernel cut to these ranks.

        Args:
            ranks: `(r,)` or `(r_in, r_out)`, each from 1 to its full rank.

        Returns:
            The kernel, in its own shape and dtype.

        Raises:
            ValueError: If there are too many or too few ranks, or one is out of range.
        """
        self.require(ranks)
        shape = self._kernel.shape
        if self.decomposition == "tucker":
            first, _, last, _, core = self._modes
            inner, outer = ranks
            mixed = first[:, :inner] @ core[:, :inner, :outer] @ last[:, :outer].T
            return mixed.reshape(shape).astype(self._kernel.dtype)
        matrix = self._factors.truncated(ranks[0]).matrix()
        cut: NDArray[np.floating] = dematricize(matrix, shape, self.decomposition)
        return cut.astype(self._kernel.dtype)

    def lost(self, ranks: tuple[int, ...]) -> float:
        """Return ||W - W~||^2 / ||W||^2 of the kernel W~ cut to these ranks; 0 for a zero kernel.

        Args:
            ranks: `(r,)` or `(r_in, r_out)`, each from 1 to its full rank.

        Returns:
            The share of the energy, 0 to 1.

        Raises:
            ValueError: If there are too many or too few ranks, or one is out of range.
        """
        self.require(ranks)
        kept = self._kept
        if kept[(-1,) * kept.ndim] == 0:
            return 0.0
        share = kept[tuple(rank - 1 for rank in ranks)] / kept[(-1,) * kept.ndim]
        return float(np.clip(1.0 - share, 0.0, 1.0))

    def require(self, ranks: tuple[int, ...]) -> None:
        """Refuse ranks that this kernel can't be cut to.

        Args:
            ranks: `(r,)` or `(r_in, r_out)`.

        Raises:
            ValueError: If there are too many or too few, or one is out of range.
        """
        fits = len(ranks) == len(self.full_ranks) and all(
            1 <= rank <= limit for rank, limit in zip(ranks, self.full_ranks, strict=False)
        )
        if not fits:
            raise ValueError(
                f"`ranks` of a kernel of shape {self._kernel.shape} in {self.decomposition!r} form "
                f"must lie in {', '.join(f'1..{limit}' for limit in self.full_ranks)}. "
                f"Received: ranks={ranks}"
            )

    @cached_property
    def _factors(self) -> Factors:
        return decompose(matricize(self._kernel, self.decomposition))

    @cached_property
    def _modes(self) -> tuple[NDArray[np.floating], ...]:
        """A (C, R_in) and its spectrum, B (S, R_out) and its, core (L, R_in, R_out)."""
        channels, filters = self._kernel.shape[-2:]
        flat = self._kernel.reshape(-1, channels, filters)
        flat = flat if flat.dtype == np.float64 else flat.astype(np.float32)
        # (L, C, S) -> (C, L*S) and (S, L*C)
        inner = decompose(np.moveaxis(flat, 1, 0).reshape(channels, -1))
        outer = decompose(np.moveaxis(flat, 2, 0).reshape(filters, -1))
        return inner.u, inner.s, outer.u, outer.s, inner.u.T @ flat @ outer.u

    @cached_property
    def _kept(self) -> NDArray[np.float64]:
        """Energy kept by ranks counted from 0: (R,), or (R_in, R_out)."""
        if self.decomposition == "tucker":
            energies = np.sum(np.square(self._modes[4].astype(np.float64)), axis=0)
            return np.cumsum(np.cumsum(energies, axis=0), axis=1)
        return np.cumsum(np.square(self._factors.s.astype(np.float64)))
