"""Keras layers whose weights are the factors of a kernel."""

from dprp_tf.layers.base import (
    OBJECT_ARGUMENTS,
    SVDLayer,
    low_rank_keys,
    low_rank_layers,
    stored_ranks,
)
from dprp_tf.layers.svd_conv import SVDConv1D, SVDConv2D, SVDConv3D
from dprp_tf.layers.svd_dense import SVDDense

__all__ = [
    "OBJECT_ARGUMENTS",
    "SVDConv1D",
    "SVDConv2D",
    "SVDConv3D",
    "SVDDense",
    "SVDLayer",
    "low_rank_keys",
    "low_rank_layers",
    "stored_ranks",
]
