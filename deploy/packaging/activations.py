"""Which outputs of a file are probabilities: the operator that computes each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dprp_tf.deploy.running.runtime import RuntimeModel
from dprp_tf.files.extras import require

__all__ = ["output_activations"]

# What neither changes values nor order.
_PASSED = frozenset({"DEQUANTIZE", "QUANTIZE", "DequantizeLinear", "QuantizeLinear", "Identity"})
_NAMES = {"SOFTMAX": "SOFTMAX", "LOGISTIC": "LOGISTIC", "Softmax": "SOFTMAX", "Sigmoid": "LOGISTIC"}


def output_activations(model: RuntimeModel) -> dict[str, str]:
    """Find the outputs that a softmax or a sigmoid computes.

    Args:
        model: The file, loaded.

    Returns:
        Output name to `"SOFTMAX"` or `"LOGISTIC"`; others are left out.

    Raises:
        ImportError: If the package that reads such files is missing.

    Example:

    >>> import tempfile, keras
    >>> from pathlib import Path
    >>> from dprp_tf.deploy import export
    >>> from dprp_tf.deploy.running.runtime import load_file
    >>> layers = [keras.Input((4,)), keras.layers.Dense(2, activation="softmax", name="y")]
    >>> path = Path(tempfile.mkdtemp()) / "dense.onnx"
    >>> _ = export(keras.Sequential(layers), path)
    >>> list(output_activations(load_file(path)).values())
    ['SOFTMAX']
    """
    if model.path.suffix.lower() == ".onnx":
        onnx = require("onnx", extra="export", feature="Packaging an .onnx file")
        graph = onnx.load(str(model.path), load_external_data=False).graph
        steps = {
            name: (node.op_type, node.input[:1]) for node in graph.node for name in node.output
        }
        ends: dict[str, Any] = {tensor.name: tensor.name for tensor in model.outputs}
    else:
        steps = _tflite_steps(model.path.read_bytes())
        ends = {tensor.name: tensor.index for tensor in model.outputs}
    found = {name: _NAMES.get(_operator(end, steps)) for name, end in ends.items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def _tflite_steps(content: bytes) -> dict[Any, tuple[str, Iterable[Any]]]:
    """Tensor number to the operator that computes it, and its first input."""
    schema = require(
        "ai_edge_litert.schema_py_generated", extra="export", feature="Packaging a .tflite file"
    )
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    steps: dict[Any, tuple[str, Iterable[Any]]] = {}
    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        code = model.OperatorCodes(operator.OpcodeIndex())
        # Files older than schema 3a keep the number in the deprecated field.
        name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "")
        first = [operator.Inputs(0)] if operator.InputsLength() else []
        steps.update(
            {operator.Outputs(at): (name, first) for at in range(operator.OutputsLength())}
        )
    return steps


def _operator(end: Any, steps: Mapping[Any, tuple[str, Iterable[Any]]]) -> str:
    """The last operator that computes something."""
    for _ in range(len(steps) + 1):  # a broken file may go in a circle
        name, inputs = steps.get(end, ("", ()))
        if name not in _PASSED:
            return name
        end = next(iter(inputs), None)
    return ""
