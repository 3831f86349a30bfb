"""Export plain Keras models to edge runtimes, prove the files right, and time them.

Everything here works on any Functional or Sequential Keras model on the TensorFlow backend.
Importing this package loads neither TensorFlow nor a runtime; the functions do when called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dprp_tf.deploy.benchmark import BenchmarkResult, Comparison, Ratio, benchmark, compare
    from dprp_tf.deploy.onnx import export_onnx
    from dprp_tf.deploy.parity import ExportReport, OutputParity, ParityError
    from dprp_tf.deploy.runtime import evaluate_file, run_file
    from dprp_tf.deploy.tflite import export_tflite

__all__ = [
    "BenchmarkResult",
    "Comparison",
    "ExportReport",
    "OutputParity",
    "ParityError",
    "Ratio",
    "benchmark",
    "compare",
    "evaluate_file",
    "export_onnx",
    "export_tflite",
    "run_file",
]

_BENCHMARK = ("BenchmarkResult", "Comparison", "Ratio", "compare")
_HOMES = {
    **dict.fromkeys(_BENCHMARK, "benchmark"),
    **dict.fromkeys(("ExportReport", "OutputParity", "ParityError"), "parity"),
    **dict.fromkeys(("evaluate_file", "run_file"), "runtime"),
    "export_onnx": "onnx",
    "export_tflite": "tflite",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
