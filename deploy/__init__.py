"""Export plain Keras models to edge runtimes, prove the files right, and time them.

Everything here works on any Functional or Sequential Keras model on the TensorFlow backend.
Importing this package loads neither TensorFlow nor a runtime; the functions do when called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dprp_tf.deploy.exporters.agreement import OutputParity
from dprp_tf.deploy.exporters.export_report import ExportReport, ParityError, compressed_size
from dprp_tf.deploy.exporters.exporting import export
from dprp_tf.deploy.measurement.benchmark import (
    BenchmarkResult,
    Comparison,
    Ratio,
    benchmark,
    compare,
    measure_files,
)
from dprp_tf.deploy.measurement.gate import GateReport, gate
from dprp_tf.deploy.packaging.packaging import Package, package
from dprp_tf.deploy.running.runtime import evaluate_file, run_file
from dprp_tf.deploy.targets import Target, TargetError, resolve_target

if TYPE_CHECKING:
    from dprp_tf.deploy.planning.latencies import measure_latency
    from dprp_tf.deploy.planning.planner import plan_fold
    from dprp_tf.deploy.planning.width_latencies import measure_widths
    from dprp_tf.deploy.quantization.training import (
        QuantizedModel,
        cluster_weights,
        sparsify,
        train_quantized,
    )

__all__ = [
    "BenchmarkResult",
    "Comparison",
    "ExportReport",
    "GateReport",
    "OutputParity",
    "Package",
    "ParityError",
    "QuantizedModel",
    "Ratio",
    "Target",
    "TargetError",
    "benchmark",
    "cluster_weights",
    "compare",
    "compressed_size",
    "evaluate_file",
    "export",
    "gate",
    "measure_files",
    "measure_latency",
    "measure_widths",
    "package",
    "plan_fold",
    "resolve_target",
    "run_file",
    "sparsify",
    "train_quantized",
]

# These need Keras to be there: imported when first used.
_HOMES = {
    "QuantizedModel": "quantization.training",
    "cluster_weights": "quantization.training",
    "measure_latency": "planning.latencies",
    "measure_widths": "planning.width_latencies",
    "plan_fold": "planning.planner",
    "sparsify": "quantization.training",
    "train_quantized": "quantization.training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"dprp_tf.deploy.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dprp_tf.deploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
