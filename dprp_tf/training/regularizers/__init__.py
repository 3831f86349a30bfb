"""Losses on factors and singular values: structure, sorting, and penalties that lower ranks."""

from dprp_tf.training.regularizers.base import RankRegularizer
from dprp_tf.training.regularizers.compression import (
    FunnelPenalty,
    L1Penalty,
    L2Penalty,
    TailPenalty,
    retained_ranks,
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
from dprp_tf.training.regularizers.names import NAMES, RANKED_NAMES, get
from dprp_tf.training.regularizers.stable_rank import ModifiedStableRank
from dprp_tf.training.regularizers.structure import (
    gram_error,
    gram_matrices,
    gram_matrix,
    orthogonality,
    sorting,
)

__all__ = [
    "NAMES",
    "RANKED_NAMES",
    "CappedNuclearNorm",
    "ElasticNet",
    "FunnelPenalty",
    "GemanPenalty",
    "L1Penalty",
    "L2Penalty",
    "LaplacePenalty",
    "LogNuclearNorm",
    "LogarithmPenalty",
    "ModifiedStableRank",
    "NuclearNorm",
    "RankRegularizer",
    "SchattenNorm",
    "TailPenalty",
    "TruncatedNuclearNorm",
    "WeightedNuclearNorm",
    "get",
    "gram_error",
    "gram_matrices",
    "gram_matrix",
    "orthogonality",
    "retained_ranks",
    "sorting",
]
