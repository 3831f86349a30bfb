"""What a run achieved: tables, plots and one HTML page."""

from __future__ import annotations

from dprp_tf.report.errors import NothingToPlotError
from dprp_tf.report.figures import (
    plot_bench,
    plot_channel_plan,
    plot_cost_by_epoch,
    plot_rank_plan,
    plot_ranks_by_layer,
    plot_singular_values,
    plot_tradeoff,
    plot_training,
    save_bench_plots,
    save_channel_plan_plot,
    save_plots,
    save_rank_plan_plot,
)
from dprp_tf.report.markdown import results_markdown
from dprp_tf.report.page import write_report
from dprp_tf.report.terminal import bench_report, results_table

__all__ = [
    "NothingToPlotError",
    "bench_report",
    "plot_bench",
    "plot_channel_plan",
    "plot_cost_by_epoch",
    "plot_rank_plan",
    "plot_ranks_by_layer",
    "plot_singular_values",
    "plot_tradeoff",
    "plot_training",
    "results_markdown",
    "results_table",
    "save_bench_plots",
    "save_channel_plan_plot",
    "save_plots",
    "save_rank_plan_plot",
    "write_report",
]
