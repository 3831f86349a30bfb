"""Factorization of kernels: arrays in, arrays out, no framework."""

from dprp_tf.decomposition.matricization import (
    MATRICIZATIONS,
    dematricize,
    full_rank,
    matricize,
    matrix_shape,
    resolve,
)
from dprp_tf.decomposition.moments import regular_moments
from dprp_tf.decomposition.output_truncation import OutputTruncation
from dprp_tf.decomposition.svd import (
    Factors,
    canonical_order,
    decompose,
    energy_rank,
    retained_rank,
    truncation_error,
)
from dprp_tf.decomposition.truncation import (
    DECOMPOSITIONS,
    KernelTruncation,
    Truncation,
    resolve_decomposition,
)
from dprp_tf.decomposition.tucker import TuckerFactors, full_tucker_ranks, tucker2, tucker_ranks
from dprp_tf.decomposition.vbmf import VariationalRank, variational_rank

__all__ = [
    "DECOMPOSITIONS",
    "MATRICIZATIONS",
    "Factors",
    "KernelTruncation",
    "OutputTruncation",
    "Truncation",
    "TuckerFactors",
    "VariationalRank",
    "canonical_order",
    "decompose",
    "dematricize",
    "energy_rank",
    "full_rank",
    "full_tucker_ranks",
    "matricize",
    "matrix_shape",
    "regular_moments",
    "resolve",
    "resolve_decomposition",
    "retained_rank",
    "truncation_error",
    "tucker2",
    "tucker_ranks",
    "variational_rank",
]
