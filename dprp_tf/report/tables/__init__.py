"""The tables of a run as plain cells, so that terminal, Markdown and page say the same."""

from __future__ import annotations

from dprp_tf.report.tables.benchmarks import bench_table
from dprp_tf.report.tables.cells import Cell, Column, Table
from dprp_tf.report.tables.files import files_table
from dprp_tf.report.tables.fold_plan import plan_table
from dprp_tf.report.tables.layers import layers_table, skipped_layers_table
from dprp_tf.report.tables.measured_forms import measured_forms_table
from dprp_tf.report.tables.models import models_table
from dprp_tf.report.tables.quantization import quantization_table
from dprp_tf.report.tables.timing import timing_table

__all__ = [
    "Cell",
    "Column",
    "Table",
    "bench_table",
    "files_table",
    "layers_table",
    "measured_forms_table",
    "models_table",
    "plan_table",
    "quantization_table",
    "skipped_layers_table",
    "timing_table",
]
