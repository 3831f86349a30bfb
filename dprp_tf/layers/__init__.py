"""Keras layers whose weights are the factors of a kernel."""

from dprp_tf.layers.base import SVDLayer, low_rank_layers, walk_layers
from dprp_tf.layers.svd_conv import SVDConv1D, SVDConv2D, SVDConv3D
from dprp_tf.layers.svd_dense import SVDDense

__all__ = [
    "SVDConv1D",
    "SVDConv2D",
    "SVDConv3D",
    "SVDDense",
    "SVDLayer",
    "low_rank_layers",
    "walk_layers",
]
