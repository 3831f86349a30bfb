"""What a model's layers see of real inputs: second moments of their input patches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.files.arguments import check_integer
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.layer_kinds import CONVOLUTIONS, RECURRENT, TRANSPOSED
from dprp_tf.layers.kernels import kernel_of

__all__ = ["has_moments", "input_moments", "output_positions", "patches"]

_BLOCK_BYTES = 2**26


def has_moments(layer: Any) -> bool:
    """Say whether `input_moments` knows what a layer multiplies by its kernel.

    Args:
        layer: A layer.

    Returns:
        True for dense layers, the input kernels of recurrent ones, and convolutions without groups,
        transposed ones too.

    Example:

    >>> has_moments(keras.layers.Conv2D(4, 3)), has_moments(keras.layers.Conv2D(4, 3, groups=2))
    (True, False)
    """
    return isinstance(layer, (keras.layers.Dense, *RECURRENT, *TRANSPOSED)) or (
        isinstance(layer, CONVOLUTIONS) and layer.groups == 1
    )


def input_moments(
    model: keras.Model,
    layers: Iterable[str],
    x: Any,
    *,
    batch_size: int = 64,
    positions: int | None = 50_000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Return the second moments P = E[p p^T] of the input patches p of some layers.

    A convolution W, as a matrix (S, C*L), makes W p of the patch p (C*L,) at each position of its
    output, so the mean squared output over images and positions, without bias, is tr(W P W^T).
    For a dense layer p is its input and every axis but the last counts as position; so it is for
    the input kernel of a recurrent one. A transposed convolution is the convolution of its input
    with zeros between the entries, which p then holds as well. All layers
    are seen in one pass; the calls of a shared layer are pooled. Sums are kept in float64.

    Args:
        model: A built Functional or Sequential model, run as at inference.
        layers: Layers by key (see `dprp_tf.keras_internals.graphs.layer_keys`) that
            `has_moments`.
        x: Calibration inputs, one array; a list of them for several inputs.
        batch_size: Inputs run at a time. Default 64.
        positions: About how many positions each call of a layer contributes over all inputs; the
            same ones, drawn anew for each batch, are taken of every input of the batch. None for
            all. Default 50,000.
        seed: Seed of the draw. Default 0.

    Returns:
        P by layer key, of shape (C*L, C*L); row c*L + l is channel c at position l of the window,
        counted in row-major order, as `decomposition.matricize(kernel, "channel")` has it.

    Raises:
        ValueError: If a layer is unknown or of another kind, or there are no inputs.

    Example:

    >>> inputs = keras.Input((4, 4, 2))
    >>> outputs = keras.layers.Conv2D(3, 3, name="a")(inputs)
    >>> moments = input_moments(keras.Model(inputs, outputs), ["a"], np.ones((5, 4, 4, 2)))
    >>> moments["a"].shape, float(moments["a"].min())
    ((18, 18), 1.0)
    """
    # Not at the top: the package imports what imports this.
    from dprp_tf.keras_internals.flat_graph import FlatGraph

    known = layer_keys(model)
    wanted = {}
    for key in layers:
        layer = known.get(key)
        if layer is None or not has_moments(layer):
            raise ValueError(
                "`layers` must name convolutions without groups, dense or recurrent layers of the "
                "model. "
                f"Received: {key!r}, "
                + (f"a {type(layer).__name__}" if layer is not None else "which it doesn't have")
            )
        wanted[key] = layer
    arrays = keras.tree.flatten(x)
    count = len(arrays[0]) if arrays else 0
    if not count or any(len(array) != count for array in arrays):
        raise ValueError(
            "`x` must hold one input or more, as many for each input of the model. Received: "
            f"{[len(array) for array in arrays]} inputs"
        )
    check_integer("batch_size", batch_size)
    if positions is not None:
        check_integer("positions", positions)
    graph = FlatGraph(model)
    sources = {
        key: [(step.inputs[0], _mask_of_steps(graph, step)) for step in graph.calls(layer)]
        for key, layer in wanted.items()
    }
    numbers = {
        number
        for found in sources.values()
        for pair in found
        for number in pair
        if number is not None
    }
    quota = None if positions is None else max(1, math.ceil(positions / count))
    rng = np.random.default_rng(seed)
    sums: dict[str, NDArray[np.float64]] = {}
    seen = dict.fromkeys(wanted, 0)
    for start in range(0, count, batch_size):
        batch = [array[start : start + batch_size] for array in arrays]
        values = graph.run(batch, numbers)
        maps = {
            n: np.asarray(ops.convert_to_numpy(ops.cast(v, "float32"))) for n, v in values.items()
        }
        for key, layer in wanted.items():
            for number, mask in sources[key]:
                heeded = None if mask is None else maps[mask] > 0
                for rows in _rows(layer, maps[number], quota, rng, heeded):
                    seen[key] += len(rows)
                    sums[key] = sums.get(key, 0.0) + rows.T @ rows
    return {key: sums[key] / seen[key] for key in wanted}


def patches(
    layer: keras.layers.Layer, inputs: NDArray[Any], at: NDArray[np.intp] | None = None
) -> NDArray[Any]:
    """Return the patches of its input that a layer multiplies by its kernel.

    Args:
        layer: A built layer that `has_moments`.
        inputs: A batch of its inputs.
        at: Output positions to take, counted in row-major order. Default: all.

    Returns:
        Array (batch, positions, C*L), column c*L + l.

    Example:

    >>> layer = keras.layers.Conv1D(1, 2, padding="causal")
    >>> layer.build((None, 3, 1))
    >>> patches(layer, np.array([[[1.0], [2.0], [3.0]]]))[0].tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    """
    if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        flat = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return flat if at is None else flat[:, at]
    if layer.data_format == "channels_first":
        inputs = np.moveaxis(inputs, 1, -1)
    outputs = _output_sizes(layer, inputs.shape[1:-1])
    offsets = np.array(list(product(*(range(size) for size in layer.kernel_size))))
    if isinstance(layer, TRANSPOSED):
        padded = _spread(layer, inputs, outputs)
        # The first tap is the one that reaches furthest back.
        offsets = np.array(layer.kernel_size) - 1 - offsets
        strides = (1,) * len(outputs)
    else:
        pads = [_padding(layer.padding, *axis) for axis in _axes(layer, inputs, outputs)]
        padded = np.pad(inputs, ((0, 0), *pads, (0, 0)))
        strides = layer.strides
    if at is None:
        at = np.arange(math.prod(outputs))
    # Per axis: (positions, L) indices into the padded map
    corners = np.unravel_index(at, outputs)
    index = tuple(
        corner[:, None] * stride + offset[None, :] * dilation
        for corner, stride, offset, dilation in zip(
            corners, strides, offsets.T, layer.dilation_rate, strict=True
        )
    )
    # (N, positions, L, C) -> (N, positions, C, L) -> (N, positions, C*L)
    taken = padded[(slice(None), *index)]
    return np.swapaxes(taken, 2, 3).reshape(len(inputs), len(at), -1)


def output_positions(layer: keras.layers.Layer, shape: tuple[int, ...]) -> int:
    """Return how many outputs a layer makes of one input: positions, without the channels.

    Args:
        layer: A layer that `has_moments`.
        shape: Shape of its input, with the batch axis.

    Returns:
        The number.

    Example:

    >>> output_positions(keras.layers.Conv2D(4, 3), (1, 8, 8, 3))
    36
    """
    if not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        return math.prod(shape[1:-1])
    return math.prod(
        _output_sizes(layer, shape[1:-1] if layer.data_format == "channels_last" else shape[2:])
    )


def _output_sizes(layer: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of a convolution's map of outputs for those of its inputs."""
    shape = (1, *sizes, 1) if layer.data_format == "channels_last" else (1, 1, *sizes)
    found = layer.compute_output_shape(shape)
    found = found[1:-1] if layer.data_format == "channels_last" else found[2:]
    return tuple(int(size) for size in found)


def _axes(
    layer: Any, inputs: NDArray[Any], outputs: tuple[int, ...]
) -> list[tuple[int, int, int, int, int]]:
    """By axis the sizes of inputs and outputs, the window's, its step and its spacing."""
    settings = (layer.kernel_size, layer.strides, layer.dilation_rate)
    return list(zip(inputs.shape[1:-1], outputs, *settings, strict=True))


def _padding(
    padding: str, size: int, output: int, kernel: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Zeros before and after an axis."""
    reach = dilation * (kernel - 1)
    if padding == "causal":
        return reach, 0
    if padding == "valid":
        return 0, 0
    total = max((output - 1) * stride + reach + 1 - size, 0)
    return total // 2, total - total // 2


def _spread(layer: Any, inputs: NDArray[Any], outputs: tuple[int, ...]) -> NDArray[Any]:
    """Inputs with zeros between them and around, of which a convolution makes these outputs."""
    axes = _axes(layer, inputs, outputs)
    # Long enough for the window at the last output, whatever its padding.
    lengths = [output + dilation * (kernel - 1) for _, output, kernel, _, dilation in axes]
    spread = np.zeros((len(inputs), *lengths, inputs.shape[-1]), inputs.dtype)
    into, taken = [], []
    for size, output, kernel, stride, dilation in axes:
        # A "same" convolution of the outputs would pad them by as much, half of it in front.
        reach = dilation * (kernel - 1)
        cut = 0
        if layer.padding == "same":
            cut = max((size - 1) * stride + reach + 1 - output, 0) // 2
        first = reach - cut
        length = output + reach
        count = len(range(first, length, stride)) if first < length else 0
        into.append(slice(first, first + stride * min(size, count), stride))
        taken.append(slice(0, min(size, count)))
    spread[(slice(None), *into)] = inputs[(slice(None), *taken)]
    return spread


def _mask_of_steps(graph: Any, step: Any) -> int | None:
    """The number of the mask (b, t) by which a recurrent layer leaves steps out; None for none."""
    if not isinstance(step.operation, RECURRENT):
        return None
    masks = [
        number
        for number in step.inputs[1:]
        if str(graph.symbols[number].dtype) == "bool" and len(graph.symbols[number].shape) == 2
    ]
    return masks[0] if masks else None


def _rows(
    layer: keras.layers.Layer,
    inputs: NDArray[Any],
    quota: int | None,
    rng: np.random.Generator,
    heeded: NDArray[np.bool_] | None = None,
) -> Iterator[NDArray[np.float64]]:
    """Yield the patches of a batch as rows (n, C*L), in blocks of limited size."""
    if heeded is not None:
        # Steps that a mask leaves out meet no kernel: (b, t, d) -> (1, steps left, d)
        inputs = inputs[heeded][None]
        quota = None if quota is None else quota * len(heeded)
        if not inputs.size:
            return
    total = output_positions(layer, inputs.shape)
    width = math.prod(kernel_of(layer).shape[:-1])
    at = np.arange(total)
    if quota is not None and quota < total:
        at = np.sort(rng.choice(total, quota, replace=False))
    block = max(1, _BLOCK_BYTES // (8 * width))
    step = max(1, block // len(at))
    for start in range(0, len(inputs), step):
        for first in range(0, len(at), block):
            found = patches(layer, inputs[start : start + step], at[first : first + block])
            yield found.reshape(-1, width).astype(np.float64)
