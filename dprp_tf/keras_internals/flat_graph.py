"""A model's graph as one list of steps, nested models inlined: to run it, cut it and look at it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
from keras import ops

from dprp_tf.keras_internals.graphs import graph_of, nodes
from dprp_tf.keras_internals.layer_kinds import GLOBAL_POOLINGS, NOISES, POOLINGS

__all__ = ["FlatGraph", "Step", "tensor_bytes"]

# What may stand between a layer and the point where its feature map is looked at. All of them
# work on one map alone; what joins several, such as Add, ends the row.
_LAYERS_BEHIND = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
    *POOLINGS,
    *GLOBAL_POOLINGS,
    *NOISES,
    # They change the order of the entries at most.
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
)
# `keras.ops` functions in a graph, by the names of their classes.
_OPERATIONS_BEHIND = frozenset(
    [
        "Relu",
        "Relu6",
        "Sigmoid",
        "Tanh",
        "Softplus",
        "Softsign",
        "Silu",
        "Gelu",
        "Elu",
        "Selu",
        "LeakyRelu",
        "HardSigmoid",
        "HardSilu",
        "HardTanh",
        "Softmax",
        "LogSoftmax",
        "LogSigmoid",
        "Celu",
        "MaxPool",
        "AveragePool",
    ]
)


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a layer or operation.

    Attributes:
        operation: The layer, or the `keras.ops` operation.
        inputs: Numbers of the tensors it takes.
        outputs: Numbers of the tensors it makes.
    """

    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _arguments: Any
    _symbols: Mapping[int, int]

    @property
    def constants(self) -> list[Any]:
        """What the call was given beside tensors of the graph, out of its lists and dicts."""
        given = keras.tree.flatten((self._arguments.args, self._arguments.kwargs))
        return [value for value in given if not keras.backend.is_keras_tensor(value)]

    def run(self, values: Mapping[int, Any], operation: Any = None) -> list[Any]:
        """Call the operation as at inference.

        Args:
            values: Tensors by number, those it takes among them.
            operation: What to call in its place, with the same arguments. Default: itself.

        Returns:
            The tensors it makes, in the order of `outputs`.
        """
        operation = self.operation if operation is None else operation
        filled = {symbol: values[number] for symbol, number in self._symbols.items()}
        args, kwargs = self._arguments.fill_in(filled)
        # As in predict(), whatever the layer was called with in the graph.
        if getattr(operation, "_call_has_training_arg", False):
            kwargs = kwargs | {"training": False}
        return keras.tree.flatten(operation(*args, **kwargs))


class FlatGraph:
    """The graph of a model as steps from inputs to outputs, nested models inlined.

    Args:
        model: A built Functional or Sequential model.

    Attributes:
        steps: The calls, each after those whose tensors it takes.
        inputs: Numbers of the model's inputs.
        outputs: Numbers of the model's outputs.
        symbols: The symbolic tensor of each number.
        numbers: The number of each symbolic tensor by its identity, inputs of nested models among
            them.

    Raises:
        ValueError: If the model has no graph.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    >>> x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    >>> graph = FlatGraph(keras.Model(inputs, keras.layers.Flatten()(x)))
    >>> [type(step.operation).__name__ for step in graph.behind(graph.steps[0])]
    ['BatchNormalization', 'ReLU', 'Flatten']
    """

    def __init__(self, model: keras.Model) -> None:
        graph = graph_of(model)
        if graph is None:
            raise ValueError(
                "`model` must be a built Functional or Sequential model, whose graph is known. "
                f"Received: {type(model).__name__} {getattr(model, 'name', '')!r}. Rebuild it "
                "with keras.Model(inputs, outputs)."
            )
        self.steps: list[Step] = []
        self.symbols: list[keras.KerasTensor] = []
        numbers = {id(tensor): self._new(tensor) for tensor in graph.inputs}
        self.numbers: dict[int, int] = {}
        self.inputs = tuple(numbers[id(tensor)] for tensor in graph.inputs)
        self._dtypes = [tensor.dtype for tensor in graph.inputs]
        self._add(graph, numbers)
        self.outputs = tuple(numbers[id(tensor)] for tensor in graph.outputs)

    def run(self, arrays: Any, wanted: Collection[int]) -> dict[int, Any]:
        """Run the model as at inference and keep some of its tensors.

        Args:
            arrays: One batch of the model's inputs; a list for several of them.
            wanted: Numbers of the tensors to return.

        Returns:
            Tensors by number.
        """
        given = keras.tree.flatten(arrays)
        if len(given) != len(self.inputs):
            raise ValueError(
                f"`arrays` must be {len(self.inputs)} batches, one per input of the model. "
                f"Received: {len(given)}"
            )
        values = {
            number: ops.convert_to_tensor(array, dtype=dtype)
            for number, array, dtype in zip(self.inputs, given, self._dtypes, strict=True)
        }
        wanted = set(wanted)
        last = max((at for at, s in enumerate(self.steps) if wanted & set(s.outputs)), default=-1)
        for at, step in enumerate(self.steps[: last + 1]):
            values.update(zip(step.outputs, step.run(values), strict=True))
            for number in self._let_go[at]:
                if number not in wanted:
                    values.pop(number, None)
        return {number: values[number] for number in wanted}

    def calls(self, layer: Any) -> list[Step]:
        """Return the steps that call a layer."""
        return [step for step in self.steps if step.operation is layer]

    def behind(self, step: Step) -> list[Step]:
        """Return the normalization, activation and pooling that nothing but this step feeds.

        The row ends where a tensor goes to several places or leaves the model, and before
        whatever takes more than it, such as Add or Concatenate.

        Args:
            step: A step of this graph.

        Returns:
            The steps behind it, in order.
        """
        row: list[Step] = []
        at = step
        while len(at.outputs) == 1 and at.outputs[0] not in self.outputs:
            consumers = self._consumers.get(at.outputs[0], [])
            if len(consumers) != 1 or len(consumers[0].inputs) != 1:
                break
            operation = consumers[0].operation
            if not isinstance(operation, _LAYERS_BEHIND) and not _is_operation_behind(operation):
                break
            at = consumers[0]
            row.append(at)
        return row

    def on_every_path(self, step: Step) -> bool:
        """Say whether every path from an input to an output of the model passes a step.

        A layer for which it does not lies in a non-sequential block: a residual branch, an
        inception or fire module, a dense block.

        Args:
            step: A step of this graph.

        Returns:
            True if no path leads around it.
        """
        reached, reaching = self._paths
        through = sum(reached[n] for n in step.inputs) * sum(reaching[n] for n in step.outputs)
        return through == sum(reached[n] for n in self.outputs)

    @cached_property
    def _paths(self) -> tuple[list[int], list[int]]:
        """Numbers of paths from the inputs to each tensor, and from it to the outputs."""
        reached, reaching = [0] * len(self.symbols), [0] * len(self.symbols)
        for number in self.inputs:
            reached[number] = 1
        for step in self.steps:
            paths = sum(reached[n] for n in step.inputs)
            for number in step.outputs:
                reached[number] = paths
        for number in self.outputs:
            reaching[number] += 1
        for step in reversed(self.steps):
            paths = sum(reaching[n] for n in step.outputs)
            for number in step.inputs:
                reaching[number] += paths
        return reached, reaching

    @cached_property
    def _consumers(self) -> dict[int, list[Step]]:
        found: dict[int, list[Step]] = {}
        for step in self.steps:
            for number in step.inputs:
                found.setdefault(number, []).append(step)
        return found

    @cached_property
    def _let_go(self) -> list[list[int]]:
        """By step, the tensors that nothing takes after it."""
        last: dict[int, int] = {}
        for at, step in enumerate(self.steps):
            last.update(dict.fromkeys((*step.inputs, *step.outputs), at))
        gone: list[list[int]] = [[] for _ in self.steps]
        for number, at in last.items():
            gone[at].append(number)
        return gone

    def _new(self, tensor: keras.KerasTensor) -> int:
        self.symbols.append(tensor)
        return len(self.symbols) - 1

    def _add(self, graph: Any, numbers: dict[int, int]) -> None:
        """Append the steps of a graph; `numbers` are those of its symbolic tensors."""
        for node in nodes(graph):
            # A node fed from outside of the graph is no part of it.
            if node.is_input or any(id(x) not in numbers for x in node.input_tensors):
                continue
            nested = _inlined(node)
            if nested is not None:
                inner = {
                    id(own): numbers[id(given)]
                    for own, given in zip(nested.inputs, node.input_tensors, strict=True)
                }
                self._add(nested, inner)
                for given, own in zip(node.outputs, nested.outputs, strict=True):
                    numbers[id(given)] = inner[id(own)]
                continue
            for tensor in node.outputs:
                numbers[id(tensor)] = self._new(tensor)
            symbols = {id(tensor): numbers[id(tensor)] for tensor in node.input_tensors}
            self.steps.append(
                Step(
                    node.operation,
                    tuple(numbers[id(tensor)] for tensor in node.input_tensors),
                    tuple(numbers[id(tensor)] for tensor in node.outputs),
                    node.arguments,
                    symbols,
                )
            )
        self.numbers.update(numbers)


def tensor_bytes(tensor: Any) -> int:
    """Return the size of a tensor in bytes.

    Args:
        tensor: A tensor or a symbolic one; an undefined size, such as that of the batch, counts
            as 1.

    Returns:
        The number of bytes; of texts, whose length is not known, one per text.

    Example:

    >>> tensor_bytes(keras.ops.zeros((2, 3), "bfloat16")), tensor_bytes(keras.ops.zeros(5, "bool"))
    (12, 5)
    """
    bits = re.search(r"\d+", keras.backend.standardize_dtype(tensor.dtype))
    return math.prod(int(size or 1) for size in tensor.shape) * (int(bits[0]) // 8 if bits else 1)


def _inlined(node: Any) -> Any:
    """The graph of a nested model; None if its call does more than run it: cast or mask inputs."""
    nested = graph_of(node.operation)
    if nested is None:
        return None
    others = {name: value for name, value in node.arguments.kwargs.items() if name != "training"}
    given = node.input_tensors
    same = len(given) == len(nested.inputs) and all(
        len(own.shape) == len(x.shape) and own.dtype == x.dtype
        for own, x in zip(nested.inputs, given, strict=True)
    )
    return nested if same and not any(value is not None for value in others.values()) else None


def _is_operation_behind(operation: Any) -> bool:
    kind = type(operation)
    return kind.__module__.startswith("keras.src.ops") and kind.__name__ in _OPERATIONS_BEHIND
