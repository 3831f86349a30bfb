"""Layers with some of their channels left out: settings and weights of what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf import decomposition
from dprp_tf.keras_internals.layer_kinds import (
    CONVOLUTIONS,
    DEPTHWISE,
    RECURRENT,
    SEPARABLE,
    TRANSPOSED,
)
from dprp_tf.keras_internals.quick_building import quick_build
from dprp_tf.layers import (
    FactorizedConvolution,
    FactorizedLayer,
    FactorizedTransposedConvolution,
    SVDLayer,
    SVDRecurrent,
)
from dprp_tf.layers.kernels import kernel_of

__all__ = ["SlicedLayer", "WeightCut", "filter_rows", "weight_cuts"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class WeightCut:
    """What is left of a weight: along some of its axes the entries that a mask keeps.

    Attributes:
        kept: Masks by axis, counted from the end: -1 is the last.

    Example:

    >>> cut = WeightCut({-1: np.array([True, False, True])})
    >>> cut.of(np.arange(6).reshape(2, 3)).tolist()
    [[0, 2], [3, 5]]
    """

    kept: Mapping[int, Mask]

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return what is left of an array.

        Args:
            array: One of the weight's shape, such as its values or an optimizer's slot of it.

        Returns:
            The entries that are kept along every axis.
        """
        for axis, mask in self.kept.items():
            array = np.compress(mask, array, axis=axis)
        return array


@dataclass
class _Slice:
    """Settings that change, and what is left of weights by the name of the layer's attribute."""

    settings: dict[str, Any]
    cuts: dict[str, WeightCut] = field(default_factory=dict)


class SlicedLayer:
    """A layer with the channels that are kept, made when it is called first.

    Args:
        layer: The layer.
        reads: Which channels that it takes are kept, of shape (channels in,).
        makes: Which that it gives are kept, of shape (channels out,).

    Raises:
        ValueError: If nothing is known about slicing such a layer.

    Example:

    >>> dense = keras.layers.Dense(3, name="it")
    >>> _ = dense(keras.Input((4,)))
    >>> smaller = SlicedLayer(dense, np.array([1, 1, 0, 0], bool), np.array([1, 0, 1], bool))
    >>> smaller(keras.Input((2,))).shape, smaller.layer.name
    ((None, 2), 'it')
    """

    def __init__(self, layer: Any, reads: Mask, makes: Mask) -> None:
        self._original = layer
        self._slice = _sliced(layer, reads, makes)
        self.layer: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.layer is not None:
            return self.layer(*args, **kwargs)
        original = self._original
        config = {**original.get_config(), **self._slice.settings}
        self.layer = type(original).from_config(config)
        weights = {
            name: cut.of(_array(attrgetter(name)(original)))
            for name, cut in self._slice.cuts.items()
        }
        if isinstance(original, FactorizedLayer):
            kernel = original.as_held(weights.pop("kernel"), np)
            self.layer.start_from(_factors(original, kernel, config))
        outputs = quick_build(self.layer)(*args, **kwargs)
        for name, value in weights.items():
            attrgetter(name)(self.layer).assign(value)
        self.layer.trainable = original.trainable
        for old, new in zip(original.variables, self.layer.variables, strict=True):
            new.trainable = old.trainable
        return outputs


def weight_cuts(layer: Any, reads: Mask, makes: Mask) -> dict[str, WeightCut]:
    """Return what is left of a layer's weights when channels that it takes and gives go.

    Args:
        layer: A built layer, of Keras' own kinds.
        reads: Which channels that it takes are kept, of shape (channels in,).
        makes: Which that it gives are kept, of shape (channels out,).

    Returns:
        Cuts by the name of the layer's attribute that holds the variable.

    Raises:
        ValueError: If nothing is known about slicing such a layer, or its weights are factors, of
            which no entries are left out.

    Example:

    >>> dense = keras.layers.Dense(3)
    >>> dense.build((None, 4))
    >>> cuts = weight_cuts(dense, np.array([1, 1, 0, 0], bool), np.array([1, 0, 1], bool))
    >>> {name: cut.of(np.array(getattr(dense, name))).shape for name, cut in cuts.items()}
    {'kernel': (2, 2), 'bias': (2,)}
    """
    if isinstance(layer, FactorizedLayer):
        raise ValueError(
            "`layer` must hold a kernel, of which channels can be left out. Received: "
            f"{layer.name!r}, a {type(layer).__name__}, which holds factors"
        )
    return _sliced(layer, reads, makes).cuts


def filter_rows(layer: Any) -> NDArray[np.float64]:
    """Return the filters of a layer as the rows of a matrix, its bias left out.

    Args:
        layer: A dense layer, a convolution of any kind, or a factorized layer.

    Returns:
        Array of shape (filters, weights of one); of a separable convolution the pointwise ones.

    Example:

    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 3)); filter_rows(layer).shape
    (2, 3)
    """
    if isinstance(layer, (*RECURRENT, SVDRecurrent)):
        # (D, gates * units) -> (D, gates, units) -> (units, D * gates)
        parts = kernel_of(layer).array.astype(np.float64)
        parts = parts.reshape(len(parts), -1, layer.units)
        return parts.reshape(-1, layer.units).T
    separable = isinstance(layer, SEPARABLE)
    kernel = _array(layer.pointwise_kernel) if separable else kernel_of(layer).array
    kernel = kernel.astype(np.float64)
    return kernel.reshape(-1, kernel.shape[-1]).T


def _sliced(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    rule = next((rule for kinds, rule in _RULES if isinstance(layer, kinds)), None)
    if rule is None:
        raise ValueError(
            f"`layer` must be one whose channels can be taken apart. Received: {layer.name!r}, a "
            f"{type(layer).__name__}"
        )
    return rule(layer, reads, makes)


def _array(variable: Any) -> NDArray[Any]:
    return np.asarray(ops.convert_to_numpy(variable))


def _bias(layer: Any, makes: Mask) -> dict[str, WeightCut]:
    return {} if layer.bias is None else {"bias": WeightCut({-1: makes})}


def _dense(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    kernel = WeightCut({-2: reads, -1: makes})
    return _Slice({"units": int(makes.sum())}, {"kernel": kernel, **_bias(layer, makes)})


def _convolution(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    groups = getattr(layer, "groups", 1) or 1
    settings: dict[str, Any] = {"filters": int(makes.sum())}
    if groups == 1:
        kernel = WeightCut({-2: reads, -1: makes})
    elif groups == reads.size:
        # A group for each channel: the kernel has one place for what it takes.
        settings["groups"] = int(reads.sum())
        kernel = WeightCut({-1: makes})
    else:
        # The same places go in every group.
        kernel = WeightCut({-2: reads.reshape(groups, -1)[0], -1: makes})
    return _Slice(settings, {"kernel": kernel, **_bias(layer, makes)})


def _transposed(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    kernel = WeightCut({-2: makes, -1: reads})
    return _Slice({"filters": int(makes.sum())}, {"kernel": kernel, **_bias(layer, makes)})


def _recurrent(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    bias = {} if layer.cell.bias is None else {"cell.bias": WeightCut({})}
    kernels = {"cell.kernel": WeightCut({-2: reads}), "cell.recurrent_kernel": WeightCut({})}
    return _Slice({}, {**kernels, **bias})


def _depthwise(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    return _Slice({}, {"kernel": WeightCut({-2: reads}), **_bias(layer, makes)})


def _separable(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    multiplied = np.repeat(reads, layer.depth_multiplier)
    cuts = {
        "depthwise_kernel": WeightCut({-2: reads}),
        "pointwise_kernel": WeightCut({-2: multiplied, -1: makes}),
    }
    return _Slice({"filters": int(makes.sum())}, {**cuts, **_bias(layer, makes)})


def _normalization(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    held = [name for name in names if getattr(layer, name, None) is not None]
    return _Slice({}, {name: WeightCut({-1: reads}) for name in held})


def _parametric(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    return _Slice({}, {"alpha": WeightCut({-1: reads})})


def _factorized(layer: Any, reads: Mask, makes: Mask) -> _Slice:
    if isinstance(layer, SVDRecurrent):
        full = decomposition.full_rank((int(reads.sum()), layer.kernel_shape[-1]), "channel")
        held = ("recurrent_kernel", "bias") if layer.bias is not None else ("recurrent_kernel",)
        kept = {name: WeightCut({}) for name in held}
        rank = min(int(layer.rank or full), full)
        return _Slice({"rank": rank}, {"kernel": WeightCut({-2: reads}), **kept})
    shape = (*layer.kernel_shape[:-2], int(reads.sum()), int(makes.sum()))
    convolution = isinstance(layer, FactorizedConvolution)
    settings: dict[str, Any] = {"filters" if convolution else "units": int(makes.sum())}
    if isinstance(layer, SVDLayer):
        full = decomposition.full_rank(shape, layer.matricization)
        settings["rank"] = min(int(layer.rank or full), full)
    else:
        settings["ranks"] = tuple(
            min(rank, int(kept.sum()))
            for rank, kept in zip(layer.ranks, (reads, makes), strict=True)
        )
    turned = isinstance(layer, FactorizedTransposedConvolution)
    kernel = WeightCut({-1: reads, -2: makes} if turned else {-2: reads, -1: makes})
    return _Slice(settings, {"kernel": kernel, **_bias(layer, makes)})


def _factors(layer: Any, kernel: NDArray[Any], config: dict[str, Any]) -> Any:
    """Factors of what is left of a kernel: leaving out rows and columns raises no rank."""
    if isinstance(layer, SVDLayer):
        matrix = decomposition.matricize(kernel, layer.matricization)
        return decomposition.decompose(matrix, config["rank"])
    return decomposition.tucker2(kernel, config["ranks"], iterations=0)


_RULES: list[tuple[tuple[type, ...], Callable[[Any, Mask, Mask], _Slice]]] = [
    ((FactorizedLayer,), _factorized),
    ((keras.layers.Dense,), _dense),
    (SEPARABLE, _separable),
    (DEPTHWISE, _depthwise),
    (TRANSPOSED, _transposed),
    (RECURRENT, _recurrent),
    (CONVOLUTIONS, _convolution),
    ((keras.layers.BatchNormalization,), _normalization),
    ((keras.layers.PReLU,), _parametric),
]
