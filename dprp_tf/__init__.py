"""Low-rank CNNs for Keras: ranks that fall during training, folded into plain fast layers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dprp_tf.channels.groups import ChannelGroup, ChannelGroups, channel_groups
    from dprp_tf.compression.compressing import compress
    from dprp_tf.compression.ending import BestFile
    from dprp_tf.compression.settings import CompressionSettings
    from dprp_tf.conversion.cutting import cut
    from dprp_tf.conversion.factorizing import factorize
    from dprp_tf.conversion.folding import FoldedLayer, choose_forms, fold
    from dprp_tf.conversion.removing import remove_channels
    from dprp_tf.conversion.summaries import Summary, summarize
    from dprp_tf.conversion.writing_out import write_out
    from dprp_tf.costs.budget import Budget, BudgetError
    from dprp_tf.costs.channel_plan import ChannelPlan
    from dprp_tf.costs.fold_plan import FoldPlan
    from dprp_tf.costs.form import Form
    from dprp_tf.costs.joint_plan import JointPlan
    from dprp_tf.costs.latency_table import LatencyTable
    from dprp_tf.costs.rank_plan import RankPlan
    from dprp_tf.costs.width_table import WidthTable
    from dprp_tf.layers import (
        SVDGRU,
        SVDLSTM,
        SVDConv1D,
        SVDConv1DTranspose,
        SVDConv2D,
        SVDConv2DTranspose,
        SVDConv3D,
        SVDConv3DTranspose,
        SVDDense,
        SVDSimpleRNN,
        TuckerConv1D,
        TuckerConv1DTranspose,
        TuckerConv2D,
        TuckerConv2DTranspose,
        TuckerConv3D,
        TuckerConv3DTranspose,
    )
    from dprp_tf.selection.channel_pruning import ChannelPruning
    from dprp_tf.selection.compressing import Compressed, bsr
    from dprp_tf.selection.learning_channels_and_ranks import learn_channels_and_ranks
    from dprp_tf.selection.methods.less import LeSS
    from dprp_tf.selection.selecting import select_ranks
    from dprp_tf.selection.selecting_both import JointSelection, select_channels_and_ranks
    from dprp_tf.selection.selecting_channels import select_channels
    from dprp_tf.training.budget_pruning import BudgetPruning
    from dprp_tf.training.distillation import Distillation
    from dprp_tf.training.distribution import distribution
    from dprp_tf.training.divergence import DivergenceError, DivergenceGuard
    from dprp_tf.training.fine_tuning import FineTuning
    from dprp_tf.training.inner_training import InnerTraining
    from dprp_tf.training.model import DPRPModel
    from dprp_tf.training.rank_history import RankHistory
    from dprp_tf.training.rank_pruning import RankPruning
    from dprp_tf.training.rank_regularization import RankRegularization
    from dprp_tf.training.saving import load_model, save_model
    from dprp_tf.training.settings import DPRPSettings

__all__ = [
    "SVDGRU",
    "SVDLSTM",
    "BestFile",
    "Budget",
    "BudgetError",
    "BudgetPruning",
    "ChannelGroup",
    "ChannelGroups",
    "ChannelPlan",
    "ChannelPruning",
    "Compressed",
    "CompressionSettings",
    "DPRPModel",
    "DPRPSettings",
    "Distillation",
    "DivergenceError",
    "DivergenceGuard",
    "FineTuning",
    "FoldPlan",
    "FoldedLayer",
    "Form",
    "InnerTraining",
    "JointPlan",
    "JointSelection",
    "LatencyTable",
    "LeSS",
    "RankHistory",
    "RankPlan",
    "RankPruning",
    "RankRegularization",
    "SVDConv1D",
    "SVDConv1DTranspose",
    "SVDConv2D",
    "SVDConv2DTranspose",
    "SVDConv3D",
    "SVDConv3DTranspose",
    "SVDDense",
    "SVDSimpleRNN",
    "Summary",
    "TuckerConv1D",
    "TuckerConv1DTranspose",
    "TuckerConv2D",
    "TuckerConv2DTranspose",
    "TuckerConv3D",
    "TuckerConv3DTranspose",
    "WidthTable",
    "bsr",
    "channel_groups",
    "choose_forms",
    "compress",
    "cut",
    "distribution",
    "factorize",
    "fold",
    "learn_channels_and_ranks",
    "load_model",
    "remove_channels",
    "save_model",
    "select_channels",
    "select_channels_and_ranks",
    "select_ranks",
    "summarize",
    "write_out",
]
__version__ = "0.2.0"

# Names are imported when first used, so that `dprp --help` does not wait for TensorFlow.
_HOMES = {
    "BestFile": "compression.ending",
    "Budget": "costs.budget",
    "BudgetError": "costs.budget",
    "BudgetPruning": "training.budget_pruning",
    "ChannelGroup": "channels.groups",
    "ChannelGroups": "channels.groups",
    "ChannelPlan": "costs.channel_plan",
    "ChannelPruning": "selection.channel_pruning",
    "Compressed": "selection.compressing",
    "CompressionSettings": "compression.settings",
    "DPRPModel": "training.model",
    "DPRPSettings": "training.settings",
    "Distillation": "training.distillation",
    "DivergenceError": "training.divergence",
    "DivergenceGuard": "training.divergence",
    "FineTuning": "training.fine_tuning",
    "FoldPlan": "costs.fold_plan",
    "FoldedLayer": "conversion.folding",
    "Form": "costs.form",
    "InnerTraining": "training.inner_training",
    "JointPlan": "costs.joint_plan",
    "JointSelection": "selection.selecting_both",
    "LatencyTable": "costs.latency_table",
    "LeSS": "selection.methods.less",
    "RankHistory": "training.rank_history",
    "RankPlan": "costs.rank_plan",
    "RankPruning": "training.rank_pruning",
    "RankRegularization": "training.rank_regularization",
    "SVDConv1D": "layers",
    "SVDConv1DTranspose": "layers",
    "SVDConv2D": "layers",
    "SVDConv2DTranspose": "layers",
    "SVDConv3D": "layers",
    "SVDConv3DTranspose": "layers",
    "SVDDense": "layers",
    "SVDGRU": "layers",
    "SVDLSTM": "layers",
    "SVDSimpleRNN": "layers",
    "Summary": "conversion.summaries",
    "TuckerConv1D": "layers",
    "TuckerConv1DTranspose": "layers",
    "TuckerConv2D": "layers",
    "TuckerConv2DTranspose": "layers",
    "TuckerConv3D": "layers",
    "TuckerConv3DTranspose": "layers",
    "WidthTable": "costs.width_table",
    "bsr": "selection.compressing",
    "channel_groups": "channels.groups",
    "choose_forms": "conversion.folding",
    "compress": "compression.compressing",
    "cut": "conversion.cutting",
    "distribution": "training.distribution",
    "factorize": "conversion.factorizing",
    "fold": "conversion.folding",
    "learn_channels_and_ranks": "selection.learning_channels_and_ranks",
    "load_model": "training.saving",
    "remove_channels": "conversion.removing",
    "save_model": "training.saving",
    "select_channels": "selection.selecting_channels",
    "select_channels_and_ranks": "selection.selecting_both",
    "select_ranks": "selection.selecting",
    "summarize": "conversion.summaries",
    "write_out": "conversion.writing_out",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"dprp_tf.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dprp_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
