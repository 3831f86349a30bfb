"""Low-rank CNNs for Keras: ranks that fall during training, folded into plain fast layers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dprp_tf.callbacks import RankHistory, RankPruning
    from dprp_tf.distributing import distribution
    from dprp_tf.divergence import DivergenceError, DivergenceGuard
    from dprp_tf.factorizing import factorize
    from dprp_tf.folding import FoldedLayer, FoldPlan, Form, choose_forms, fold
    from dprp_tf.latency import LatencyTable
    from dprp_tf.layers import SVDConv1D, SVDConv2D, SVDConv3D, SVDDense
    from dprp_tf.models import load_model
    from dprp_tf.summaries import Summary, summary
    from dprp_tf.training import DPRPModel, DPRPSettings

__all__ = [
    "DPRPModel",
    "DPRPSettings",
    "DivergenceError",
    "DivergenceGuard",
    "FoldPlan",
    "FoldedLayer",
    "Form",
    "LatencyTable",
    "RankHistory",
    "RankPruning",
    "SVDConv1D",
    "SVDConv2D",
    "SVDConv3D",
    "SVDDense",
    "Summary",
    "choose_forms",
    "distribution",
    "factorize",
    "fold",
    "load_model",
    "summary",
]
__version__ = "0.1.0"

# Names are imported when first used, so that `dprp --help` does not wait for TensorFlow.
_HOMES = {
    "DPRPModel": "training",
    "DPRPSettings": "training",
    "DivergenceError": "divergence",
    "DivergenceGuard": "divergence",
    "FoldPlan": "folding",
    "FoldedLayer": "folding",
    "Form": "folding",
    "LatencyTable": "latency",
    "RankHistory": "callbacks",
    "RankPruning": "callbacks",
    "SVDConv1D": "layers",
    "SVDConv2D": "layers",
    "SVDConv3D": "layers",
    "SVDDense": "layers",
    "Summary": "summaries",
    "choose_forms": "folding",
    "distribution": "distributing",
    "factorize": "factorizing",
    "fold": "folding",
    "load_model": "models",
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
