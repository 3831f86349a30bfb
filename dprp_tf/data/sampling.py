"""A few examples that stand for all: drawn at random, the same by the same seed, of every class."""

from __future__ import annotations

import numpy as np

__all__ = ["balanced_sample"]


def balanced_sample(
    labels: np.ndarray, samples: int, seed: int = 0, share: float = 1.0
) -> np.ndarray:
    """Draw examples so that every class has as many as any other, as far as it has that many.

    The first examples of a file sorted by class would be of one class: calibrated on them, an int8
    file is wrong for all others, and checked on them it looks right.

    Args:
        labels: Label of each example, `(examples,)`.
        samples: How many to draw, 1 or more; all if there are no more.
        seed: Seed of the draw. Default 0.
        share: Largest share of a class to draw, 0 to 1, while another has more: what is drawn may
            be taken away from a training, which needs some of every class. Default 1.

    Returns:
        Rows of the examples, ascending.

    Example:

    >>> labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    >>> rows = balanced_sample(labels, 12)
    >>> np.bincount(labels[rows]).tolist()
    [5, 5, 2]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = np.asarray(labels)[order]
    by_label = np.argsort(shuffled, kind="stable")
    _, first, sizes = np.unique(shuffled[by_label], return_index=True, return_counts=True)
    # The first of every class comes before the second of any.
    turn = np.empty(len(order), np.int64)
    place = np.arange(len(order)) - np.repeat(first, sizes)
    # What lies beyond the share comes after all that does not.
    turn[by_label] = place + len(order) * (place >= np.floor(share * np.repeat(sizes, sizes)))
    return np.sort(order[np.argsort(turn, kind="stable")[:samples]])
