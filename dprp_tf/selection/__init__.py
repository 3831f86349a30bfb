"""Ranks for the layers of a model, chosen against a budget."""

from dprp_tf.selection.activation import ActivationAware
from dprp_tf.selection.allocation import Allocation, allocate_ranks
from dprp_tf.selection.beam import BeamSearch, CostBeamSearch
from dprp_tf.selection.budget import METRICS, Budget, BudgetError
from dprp_tf.selection.energy import Energy, EnergyProduct
from dprp_tf.selection.evaluator import CandidateEvaluator, Evaluation
from dprp_tf.selection.filling import fill
from dprp_tf.selection.log import CandidateLog
from dprp_tf.selection.plan import PlannedRanks, RankPlan
from dprp_tf.selection.selecting import SELECTORS, select_ranks
from dprp_tf.selection.selector import Problem, Selection, Selector
from dprp_tf.selection.similarity import FeatureSimilarity
from dprp_tf.selection.space import Cost, LayerChoices, Ranks, RankSpace
from dprp_tf.selection.uniform import Uniform
from dprp_tf.selection.vbmf import VariationalBayes

__all__ = [
    "METRICS",
    "SELECTORS",
    "ActivationAware",
    "Allocation",
    "BeamSearch",
    "Budget",
    "BudgetError",
    "CandidateEvaluator",
    "CandidateLog",
    "Cost",
    "CostBeamSearch",
    "Energy",
    "EnergyProduct",
    "Evaluation",
    "FeatureSimilarity",
    "LayerChoices",
    "PlannedRanks",
    "Problem",
    "RankPlan",
    "RankSpace",
    "Ranks",
    "Selection",
    "Selector",
    "Uniform",
    "VariationalBayes",
    "allocate_ranks",
    "fill",
    "select_ranks",
]
