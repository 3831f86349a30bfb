"""Channels by their filters alone: norms, distances to the others, or chance as a control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from dprp_tf.channels import ChannelGroup, filter_rows

__all__ = ["CRITERIA", "filter_scores", "order_by_scores"]


def _l1(filters: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.abs(filters).sum(axis=1)


def _l2(filters: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return (filters**2).sum(axis=1)


def _geometric_median(
    filters: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    squared = np.square(filters).sum(axis=1)
    between = squared[:, None] + squared[None, :] - 2 * filters @ filters.T
    distances: NDArray[np.float64] = np.sqrt(np.maximum(between, 0)).sum(axis=1)
    return distances


def _random(filters: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.permutation(np.arange(1.0, len(filters) + 1.0))


CRITERIA: Mapping[str, Callable[[NDArray[np.float64], np.random.Generator], NDArray[Any]]] = {
    "l1": _l1,
    "l2": _l2,
    "geometric_median": _geometric_median,
    "random": _random,
}


def filter_scores(
    layers: Mapping[str, keras.layers.Layer],
    group: ChannelGroup,
    criterion: str,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return what each place of a group is worth by its filters.

    | criterion | of a filter f, as a vector |
    |---|---|
    | `"l1"` | sum of abs(f) |
    | `"l2"` | sum of f^2 |
    | `"geometric_median"` | sum of the distances to the other filters of its layer |
    | `"random"` | a number drawn |

    Each layer's scores sum up to 1; a place of several layers has their mean.

    Args:
        layers: The model's layers by name.
        group: The group.
        criterion: A name of the table.
        rng: What chance draws from.

    Returns:
        Scores of shape (places,), which sum up to 1.

    Source: Li et al. 2017 for L1; He et al. 2019 for the geometric median.

    Example:

    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 1)); _ = layer.kernel.assign([[1.0, 3.0]])
    >>> group = ChannelGroup("a", {"a": ((0,), (1,))}, (), (None, None))
    >>> filter_scores({"a": layer}, group, "l1", np.random.default_rng(0)).tolist()
    [0.25, 0.75]
    """
    total = np.zeros(group.size)
    for name, places in group.layers.items():
        scores = CRITERIA[criterion](filter_rows(layers[name]), rng)
        scores = scores / max(scores.sum(), np.finfo(float).tiny)
        total += [scores[list(tied)].sum() for tied in places]
    return total / len(group.layers)


def order_by_scores(
    scores: NDArray[np.float64], loose: NDArray[np.bool_]
) -> tuple[list[int], NDArray[np.float64]]:
    """Return the places that may go from the least worth on, and what is lost with them.

    Args:
        scores: What each place is worth; they sum up to 1.
        loose: Which places may go.

    Returns:
        The places, and the share lost when k of them have gone, of shape (places that may go + 1,).
    """
    order = [int(at) for at in np.argsort(scores, kind="stable") if loose[at]]
    return order, np.concatenate([[0.0], np.cumsum(scores[order])])
