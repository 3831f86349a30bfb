"""TensorFlow operators that tf2onnx writes wrongly or not at all: written here, or told by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["operator_handlers", "unknown_operators"]

# Cubic weights are Keys', a = -0.5, and those of pixels outside the image go to the others.
_RESIZES: dict[str, dict[str, Any]] = {
    "ResizeBicubic": {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    "ResizeBilinear": {"mode": "linear"},
    "ResizeNearestNeighbor": {"mode": "nearest"},
}
# Attributes that decide a pixel's weights.
_ATTRIBUTES = {
    "ResizeArea": ("align_corners",),
    "ResizeBicubic": ("align_corners", "half_pixel_centers"),
}
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


def operator_handlers() -> dict[str, tuple[Callable[..., None], list[Any]]]:
    """Return how to write operators that tf2onnx does not know.

    erfc(x) = 1 - erf(x), of which TensorFlow makes the exact GELU; expm1(x) = exp(x) - 1, of which
    it makes CELU; log1p(x) = log(1 + x). Images are resized to sizes: tf2onnx gives the ratio of
    sizes in float32, times which the size of the input may be less than that of the output. What
    ONNX Runtime resizes otherwise becomes two products with the weights that TensorFlow gives the
    pixels: bicubic images and areas of fixed sizes.

    Returns:
        What `tf2onnx` takes as `custom_op_handlers`: operator name to a function and its arguments.

    Example:

    >>> sorted(operator_handlers())
    ['Erfc', 'Expm1', 'Log1p', 'ResizeArea', 'ResizeBicubic', 'ResizeBilinear', \
'ResizeNearestNeighbor']
    """
    handlers: dict[str, Callable[..., None]] = {
        **dict.fromkeys(_RESIZES, _resized),
        "ResizeArea": _weighted,
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


def _resized(context: Any, node: Any, name: str, args: list[Any]) -> None:
    from onnx import TensorProto

    edges = list(context.get_shape(node.input[0]) or [-1] * 4)
    known = node.inputs[1].is_const()
    if node.type == "ResizeBicubic" and known and min(edges[1:]) > 0:
        # TensorFlow reads cubic weights from a table of 1,024, which is off by 1e-3; the runtime
        # moves the transposition behind the operator, where it refuses to shrink.
        _weighted(context, node, name, args)
        return
    attributes = dict(_RESIZES[node.type])
    if node.get_attr_value("align_corners", False):
        attributes["coordinate_transformation_mode"] = "align_corners"
        rounding = "round_prefer_ceil"
    elif node.get_attr_value("half_pixel_centers", False):
        attributes["coordinate_transformation_mode"] = "half_pixel"
        # TensorFlow takes floor(y), y being the place + 0.5 over the scale; here it is y - 0.5.
        rounding = "round_prefer_ceil"
    else:
        attributes["coordinate_transformation_mode"] = "asymmetric"
        rounding = "floor"
    if attributes["mode"] == "nearest":
        attributes["nearest_mode"] = rounding

    def constant(label: str, values: Any, dtype: Any) -> str:
        return str(context.make_const(f"{name}/{label}", np.array(values, dtype)).output[0])

    def graph(operator: str, inputs: list[str], **options: Any) -> str:
        return str(context.make_node(operator, inputs, attr=options).output[0])

    source, outputs = node.input[0], list(node.output)
    shapes, kinds = node.output_shapes, node.output_dtypes
    if context.get_dtype(source) != kinds[0]:
        source = graph("Cast", [source], to=kinds[0])
    planes = graph("Transpose", [source], perm=[0, 3, 1, 2])
    if known and edges[0] > 0 and edges[3] > 0:
        sizes = constant("sizes", [edges[0], edges[3], *_size(node)], np.int64)
    else:
        first = [constant(f"at_{place}", [place], np.int64) for place in (0, 2)]
        kept = graph("Slice", [graph("Shape", [planes]), *first])
        spatial = graph("Cast", [node.input[1]], to=TensorProto.INT64)
        sizes = graph("Concat", [kept, spatial], axis=0)
    nothing = constant("nothing", [], np.float32)
    context.remove_node(node.name)
    resized = graph("Resize", [planes, nothing, nothing, sizes], **attributes)
    context.make_node(
        "Transpose",
        [resized],
        attr={"perm": [0, 2, 3, 1]},
        name=node.name,
        outputs=outputs,
        shapes=shapes,
        dtypes=kinds,
    )


def _size(node: Any) -> list[int]:
    return [int(edge) for edge in node.inputs[1].get_tensor_value()]


def _weighted(context: Any, node: Any, name: str, args: list[Any]) -> None:
    """Resize rows, then columns, by a product with each output pixel's weights."""
    shape = context.get_shape(node.input[0])
    if not shape or min(shape[1:]) < 0 or not node.inputs[1].is_const():
        return  # stays what it is, and unknown
    _, height, width, channels = shape
    new_height, new_width = _size(node)

    def graph(operator: str, inputs: list[str], **options: Any) -> str:
        return str(context.make_node(operator, inputs, attr=options).output[0])

    def shaped(source: str, label: str, *edges: int) -> str:
        target = context.make_const(f"{name}/{label}", np.array(edges, np.int64)).output[0]
        return graph("Reshape", [source, target])

    weights = [
        context.make_const(f"{name}/weights_{axis}", _weights(node, axis, edge)).output[0]
        for axis, edge in enumerate((height, width))
    ]
    source, outputs, shapes, kinds = (
        node.input[0],
        list(node.output),
        node.output_shapes,
        node.output_dtypes,
    )
    if context.get_dtype(source) != kinds[0]:
        source = graph("Cast", [source], to=kinds[0])
    context.remove_node(node.name)
    rows = graph("MatMul", [weights[0], shaped(source, "rows", -1, height, width * channels)])
    columns = graph("MatMul", [weights[1], shaped(rows, "columns", -1, width, channels)])
    final = np.array([-1, new_height, new_width, channels], np.int64)
    target = context.make_const(f"{name}/final", final).output[0]
    context.make_node(
        "Reshape", [columns, target], name=node.name, outputs=outputs, shapes=shapes, dtypes=kinds
    )


def _weights(node: Any, axis: int, edge: int) -> np.ndarray:
    """What TensorFlow makes of each unit vector along an axis: a column of (new edge, edge)."""
    import tensorflow as tf

    spatial, size = [1, 1], [1, 1]
    spatial[axis], size[axis] = edge, _size(node)[axis]
    unit = np.eye(edge, dtype=np.float32).reshape(edge, *spatial, 1)
    options = {key: bool(node.get_attr_value(key, False)) for key in _ATTRIBUTES[node.type]}
    # The converter works inside of a graph, where nothing is computed at once.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        operator = getattr(tf.raw_ops, node.type)
        resized = session.run(operator(images=unit, size=size, **options))
    return np.ascontiguousarray(resized.reshape(edge, size[axis]).T)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
