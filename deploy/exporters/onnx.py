"""Keras models to .onnx files, each checked against the model with ONNX Runtime."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dprp_tf.deploy.exporters.export_report import ExportReport
from dprp_tf.deploy.exporters.onnx_operators import operator_handlers, unknown_operators
from dprp_tf.deploy.exporters.parity import ParityCheck
from dprp_tf.deploy.exporters.source import Source
from dprp_tf.deploy.running.batches import split_batches
from dprp_tf.deploy.running.quiet import quiet
from dprp_tf.files.arguments import check_choice, check_integer
from dprp_tf.files.atomic import atomic_path
from dprp_tf.files.extras import require

if TYPE_CHECKING:
    import keras

__all__ = ["OnnxQuantization", "convert_onnx", "export_onnx"]

OnnxQuantization = Literal["float16", "int8"]

_QUANTIZATIONS = (None, "float16", "int8")
_OPSETS = (13, 18)
_CALIBRATION_BATCH = 32
_SMALLEST_HALF = 1024  # elements; below, a Cast node weighs more than what it saves
_WITH_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def export_onnx(
    model: keras.Model,
    path: str | Path,
    *,
    quantization: OnnxQuantization | None = None,
    calibration_data: Any = None,
    verification_data: Any = None,
    class_scores: bool | str | Sequence[str] | None = None,
    tolerance: float | None = None,
    minimum_agreement: float | None = None,
    opset: int = 17,
) -> ExportReport:
    """Write a Keras model as an .onnx file and prove that the file computes the same.

    The file takes any batch size (unless the model's own computation is bound to one), keeps the
    names of the model's inputs and outputs and their channels-last layout, and uses standard ONNX
    operators alone. It is written beside `path`, checked with `onnx.checker`, run in ONNX Runtime,
    and renamed only if its outputs agree.

    An int8 file holds QuantizeLinear and DequantizeLinear pairs around each operator, with one
    scale per output channel for weights (int8) and one per tensor for activations (uint8, the
    type for which ONNX Runtime has its fast kernels); inputs and outputs stay float32. x86
    processors without VNNI may saturate in such sums; the comparison would show it.

    Args:
        model: A built Functional or Sequential model without low-rank layers.
        path: The file to write; ends in `.onnx`.
        verification_data: Inputs to compare on: an array `(samples, ...)`, or a list or dict of
            them for several inputs. Defaults to `calibration_data`, else to seeded random inputs;
            the report says which.
        opset: Version of the ONNX operator set, 13 to 18. Defaults to 17.
        class_scores: Names of the outputs whose channels are scores of classes; true for all,
            false for none. Defaults to those that a softmax gives and those that the model was
            compiled with a categorical loss for.
        tolerance: Largest allowed error as a share of a channel's own range, 0 or more. Defaults
            to 1e-4 (float32), 1e-2 (float16), 0.25 (int8); in int8 class scores have limits on
            their noise instead; see `compare_output` in `agreement.py`.
        quantization: `None` keeps float32; `"float16"` stores weights in half precision, which
            ONNX Runtime widens when it loads the file (half the size, same speed); `"int8"`
            computes in 8 bits with ranges from `calibration_data`. Defaults to `None`.
        calibration_data: Typical inputs, 100 or more, in the forms of `verification_data`.
            Required for `"int8"`.
        minimum_agreement: Required share of samples with the same top-1 class, 0 to 1. Defaults
            to 0.95 for class scores in int8; else none is required.

    Returns:
        The figures of the comparison, size and operators.

    Raises:
        ParityError: If the outputs differ by more than allowed; nothing is left at `path`.
        ValueError: If an argument does not fit, the model holds low-rank layers, or it
            needs operators that ONNX does not have.
        ImportError: If onnx, onnxruntime or tf2onnx is missing.
        OSError: If `path` can't be written.

    Example:

    >>> import tempfile, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> export_onnx(model, Path(tempfile.mkdtemp()) / "dense.onnx").passed
    True
    """
    from dprp_tf.conversion.chosen_forms import form_doubts

    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"`path` must end in .onnx. Received: path={path}.")
    _check_arguments(quantization, calibration_data, opset)
    with atomic_path(path) as temporary:
        source = Source.of(model)
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
        converted = _convert(source, quantization, check.calibration, opset)
        temporary.write_bytes(converted.SerializeToString())
        _check_file(temporary)
        operators = dict(Counter(node.op_type for node in converted.graph.node))
        notes = _in_float(temporary) if quantization == "int8" else ()
        notes += form_doubts(model, "onnxruntime", quantization or "float32")
        return check.compare(temporary, path, operators, notes)


def convert_onnx(
    model: keras.Model,
    *,
    quantization: OnnxQuantization | None = None,
    calibration_data: Any = None,
    opset: int = 17,
) -> bytes:
    """Convert a Keras model to the bytes of an .onnx file, without verifying them.

    For networks that are only timed; the content is that of `export_onnx`'s file, which is what
    ships.

    Args:
        model: A built Functional or Sequential model without low-rank layers.
        quantization: `None`, `"float16"` or `"int8"`, as in `export_onnx`. Defaults to `None`.
        calibration_data: Inputs for `"int8"`; random ones do for timing.
        opset: Version of the ONNX operator set, 13 to 18. Defaults to 17.

    Returns:
        The file's content; it takes any batch size.

    Raises:
        ValueError: As `export_onnx` does, parity aside.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> len(convert_onnx(model)) > 100
    True
    """
    _check_arguments(quantization, calibration_data, opset)
    source = Source.of(model)
    calibration = _calibration(source, quantization, calibration_data)
    return bytes(_convert(source, quantization, calibration, opset).SerializeToString())


def _check_arguments(quantization: str | None, calibration_data: Any, opset: int) -> None:
    check_choice("quantization", quantization, _QUANTIZATIONS)
    if quantization == "int8" and calibration_data is None:
        raise ValueError(
            "`calibration_data` must be given for quantization='int8': typical inputs, 100 or "
            "more, such as the first training images. Received: calibration_data=None."
        )
    check_integer("opset", opset, *_OPSETS)
    with quiet():
        for module in ("onnx", "onnxruntime", "tf2onnx"):
            require(module, extra="export", feature="Writing an .onnx file")


def _calibration(
    source: Source, quantization: str | None, calibration_data: Any
) -> dict[str, np.ndarray] | None:
    if quantization != "int8":
        return None
    return source.check_data(calibration_data, "calibration_data")


def _convert(
    source: Source,
    quantization: str | None,
    calibration: dict[str, np.ndarray] | None,
    opset: int,
) -> Any:
    with _converting():
        import tf2onnx

        graph, inputs, outputs = _frozen(source)
        converted, _ = tf2onnx.convert.from_graph_def(
            graph,
            name=source.model.name,
            input_names=list(inputs),
            output_names=list(outputs),
            tensors_to_rename={**inputs, **outputs},
            opset=opset,
            custom_op_handlers=operator_handlers(),
        )
    # Before anything runs it: runtimes tell of the first operator alone, as a broken file.
    _require_known(converted, opset)
    with _converting():
        if calibration is not None:
            converted = _quantized(converted, calibration, source.batch)
        elif quantization == "float16":
            converted = _halved(converted)
    _require_known(converted, opset)
    return converted


@contextlib.contextmanager
def _converting() -> Iterator[None]:
    with quiet():
        try:
            yield
        except Exception as error:  # the converters raise whatever their handlers raise
            raise _refusal(error) from error


def _require_known(converted: Any, opset: int) -> None:
    unknown = unknown_operators(converted, opset)
    if unknown:
        raise ValueError(
            "`model` must need standard ONNX operators alone. Received: operators that ONNX lacks, "
            f"in opset {opset}: {', '.join(unknown)}. Replace the layers that use them, or export "
            "to .tflite if LiteRT has them."
        )


def _frozen(source: Source) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Trace the model with all that it captures, variables and tensors alike, as constants.

    Returns:
        The graph, and names of its input and output tensors to names in the file.
    """
    import tensorflow as tf
    import tf2onnx

    signature = [
        tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in source.inputs.items()
    ]
    with _inlined():
        concrete = tf.function(source.serve, autograph=False).get_concrete_function(*signature)
    # What is captured stands behind the arguments.
    arguments = concrete.inputs[: len(signature)]
    inputs = {tensor.name: name for tensor, name in zip(arguments, source.inputs, strict=True)}
    outputs = {concrete.structured_outputs[name].name: name for name in source.outputs}
    graph = tf2onnx.tf_loader.from_function(concrete, list(inputs), list(outputs))
    return graph, inputs, outputs


@contextlib.contextmanager
def _inlined() -> Iterator[None]:
    """Trace functions within functions in place.

    Keras compiles grouped convolutions with XLA, in a function that tf2onnx would leave in the
    file as a call that no runtime knows.
    """
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _quantized(converted: Any, calibration: dict[str, np.ndarray], batch: int | None) -> Any:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        original, plain, target = (Path(folder) / f"{n}.onnx" for n in ("float", "plain", "int8"))
        # Through a file: handed over in memory, models beyond a few tensors fail.
        onnx.save(converted, str(original))
        # Batch normalizations left over by the converter are folded here. Symbolic shapes would
        # need another package and matter to transformers alone.
        quant_pre_process(str(original), str(plain), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(plain),
            str(target),
            _reader(split_batches(calibration, batch, _CALIBRATION_BATCH)),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # Measured on x86: int8 activations leave every convolution before an addition in
            # float32 and take twice the time; accuracy is the same.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(str(target))


def _reader(batches: Iterator[dict[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    return Reader()


def _halved(converted: Any) -> Any:
    """Store large weights in float16, each behind a Cast that the runtime folds on loading."""
    import onnx
    from onnx import numpy_helper

    graph = converted.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _SMALLEST_HALF:
            continue
        wide, narrow = tensor.name, f"{tensor.name}_float16"
        # Beyond float16's range becomes infinite, which the parity check refuses.
        with np.errstate(over="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), narrow))
        casts.append(onnx.helper.make_node("Cast", [narrow], [wide], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return converted


def _check_file(temporary: Path) -> None:
    import onnx

    with quiet():
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except Exception as error:  # the checker's and the shape inference's share no base
            raise _refusal(error) from error


def _in_float(temporary: Path) -> tuple[str, ...]:
    """Ask the runtime itself which weighted operators it computes in float32 all the same."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The level above rewrites to this processor's layouts, which says nothing of precision.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        with quiet():
            onnxruntime.InferenceSession(
                str(temporary), options, providers=["CPUExecutionProvider"]
            )
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    counts = Counter(node.op_type for node in nodes)
    names = [f"{name} x{counts[name]}" for name in sorted(_WITH_WEIGHTS) if counts[name]]
    return (f"ONNX Runtime computes in float32: {', '.join(names)}",) if names else ()


def _refusal(error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    return ValueError(
        "`model` must be convertible to standard ONNX operators. Received: the converter's error: "
        f"{reason}"
    )
