"""Re-factorize trained factors exactly: the kernel unchanged, U and V orthonormal, s sorted."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from dprp_tf.training.regularizers import gram_matrices

__all__ = ["TrainedFactors", "retract", "turn", "turn_shapes", "turns"]


class TrainedFactors(NamedTuple):
    """One layer's u (h, r), s (r,), v (w, r): the factors, or an optimizer's slots for them."""

    u: Any
    s: Any
    v: Any


def retract(
    factors: list[TrainedFactors], momenta: list[TrainedFactors | None] | None = None
) -> tuple[list[TrainedFactors], list[TrainedFactors | None]]:
    """Return factors of the same matrices that are singular value decompositions again.

    With U = Q_u R_u and V = Q_v R_v (Q orthonormal), core = R_u diag(s) R_v^T of shape (r, r) and
    core = A diag(t) B^T its SVD, the new factors are Q_u A, t, Q_v B. The matrix U diag(s) V^T is
    unchanged up to rounding. Q R is taken from the Gram matrix: U^T U = W L W^T gives
    R_u = L^(1/2) W^T, so everything but two products with U and V has size r, and layers of equal
    rank share one batched decomposition.

    The momentum is carried along in its factor's new basis: m_u := m_u T_u and m_v := m_v T_v with
    T the map that took the old factor to the new one, and m_s := diag(A^T R_u diag(m_s) R_v^T B).
    Column signs are chosen to keep diag(T_u) positive, so that consecutive factors resemble each
    other.

    Args:
        factors: Trained factors, one per layer.
        momenta: Optimizer velocities of the same shapes, None for a layer without. Default: none.

    Returns:
        The new factors and the carried momenta, in the order given.

    Source: QR-based recipe for retracting onto matrices of fixed rank; the momentum's carriage is
        ours.

    Example:

    >>> import numpy as np
    >>> old = TrainedFactors(*(np.ones(n, "float32") for n in ((3, 1), (1,), (2, 1))))
    >>> new, _ = retract([old])
    >>> round(float(new[0].s[0]) ** 2, 3)
    6.0
    """
    return turn(factors, momenta, turns(factors))


def turns(factors: list[TrainedFactors]) -> list[Any]:
    """Return the small matrices that turn factors into singular value decompositions again.

    The only part of a retraction that is not determined up to rounding: for nearly equal singular
    values two processors may find different bases. Replicas that must stay alike therefore take
    these of one of them.

    Args:
        factors: Trained factors, one per layer.

    Returns:
        For each rank, in the order of first appearance among n layers of it: the maps of U and of
        V (n, r, r), the new s (n, r), the map of s' momentum (n, r, r); all float32.
    """
    found: list[Any] = []
    for indices in _by_rank(factors):
        # n layers of equal rank: (n, r, r)
        r_u, inverse_u = _root(gram_matrices([factors[i].u for i in indices]))
        r_v, inverse_v = _root(gram_matrices([factors[i].v for i in indices]))
        s = ops.cast(ops.stack([factors[i].s for i in indices]), "float32")
        core = _finite_or_identity(ops.matmul(r_u * s[:, None, :], ops.swapaxes(r_v, -2, -1)))
        a, t, b_transposed = ops.linalg.svd(core, full_matrices=False)
        b = ops.swapaxes(b_transposed, -2, -1)
        # 0 for finite values, NaN for others: divergence stays visible in the new s.
        t = t + 0.0 * ops.sum(s, axis=-1, keepdims=True)
        turn_u, turn_v = ops.matmul(inverse_u, a), ops.matmul(inverse_v, b)
        sign = ops.where(ops.diagonal(turn_u, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[:, None, :]
        # U'^T U diag(m) V^T V' = (A^T R_u) diag(m) (R_v^T B); signs cancel on its diagonal.
        carry = ops.matmul(ops.swapaxes(r_u, -2, -1), a) * ops.matmul(ops.swapaxes(r_v, -2, -1), b)
        found += [turn_u * sign, turn_v * sign, t, carry]
    return found


def turn_shapes(factors: list[TrainedFactors]) -> list[tuple[int, ...]]:
    """Return the shapes of what `turns` gives.

    Args:
        factors: Trained factors, one per layer.

    Returns:
        Four shapes for each rank.
    """
    shapes: list[tuple[int, ...]] = []
    for indices in _by_rank(factors):
        n, rank = len(indices), int(factors[indices[0]].s.shape[0])
        shapes += [(n, rank, rank), (n, rank, rank), (n, rank), (n, rank, rank)]
    return shapes


def turn(
    factors: list[TrainedFactors],
    momenta: list[TrainedFactors | None] | None,
    matrices: list[Any],
) -> tuple[list[TrainedFactors], list[TrainedFactors | None]]:
    """Return what `retract` does, with the matrices that `turns` gave.

    Args:
        factors: Trained factors, one per layer.
        momenta: Optimizer velocities, or None.
        matrices: What `turns` returned for these factors.

    Returns:
        The new factors and the carried momenta, in the order given.
    """
    momenta = [None] * len(factors) if momenta is None else list(momenta)
    results: list[TrainedFactors | None] = [None] * len(factors)
    carried: list[TrainedFactors | None] = [None] * len(factors)
    for group, indices in enumerate(_by_rank(factors)):
        # Taken apart by one operation instead of by one for each layer.
        turn_u, turn_v, t, carry = map(ops.unstack, matrices[4 * group : 4 * group + 4])
        for place, index in enumerate(indices):
            old, momentum = factors[index], momenta[index]
            results[index] = TrainedFactors(
                ops.cast(ops.matmul(old.u, turn_u[place]), old.u.dtype),
                ops.cast(t[place], old.s.dtype),
                ops.cast(ops.matmul(old.v, turn_v[place]), old.v.dtype),
            )
            if momentum is not None:
                carried[index] = TrainedFactors(
                    ops.cast(ops.matmul(momentum.u, turn_u[place]), momentum.u.dtype),
                    ops.cast(ops.matmul(momentum.s, carry[place]), momentum.s.dtype),
                    ops.cast(ops.matmul(momentum.v, turn_v[place]), momentum.v.dtype),
                )
    return [factor for factor in results if factor is not None], carried


def _by_rank(factors: list[TrainedFactors]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, factor in enumerate(factors):
        groups.setdefault(int(factor.s.shape[0]), []).append(index)
    return list(groups.values())


def _root(gram: Any) -> tuple[Any, Any]:
    """Return R and R^-1 with gram = R^T R, from its eigenvectors, which can't fail to exist."""
    values, vectors = ops.linalg.eigh(_finite_or_identity(gram))
    # A column that has vanished gets a tiny length instead of a division by zero.
    root = ops.sqrt(ops.maximum(values, 1e-12))[:, None, :]
    return ops.swapaxes(vectors * root, -2, -1), vectors / root


def _finite_or_identity(matrices: Any) -> Any:
    """Replace matrices (n, r, r) that are not finite, on which some backends' solvers raise."""
    sound = ops.all(ops.isfinite(matrices), axis=(-2, -1), keepdims=True)
    return ops.where(sound, matrices, ops.eye(matrices.shape[-1], dtype=matrices.dtype))
