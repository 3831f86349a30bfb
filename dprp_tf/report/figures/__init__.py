"""The figures of a run, one a file."""

from __future__ import annotations

from dprp_tf.report.figures.benchmarks import plot_bench, save_bench_plots
from dprp_tf.report.figures.channel_plan import plot_channel_plan, save_channel_plan_plot
from dprp_tf.report.figures.cost_by_epoch import plot_cost_by_epoch
from dprp_tf.report.figures.gallery import save_plots
from dprp_tf.report.figures.rank_plan import plot_rank_plan, save_rank_plan_plot
from dprp_tf.report.figures.ranks_by_layer import plot_ranks_by_layer
from dprp_tf.report.figures.singular_values import plot_singular_values
from dprp_tf.report.figures.tradeoff import plot_tradeoff
from dprp_tf.report.figures.training import plot_training

__all__ = [
    "plot_bench",
    "plot_channel_plan",
    "plot_cost_by_epoch",
    "plot_rank_plan",
    "plot_ranks_by_layer",
    "plot_singular_values",
    "plot_tradeoff",
    "plot_training",
    "save_bench_plots",
    "save_channel_plan_plot",
    "save_plots",
    "save_rank_plan_plot",
]
