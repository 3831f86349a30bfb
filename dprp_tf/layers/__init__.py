"""Keras layers whose weights are the factors of a kernel."""

from dprp_tf.layers.convolution import FactorizedConvolution
from dprp_tf.layers.factorized import (
    OBJECT_ARGUMENTS,
    FactorizedLayer,
    factorized_keys,
    factorized_layers,
    plain_ranks,
)
from dprp_tf.layers.svd_conv import SVDConv1D, SVDConv2D, SVDConv3D
from dprp_tf.layers.svd_dense import SVDDense
from dprp_tf.layers.svd_layer import SVDLayer, low_rank_keys, low_rank_layers, stored_ranks
from dprp_tf.layers.tucker_conv import TuckerConv1D, TuckerConv2D, TuckerConv3D, TuckerConvolution

__all__ = [
    "OBJECT_ARGUMENTS",
    "FactorizedConvolution",
    "FactorizedLayer",
    "SVDConv1D",
    "SVDConv2D",
    "SVDConv3D",
    "SVDDense",
    "SVDLayer",
    "TuckerConv1D",
    "TuckerConv2D",
    "TuckerConv3D",
    "TuckerConvolution",
    "factorized_keys",
    "factorized_layers",
    "low_rank_keys",
    "low_rank_layers",
    "plain_ranks",
    "stored_ranks",
]
