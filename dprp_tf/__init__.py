"""Low-rank CNNs for Keras: ranks that fall during training, folded into plain fast layers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dprp_tf.callbacks import RankHistory, RankPruning
    from dprp_tf.compressing import Compressed, bsr
    from dprp_tf.cutting import cut
    from dprp_tf.distributing import distribution
    from dprp_tf.divergence import DivergenceError, DivergenceGuard
    from dprp_tf.factorizing import factorize
    from dprp_tf.fine_tuning import FineTuning
    from dprp_tf.folding import FoldedLayer, FoldPlan, Form, choose_forms, fold
    from dprp_tf.latency import LatencyTable
    from dprp_tf.layers import (
        SVDConv1D,
        SVDConv2D,
        SVDConv3D,
        SVDDense,
        TuckerConv1D,
        TuckerConv2D,
        TuckerConv3D,
    )
    from dprp_tf.models import load_model
    from dprp_tf.rank_regularization import RankRegularization
    from dprp_tf.selection import Budget, BudgetError, RankPlan, select_ranks
    from dprp_tf.summaries import Summary, summary
    from dprp_tf.training import DPRPModel, DPRPSettings

__all__ = [
    "Budget",
    "BudgetError",
    "Compressed",
    "DPRPModel",
    "DPRPSettings",
    "DivergenceError",
    "DivergenceGuard",
    "FineTuning",
    "FoldPlan",
    "FoldedLayer",
    "Form",
    "LatencyTable",
    "RankHistory",
    "RankPlan",
    "RankPruning",
    "RankRegularization",
    "SVDConv1D",
    "SVDConv2D",
    "SVDConv3D",
    "SVDDense",
    "Summary",
    "TuckerConv1D",
    "TuckerConv2D",
    "TuckerConv3D",
    "bsr",
    "choose_forms",
    "cut",
    "distribution",
    "factorize",
    "fold",
    "load_model",
    "select_ranks",
    "summary",
]
__version__ = "0.1.0"

# Names are imported when first used, so that `dprp --help` does not wait for TensorFlow.
_HOMES = {
    "Budget": "selection",
    "BudgetError": "selection",
    "Compressed": "compressing",
    "DPRPModel": "training",
    "DPRPSettings": "training",
    "DivergenceError": "divergence",
    "DivergenceGuard": "divergence",
    "FineTuning": "fine_tuning",
    "FoldPlan": "folding",
    "FoldedLayer": "folding",
    "Form": "folding",
    "LatencyTable": "latency",
    "RankHistory": "callbacks",
    "RankPlan": "selection",
    "RankPruning": "callbacks",
    "RankRegularization": "rank_regularization",
    "SVDConv1D": "layers",
    "SVDConv2D": "layers",
    "SVDConv3D": "layers",
    "SVDDense": "layers",
    "Summary": "summaries",
    "TuckerConv1D": "layers",
    "TuckerConv2D": "layers",
    "TuckerConv3D": "layers",
    "bsr": "compressing",
    "choose_forms": "folding",
    "cut": "cutting",
    "distribution": "distributing",
    "factorize": "factorizing",
    "fold": "folding",
    "load_model": "models",
    "select_ranks": "selection",
    "summary": "summaries",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"dprp_tf.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dprp_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
