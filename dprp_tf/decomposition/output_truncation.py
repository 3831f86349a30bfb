"""A kernel at every rank, nearest by what it makes of real inputs rather than by its entries."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from dprp_tf.decomposition.matricization import dematricize, matricize
from dprp_tf.decomposition.moments import RIDGE, regular_moments
from dprp_tf.decomposition.truncation import KernelTruncation
from dprp_tf.files.arguments import check_integer, check_number

__all__ = ["OutputTruncation"]

# Up to this many unknowns the basis comes from its normal equations, above from a few steps of
# conjugate gradients.
_DIRECT = 512
_GRADIENT_STEPS = 10
_CONVERGED = 1e-4
# By default improved where the coefficients of a filter are this many at most: turns by the rank
# take their third power.
_SWEEPS = 20
_QUICK = 1200


class _Fit(NamedTuple):
    """W~[s, k, j] = sum_r N[s, r, j] B[k, r], and the output energy it loses."""

    coefficients: NDArray[np.float64]
    basis: NDArray[np.float64]
    lost: float


class OutputTruncation:
    """A kernel W at every rank, nearest in the layer's output on given inputs.

    With P = E[x x^T] the second moments of the input patches x, W~ minimises the mean squared
    error of the output over positions,

        E ||W x - W~ x||^2 = tr(D P D^T),   D = W - W~ as a matrix (S, C*L),

    where the plain truncation minimises tr(D D^T). For `"channel"` that is the SVD of W P^(1/2)
    with the whitening undone, W~ = U_r U_r^T W: exact, and nested over the ranks. The other
    forms are W~[s, k, j] = sum_r N[s, r, j] B[k, r]: k are the positions for `"spatial"`,
    channels and leading positions for `"separable"`, channels for `"tucker"`, and j the rest of
    them. B starts from the SVD of the matrix whitened on that side, or from the plain one where
    that is better; N then follows by least squares (for `"tucker"` at rank r_out, by reduced-rank
    regression), and both are improved in turns. Each turn lowers the error; the end is a local
    minimum, as a rule.

    Args:
        kernel: Keras kernel, `(*spatial, C, S)` or `(D_in, D_out)`, finite.
        decomposition: `"spatial"`, `"channel"`, `"separable"` or `"tucker"`.
        covariance: P, uncentred, of shape `(C*L, C*L)`; entry c*L + l belongs to channel c at
            position l of the window, counted in row-major order. See
            `dprp_tf.conversion.calibration.input_moments`.
        ridge: Share of the mean of P's diagonal that is added to the diagonal, so that directions
            without input in the calibration data still count a little. 0 or more, above 0 where P
            is singular. Default 1e-4.
        sweeps: Most turns of improvement per rank; 0 keeps the start, whose error is known for
            all ranks at once. Default: 20 for `"spatial"` up to about 128 channels, where there are
            few ranks and each turn gains most; 0 else.

    Attributes:
        decomposition: The decomposition really used.
        full_ranks: The largest ranks, `(R,)` or `(R_in, R_out)`.

    Raises:
        ValueError: If an argument is not finite or does not fit the others.

    Source: Reduced-rank regression, Izenman 1975; for convolutions, minimising the response's
    error, Zhang et al. 2015 (arXiv 1505.06798).

    Example:

    >>> moments = np.diag([1.0, 100.0])  # the second input is ten times as large
    >>> truncation = OutputTruncation(np.diag([2.0, 1.0]), "channel", moments, ridge=0.0)
    >>> truncation.kernel((1,)).round(6) + 0.0
    array([[0., 0.],
           [0., 1.]])
    >>> round(truncation.lost((1,)), 4)
    0.0385
    """

    def __init__(
        self,
        kernel: Any,
        decomposition: str,
        covariance: ArrayLike,
        *,
        ridge: float = RIDGE,
        sweeps: int | None = None,
    ) -> None:
        check_number("ridge", ridge, minimum=0)
        if sweeps is not None:
            check_integer("sweeps", sweeps, minimum=0)
        self._kernel = np.asarray(kernel)
        self._plain = KernelTruncation(self._kernel, decomposition)
        self.decomposition = self._plain.decomposition
        self.full_ranks = self._plain.full_ranks
        # (S, C*L)
        matrix = matricize(self._kernel, "channel").astype(np.float64)
        moments = regular_moments(covariance, matrix.shape[1], ridge)
        channels, positions = self._kernel.shape[-2], math.prod(self._kernel.shape[:-2])
        self._turned = self.decomposition == "spatial"
        if self._turned:
            # (C, L) -> (L, C) on every side
            matrix = matrix.reshape(-1, channels, positions).swapaxes(1, 2)
            moments = moments.reshape(channels, positions, channels, positions)
            moments = moments.transpose(1, 0, 3, 2)
        self._size = {
            "spatial": positions,
            "channel": channels * positions,
            "separable": channels * positions // (self._kernel.shape[:-2] or (1,))[-1],
            "tucker": channels,
        }[self.decomposition]
        self._matrix = np.ascontiguousarray(matrix).reshape(len(matrix), -1)  # (S, K*J)
        self._moments = np.ascontiguousarray(moments).reshape((self._matrix.shape[1],) * 2)
        if sweeps is None:
            unknowns = self.full_ranks[0] * (self._matrix.shape[1] // self._size)
            sweeps = _SWEEPS if self._turned and unknowns <= _QUICK else 0
        self._sweeps = 0 if self.decomposition == "channel" else sweeps
        self._fits: dict[tuple[int, ...], _Fit] = {}

    @cached_property
    def spectra(self) -> tuple[NDArray[np.floating], ...]:
        """One descending spectrum per rank: of the matrix, or the two unfoldings, whitened."""
        if self.decomposition == "tucker":
            whitened = self._matrix @ _root(self._moments)
            return self._whitened[1], np.linalg.svd(whitened, compute_uv=False)
        return (self._whitened[1],)

    def kernel(self, ranks: tuple[int, ...]) -> NDArray[np.floating]:
        """Return the kernel cut to these ranks.

        Args:
            ranks: `(r,)` or `(r_in, r_out)`, each from 1 to its full rank.

        Returns:
            The kernel, in its own shape and dtype.

        Raises:
            ValueError: If there are too many or too few ranks, or one is out of range.
        """
        self._plain.require(ranks)
        if ranks == self.full_ranks:
            return self._kernel.copy()
        return self._folded(self._fit(ranks)).astype(self._kernel.dtype)

    def lost(self, ranks: tuple[int, ...]) -> float:
        """Return tr(D P D^T) / tr(W P W^T), the share of the output's energy that is lost.

        P is meant with its ridge.

        Args:
            ranks: `(r,)` or `(r_in, r_out)`, each from 1 to its full rank.

        Returns:
            The share, 0 to 1; 0 for a zero kernel.

        Raises:
            ValueError: If there are too many or too few ranks, or one is out of range.
        """
        self._plain.require(ranks)
        if self._energy <= 0 or ranks == self.full_ranks:
            return 0.0
        if self._sweeps:
            lost = self._fit(ranks).lost
        else:
            lost = min(start.lost(ranks) for start in self._starts)
        return float(np.clip(lost / self._energy, 0.0, 1.0))

    def _fit(self, ranks: tuple[int, ...]) -> _Fit:
        if ranks not in self._fits:
            start = min(self._starts, key=lambda start: start.lost(ranks))
            self._fits[ranks] = self._swept(start.fit(ranks), ranks)
        return self._fits[ranks]

    def _swept(self, fit: _Fit, ranks: tuple[int, ...]) -> _Fit:
        for _ in range(self._sweeps):
            better = self._improved(fit, ranks)
            gained = fit.lost - better.lost
            fit = better if gained > 0 else fit
            if gained <= _CONVERGED * fit.lost:
                break
        return fit

    def _improved(self, fit: _Fit, ranks: tuple[int, ...]) -> _Fit:
        """One turn: the best basis for the coefficients, then the best coefficients for it."""
        filters, rank, others = fit.coefficients.shape
        # (S, r, J) -> (S, J, r) -> (S*J, r), orthonormal; what it is multiplied by goes into B
        columns = fit.coefficients.swapaxes(1, 2).reshape(-1, rank)
        columns, turn = np.linalg.qr(columns)
        start = fit.basis @ turn.T
        mixed = columns.reshape(filters, others, rank)
        # (S, K, J), (S, J, r) -> (K, r)
        target = np.einsum("skj,sjr->kr", self._pressed, mixed, optimize=True)
        if start.size <= _DIRECT:
            pairs = np.einsum("sjr,sip->jirp", mixed, mixed, optimize=True)
            # (K, K', J, J'), (J, J', r, r') -> (K, r, K', r')
            normal = np.tensordot(self._by_pairs, pairs, axes=((2, 3), (0, 1)))
            normal = normal.transpose(0, 2, 1, 3).reshape(start.size, start.size)
            factor = scipy.linalg.cho_factor(normal, lower=True)
            basis = scipy.linalg.cho_solve(factor, target.reshape(-1)).reshape(start.shape)
        else:
            basis = self._by_gradients(start, target, mixed)
        basis = np.linalg.qr(basis)[0]
        return self._regressed(basis, ranks)

    def _by_gradients(
        self,
        start: NDArray[np.float64],
        target: NDArray[np.float64],
        mixed: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Preconditioned conjugate gradients from a start; each step lowers the error."""
        shape = (len(self._matrix), self._size, -1)

        def normal(basis: NDArray[np.float64]) -> NDArray[np.float64]:
            output = np.einsum("kr,sjr->skj", basis, mixed, optimize=True)
            pressed = output.reshape(len(output), -1) @ self._moments
            gathered: NDArray[np.float64] = np.einsum(
                "skj,sjr->kr", pressed.reshape(shape), mixed, optimize=True
            )
            return gathered

        basis = start
        residual = target - normal(basis)
        pressed = scipy.linalg.cho_solve(self._one_sided, residual)
        direction, product = pressed, float(np.sum(residual * pressed))
        for _ in range(_GRADIENT_STEPS):
            if not product > 0:
                break
            image = normal(direction)
            step = product / float(np.sum(direction * image))
            basis = basis + step * direction
            residual = residual - step * image
            pressed = scipy.linalg.cho_solve(self._one_sided, residual)
            following = float(np.sum(residual * pressed))
            direction, product = pressed + following / product * direction, following
        return basis

    def _regressed(self, basis: NDArray[np.float64], ranks: tuple[int, ...]) -> _Fit:
        return _Start(basis, self._moments, self._pressed, self._energy).fit(ranks)

    def _folded(self, fit: _Fit) -> NDArray[np.float64]:
        """Return the kernel of a fit, in the Keras shape."""
        # (S, r, J), (K, r) -> (S, K, J)
        matrix = np.einsum("srj,kr->skj", fit.coefficients, fit.basis, optimize=True)
        if self._turned:
            matrix = matrix.swapaxes(1, 2)  # (S, L, C) -> (S, C, L)
        folded: NDArray[np.float64] = dematricize(
            matrix.reshape(self._matrix.shape), self._kernel.shape, "channel"
        )
        return folded

    @cached_property
    def _pressed(self) -> NDArray[np.float64]:
        """W P, of shape (S, K, J)."""
        return (self._matrix @ self._moments).reshape(len(self._matrix), self._size, -1)

    @cached_property
    def _energy(self) -> float:
        """tr(W P W^T)."""
        return float(np.sum(self._pressed.reshape(self._matrix.shape) * self._matrix))

    @cached_property
    def _by_pairs(self) -> NDArray[np.float64]:
        """P as (K, K', J, J')."""
        others = self._matrix.shape[1] // self._size
        shaped = self._moments.reshape(self._size, others, self._size, others)
        return np.ascontiguousarray(shaped.transpose(0, 2, 1, 3))

    @cached_property
    def _average(self) -> NDArray[np.float64]:
        """The moments of side k alone, (K, K): the mean over j."""
        others = self._matrix.shape[1] // self._size
        shaped = self._moments.reshape(self._size, others, self._size, others)
        return np.einsum("kjlj->kl", shaped) / others

    @cached_property
    def _one_sided(self) -> Any:
        return scipy.linalg.cho_factor(self._average, lower=True)

    @cached_property
    def _unfolded(self) -> NDArray[np.float64]:
        """The matrix (S*J, K) whose rank is cut."""
        filters = len(self._matrix)
        return self._matrix.reshape(filters, self._size, -1).swapaxes(1, 2).reshape(-1, self._size)

    @cached_property
    def _whitened(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Left singular vectors (S*J, R) and singular values of the matrix whitened on side k."""
        left, values, _ = np.linalg.svd(self._unfolded @ _root(self._average), full_matrices=False)
        return left, values

    @cached_property
    def _starts(self) -> list[_Start]:
        """Nested bases B (K, R) of side k: of the whitened matrix, and of the plain one."""
        rank = self.full_ranks[0]
        bases = [self._unfolded.T @ self._whitened[0]]
        if self.decomposition != "channel":
            left = np.linalg.svd(self._unfolded.T, full_matrices=False)[0]
            bases.append(left)
        return [
            _Start(np.linalg.qr(basis[:, :rank])[0], self._moments, self._pressed, self._energy)
            for basis in bases
        ]


class _Start:
    """The best coefficients for the leading columns of a basis, for any number of them.

    N (S, r*J) minimises tr((W - N B_r^T) P (W - N B_r^T)^T). With B^T P B = F F^T, whose leading
    blocks are those of fewer columns, the energy kept is that of F^-1 B^T P W^T, row by row.
    """

    def __init__(
        self,
        basis: NDArray[np.float64],
        moments: NDArray[np.float64],
        pressed: NDArray[np.float64],
        energy: float,
    ) -> None:
        filters, size, others = pressed.shape
        self._basis, self._others, self._energy = basis, others, energy
        rank = basis.shape[1]
        # (K, J, K', J') -> (r, J, K', J') -> (r, J, J', r') -> (r*J, r'*J')
        gram = np.tensordot(basis.T, moments.reshape(size, -1), axes=1)
        gram = gram.reshape(rank * others, size, others)
        gram = np.einsum("akj,kr->arj", gram, basis, optimize=True)
        try:
            self._factor = scipy.linalg.cholesky(gram.reshape((rank * others,) * 2), lower=True)
        except scipy.linalg.LinAlgError as error:
            raise ValueError(
                "`ridge` must be above 0 where `covariance` is singular, as it is when there are "
                "fewer positions in the calibration data than entries in a patch. Received a "
                "ridge too small; the default will do."
            ) from error
        # (S, K, J) -> (r, J, S) -> (r*J, S)
        side = np.einsum("skj,kr->rjs", pressed, basis, optimize=True).reshape(-1, filters)
        self._rows = scipy.linalg.solve_triangular(self._factor, side, lower=True)
        energies = np.sum(np.square(self._rows).reshape(rank, -1), axis=1)
        self._kept = np.cumsum(energies)
        self._modes: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def lost(self, ranks: tuple[int, ...]) -> float:
        """Return the energy that the best coefficients lose."""
        if len(ranks) == 1:
            return self._energy - float(self._kept[ranks[0] - 1])
        return self._energy - float(self._directions(ranks[0])[0][ranks[1] - 1])

    def fit(self, ranks: tuple[int, ...]) -> _Fit:
        """Return the best coefficients."""
        count = ranks[0] * self._others
        rows = self._rows[:count]
        if len(ranks) == 2:
            kept = self._directions(ranks[0])[1][:, : ranks[1]]
            rows = rows @ kept @ kept.T
        coefficients = scipy.linalg.solve_triangular(
            self._factor[:count, :count], rows, lower=True, trans="T"
        )
        shaped = coefficients.T.reshape(-1, ranks[0], self._others)
        return _Fit(shaped, self._basis[:, : ranks[0]], self.lost(ranks))

    def _directions(self, rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the energy kept by filters' directions, cumulated (S,), and those (S, S)."""
        if rank not in self._modes:
            rows = self._rows[: rank * self._others]
            values, vectors = np.linalg.eigh(rows.T @ rows)
            self._modes[rank] = np.cumsum(values[::-1]), vectors[:, ::-1]
        return self._modes[rank]


def _root(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a matrix whose product with its transpose is the moments."""
    try:
        factor: NDArray[np.float64] = scipy.linalg.cholesky(moments, lower=True)
    except scipy.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(moments)
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
    return factor
