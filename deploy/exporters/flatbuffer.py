"""What a .tflite file holds: its operators, and the types they compute in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dprp_tf.files.extras import require

__all__ = ["Operators", "in_order", "read_operators"]

_WITH_WEIGHTS = frozenset(
    {"CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
)
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE", "CAST"})
_CUSTOM = 32  # BuiltinOperator.CUSTOM: the operator's name is in `customCode`


@dataclass(frozen=True)
class Operators:
    """The operators of a .tflite file.

    Args:
        counts: Operator name to how often it occurs, over all subgraphs.
        foreign: Names of custom and Flex operators, which a plain runtime can't run.
        not_int8: Convolution and dense operators with an input, weight or output that is not
            int8, as `NAME (type, ...)`.
        in_float: Names of operators, type conversions left out, with a float output.
        weight_types: Types of the weights of convolution and dense operators.
    """

    counts: dict[str, int]
    foreign: tuple[str, ...]
    not_int8: tuple[str, ...]
    in_float: tuple[str, ...]
    weight_types: tuple[str, ...]


def read_operators(content: bytes) -> Operators:
    """Read the operator list from a .tflite file's bytes.

    Args:
        content: The file's content.

    Returns:
        What it holds.

    Raises:
        ValueError: If `content` is not a .tflite file.
        ImportError: If ai-edge-litert is missing.

    Example:

    >>> read_operators(b"nonsense")
    Traceback (most recent call last):
      ...
    ValueError: `content` must be a .tflite file. Received: 8 bytes without its identifier.
    """
    if content[4:8] != b"TFL3":
        raise ValueError(
            "`content` must be a .tflite file. Received: "
            f"{len(content)} bytes without its identifier."
        )
    schema = require(
        "ai_edge_litert.schema_py_generated", extra="export", feature="Reading a .tflite file"
    )
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    operator_names = _names(schema.BuiltinOperator)
    type_names = _names(schema.TensorType)
    counts: Counter[str] = Counter()
    foreign: set[str] = set()
    not_int8: list[str] = []
    in_float: list[str] = []
    weight_types: set[str] = set()
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            # Files older than schema 3a keep the number in the deprecated field.
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            name = operator_names.get(number, f"BUILTIN_{number}")
            if number == _CUSTOM or code.customCode:
                name = (code.customCode or b"CUSTOM").decode(errors="replace")
                foreign.add(name)
            counts[name] += 1
            inputs = [type_names[graph.tensors[i].type] for i in operator.inputs if i >= 0]
            outputs = [type_names[graph.tensors[i].type] for i in operator.outputs if i >= 0]
            if name in _WITH_WEIGHTS:
                weight_types.add(inputs[1])
                # The third input is the bias, int32 in an int8 operator.
                types = inputs[:2] + outputs
                if name == "TRANSPOSE_CONV":
                    types = inputs[1:3] + outputs
                    weight_types.add(inputs[1])
                if set(types) != {"INT8"}:
                    not_int8.append(f"{name} ({', '.join(t.lower() for t in types)})")
            if name not in _CONVERSIONS and "FLOAT32" in outputs:
                in_float.append(name)
    return Operators(
        counts=dict(counts),
        foreign=tuple(sorted(foreign)),
        not_int8=tuple(not_int8),
        in_float=tuple(in_float),
        weight_types=tuple(sorted(weight_types)),
    )


def in_order(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Put the inputs and outputs of a .tflite file's first signature in an order.

    The converter sorts them by name. Names and kernels go by the tensors' numbers, so that only
    the two lists of numbers change; the file keeps its size.

    Args:
        content: The file's content.
        inputs: Names of the signature's inputs, in the order wanted.
        outputs: Names of its outputs, likewise.

    Returns:
        The content with both lists in order.

    Raises:
        ImportError: If ai-edge-litert is missing.
    """
    schema = require(
        "ai_edge_litert.schema_py_generated", extra="export", feature="Writing a .tflite file"
    )
    ordered = bytearray(content)
    model = schema.Model.GetRootAs(ordered, 0)
    signature = model.SignatureDefs(0)
    graph = model.Subgraphs(signature.SubgraphIndex())
    for wanted, entries, numbers in (
        (inputs, _entries(signature.Inputs, signature.InputsLength()), graph.InputsAsNumpy()),
        (outputs, _entries(signature.Outputs, signature.OutputsLength()), graph.OutputsAsNumpy()),
    ):
        named = {entry.Name().decode(): entry.TensorIndex() for entry in entries}
        # A view of the content: what is written here is written there.
        numbers[:] = [named[name] for name in wanted]
    return bytes(ordered)


def _entries(entry: Any, count: int) -> Iterator[Any]:
    return (entry(position) for position in range(count))


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
