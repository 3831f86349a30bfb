"""One door for every format: the file's suffix says which."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.deploy.exporters.export_report import ExportReport
from dprp_tf.deploy.exporters.onnx import export_onnx
from dprp_tf.deploy.exporters.tflite import export_tflite

if TYPE_CHECKING:
    import keras

__all__ = ["EXPORTERS", "export"]

EXPORTERS: Mapping[str, Callable[..., ExportReport]] = {
    ".onnx": export_onnx,
    ".tflite": export_tflite,
}


def export(
    model: keras.Model,
    path: str | Path,
    *,
    quantization: str | None = None,
    calibration_data: Any = None,
    verification_data: Any = None,
    class_scores: bool | str | Sequence[str] | None = None,
    tolerance: float | None = None,
    minimum_agreement: float | None = None,
    **options: Any,
) -> ExportReport:
    """Write a plain Keras model as a file for an edge runtime and prove that it computes the same.

    The file is written beside `path`, run on the verification inputs, and renamed only if its
    outputs agree with the model's: every channel by its own range; see `compare_output` in
    `deploy/exporters/agreement.py` for the limits.

    Args:
        model: A built Functional or Sequential model without low-rank layers, such as `fold`
            returns. Layers of your own are traced as they are called.
        path: The file to write; `.tflite` for LiteRT, `.onnx` for ONNX Runtime.
        quantization: `None` keeps float32, `"float16"` stores weights in half precision, `"int8"`
            computes in 8 bits with ranges from `calibration_data`; `.tflite` has `"dynamic"` too:
            int8 weights, activations quantized on the fly. Default None.
        calibration_data: Typical inputs, 100 or more, as an array `(samples, ...)`, or a list or
            dict of them for several inputs. Required for `"int8"`. Default: none.
        verification_data: Inputs to compare on, in the same form, other than those to calibrate
            on. Default: `calibration_data`, else seeded random inputs; the report says which.
        class_scores: Names of the outputs whose channels are scores of classes; true for all,
            false for none. Default: those that a softmax gives, and those that the model was
            compiled with a categorical loss for, as is a folded or cut model whose original was.
        tolerance: Largest allowed error as a share of a channel's own range, 0 or more. Default:
            1e-4 (float32), 1e-2 (float16), 0.25 (dynamic, int8); in 8 bits class scores have
            limits on their noise instead, and every channel of every output has one.
        minimum_agreement: Required share of samples with the same top-1 class, 0 to 1. Default:
            0.95 for class scores in 8 bits; else none is required.
        **options: What one format alone takes: `integer_io` of `.tflite`, `opset` of `.onnx`; see
            `export_tflite` and `export_onnx` in `dprp_tf.deploy.exporters`.

    Returns:
        The figures of the comparison, size and operators.

    Raises:
        ParityError: If the outputs differ by more than allowed; nothing is left at `path`.
        ValueError: If the suffix is unknown, an argument does not fit, the model holds
            low-rank layers, or it needs operators that the runtime does not have.
        OSError: If `path` can't be written.

    Example:

    >>> import tempfile, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> export(model, Path(tempfile.mkdtemp()) / "dense.tflite").passed
    True
    """
    path = Path(path)
    if path.suffix.lower() not in EXPORTERS:
        raise ValueError(f"`path` must end in one of {sorted(EXPORTERS)}. Received: path={path}.")
    exporter = EXPORTERS[path.suffix.lower()]
    unknown = sorted(set(options) - set(inspect.signature(exporter).parameters))
    if unknown:
        raise ValueError(
            f"`export` to {path.suffix} must be given options that the format has. Received: "
            f"{', '.join(unknown)}; see {exporter.__name__}."
        )
    return exporter(
        model,
        path,
        quantization=quantization,
        calibration_data=calibration_data,
        verification_data=verification_data,
        class_scores=class_scores,
        tolerance=tolerance,
        minimum_agreement=minimum_agreement,
        **options,
    )
