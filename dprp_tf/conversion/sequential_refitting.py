"""A smaller model's kernels fitted anew, layer by layer, on what the smaller model itself feeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.conversion.calibration import has_moments, output_positions, patches
from dprp_tf.conversion.refitting import kernel_matrix
from dprp_tf.decomposition import dematricize, regular_moments
from dprp_tf.keras_internals.flat_graph import FlatGraph, Step
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.layer_kinds import RECURRENT
from dprp_tf.layers.kernels import kernel_of

__all__ = ["refit_in_sequence"]

# Largest map kept for all inputs at once.
_MAP_BYTES = 2**29
_LEAST_INPUTS = 32
_BATCH = 64
# Share of the mean of the moments' diagonal that holds a kernel to what it was, at least; with few
# rows for each of its entries it is held more.
_RIDGE = 1e-3


def refit_in_sequence(
    model: keras.Model,
    small: keras.Model,
    x: Any,
    *,
    kept: Mapping[str, NDArray[np.bool_]] | None = None,
    positions: int = 50_000,
    seed: int = 0,
) -> list[str]:
    """Fit the kernels of a smaller model anew so that layers give what they gave in the whole one.

    From the inputs to the outputs, layer by layer: with p the patches that the smaller model feeds
    to a layer, its earlier layers fitted already, and y what the layer of that name gives in the
    whole model before its activation, the kernel W and the bias b become

        argmin over W, b of E ||W p + b - y||^2 + ridge ||W - W_0||^2

    where W_0 is the kernel that the layer has, and the ridge a share of the mean square of p's
    entries: 0.001, or their number over that of the patches where that is more. Without a bias of
    its own, b goes into the moving mean of a BatchNormalization behind it; where there is none
    either, b is 0. So each layer makes up for what those before it lost, which a fit to the whole
    model's inputs does not see.

    Args:
        model: The whole model.
        small: The smaller one, of plain layers, whose layers have the names of those that they
            stand for: what `cut`, `fold` and `remove_channels` return. Its weights are assigned.
        x: Calibration inputs, as the models take them; a few hundred.
        kept: By layer which of its output channels are left, of shape (channels,). Default: all.
        positions: About how many positions of each layer are looked at, over all inputs. Default
            50,000.
        seed: Seed of their draw. Default 0.

    Returns:
        Names of the layers that were fitted. Layers called more than once and those of other kinds
        than dense layers and convolutions without groups, transposed or not, stay as they are, and
        so does what lies behind an operation that makes other rows of samples, such as a reshape of
        the batch.

    Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section
    3.2, which fits to the whole model's outputs; the bias, the ridge towards W_0 and stages of low
    rank are ours.

    Example:

    >>> inputs = keras.Input((4,))
    >>> hidden = keras.layers.Dense(3, name="a")(inputs)
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="b")(hidden))
    >>> from dprp_tf.conversion.removing import remove_channels
    >>> small = remove_channels(model, {"a": [0]})
    >>> x = np.random.default_rng(0).normal(size=(64, 4))
    >>> refit_in_sequence(model, small, x, kept={"a": np.array([False, True, True])})
    ['a', 'b']
    """
    arrays = [np.asarray(array) for array in keras.tree.flatten(x)]
    whole, smaller = _Walk(model, arrays), _Walk(small, arrays)
    count = min(whole.most_inputs, smaller.most_inputs, len(arrays[0]))
    whole.start(count)
    smaller.start(count)
    layers, originals = layer_keys(small), layer_keys(model)
    names = {id(layer): key for key, layer in layers.items()}
    rng = np.random.default_rng(seed)
    done: list[str] = []
    try:
        for step in smaller.graph.steps:
            key = names.get(id(step.operation))
            target = None if key is None else originals.get(key)
            source = whole.only_call(target) if key is not None and _fits(step, target) else None
            if key is not None and source is not None and smaller.only_call(step.operation) is step:
                mask = None if kept is None else kept.get(key)
                ready = whole.run_before(source)
                if ready and _fit(step, smaller, source, whole, mask, positions, rng):
                    done.append(key)
            smaller.run(step)
    except _OtherRowsError:
        pass
    return done


class _OtherRowsError(Exception):
    """An operation makes other rows than one for each sample."""


class _Walk:
    """A model run step by step on all inputs at once, its tensors let go when nothing takes them.

    Args:
        model: The model.
        arrays: Its inputs.
    """

    def __init__(self, model: keras.Model, arrays: list[NDArray[Any]]) -> None:
        self.graph = FlatGraph(model)
        self._arrays = arrays
        self._at = 0
        self._values: dict[int, NDArray[Any]] = {}
        self._waiting = Counter(n for step in self.graph.steps for n in step.inputs)
        self._waiting.update(self.graph.outputs)
        self._calls = Counter(id(step.operation) for step in self.graph.steps)

    @property
    def most_inputs(self) -> int:
        """For how many inputs each tensor can be kept."""
        largest = max(
            math.prod(int(size or 1) for size in tensor.shape[1:]) for tensor in self.graph.symbols
        )
        return max(_LEAST_INPUTS, _MAP_BYTES // (4 * largest))

    def start(self, count: int) -> None:
        """Begin with the first `count` inputs."""
        for number, array in zip(self.graph.inputs, self._arrays, strict=True):
            self._values[number] = array[:count]

    def only_call(self, layer: Any) -> Step | None:
        """The step that calls a layer; None if there is none, or more than one."""
        if layer is None or self._calls[id(layer)] != 1:
            return None
        return self.graph.calls(layer)[0]

    def taken(self, step: Step) -> NDArray[Any]:
        """What a step that is not run yet takes."""
        return self._values[step.inputs[0]]

    def run_before(self, step: Step) -> bool:
        """Run all steps that lie before one; say whether it is still to be run."""
        while self._at < len(self.graph.steps) and self.graph.steps[self._at] is not step:
            if step in self.graph.steps[: self._at]:
                return False
            self.run(self.graph.steps[self._at])
        return self._at < len(self.graph.steps)

    def run(self, step: Step) -> None:
        """Run the next step."""
        assert self.graph.steps[self._at] is step
        self._at += 1
        count = len(self._values[self.graph.inputs[0]])
        made: list[list[NDArray[Any]]] = [[] for _ in step.outputs]
        for start in range(0, count, _BATCH):
            batch = {
                number: ops.convert_to_tensor(
                    self._values[number][start : start + _BATCH],
                    dtype=self.graph.symbols[number].dtype,
                )
                for number in step.inputs
            }
            for found, value in zip(made, step.run(batch), strict=True):
                if not value.shape or value.shape[0] != min(_BATCH, count - start):
                    raise _OtherRowsError
                found.append(np.asarray(ops.convert_to_numpy(value)))
        for number, parts in zip(step.outputs, made, strict=True):
            self._values[number] = np.concatenate(parts)
        for number in step.inputs:
            self._waiting[number] -= 1
            if not self._waiting[number] and number not in self.graph.inputs:
                del self._values[number]


def _fits(step: Step, target: Any) -> bool:
    """Whether a layer is one that can be fitted to the outputs of another."""
    layer = step.operation
    return (
        target is not None
        and isinstance(layer, keras.layers.Layer)
        and has_moments(layer)
        and has_moments(target)
        # What its input kernel makes is not what a recurrent layer gives.
        and not isinstance(layer, RECURRENT)
        and not isinstance(target, RECURRENT)
    )


def _fit(
    step: Step,
    smaller: _Walk,
    source: Step,
    whole: _Walk,
    kept: NDArray[np.bool_] | None,
    positions: int,
    rng: np.random.Generator,
) -> bool:
    layer, target = step.operation, source.operation
    inputs, originals = smaller.taken(step), whole.taken(source)
    total = output_positions(layer, inputs.shape)
    if total != output_positions(target, originals.shape):
        return False
    wanted = kernel_matrix(target) if kept is None else kernel_matrix(target)[:, kept]
    if wanted.shape[1] != kernel_of(layer).shape[-1]:
        return False
    offset = np.zeros(wanted.shape[1])
    if target.use_bias:
        bias = np.asarray(ops.convert_to_numpy(target.bias), dtype=np.float64)
        offset = bias if kept is None else bias[kept]
    behind = smaller.graph.behind(step)
    normalization = behind[0].operation if behind else None
    if not isinstance(normalization, keras.layers.BatchNormalization):
        normalization = None
    shifted = layer.use_bias or normalization is not None
    moments = _Moments(math.prod(kernel_of(layer).shape[:-1]), wanted.shape[1], shifted)
    quota = max(1, math.ceil(positions / len(inputs)))
    at = np.arange(total)
    if quota < total:
        at = np.sort(rng.choice(total, quota, replace=False))
    for ours, theirs in _batches(inputs, originals):
        rows = patches(layer, ours, at).reshape(-1, moments.width).astype(np.float64)
        given = patches(target, theirs, at).reshape(-1, len(wanted)).astype(np.float64)
        moments.add(rows, given @ wanted + offset)
    kernel, bias = moments.solved(kernel_matrix(layer))
    own = kernel_of(layer)
    own.assign(dematricize(kernel.T, own.shape, "channel"))
    if layer.use_bias:
        layer.bias.assign(bias)
    elif normalization is not None:
        # gamma (W p + b - mean) / deviation: b goes into the mean.
        mean = normalization.moving_mean
        mean.assign(np.asarray(ops.convert_to_numpy(mean), dtype=np.float64) - bias)
    return True


def _batches(
    first: NDArray[Any], second: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for start in range(0, len(first), _BATCH):
        yield first[start : start + _BATCH], second[start : start + _BATCH]


class _Moments:
    """Sums that a least squares fit needs, of patches p (width,) and outputs y (makes,)."""

    def __init__(self, width: int, makes: int, shifted: bool) -> None:
        self.width, self._shifted = width, shifted
        self._count = 0
        self._square = np.zeros((width, width))
        self._cross = np.zeros((width, makes))
        self._inputs = np.zeros(width)
        self._outputs = np.zeros(makes)

    def add(self, rows: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
        """Add patches (n, width) and what should come of them (n, makes)."""
        self._count += len(rows)
        self._square += rows.T @ rows
        self._cross += rows.T @ outputs
        self._inputs += rows.sum(axis=0)
        self._outputs += outputs.sum(axis=0)

    def solved(
        self, before: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The kernel (width, makes) nearest to the one before that fits, and the bias."""
        square, cross = self._square / self._count, self._cross / self._count
        mean, wanted = self._inputs / self._count, self._outputs / self._count
        if self._shifted:
            square = square - np.outer(mean, mean)
            cross = cross - np.outer(mean, wanted)
        ridge = max(_RIDGE, self.width / self._count)
        regular = regular_moments(square, self.width, ridge)
        kernel = before + np.linalg.solve(regular, cross - square @ before)
        bias = wanted - mean @ kernel if self._shifted else np.zeros(len(wanted))
        return kernel, bias
