"""Ranks for the layers of a model, chosen against a budget."""

from dprp_tf.selection.allocation import Allocation, BudgetError, allocate_ranks

__all__ = ["Allocation", "BudgetError", "allocate_ranks"]
