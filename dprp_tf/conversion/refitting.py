"""Kernels fitted anew to the channels that are left, so that their outputs stay what they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from dprp_tf.conversion.calibration import input_moments
from dprp_tf.keras_internals.graphs import layer_keys

__all__ = ["kernel_matrix", "refit_readers", "refittable", "rows_of_channels"]

_RIDGE = 1e-4

Masks = Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]


def refittable(layer: Any) -> bool:
    """Say whether a layer's kernel can be fitted to its input's second moments.

    Args:
        layer: A layer.

    Returns:
        True for dense layers and convolutions without groups.

    Example:

    >>> refittable(keras.layers.Conv2D(4, 3)), refittable(keras.layers.Conv2D(4, 3, groups=2))
    (True, False)
    """
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    return isinstance(layer, keras.layers.Dense) or (isinstance(layer, kinds) and layer.groups == 1)


def rows_of_channels(layer: Any) -> NDArray[np.intp]:
    """Return the rows of a layer's kernel, as a matrix, that read each channel.

    Args:
        layer: A layer that is `refittable`.

    Returns:
        Rows of shape (C, L): of channel c those of each place of the window, in the order in which
        `input_moments` has them.

    Example:

    >>> layer = keras.layers.Conv1D(1, 3)
    >>> layer.build((None, 5, 2)); rows_of_channels(layer).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    *window, channels, _ = layer.kernel.shape
    places = int(np.prod(window, dtype=int))
    return np.arange(channels * places).reshape(channels, places)


def kernel_matrix(layer: Any) -> NDArray[np.float64]:
    """Return a layer's kernel as a matrix, its rows in the order of `rows_of_channels`.

    Args:
        layer: A layer that is `refittable`.

    Returns:
        The matrix, of shape (C*L, S).
    """
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel), dtype=np.float64)
    *_, channels, filters = kernel.shape
    # (*L, C, S) -> (L, C, S) -> (C, L, S) -> (C*L, S)
    return np.swapaxes(kernel.reshape(-1, channels, filters), 0, 1).reshape(-1, filters)


def refit_readers(model: keras.Model, small: keras.Model, masks: Masks, x: Any) -> None:
    """Fit the kernels of layers that lost channels they read to what is left of their inputs.

    With G = E[p p^T] of the whole model's input patches and K the rows that are kept, the kernel
    W becomes W_K = G_KK^-1 G_K: W, which changes the layer's outputs least in the mean square.

    Args:
        model: The whole model.
        small: The model without the channels; its kernels are assigned.
        masks: What `kept_channels` returned for the whole model.
        x: Calibration inputs, as the model takes them.

    Source: least squares; He et al. 2017, "Channel Pruning", fits the same to the pruned inputs.
    """
    whole, smaller = layer_keys(model), layer_keys(small)
    names = [key for key, (reads, _) in masks.items() if not reads.all() and refittable(whole[key])]
    for key, moments in input_moments(model, names, x).items() if names else ():
        reads, makes = masks[key]
        layer = whole[key]
        rows = rows_of_channels(layer)[reads].reshape(-1)
        size = len(moments)
        regular = moments + _RIDGE * np.trace(moments) / size * np.eye(size)
        fitted = np.linalg.solve(
            regular[np.ix_(rows, rows)], moments[rows] @ kernel_matrix(layer)[:, makes]
        )
        *window, _, filters = smaller[key].kernel.shape
        # (C'*L, S') -> (C', L, S') -> (L, C', S') -> (*L, C', S')
        places = int(np.prod(window, dtype=int))
        kernel = np.swapaxes(fitted.reshape(-1, places, filters), 0, 1)
        smaller[key].kernel.assign(kernel.reshape(smaller[key].kernel.shape))
