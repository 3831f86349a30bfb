"""Factorization of kernels: arrays in, arrays out, no framework."""

from dprp_tf.factorization.matricization import (
    MATRICIZATIONS,
    dematricize,
    full_rank,
    matricize,
    matrix_shape,
    resolve,
)
from dprp_tf.factorization.svd import (
    Factors,
    canonical_order,
    decompose,
    energy_rank,
    retained_rank,
    truncation_error,
)
from dprp_tf.factorization.tucker import TuckerFactors, tucker2, tucker_ranks

__all__ = [
    "MATRICIZATIONS",
    "Factors",
    "TuckerFactors",
    "canonical_order",
    "decompose",
    "dematricize",
    "energy_rank",
    "full_rank",
    "matricize",
    "matrix_shape",
    "resolve",
    "retained_rank",
    "truncation_error",
    "tucker2",
    "tucker_ranks",
]
