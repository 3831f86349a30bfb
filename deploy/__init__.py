"""Export plain Keras models to edge runtimes, prove the files right, and time them.

Everything here works on any Functional or Sequential Keras model on the TensorFlow backend.
Importing this package loads neither TensorFlow nor a runtime; the functions do when called.
"""

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
