"""TensorFlow operators that ONNX has no operator for: spelled out, or told by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["operator_handlers", "unknown_operators"]

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


def operator_handlers() -> dict[str, tuple[Callable[..., None], list[Any]]]:
    """Return how to write operators that tf2onnx does not know.

    erfc(x) = 1 - erf(x), of which TensorFlow makes the exact GELU; expm1(x) = exp(x) - 1, of which
    it makes CELU; log1p(x) = log(1 + x).

    Returns:
        What `tf2onnx` takes as `custom_op_handlers`: operator name to a function and its arguments.

    Example:

    >>> sorted(operator_handlers())
    ['Erfc', 'Expm1', 'Log1p']
    """
    handlers = {
        "Erfc": _spelled(lambda graph, x, one: ("Sub", [one, graph("Erf", [x])])),
        "Expm1": _spelled(lambda graph, x, one: ("Sub", [graph("Exp", [x]), one])),
        "Log1p": _spelled(lambda graph, x, one: ("Log", [graph("Add", [one, x])])),
    }
    return {name: (handler, []) for name, handler in handlers.items()}


def unknown_operators(converted: Any, opset: int) -> list[str]:
    """Find nodes of a converted model that no runtime knows.

    Args:
        converted: The ONNX model.
        opset: Version of the ONNX operator set that it is written for.

    Returns:
        One text for each kind of operator, with the name of the first node of that kind, which
        holds the names of the layers around it.

    Raises:
        ImportError: If onnx is missing.

    Example:

    >>> from onnx import helper
    >>> nodes = [helper.make_node("RFFT", ["x"], ["y"], name="model/spectrum/rfft")]
    >>> unknown_operators(helper.make_model(helper.make_graph(nodes, "g", [], [])), 17)
    ['RFFT (model/spectrum/rfft)']
    """
    from onnx import defs

    found: dict[str, str] = {}
    for node in _nodes(converted.graph):
        if node.domain in ("", "ai.onnx"):
            known = defs.has(node.op_type, opset, "")
        else:
            known = node.domain in _DOMAINS and defs.has(node.op_type, node.domain)
        if not known:
            found.setdefault(node.op_type, node.name)
    return [f"{kind} ({name})" if name else kind for kind, name in sorted(found.items())]


def _spelled(write: Callable[..., tuple[str, list[str]]]) -> Callable[..., None]:
    def handler(context: Any, node: Any, name: str, args: list[Any]) -> None:
        kind, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])

        def graph(operator: str, inputs: list[str]) -> str:
            made = context.make_node(operator, inputs, shapes=[shape], dtypes=[kind])
            return str(made.output[0])

        one = context.make_const(f"{name}/one", np.ones((), np.float32)).output[0]
        source, outputs = node.input[0], list(node.output)
        context.remove_node(node.name)
        operator, inputs = write(graph, source, one)
        context.make_node(
            operator, inputs, name=node.name, outputs=outputs, shapes=[shape], dtypes=[kind]
        )

    return handler


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
