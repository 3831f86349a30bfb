"""Kernels fitted anew to the channels that are left, so that their outputs stay what they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.conversion.calibration import has_moments, input_moments
from dprp_tf.decomposition import dematricize, matricize, regular_moments
from dprp_tf.keras_internals.graphs import layer_keys
from dprp_tf.keras_internals.layer_kinds import RECURRENT
from dprp_tf.layers.kernels import kernel_of

__all__ = ["kernel_matrix", "refit_readers", "rows_of_channels"]

Masks = Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]


def rows_of_channels(layer: Any) -> NDArray[np.intp]:
    """Return the rows of a layer's kernel, as a matrix, that read each channel.

    Args:
        layer: A layer that `has_moments`.

    Returns:
        Rows of shape (C, L): of channel c those of each place of the window, in the order in which
        `input_moments` has them.

    Example:

    >>> layer = keras.layers.Conv1D(1, 3)
    >>> layer.build((None, 5, 2)); rows_of_channels(layer).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    *window, channels, _ = kernel_of(layer).shape
    places = int(np.prod(window, dtype=int))
    return np.arange(channels * places).reshape(channels, places)


def kernel_matrix(layer: Any) -> NDArray[np.float64]:
    """Return a layer's kernel as a matrix, its rows in the order of `rows_of_channels`.

    Args:
        layer: A layer that `has_moments`.

    Returns:
        The matrix, of shape (C*L, S).
    """
    kernel = kernel_of(layer).array.astype(np.float64)
    matrix: NDArray[np.float64] = matricize(kernel, "channel").T
    return matrix


def refit_readers(
    model: keras.Model,
    small: keras.Model,
    masks: Masks,
    x: Any,
    *,
    moments: Mapping[str, NDArray[np.float64]] | None = None,
) -> None:
    """Fit the kernels of layers that lost channels they read to what is left of their inputs.

    With G = E[p p^T] of the whole model's input patches and K the rows that are kept, the kernel
    W becomes W_K = G_KK^-1 G_K: W, which changes the layer's outputs least in the mean square.

    Args:
        model: The whole model.
        small: The model without the channels; its kernels are assigned.
        masks: What `Removal.masks` returned for the whole model.
        x: Calibration inputs, as the model takes them.
        moments: What `input_moments` gave of them for layers of the whole model. Default: none.

    Source: least squares; He et al. 2017, "Channel Pruning", fits the same to the pruned inputs.
    """
    whole, smaller = layer_keys(model), layer_keys(small)
    names = [
        key for key, (reads, _) in masks.items() if not reads.all() and has_moments(whole[key])
    ]
    known = dict(moments or {})
    missing = [name for name in names if name not in known]
    if missing:
        known.update(input_moments(model, missing, x))
    for key in names:
        reads, makes = masks[key]
        rows = rows_of_channels(whole[key])[reads].reshape(-1)
        regular = regular_moments(known[key], len(known[key]))
        matrix = kernel_matrix(whole[key])
        # All gates of a recurrent layer stay.
        matrix = matrix if isinstance(whole[key], RECURRENT) else matrix[:, makes]
        wanted = known[key][rows] @ matrix
        # (C'*L, C'*L)^-1 (C'*L, S')
        fitted = np.linalg.solve(regular[np.ix_(rows, rows)], wanted)
        kernel = kernel_of(smaller[key])
        kernel.assign(dematricize(fitted.T, kernel.shape, "channel"))
