"""Low-rank CNNs for Keras: ranks that fall during training, folded into plain fast layers."""

from dprp_tf.callbacks import RankHistory, RankPruning
from dprp_tf.factorizing import factorize
from dprp_tf.folding import FoldedLayer, choose_forms, fold
from dprp_tf.layers import SVDConv1D, SVDConv2D, SVDConv3D, SVDDense
from dprp_tf.training import DPRPModel, DPRPSettings

__all__ = [
    "DPRPModel",
    "DPRPSettings",
    "FoldedLayer",
    "RankHistory",
    "RankPruning",
    "SVDConv1D",
    "SVDConv2D",
    "SVDConv3D",
    "SVDDense",
    "choose_forms",
    "factorize",
    "fold",
]
__version__ = "0.1.0"
