"""What a run achieved: tables, plots and one HTML page."""

from __future__ import annotations

from dprp_tf.report.bench_plot import plot_bench, save_bench_plots
from dprp_tf.report.html import write_report
from dprp_tf.report.plots import (
    NothingToPlotError,
    plot_cost_by_epoch,
    plot_ranks_by_layer,
    plot_singular_values,
    plot_tradeoff,
    plot_training,
    save_plots,
)
from dprp_tf.report.rank_plan import plot_rank_plan, save_rank_plan_plot
from dprp_tf.report.tables import bench_report, results_markdown, results_table

__all__ = [
    "NothingToPlotError",
    "bench_report",
    "plot_bench",
    "plot_cost_by_epoch",
    "plot_rank_plan",
    "plot_ranks_by_layer",
    "plot_singular_values",
    "plot_tradeoff",
    "plot_training",
    "results_markdown",
    "results_table",
    "save_bench_plots",
    "save_plots",
    "save_rank_plan_plot",
    "write_report",
]
