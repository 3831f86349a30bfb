"""Ranks for the layers of a model, chosen against a budget."""

from dprp_tf.costs.allocation import Allocation, allocate_ranks
from dprp_tf.costs.budget import METRICS, Budget, BudgetError
from dprp_tf.costs.rank_plan import PlannedRanks, RankPlan
from dprp_tf.costs.rank_space import Cost, LayerChoices, Ranks, RankSpace
from dprp_tf.selection.candidate_log import CandidateLog
from dprp_tf.selection.methods.activation import ActivationAware
from dprp_tf.selection.methods.beam import BeamSearch, CostBeamSearch
from dprp_tf.selection.methods.energy import Energy, EnergyProduct
from dprp_tf.selection.methods.similarity import FeatureSimilarity
from dprp_tf.selection.methods.uniform import Uniform
from dprp_tf.selection.methods.vbmf import VariationalBayes
from dprp_tf.selection.scoring.evaluator import CandidateEvaluator, Evaluation
from dprp_tf.selection.selecting import SELECTORS, select_ranks
from dprp_tf.selection.selector import Problem, Selection, Selector
from dprp_tf.selection.solving.filling import fill

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
