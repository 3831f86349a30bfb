"""Logarithms of the probabilities that a model's class scores stand for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["are_probabilities", "log_probabilities"]


def are_probabilities(scores: NDArray[np.float64]) -> bool:
    """Say whether scores are distributions; what is none is taken for logits.

    Args:
        scores: Scores, of shape (..., classes).

    Returns:
        Whether all are 0 or more and add up to 1 over the classes.

    Example:

    >>> are_probabilities(np.array([[0.25, 0.75]])), are_probabilities(np.array([[1.0, 2.0]]))
    (True, False)
    """
    return bool(scores.min() >= 0 and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3))


def log_probabilities(scores: NDArray[np.float64], *, probabilities: bool) -> NDArray[np.float64]:
    """Return log p of each class.

    Args:
        scores: Scores, of shape (..., classes).
        probabilities: Whether they are p itself; else they are logits.

    Returns:
        Array of the same shape; of p below 1e-12 that of 1e-12.

    Example:

    >>> np.exp(log_probabilities(np.zeros((1, 2)), probabilities=False)).tolist()
    [[0.5, 0.5]]
    """
    if probabilities:
        return np.asarray(np.log(np.maximum(scores, 1e-12)))
    top = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(top - np.log(np.exp(top).sum(axis=-1, keepdims=True)))
