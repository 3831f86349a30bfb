"""The formats that a model can be exported to, by the suffix of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.parity import ExportReport
from dprp_tf.deploy.exporters.tflite import export_tflite

__all__ = ["EXPORTERS"]

# Each takes the model and the path, the rest by keyword.
EXPORTERS: Mapping[str, Callable[..., ExportReport]] = {
    ".tflite": export_tflite,
    ".onnx": export_onnx,
}
