"""Keras models to .tflite files for LiteRT, each checked against the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dprp_tf.deploy.exporters.export_report import ExportReport
from dprp_tf.deploy.exporters.flatbuffer import Operators, in_order, read_operators
from dprp_tf.deploy.exporters.parity import ParityCheck
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.running.batches import split_batches
from dprp_tf.deploy.running.quiet import quiet
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
            operators that LiteRT does not have, or has convolutions without an int8 kernel.
        ImportError: If ai-edge-litert is missing.
        OSError: If `path` can't be written.

    Example:

    >>> import tempfile, keras
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> report = export_tflite(model, Path(tempfile.mkdtemp()) / "conv.tflite")
    >>> report.passed, report.operators
    (True, {'CONV_2D': 1})
    """
    from dprp_tf.keras_internals.unrolling import has_loops

    path = Path(path)
    _check_arguments(path, quantization, calibration_data, integer_io)
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
        content = _convert(source, quantization, check.calibration, integer_io)
        operators = read_operators(content)
        notes = _check_operators(operators, quantization)
        if quantization == "int8" and has_loops(source.model):
            notes += ("recurrent layers are unrolled, step after step, as int8 needs them",)
        temporary.write_bytes(content)
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
    source = Source.of(model)
    _require_fixed_shapes(source)
    calibration = None
    if quantization == "int8":
        calibration = source.check_data(calibration_data, "calibration_data")
    content = _convert_frozen(source, quantization, calibration, integer_io)
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


def _convert(
    source: Source,
    quantization: str | None,
    calibration: dict[str, np.ndarray] | None,
    integer_io: bool,
) -> bytes:
    import tensorflow as tf

    with quiet():
        if calibration is not None:
            source = _without_loops(source)
        function = _concrete(source, source.serve)
        if calibration is not None:
            _refuse_loops(function)
        # The converter writes a SavedModel in between, which holds what it can reach from here.
        holder = tf.Module()
        holder.variables_of_model = list(function.graph.variables)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
        samples = None if calibration is None else _by_name(calibration, source.batch)
        content = _run(converter, quantization, samples, integer_io)
        return in_order(content, list(source.inputs), source.outputs)


def _convert_frozen(
    source: Source,
    quantization: str | None,
    calibration: dict[str, np.ndarray] | None,
    integer_io: bool,
) -> bytes:
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    if calibration is not None:
        source = _without_loops(source)

    def serve(*tensors: Any) -> list[Any]:
        # A list keeps the outputs' order; a dict's would be sorted by name.
        return list(source.serve(*tensors).values())

    with quiet():
        function = _concrete(source, serve)
        if calibration is not None:
            _refuse_loops(function)
        frozen = convert_to_constants.convert_variables_to_constants_v2(function)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], None)
        samples = None if calibration is None else _by_position(calibration, source.batch)
        return _run(converter, quantization, samples, integer_io)


def _without_loops(source: Source) -> Source:
    """The model as the int8 calibrator can run it: on a loop it ends the whole process."""
    from dprp_tf.keras_internals.unrolling import has_loops, unrolled

    return replace(source, model=unrolled(source.model)) if has_loops(source.model) else source


def _refuse_loops(function: Any) -> None:
    loops = [
        operation.name
        for operation in function.graph.get_operations()
        if operation.type in ("While", "StatelessWhile")
    ]
    if loops:
        raise ValueError(
            "`model` must hold no loop for quantization='int8': LiteRT's calibrator can't run one. "
            f"Received: a loop in {', '.join(loops)}. Give the layer unroll=True where it has "
            "that, or use quantization='dynamic' or 'float16'."
        )


def _concrete(source: Source, serve: Callable[..., Any]) -> Any:
    import tensorflow as tf

    # batch axis: None -> 1, which lets the converter fold shapes and the runtime plan memory
    signature = [
        tf.TensorSpec((shape[0] or 1, *shape[1:]), dtype, name=name)
        for name, (shape, dtype) in source.inputs.items()
    ]
    return tf.function(serve, input_signature=signature, autograph=False).get_concrete_function()


def _run(
    converter: Any,
    quantization: str | None,
    samples: Callable[[], Iterator[Any]] | None,
    integer_io: bool,
) -> bytes:
    import tensorflow as tf

    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.allow_custom_ops = False
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    # Without samples the model was trained with quantizers and carries its own ranges.
    if samples is not None:
        converter.representative_dataset = samples
        int8 = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        # Integer-only targets can't run what stays in float; others get it with a note.
        converter.target_spec.supported_ops = (
            [int8] if integer_io else [int8, tf.lite.OpsSet.TFLITE_BUILTINS]
        )
    if integer_io:
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    try:
        return bytes(converter.convert())
    except Exception as error:  # the converter's exceptions share no public base class
        raise ValueError(_conversion_message(error)) from error


def _by_name(
    calibration: dict[str, np.ndarray], batch: int | None
) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    return lambda: split_batches(calibration, batch, chunk=1)


def _by_position(
    calibration: dict[str, np.ndarray], batch: int | None
) -> Callable[[], Iterator[list[np.ndarray]]]:
    def samples() -> Iterator[list[np.ndarray]]:
        for sample in split_batches(calibration, batch, chunk=1):
            yield list(sample.values())

    return samples


def _conversion_message(error: Exception) -> str:
    text = str(error)
    missing = re.findall(r"(?:TF Select|Custom) ops: ([^\n]+)", text)
    if missing:
        return (
            "`model` must need LiteRT's built-in operators alone. Received: operators that need "
            f"Flex (SELECT_TF_OPS) or a custom kernel: {', '.join(missing)}. Replace the layers "
            "that use them."
        )
    lines = [line for line in text.splitlines() if line.strip()]
    return (
        "`model` must be convertible to .tflite. Received: the converter's error: "
        f"{(lines or [type(error).__name__])[0][:300]}"
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
        ValueError: If an input has no fixed shape, the converter refuses the model, or a
            convolution would not be computed in int8.
    """
    _require_fixed_shapes(source)
    content = _convert(source, "int8", None, integer_io)
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
