"""How much of a layer's feature map is left when the layer is factorized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike, NDArray

from dprp_tf.keras_internals.flat_graph import FlatGraph, Step, tensor_bytes
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.layers.kernels import kernel_of

__all__ = ["FeatureMaps", "cosine_similarity", "with_kernel"]


def cosine_similarity(first: ArrayLike, second: ArrayLike) -> NDArray[np.floating]:
    """Return the cosine between two feature maps for each sample: A.B / (||A|| ||B||).

    Args:
        first: Maps A, (samples, ...), of any shape that the other can be flattened to.
        second: Maps B, with as many entries per sample.

    Returns:
        One number per sample, -1 to 1; two maps of zeros are alike, 1, and one alone is not, 0.

    Source: Kokhazadeh et al., A CNN Compression Methodology for Layer-Wise Rank Selection, Eq. 1.

    Example:

    >>> cosine_similarity([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]).round(4).tolist()
    [0.7071, 1.0]
    """
    a, b = (_flat(maps) for maps in (first, second))
    dot, aa, bb = (ops.einsum("nd,nd->n", x, y) for x, y in ((a, b), (a, a), (b, b)))
    both, squares = (
        np.asarray(ops.convert_to_numpy(x), np.float64) for x in (dot, ops.stack([aa, bb]))
    )
    norms = np.sqrt(squares[0]) * np.sqrt(squares[1])
    cosines = np.divide(both, norms, out=np.zeros_like(both), where=norms > 0)
    cosines[(squares == 0).all(axis=0)] = 1.0
    return np.clip(cosines, -1.0, 1.0)


def with_kernel(layer: Any, kernel: Any) -> Callable[[Any], Any]:
    """Return a callable that computes a layer with another kernel, and leaves the layer alone.

    Args:
        layer: A built Keras layer with a `kernel`.
        kernel: Array of the kernel's shape, input channels before filters.

    Returns:
        A callable from the layer's inputs to its outputs.

    Example:

    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 2))
    >>> float(with_kernel(layer, np.eye(2))(np.array([[3.0, 4.0]]))[0, 1])
    4.0
    """
    own = kernel_of(layer)
    variable = own.held
    value = ops.convert_to_tensor(own.as_held(kernel), dtype=variable.dtype)

    def call(inputs: Any) -> Any:
        with keras.StatelessScope(state_mapping=[(variable, value)]):
            return layer(inputs)

    return call


@dataclass(frozen=True)
class _Place:
    """One call of a layer, what follows it, and the tensors before and after."""

    step: Step
    behind: Sequence[Step]

    @property
    def entering(self) -> int:
        return self.step.inputs[0]

    @property
    def leaving(self) -> int:
        return (self.behind[-1] if self.behind else self.step).outputs[0]


class FeatureMaps:
    """The feature maps of a trained model's layers, to hold those of factorized layers against.

    A layer's map is looked at behind the normalization, activation and pooling that follow it
    (`FlatGraph.behind`). A replacement gets the map that enters the layer in the trained model,
    so that its similarity depends on nothing else that has been factorized. Similarity is the
    cosine over all entries of a sample's map, mean over the samples; of a layer that is called
    several times, mean over its calls too.

    The maps are computed once and kept if they fit; else in batches every time, which costs one
    run of the model and no memory.

    Args:
        model: The trained model.
        layers: Keys of the layers; see `dprp_tf.keras_internals.graphs.layer_keys`.
        images: Samples as the model takes them, (samples, ...); a list for several inputs.
        batch_size: Samples per batch. Default 100.
        memory: Bytes that maps may keep. Default 1 GiB.
        fewer: Whether to take fewer samples where all do not fit, one batch at least. Default
            False.

    Attributes:
        samples: The number of samples.

    Raises:
        ValueError: If there are no samples, or `layers` names one the model does not call.

    Source: Kokhazadeh et al., A CNN Compression Methodology for Layer-Wise Rank Selection, III.4.

    Example:

    >>> inputs = keras.Input((2,))
    >>> x = keras.layers.Dense(2, use_bias=False, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.ReLU()(x))
    >>> model.set_weights([np.eye(2)])
    >>> maps = FeatureMaps(model, ["a"], np.array([[1.0, 1.0]]))
    >>> round(maps.with_kernels({"a": [[1.0, 0.0], [0.0, 0.0]]})["a"], 4)
    0.7071
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Iterable[str],
        images: Any,
        *,
        batch_size: int = 100,
        memory: int = 2**30,
        fewer: bool = False,
    ) -> None:
        keys = layer_keys(model)
        self.graph = FlatGraph(model)
        self._layers: dict[str, Any] = {}
        self._places: dict[str, list[_Place]] = {}
        for name in layers:
            calls = self.graph.calls(keys[name]) if name in keys else []
            if not calls:
                raise ValueError(
                    f"`layers` must name layers that the model calls: {list(keys)}. Received: "
                    f"{name!r}; layers of a nested model that casts or masks its inputs are out "
                    "of reach."
                )
            self._layers[name] = keys[name]
            self._places[name] = [_Place(step, self.graph.behind(step)) for step in calls]
        self._images = keras.tree.flatten(images)
        counts = {len(images) for images in self._images}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                "`images` must hold at least one sample, and as many for each input. "
                f"Received: {sorted(counts)}"
            )
        self.samples = counts.pop()
        self._batch_size = batch_size
        self._kept: list[dict[int, Any]] = []
        first = self._run(0, list(self._layers))
        size = sum(tensor_bytes(map_) for map_ in first.values())
        fitting = max(1, memory // max(size, 1)) * batch_size
        if fewer:
            self.samples = min(self.samples, fitting)
        self._keep = self.samples <= fitting
        if self._keep:
            self._kept.append(first)

    def similarity(
        self,
        replacements: Mapping[str, Callable[[Any], Any]],
        behind: Callable[[Any], Any] = lambda operation: operation,
    ) -> dict[str, float]:
        """Return how similar the maps of replacements are to the layers' own.

        Args:
            replacements: By layer key a callable from the layer's input to its output, such as a
                factorized layer.
            behind: Gives for a layer that follows in the trained model the one to use, such as
                the fine-tuned normalization. Default: the trained model's own.

        Returns:
            Mean cosine by layer key, -1 to 1.
        """
        sums = dict.fromkeys(replacements, 0.0)
        for maps in self._batches(list(replacements)):
            for name, replacement in replacements.items():
                for place in self._places[name]:
                    number = place.step.outputs[0]
                    value = replacement(maps[place.entering])
                    for step in place.behind:
                        (value,) = step.run({number: value}, behind(step.operation))
                        number = step.outputs[0]
                    cosines = cosine_similarity(value, maps[place.leaving])
                    sums[name] += float(np.sum(cosines)) / len(self._places[name])
        return {name: total / self.samples for name, total in sums.items()}

    def with_kernels(self, kernels: Mapping[str, Any]) -> dict[str, float]:
        """Return how similar the maps are when layers get other kernels and nothing is trained.

        Args:
            kernels: Kernels by layer key.

        Returns:
            Mean cosine by layer key, -1 to 1.
        """
        return self.similarity(
            {name: with_kernel(self._layers[name], kernel) for name, kernel in kernels.items()}
        )

    def in_block(self, name: str) -> bool:
        """Say whether a layer lies in a non-sequential block: some path leads around it.

        Args:
            name: The layer's key.

        Returns:
            True if one of its calls is not on every path from an input to an output.
        """
        return not all(self.graph.on_every_path(place.step) for place in self._places[name])

    def _batches(self, names: list[str]) -> Iterator[dict[int, Any]]:
        for at, start in enumerate(range(0, self.samples, self._batch_size)):
            if not self._keep:
                yield self._run(start, names)
                continue
            if at == len(self._kept):
                self._kept.append(self._run(start, list(self._layers)))
            yield self._kept[at]

    def _run(self, start: int, names: list[str]) -> dict[int, Any]:
        stop = min(start + self._batch_size, self.samples)
        places = [place for name in names for place in self._places[name]]
        wanted = {n for place in places for n in (place.entering, place.leaving)}
        return self.graph.run([images[start:stop] for images in self._images], wanted)


def _flat(maps: Any) -> Any:
    values = ops.cast(ops.convert_to_tensor(maps), "float32")
    return ops.reshape(values, (values.shape[0], -1))
