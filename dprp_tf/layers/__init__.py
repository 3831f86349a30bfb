"""Keras layers whose weights are the factors of a kernel."""

from dprp_tf.layers.convolution import FactorizedConvolution
from dprp_tf.layers.factorized import (
    OBJECT_ARGUMENTS,
    FactorizedLayer,
    factorized_keys,
    factorized_layers,
    plain_ranks,
)
from dprp_tf.layers.svd_conv import (
    SVDConv1D,
    SVDConv1DTranspose,
    SVDConv2D,
    SVDConv2DTranspose,
    SVDConv3D,
    SVDConv3DTranspose,
)
from dprp_tf.layers.svd_dense import SVDDense
from dprp_tf.layers.svd_layer import SVDLayer, low_rank_keys, low_rank_layers, stored_ranks
from dprp_tf.layers.svd_recurrent import SVDGRU, SVDLSTM, SVDRecurrent, SVDSimpleRNN
from dprp_tf.layers.transposed import FactorizedTransposedConvolution
from dprp_tf.layers.tucker_conv import (
    TuckerConv1D,
    TuckerConv1DTranspose,
    TuckerConv2D,
    TuckerConv2DTranspose,
    TuckerConv3D,
    TuckerConv3DTranspose,
    TuckerConvolution,
)

__all__ = [
    "OBJECT_ARGUMENTS",
    "SVDGRU",
    "SVDLSTM",
    "FactorizedConvolution",
    "FactorizedLayer",
    "FactorizedTransposedConvolution",
    "SVDConv1D",
    "SVDConv1DTranspose",
    "SVDConv2D",
    "SVDConv2DTranspose",
    "SVDConv3D",
    "SVDConv3DTranspose",
    "SVDDense",
    "SVDLayer",
    "SVDRecurrent",
    "SVDSimpleRNN",
    "TuckerConv1D",
    "TuckerConv1DTranspose",
    "TuckerConv2D",
    "TuckerConv2DTranspose",
    "TuckerConv3D",
    "TuckerConv3DTranspose",
    "TuckerConvolution",
    "factorized_keys",
    "factorized_layers",
    "low_rank_keys",
    "low_rank_layers",
    "plain_ranks",
    "stored_ranks",
]
