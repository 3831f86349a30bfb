"""Rank regularizers by name."""

from __future__ import annotations

from typing import Any

from dprp_tf.training.regularizers.base import RankRegularizer
from dprp_tf.training.regularizers.compression import (
    FunnelPenalty,
    L1Penalty,
    L2Penalty,
    TailPenalty,
)
from dprp_tf.training.regularizers.literature import (
    CappedNuclearNorm,
    ElasticNet,
    GemanPenalty,
    LaplacePenalty,
    LogarithmPenalty,
    LogNuclearNorm,
    NuclearNorm,
    SchattenNorm,
    TruncatedNuclearNorm,
    WeightedNuclearNorm,
)
from dprp_tf.training.regularizers.stable_rank import ModifiedStableRank

__all__ = ["NAMES", "RANKED_NAMES", "get"]

_PLAIN: dict[str, type[RankRegularizer]] = {
    "l1": L1Penalty,
    "l2": L2Penalty,
    "funnel": FunnelPenalty,
    "nuclear_norm": NuclearNorm,
    "elastic_net": ElasticNet,
    "schatten_norm": SchattenNorm,
    "logarithm": LogarithmPenalty,
    "log_nuclear_norm": LogNuclearNorm,
    "geman": GemanPenalty,
    "laplace": LaplacePenalty,
}
_RANKED: dict[str, Any] = {
    "truncated_nuclear_norm": TruncatedNuclearNorm,
    "weighted_nuclear_norm": WeightedNuclearNorm,
    "capped_nuclear_norm": CappedNuclearNorm,
    "modified_stable_rank": ModifiedStableRank,
}

# Those whose penalty depends on a rank to train for.
RANKED_NAMES = tuple(_RANKED)
NAMES = ("tail", *_PLAIN, *RANKED_NAMES)


def get(
    identifier: Any,
    threshold: float = 0.1,
    rank: int | None = None,
    argument: str = "compression",
) -> RankRegularizer | None:
    """Return the rank regularizer a name or an instance stands for.

    Args:
        identifier: One of `NAMES`, None, or a `RankRegularizer`.
        threshold: The pruning threshold that `"tail"` uses, in (0, 1). Default 0.1.
        rank: The rank that those in `RANKED_NAMES` train for, 1 or more.
        argument: What error messages call `identifier`.

    Returns:
        The regularizer; None for None.

    Raises:
        ValueError: If `identifier` is none of these, or is one of `RANKED_NAMES` without a `rank`.

    Example:

    >>> get("tail", 0.1).threshold, get("modified_stable_rank", rank=3).rank
    (0.1, 3)
    """
    if identifier is None or isinstance(identifier, RankRegularizer):
        return identifier
    if identifier == "tail":
        return TailPenalty(threshold)
    if isinstance(identifier, str) and identifier in _PLAIN:
        return _PLAIN[identifier]()
    if isinstance(identifier, str) and identifier in _RANKED:
        if rank is None:
            kind = _RANKED[identifier]
            raise ValueError(
                f"`{argument}` must be an instance where the penalty depends on a rank, such as "
                f"{kind.__name__}(rank=4) of dprp_tf.training.regularizers. "
                f"Received: {argument}={identifier!r}"
            )
        return _RANKED[identifier](rank)
    raise ValueError(
        f"`{argument}` must be one of {NAMES}, None or a RankRegularizer. "
        f"Received: {argument}={identifier!r}"
    )
