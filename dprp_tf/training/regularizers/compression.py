"""The compression loss of DPRP and the penalties of its ablation."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dprp_tf.files.arguments import check_number
from dprp_tf.training.regularizers.base import RankRegularizer

__all__ = ["FunnelPenalty", "L1Penalty", "L2Penalty", "TailPenalty", "retained_ranks"]

_TINY = 1e-12


def retained_ranks(s: Any, threshold: float) -> Any:
    """Return tau for each row of s: the rank left by the first relative drop below `threshold`.

    The tensor twin of `dprp_tf.decomposition.retained_rank`, for use inside a train step.

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
        self.threshold = check_number("threshold", threshold, above=0, below=1)

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
        self.delta = check_number("delta", delta, above=0)

    def __call__(self, s: Any) -> Any:
        magnitudes = ops.abs(ops.cast(s, "float32"))
        return ops.mean(magnitudes / (magnitudes + self.delta), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"delta": self.delta}


def _norm(s: Any) -> Any:
    # Squares of values above 1e19 overflow float32.
    scale = ops.maximum(ops.stop_gradient(ops.max(ops.abs(s), axis=-1)), 1.0)
    return scale * ops.sqrt(ops.sum(ops.square(s / scale[..., None]), axis=-1) + _TINY)
