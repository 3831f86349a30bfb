"""A model's predictions with kernels swapped for others, many candidates a second."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.keras_internals.graphs import graph_of, output_structure
from dprp_tf.layers.kernels import kernel_of
from dprp_tf.selection.scoring.stages import StagedModel

__all__ = ["KernelSwaps"]

_MEMORY = 2**30
_BATCH = 512

Choice = Hashable
"""What stands for a kernel of a layer; None for its own."""


class KernelSwaps:
    """Predictions of a model with some of its kernels swapped, many candidates a second.

    The model is compiled once, in stages that take their kernels as arguments; a candidate costs
    the stages behind the first layer whose kernel is another than its parent's. The tensors alive
    at each stage's start are kept, up to `memory` bytes. The model itself is never written to.

    Args:
        model: The model.
        layers: The layers whose kernels may be swapped, by key.
        kernel: From a layer's key and a choice that is not None to the kernel that it stands for.
        x: Samples: an array, or a list or dict of arrays for several inputs.
        batch_size: Samples computed at once. Default: as many as `memory` allows, 512 at most.
        memory: Bytes that kept tensors may take. Default 2**30.

    Attributes:
        samples: How many samples there are.

    Raises:
        ValueError: If samples do not fit the model or each other, or are none.

    Example:

    >>> inputs = keras.Input((2,))
    >>> layer = keras.layers.Dense(1, use_bias=False, name="a")
    >>> model = keras.Model(inputs, layer(inputs))
    >>> swaps = KernelSwaps(model, {"a": layer}, lambda key, c: np.full((2, 1), c), np.eye(2))
    >>> [found.tolist() for found in swaps.predictions([{"a": 3.0}])]
    [[[3.0], [3.0]]]
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Mapping[str, keras.layers.Layer],
        kernel: Callable[[str, Any], Any],
        x: Any,
        *,
        batch_size: int | None = None,
        memory: int = _MEMORY,
    ) -> None:
        self._structure = output_structure(graph_of(model))
        self._staged = StagedModel(model, layers)
        inputs = self._staged.inputs(x)
        self.samples = len(inputs[0])
        if self.samples == 0:
            raise ValueError("`x` must hold one sample or more. Received: none")
        self._names = list(layers)
        per_sample = max(self._staged.bytes_per_sample, 1)
        size = batch_size or max(1, min(_BATCH, self.samples, memory // (2 * per_sample)))
        parts = math.ceil(self.samples / size)
        cut = [np.array_split(array, parts) for array in inputs]
        batches = [[ops.convert_to_tensor(part) for part in row] for row in zip(*cut, strict=True)]
        self._prefixes = _Prefixes(memory)
        self._kernels = _Kernels(layers, kernel, memory // 4)
        # The first stage has no kernels of candidates: computed once.
        self._starts = [self._staged.stages[0](batch, ()) for batch in batches]
        self._stages = self._staged.stages[1:]
        # What the first stages depend on: the layers first used in them.
        self._order = tuple(key for stage in self._stages for key in stage.first)
        ends = np.cumsum([len(stage.first) for stage in self._stages]).tolist()
        self._known = (0, *(int(end) for end in ends))

    def predictions(
        self,
        candidates: Iterable[Mapping[str, Choice]],
        parent: Mapping[str, Choice] | None = None,
    ) -> Iterator[Any]:
        """Yield what the model predicts with the candidates' kernels.

        Args:
            candidates: Choices by layer; a layer left out has its own kernel.
            parent: Choices that the candidates differ little from: what they share with it is
                computed once. Default: nothing is kept beyond what was.

        Yields:
            Per candidate an array of all samples; for several outputs arrays in the lists and
            dicts in which the model gives them.

        Raises:
            ValueError: If a candidate names another layer.
        """
        rows = [self._row(candidate) for candidate in candidates]
        groups = [[row] for row in rows] if len(self._starts) == 1 else [rows]
        for group in groups:
            parts: list[list[list[NDArray[Any]]]] = [[] for _ in group]
            for batch in range(len(self._starts)):
                if parent is not None and group:
                    shared = self._row(parent)
                    self._keep(batch, shared, max(self._shared(row, shared) for row in group))
                for row, part in zip(group, parts, strict=True):
                    part.append(
                        [np.asarray(ops.convert_to_numpy(t)) for t in self._run(batch, row)]
                    )
            for part in parts:
                joined = [np.concatenate(pieces) for pieces in zip(*part, strict=True)]
                if self._structure is not None:
                    yield keras.tree.pack_sequence_as(self._structure, joined)
                else:
                    yield joined[0] if len(joined) == 1 else joined

    def _row(self, candidate: Mapping[str, Choice]) -> tuple[Choice, ...]:
        unknown = sorted(set(candidate) - set(self._names))
        if unknown:
            raise ValueError(
                f"`candidates` must name layers whose kernels may be swapped: {self._names}. "
                f"Received: {unknown}"
            )
        return tuple(candidate.get(key) for key in self._order)

    def _shared(self, row: Sequence[Choice], other: Sequence[Choice]) -> int:
        """How many stages have the same kernels in both."""
        for stage in range(len(self._stages)):
            at = slice(self._known[stage], self._known[stage + 1])
            if row[at] != other[at]:
                return stage
        return len(self._stages)

    def _begin(self, batch: int, row: tuple[Choice, ...], limit: int) -> tuple[int, list[Any]]:
        """The last stage whose start is known for this row, and the tensors alive there."""
        for stage in range(limit, 0, -1):
            found = self._prefixes.get((batch, stage, row[: self._known[stage]]))
            if found is not None:
                return stage, found
        return 0, self._starts[batch]

    def _keep(self, batch: int, row: tuple[Choice, ...], upto: int) -> None:
        begin, tensors = self._begin(batch, row, min(upto, len(self._stages) - 1))
        for stage in range(begin, min(upto, len(self._stages) - 1)):
            tensors = self._step(stage, row, tensors)
            self._prefixes.put((batch, stage + 1, row[: self._known[stage + 1]]), tensors)

    def _run(self, batch: int, row: tuple[Choice, ...]) -> list[Any]:
        begin, tensors = self._begin(batch, row, len(self._stages) - 1)
        for stage in range(begin, len(self._stages)):
            tensors = self._step(stage, row, tensors)
        return tensors

    def _step(self, stage: int, row: tuple[Choice, ...], tensors: list[Any]) -> list[Any]:
        choices = dict(zip(self._order, row, strict=True))
        keys = self._stages[stage].layers
        return self._stages[stage](tensors, [self._kernels.get(key, choices[key]) for key in keys])


class _Prefixes:
    """Tensors alive at cuts, the least recently used of them dropped beyond a number of bytes."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._held: OrderedDict[Any, tuple[list[Any], int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any) -> list[Any] | None:
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: Any, tensors: list[Any]) -> None:
        if key in self._held:
            return
        size = sum(_bytes(tensor) for tensor in tensors)
        self._held[key] = (tensors, size)
        self._bytes += size
        while self._bytes > self._memory and len(self._held) > 1:
            _, (_, freed) = self._held.popitem(last=False)
            self._bytes -= freed


class _Kernels:
    """Kernels of candidates on the device, the least recently used dropped."""

    def __init__(
        self,
        layers: Mapping[str, keras.layers.Layer],
        kernel: Callable[[str, Any], Any],
        memory: int,
    ) -> None:
        self._layers, self._kernel = layers, kernel
        self._prefixes = _Prefixes(memory)

    def get(self, key: str, choice: Choice) -> Any:
        found = self._prefixes.get((key, choice))
        if found is None:
            own = kernel_of(self._layers[key])
            # By way of NumPy: a variable would be traced apart from a tensor.
            kernel = own.array if choice is None else self._kernel(key, choice)
            found = [ops.convert_to_tensor(own.as_held(kernel), dtype=own.held.dtype)]
            self._prefixes.put((key, choice), found)
        return found[0]


def _bytes(tensor: Any) -> int:
    width = 8 if "64" in str(tensor.dtype) else 4
    return math.prod(int(size) for size in tensor.shape) * width
