"""Keras models to .onnx files, each checked against the model with ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dprp_tf.atomic import atomic_path
from dprp_tf.deploy.parity import ExportReport, check_limits, check_parity, verification_inputs
from dprp_tf.deploy.quiet import quiet
from dprp_tf.deploy.runtime import load_file
from dprp_tf.deploy.source import Source

if TYPE_CHECKING:
    import keras

__all__ = ["export_onnx"]

_OPSETS = (13, 18)
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


def export_onnx(
    model: keras.Model,
    path: str | Path,
    verification_data: Any = None,
    opset: int = 17,
    tolerance: float | None = None,
) -> ExportReport:
    """Write a Keras model as an .onnx file and prove that the file computes the same.

    The file takes any batch size, keeps the names of the model's inputs and outputs and their
    channels-last layout, and uses standard ONNX operators alone. It is written beside `path`,
    checked with `onnx.checker`, run in ONNX Runtime, and renamed only if its outputs agree.

    Args:
        model: A built Functional or Sequential model of Keras' own layers.
        path: The file to write; ends in `.onnx`.
        verification_data: Inputs to compare on: an array `(samples, ...)`, or a list or dict of
            them for several inputs. Defaults to seeded random inputs; the report says which.
        opset: Version of the ONNX operator set, 13 to 18. Defaults to 17.
        tolerance: Largest allowed error as a share of the output's scale, 0 or more. Defaults
            to 1e-4.

    Returns:
        The figures of the comparison, size and operators.

    Raises:
        ParityError: If the outputs differ by more than allowed; nothing is left at `path`.
        ValueError: If an argument does not fit, the model holds layers from outside Keras, or it
            needs operators that ONNX does not have.
        OSError: If `path` can't be written.

    Example:

    >>> import tempfile, keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> export_onnx(model, Path(tempfile.mkdtemp()) / "dense.onnx").passed
    True
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"`path` must end in .onnx. Received: path={path}.")
    if not _OPSETS[0] <= opset <= _OPSETS[1]:
        raise ValueError(
            f"`opset` must lie in {_OPSETS[0]}..{_OPSETS[1]}. Received: opset={opset}."
        )
    check_limits(tolerance, None)
    with atomic_path(path) as temporary:
        source = Source.of(model)
        inputs, origin = verification_inputs(source, verification_data)
        reference = source.predict(inputs)
        operators = _convert(source, temporary, opset)
        return check_parity(
            reference,
            load_file(temporary).run(inputs),
            temporary=temporary,
            path=path,
            format="onnx",
            precision="float32",
            inputs=origin,
            operators=operators,
            tolerance=tolerance,
            notes=source.notes,
        )


def _convert(source: Source, temporary: Path, opset: int) -> dict[str, int]:
    import onnx
    import tensorflow as tf

    signature = [
        tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in source.inputs.items()
    ]
    with quiet():
        import tf2onnx

        try:
            converted, _ = tf2onnx.convert.from_function(
                tf.function(source.serve), input_signature=signature, opset=opset
            )
            onnx.save(converted, str(temporary))
            onnx.checker.check_model(str(temporary), full_check=True)
        except Exception as error:  # the converter raises whatever its handlers raise
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                "`model` must be convertible to standard ONNX operators. Received: the "
                f"converter's error: {reason}"
            ) from error
    graph = converted.graph
    foreign = sorted({node.op_type for node in graph.node if node.domain not in _DOMAINS})
    if foreign:
        raise ValueError(
            "`model` must need standard ONNX operators alone. Received: "
            f"{', '.join(foreign)}. Replace the layers that use them."
        )
    return dict(Counter(node.op_type for node in graph.node))
