"""The modified stable rank: what lies beyond a rank, relative to what lies within."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dprp_tf.files.arguments import check_integer
from dprp_tf.training.regularizers.base import RankRegularizer

__all__ = ["ModifiedStableRank"]

_TINY = 1e-12


@keras.saving.register_keras_serializable(package="dprp_tf")
class ModifiedStableRank(RankRegularizer):
    """The modified stable rank (mSR): sum_(i>rank) |s_i| / sum_(i<=rank) |s_i|.

    It presses the values beyond `rank` and lifts those within, so that cutting to `rank` costs
    little; it doesn't change when s is scaled. With s the singular values of W its gradient is
    U diag(g) V^T, g_i = -mSR / head for i <= rank and 1 / head beyond, head = sum_(i<=rank) s_i.

    Args:
        rank: The rank to train for, 1 or more. At or above the number of values the penalty is 0.

    Raises:
        ValueError: If `rank` is not a positive integer.

    Source: BSR/LeSS thesis Eq. 3.4 and 3.6.

    Example:

    >>> import numpy as np
    >>> float(ModifiedStableRank(1)(np.array([4.0, 2.0, 1.0], dtype="float32")))
    0.75
    """

    def __init__(self, rank: int) -> None:
        self.rank = check_integer("rank", rank)

    def __call__(self, s: Any) -> Any:
        magnitudes = ops.abs(ops.cast(s, "float32"))
        head = ops.sum(magnitudes[..., : self.rank], axis=-1)
        return ops.sum(magnitudes[..., self.rank :], axis=-1) / ops.maximum(head, _TINY)

    def get_config(self) -> dict[str, Any]:
        return {"rank": self.rank}
