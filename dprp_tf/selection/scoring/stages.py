"""A model cut into stages at chosen layers, so that what lies before a layer is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from dprp_tf.keras_internals.flat_graph import FlatGraph, Step, tensor_bytes
from dprp_tf.keras_internals.graphs import graph_of, input_structure, layers_inside, mask_of
from dprp_tf.layers.kernels import kernel_of

__all__ = ["Stage", "StagedModel"]


@dataclass(frozen=True)
class Stage:
    """The part of a model from one cut to the next.

    Attributes:
        layers: Keys of the layers whose kernels it takes as arguments, in the order it wants them.
        first: Those among them that no earlier stage uses.
    """

    layers: tuple[str, ...]
    first: tuple[str, ...]
    _run: Callable[[list[Any], list[Any]], list[Any]] = field(repr=False)

    def __call__(self, tensors: Sequence[Any], kernels: Sequence[Any]) -> list[Any]:
        """Compute the tensors alive at the stage's end from those alive at its start.

        Args:
            tensors: What the stage before returned; for the first stage the model's inputs.
            kernels: One kernel for each of `layers`.

        Returns:
            Tensors of the backend; of the last stage the model's outputs.
        """
        return list(self._run(list(tensors), list(kernels)))


class StagedModel:
    """A model's inference as compiled stages whose kernels are arguments, not variables.

    A stage begins where one of the chosen layers is first used, so a model whose ranks differ
    from another's from stage i on shares everything before. The tensors alive at a cut may be
    several, as inside a residual block. Nested models are entered. Where a model can't be cut
    (a `call()` of its own, masks along its tensors) it is one stage. Its variables are only read.

    Args:
        model: A built Keras model.
        layers: The layers whose kernels are arguments, by key.

    Attributes:
        stages: The stages in order; the first has no layers and may do nothing.
        input_specs: Shape and dtype of each input.
        bytes_per_sample: What the tensors alive at all cuts take for one sample; undefined sizes
            count as 1.

    Example:

    >>> inputs = keras.Input((4,))
    >>> layer = keras.layers.Dense(3, use_bias=False, name="a")
    >>> staged = StagedModel(keras.Model(inputs, layer(inputs)), {"a": layer})
    >>> tensors = staged.inputs(np.ones((2, 4)))
    >>> for stage in staged.stages:
    ...     kernels = [keras.ops.full((4, 3), 0.5) for _ in stage.layers]
    ...     tensors = stage(tensors, kernels)
    >>> [round(float(value), 3) for value in tensors[0][0]]
    [2.0, 2.0, 2.0]
    """

    def __init__(self, model: keras.Model, layers: Mapping[str, keras.layers.Layer]) -> None:
        self._model = model
        self._layers = dict(layers)
        graph = graph_of(model)
        self._graph = graph
        if graph is None:
            self.input_specs: list[tuple[tuple[int | None, ...], str]] | None = None
            self.bytes_per_sample = 0
            self.stages: tuple[Stage, ...] = (
                Stage((), (), lambda tensors, kernels: tensors),
                self._whole(),
            )
            return
        self.input_specs = [(tuple(x.shape), str(x.dtype)) for x in graph.inputs]
        self.bytes_per_sample = 0
        self.stages = tuple(self._cut(FlatGraph(model)))

    def inputs(self, x: Any) -> list[np.ndarray]:
        """Return a model's inputs as a list of arrays in its own order, rank and dtype.

        Args:
            x: One array, or a list, tuple or dict of them, with the sample axis first.

        Returns:
            One array per input of the model.

        Raises:
            ValueError: If the number of arrays or their sizes do not fit.
        """
        names = [tensor.name for tensor in self._graph.inputs] if self._graph is not None else []
        structure = input_structure(self._graph)
        if isinstance(x, Mapping) and not isinstance(structure, Mapping) and set(names) <= set(x):
            x = [x[name] for name in names]
        arrays = [np.asarray(array) for array in keras.tree.flatten(x)]
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(
                "`x` must have the same number of samples for every input. Received: "
                f"{[len(array) for array in arrays]}"
            )
        if self.input_specs is None:
            return arrays
        if len(arrays) != len(self.input_specs):
            raise ValueError(
                f"`x` must hold one array for each of the model's {len(self.input_specs)} inputs. "
                f"Received: {len(arrays)}"
            )
        return [_fitted(array, *spec) for array, spec in zip(arrays, self.input_specs, strict=True)]

    def _cut(self, flat: FlatGraph) -> Iterator[Stage]:
        users = [self._used_by(step.operation) for step in flat.steps]
        cuts: list[int] = []
        seen: set[str] = set()
        # A mask is an attribute of a tensor, which would get lost between two compiled functions.
        if all(mask_of(symbol) is None for symbol in flat.symbols):
            for position, keys in enumerate(users):
                if set(keys) - seen:
                    cuts.append(position)
                    seen |= set(keys)
        borders = [0, *(cuts or [0]), len(flat.steps)]
        used_before: set[str] = set()
        alive = list(flat.inputs)
        for start, stop in pairwise(borders):
            own = tuple(dict.fromkeys(key for step in users[start:stop] for key in step))
            first = tuple(key for key in own if key not in used_before)
            used_before |= set(own)
            leaving = _alive(flat, stop)
            yield Stage(own, first, self._compiled(flat.steps[start:stop], own, alive, leaving))
            if stop < len(flat.steps):
                self.bytes_per_sample += sum(tensor_bytes(flat.symbols[value]) for value in leaving)
            alive = leaving

    def _used_by(self, operation: Any) -> list[str]:
        inside = {id(operation)}
        if isinstance(operation, keras.layers.Layer):
            inside |= {id(layer) for layer in layers_inside(operation)}
        return [key for key, layer in self._layers.items() if id(layer) in inside]

    def _compiled(
        self,
        steps: Sequence[Step],
        keys: Sequence[str],
        entering: Sequence[int],
        leaving: Sequence[int],
    ) -> Callable[[list[Any], list[Any]], list[Any]]:
        if not steps:
            places = [entering.index(value) for value in leaving]
            return lambda tensors, kernels: [tensors[place] for place in places]
        variables = [kernel_of(self._layers[key]).held for key in keys]

        def run(tensors: list[Any], kernels: list[Any]) -> list[Any]:
            values = dict(zip(entering, tensors, strict=True))
            with keras.StatelessScope(state_mapping=list(zip(variables, kernels, strict=True))):
                for step in steps:
                    values.update(zip(step.outputs, step.run(values), strict=True))
            return [values[value] for value in leaving]

        return _compile(run)

    def _whole(self) -> Stage:
        keys = tuple(self._layers)
        variables = [kernel_of(layer).held for layer in self._layers.values()]

        def run(tensors: list[Any], kernels: list[Any]) -> list[Any]:
            with keras.StatelessScope(state_mapping=list(zip(variables, kernels, strict=True))):
                x = tensors[0] if len(tensors) == 1 else tensors
                return list(keras.tree.flatten(self._model(x, training=False)))

        return Stage(keys, keys, _compile(run))


def _alive(flat: FlatGraph, position: int) -> list[int]:
    """Tensors made before a step and used by it or later; behind the last, the outputs."""
    if position == len(flat.steps):
        return list(flat.outputs)
    made = {*flat.inputs, *(value for step in flat.steps[:position] for value in step.outputs)}
    used = {*flat.outputs, *(value for step in flat.steps[position:] for value in step.inputs)}
    return sorted(made & used)


def _fitted(array: np.ndarray, shape: tuple[int | None, ...], dtype: str) -> np.ndarray:
    if array.ndim == len(shape) - 1 and shape[-1] == 1:
        array = array[..., None]
    elif array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.ndim == len(shape) and all(
        wanted is None or wanted == size
        for wanted, size in zip(shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"`x` must have the shape of the model's input, {shape}. Received: {array.shape}"
        )
    if dtype == "string" or str(array.dtype) == dtype:
        return array
    return array.astype(np.float32 if dtype == "bfloat16" else dtype)


def _compile(run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(run, autograph=False)
        traced: dict[Any, Callable[..., list[Any]]] = {}

        def call(tensors: list[Any], kernels: list[Any]) -> list[Any]:
            sizes = tuple(tuple(tensor.shape) for tensor in tensors)
            if sizes not in traced:
                traced[sizes] = function.get_concrete_function(tensors, kernels)
            return traced[sizes](tensors, kernels)

        return call
    if backend == "jax":
        import jax

        compiled: Callable[..., list[Any]] = jax.jit(run)
        return compiled
    return run
