"""Losses on the factors: structure, sorting, compression, and the ablation's penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import keras
from keras import ops

__all__ = [
    "FunnelPenalty",
    "L1Penalty",
    "L2Penalty",
    "RankRegularizer",
    "TailPenalty",
    "get",
    "gram_error",
    "gram_matrix",
    "orthogonality",
    "retained_ranks",
    "sorting",
]

_TINY = 1e-12


def orthogonality(factor: Any, softening: Any = 0.0) -> Any:
    """Return how far a factor's columns are from orthonormal: 1/r^2 ||Q^T Q - I||_F.

    One half of a layer's term in Eq. 10; the other is the same function of V. The norm is not
    squared, so its gradient keeps its size however small the error: at a large learning rate the
    factors jitter. With `softening` d the norm x becomes sqrt(x^2 + d^2) - d, whose gradient
    falls off below d.

    Args:
        factor: Tensor of shape (..., h, r).
        softening: d, 0 or more. Default 0: Eq. 10 itself.

    Returns:
        Tensor of shape (...), in float32.

    Source: DPRP (arXiv 2401.08014) Eq. 10.

    Example:

    >>> import numpy as np
    >>> float(orthogonality(np.eye(4, 2, dtype="float32"))) < 1e-5
    True
    """
    return gram_error(gram_matrix(factor), softening)


def gram_matrix(factor: Any) -> Any:
    """Return Q^T Q of a factor Q, shape (..., h, r) -> (..., r, r), in float32.

    Args:
        factor: Tensor of shape (..., h, r).

    Returns:
        Tensor of shape (..., r, r).

    Example:

    >>> import numpy as np
    >>> gram_matrix(np.ones((4, 2), "float32")).shape
    TensorShape([2, 2])
    """
    factor = ops.cast(factor, "float32")
    return ops.matmul(ops.swapaxes(factor, -2, -1), factor)


def gram_error(gram: Any, softening: Any = 0.0) -> Any:
    """Return `orthogonality` from Gram matrices, so that layers of equal rank share operations.

    Args:
        gram: Tensor Q^T Q of shape (..., r, r).
        softening: d of `orthogonality`, broadcastable to (...).

    Returns:
        Tensor of shape (...).

    Source: DPRP (arXiv 2401.08014) Eq. 10.
    """
    rank = gram.shape[-1]
    squared = ops.sum(ops.square(gram - ops.eye(rank, dtype="float32")), axis=(-2, -1))
    # _TINY keeps the gradient of the root finite at exact orthonormality.
    return (ops.sqrt(squared + softening * softening + _TINY) - softening) / rank**2


def sorting(s: Any) -> Any:
    """Return a layer's term of L_sort: how far s is from descending and non-negative.

    chi(gamma) sum_j max(0, s_(j+1) - s_j) + chi(eta) sum_j max(0, -s_j), with gamma the number of
    entries out of order, eta the number of negative ones, chi(a) = 1/a or 0 at a = 0. The counts
    carry no gradient. The second sum runs to r (printed: r - 1), so the last value counts too.

    Args:
        s: Tensor of shape (..., r).

    Returns:
        Tensor of shape (...), in float32.

    Source: DPRP (arXiv 2401.08014) Eq. 11.

    Example:

    >>> import numpy as np
    >>> float(sorting(np.array([1.0, 3.0, -0.5], dtype="float32")))
    2.5
    """
    s = ops.cast(s, "float32")
    rises = ops.relu(s[..., 1:] - s[..., :-1])
    negatives = ops.relu(-s)
    return _mean_of_positive(rises) + _mean_of_positive(negatives)


def retained_ranks(s: Any, threshold: float) -> Any:
    """Return tau for each row of s: the rank left by the first relative drop below `threshold`.

    The tensor twin of `dprp_tf.factorization.retained_rank`, for use inside a train step.

    Args:
        s: Tensor of shape (..., r).
        threshold: The pruning threshold epsilon, in (0, 1).

    Returns:
        Float tensor of shape (...), between 1 and r; it has no gradient.

    Source: DPRP (arXiv 2401.08014), before Eq. 12.

    Example:

    >>> import numpy as np
    >>> float(retained_ranks(np.array([5.0, 4.0, 0.3], dtype="float32"), 0.1))
    2.0
    """
    magnitudes = ops.abs(ops.stop_gradient(ops.cast(s, "float32")))
    kept = ops.cast(magnitudes[..., 1:] > threshold * magnitudes[..., :-1], "float32")
    return 1.0 + ops.sum(ops.cumprod(kept, axis=-1), axis=-1)


class RankRegularizer(ABC):
    """A penalty on the singular values of one layer; subclass it to add your own.

    Implement `__call__(s)` for s of shape (..., r), one layer per leading index, returning (...),
    and `get_config` if the constructor takes arguments; register the class with
    `keras.saving.register_keras_serializable` so that models using it can be loaded.
    """

    @abstractmethod
    def __call__(self, s: Any) -> Any:
        """Return the penalty of each row of s, shape (..., r) -> (...)."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments."""
        return {}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __hash__(self) -> int:
        return hash((type(self), tuple(sorted(self.get_config().items()))))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RankRegularizer:
        """Make the regularizer from `get_config`'s result."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="dprp_tf")
class TailPenalty(RankRegularizer):
    """The compression loss of DPRP: presses the values from the threshold's rank on.

    1 / (max(1, r - tau) ||s||_2) * sum_(i=tau..r) |s_i|, with tau from `retained_ranks`. The sum
    includes i = tau, so the smallest kept value is pressed when nothing is yet below the
    threshold, and the divisor (printed r - tau) is then 1 instead of 0: without both, nothing
    would ever start to shrink.

    Args:
        threshold: The pruning threshold epsilon, in (0, 1). Default 0.1.

    Raises:
        ValueError: If `threshold` lies outside (0, 1).

    Source: DPRP (arXiv 2401.08014) Eq. 12.

    Example:

    >>> import numpy as np
    >>> round(float(TailPenalty(0.5)(np.array([4.0, 3.0, 0.0], dtype="float32"))), 4)
    0.6
    """

    def __init__(self, threshold: float = 0.1) -> None:
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"`threshold` must lie in (0, 1). Received: threshold={threshold}")
        self.threshold = float(threshold)

    def __call__(self, s: Any) -> Any:
        s = ops.cast(s, "float32")
        rank = s.shape[-1]
        tau = retained_ranks(s, self.threshold)
        index = ops.arange(1, rank + 1, dtype="float32")
        tail = ops.cast(index >= tau[..., None], "float32")
        divisor = ops.maximum(1.0, rank - tau) * _norm(s)
        return ops.sum(tail * ops.abs(s), axis=-1) / divisor

    def get_config(self) -> dict[str, Any]:
        return {"threshold": self.threshold}


@keras.saving.register_keras_serializable(package="dprp_tf")
class L1Penalty(RankRegularizer):
    """The ablation's L1 penalty, 1/r ||s||_1.

    Source: DPRP (arXiv 2401.08014) Eq. 15.

    Example:

    >>> import numpy as np
    >>> float(L1Penalty()(np.array([3.0, 1.0], dtype="float32")))
    2.0
    """

    def __call__(self, s: Any) -> Any:
        return ops.mean(ops.abs(ops.cast(s, "float32")), axis=-1)


@keras.saving.register_keras_serializable(package="dprp_tf")
class L2Penalty(RankRegularizer):
    """The ablation's L2 penalty, 1/r ||s||_2, the norm and not its square.

    Source: DPRP (arXiv 2401.08014) Eq. 16.

    Example:

    >>> import numpy as np
    >>> float(L2Penalty()(np.array([4.0, 3.0], dtype="float32")))
    2.5
    """

    def __call__(self, s: Any) -> Any:
        s = ops.cast(s, "float32")
        return _norm(s) / s.shape[-1]


@keras.saving.register_keras_serializable(package="dprp_tf")
class FunnelPenalty(RankRegularizer):
    """The ablation's funnel penalty, 1/r sum_i |s_i| / (|s_i| + delta).

    Args:
        delta: Half-way point of the funnel, above 0. Default 0.1.

    Raises:
        ValueError: If `delta` is not positive.

    Source: DPRP (arXiv 2401.08014) Eq. 17.

    Example:

    >>> import numpy as np
    >>> float(FunnelPenalty(delta=1.0)(np.array([1.0, 0.0], dtype="float32")))
    0.25
    """

    def __init__(self, delta: float = 0.1) -> None:
        if not delta > 0:
            raise ValueError(f"`delta` must be positive. Received: delta={delta}")
        self.delta = float(delta)

    def __call__(self, s: Any) -> Any:
        magnitudes = ops.abs(ops.cast(s, "float32"))
        return ops.mean(magnitudes / (magnitudes + self.delta), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"delta": self.delta}


def get(identifier: Any, threshold: float) -> RankRegularizer | None:
    """Return the rank regularizer a name, a config or an instance stands for.

    Args:
        identifier: `"tail"`, `"l1"`, `"l2"`, `"funnel"`, None, or a `RankRegularizer`.
        threshold: The pruning threshold that `"tail"` uses, in (0, 1).

    Returns:
        The regularizer; None for None.

    Raises:
        ValueError: If `identifier` is none of these.

    Example:

    >>> get("tail", 0.1).threshold
    0.1
    """
    if identifier is None or isinstance(identifier, RankRegularizer):
        return identifier
    if identifier == "tail":
        return TailPenalty(threshold)
    named = {"l1": L1Penalty, "l2": L2Penalty, "funnel": FunnelPenalty}
    if isinstance(identifier, str) and identifier in named:
        return named[identifier]()
    raise ValueError(
        "`compression` must be 'tail', 'l1', 'l2', 'funnel', None or a RankRegularizer. "
        f"Received: compression={identifier!r}"
    )


def _norm(s: Any) -> Any:
    # Squares of values above 1e19 overflow float32.
    scale = ops.maximum(ops.stop_gradient(ops.max(ops.abs(s), axis=-1)), 1.0)
    return scale * ops.sqrt(ops.sum(ops.square(s / scale[..., None]), axis=-1) + _TINY)


def _mean_of_positive(values: Any) -> Any:
    count = ops.stop_gradient(ops.sum(ops.cast(values > 0, "float32"), axis=-1))
    return ops.sum(values, axis=-1) / ops.maximum(count, 1.0)
