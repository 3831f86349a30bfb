"""Keras models to .tflite files for LiteRT, each checked against the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dprp_tf.deploy.exporters.conversion_process import CONVERTER
from dprp_tf.deploy.exporters.converting import Conversion
from dprp_tf.deploy.exporters.export_report import ExportReport
from dprp_tf.deploy.exporters.flatbuffer import Operators, read_operators
from dprp_tf.deploy.exporters.parity import ParityCheck
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.files.arguments import check_choice
from dprp_tf.files.atomic import atomic_path
from dprp_tf.files.extras import require

if TYPE_CHECKING:
    import keras

__all__ = [
    "Quantization",
    "convert_tflite",
    "convert_trained",
    "export_tflite",
]

Quantization = Literal["float16", "dynamic", "int8"]

_QUANTIZATIONS = (None, "float16", "dynamic", "int8")


def export_tflite(
    model: keras.Model,
    path: str | Path,
    *,
    quantization: Quantization | None = None,
    calibration_data: Any = None,
    verification_data: Any = None,
    class_scores: bool | str | Sequence[str] | None = None,
    tolerance: float | None = None,
    minimum_agreement: float | None = None,
    integer_io: bool = False,
) -> ExportReport:
    """Write a Keras model as a .tflite file and prove that the file computes the same.

    The file takes a batch of 1 (or the only one that the model computes with), uses LiteRT's
    built-in operators alone (no Flex, no custom ones), and keeps the names of the model's inputs
    and outputs. It is written beside `path`, run on the verification inputs, and renamed only if
    its outputs agree.

    Args:
        model: A built Functional or Sequential model without low-rank layers.
        path: The file to write; ends in `.tflite`.
        quantization: `None` keeps float32; `"float16"` stores weights in half precision (half
            the size); `"dynamic"` stores larger weights in int8 and computes with activations
            quantized on the fly (a quarter of the size); `"int8"` computes in int8 throughout
            with ranges from `calibration_data`. Defaults to `None`.
        calibration_data: Typical inputs, 100 or more, as an array `(samples, ...)`, or a list or
            dict of them for several inputs. Required for `"int8"`.
        verification_data: Inputs to compare on, in the same form. Defaults to
            `calibration_data`, else to seeded random inputs; the report says which.
        class_scores: Names of the outputs whose channels are scores of classes; true for all,
            false for none. Defaults to those that a softmax gives and those that the model was
            compiled with a categorical loss for.
        tolerance: Largest allowed error as a share of a channel's own range, 0 or more. Defaults
            to 1e-4 (float32), 1e-2 (float16), 0.25 (dynamic, int8); in 8 bits class scores have
            limits on their noise instead; see `compare_output` in `agreement.py`.
        minimum_agreement: Required share of samples with the same top-1 class, 0 to 1. Defaults
            to 0.95 for class scores in 8 bits; else none is required.
        integer_io: For `"int8"` only: the file's inputs and outputs are int8 too, instead of
            float32 with conversions inside. Defaults to `False`.

    Returns:
        The figures of the comparison, size and operators.

    Raises:
        ParityError: If the outputs differ by more than allowed; nothing is left at `path`.
        ValueError: If an argument does not fit, the model holds low-rank layers, needs
            operators that LiteRT does not have, has convolutions without an int8 kernel, or a
            layer on which the converter crashes: it runs in a process of its own.
        ImportError: If ai-edge-litert is missing.
        OSError: If `path` can't be written.

    Example:

    >>> import tempfile, keras
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> report = export_tflite(model, Path(tempfile.mkdtemp()) / "conv.tflite")
    >>> report.passed, report.operators
    (True, {'CONV_2D': 1})
    """
    from dprp_tf.conversion.chosen_forms import form_doubts
    from dprp_tf.keras_internals.unrolling import has_loops

    path = Path(path)
    _check_arguments(path, quantization, calibration_data, integer_io)
    CONVERTER.start()  # it takes seconds, in which the model is checked and traced
    with atomic_path(path) as temporary:
        source = Source.of(model)
        _require_fixed_shapes(source)
        check = ParityCheck.of(
            model,
            source,
            quantization=quantization,
            calibration_data=calibration_data,
            verification_data=verification_data,
            class_scores=class_scores,
            tolerance=tolerance,
            minimum_agreement=minimum_agreement,
        )
        content = Conversion(quantization, integer_io).convert(source, check.calibration)
        operators = read_operators(content)
        notes = _check_operators(operators, quantization)
        if quantization == "int8" and has_loops(source.model):
            notes += ("recurrent layers are unrolled, step after step, as int8 needs them",)
        temporary.write_bytes(content)
        notes += form_doubts(model, "litert", quantization or "float32")
        return check.compare(temporary, path, operators.counts, notes)


def convert_tflite(
    model: keras.Model,
    *,
    quantization: Quantization | None = None,
    calibration_data: Any = None,
    integer_io: bool = False,
) -> bytes:
    """Convert a Keras model to the bytes of a .tflite file, without verifying them.

    For networks that are only timed: the kernels are those of `export_tflite`'s file, but there
    is no signature, which saves half of the time (about 0.06 s for one convolution): outputs are
    named `Identity`, `Identity_1`, ... in the model's order. What ships, `export_tflite` writes.

    Args:
        model: A built Functional or Sequential model without low-rank layers.
        quantization: `None`, `"float16"`, `"dynamic"` or `"int8"`, as in `export_tflite`.
            Defaults to `None`.
        calibration_data: Inputs for `"int8"`, in the forms of `export_tflite`; random ones do for
            timing.
        integer_io: For `"int8"` only: int8 inputs and outputs. Defaults to `False`.

    Returns:
        The file's content; it takes a batch of 1.

    Raises:
        ValueError: As `export_tflite` does, parity aside.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> convert_tflite(model)[4:8]
    b'TFL3'
    """
    _check_quantization(quantization, calibration_data, integer_io)
    CONVERTER.start()
    source = Source.of(model)
    _require_fixed_shapes(source)
    calibration = None
    if quantization == "int8":
        calibration = source.check_data(calibration_data, "calibration_data")
    content = Conversion(quantization, integer_io, named=False).convert(source, calibration)
    _check_operators(read_operators(content), quantization)
    return content


def _check_arguments(
    path: Path, quantization: str | None, calibration_data: Any, integer_io: bool
) -> None:
    if path.suffix.lower() != ".tflite":
        raise ValueError(f"`path` must end in .tflite. Received: path={path}.")
    _check_quantization(quantization, calibration_data, integer_io)


def _check_quantization(quantization: str | None, calibration_data: Any, integer_io: bool) -> None:
    check_choice("quantization", quantization, _QUANTIZATIONS)
    if quantization == "int8" and calibration_data is None:
        raise ValueError(
            "`calibration_data` must be given for quantization='int8': typical inputs, 100 or "
            "more, such as the first training images. Received: calibration_data=None."
        )
    if integer_io and quantization != "int8":
        raise ValueError(
            "`integer_io` needs quantization='int8'. Received: integer_io=True, "
            f"quantization={quantization!r}."
        )
    # Before the conversion, which may take minutes and whose result is read with it.
    require("ai_edge_litert", extra="export", feature="Writing a .tflite file")


def _require_fixed_shapes(source: Source) -> None:
    for name, (shape, _) in source.inputs.items():
        if None in shape[1:]:
            raise ValueError(
                "`model` must have inputs of fixed shape for a .tflite file. Received: input "
                f"{name!r} of shape {shape}. Rebuild it on a fixed keras.Input, e.g. with "
                "keras.models.clone_model(model, input_tensors=keras.Input((96, 96, 3)))."
            )


def convert_trained(
    source: Source, integer_io: bool = False
) -> tuple[bytes, Operators, tuple[str, ...]]:
    """Convert a model that was trained with quantizers to the bytes of an int8 .tflite file.

    Args:
        source: The model, with ranges of its own for every tensor.
        integer_io: Inputs and outputs are int8 too. Defaults to `False`.

    Returns:
        The file's content, its operators, and notes on what stays in float32.

    Raises:
        ValueError: If an input has no fixed shape, the converter refuses the model or crashes on
            a layer, or a convolution would not be computed in int8.
    """
    _require_fixed_shapes(source)
    content = Conversion("int8", integer_io).convert(source, None)
    operators = read_operators(content)
    return content, operators, _check_operators(operators, "int8")


def _check_operators(operators: Operators, quantization: str | None) -> tuple[str, ...]:
    if operators.foreign:
        raise ValueError(
            "`model` must need LiteRT's built-in operators alone. Received: operators that need "
            f"Flex (SELECT_TF_OPS) or a custom kernel: {', '.join(operators.foreign)}. Replace "
            "the layers that use them."
        )
    if quantization == "int8" and operators.not_int8:
        raise ValueError(
            "`model` must hold convolutions and dense layers that LiteRT computes in int8. "
            f"Received: {', '.join(sorted(set(operators.not_int8)))} after conversion (LiteRT has "
            "no int8 kernel for Conv3D). Use quantization='dynamic' or 'float16'."
        )
    if quantization == "int8" and operators.in_float:
        names = sorted(set(operators.in_float))
        return (f"stays in float32, for want of int8 kernels: {', '.join(names)}",)
    if quantization == "dynamic" and "INT8" not in operators.weight_types:
        return (
            "no weight was quantized: the converter leaves tensors of fewer than 1,024 elements, "
            "and those of Conv3D, in float32",
        )
    return ()
