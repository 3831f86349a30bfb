"""Labels of channels: which entries of which tensors stand and fall together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["LabelArray", "Labels", "along", "collapsed", "expanded"]

LabelArray = NDArray[np.int64]
"""Labels of a tensor's entries: an axis for each of the tensor's but the batch, of the tensor's
size, or of size 1 where the labels are the same all along it."""


class Labels:
    """Labels that can be tied to each other, and pinned where a channel must stay.

    Example:

    >>> labels = Labels()
    >>> first, second = labels.fresh(2), labels.fresh(2)
    >>> labels.tie(first, second)
    >>> labels.pin(second[1:], "an output")
    >>> labels.find(first).tolist(), [labels.reason(label) for label in first]
    ([0, 1], [None, 'an output'])
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> LabelArray:
        """Return labels that were never given.

        Args:
            count: How many.

        Returns:
            Labels of shape (count,).
        """
        begin = len(self._parents)
        self._parents.extend(range(begin, begin + count))
        return np.arange(begin, begin + count)

    def find(self, labels: LabelArray) -> LabelArray:
        """Return one label for all that are tied to each other.

        Args:
            labels: Labels of any shape.

        Returns:
            Their representatives, of the same shape.
        """
        unique, places = np.unique(labels, return_inverse=True)
        roots = np.array([self._root(int(label)) for label in unique], dtype=np.int64)
        return roots[places].reshape(labels.shape)

    def tie(self, left: LabelArray, right: LabelArray) -> None:
        """Let entries stand and fall together.

        Args:
            left: Labels.
            right: Labels of a shape that broadcasts with it.
        """
        pairs = np.stack(np.broadcast_arrays(left, right)).reshape(2, -1)
        for one, other in np.unique(pairs, axis=1).T:
            first, second = self._root(int(one)), self._root(int(other))
            if first == second:
                continue
            kept, gone = min(first, second), max(first, second)
            self._parents[gone] = kept
            reason = self._reasons.pop(gone, None)
            if reason is not None:
                self._reasons.setdefault(kept, reason)

    def pin(self, labels: LabelArray, reason: str) -> None:
        """Let entries stay.

        Args:
            labels: Labels of any shape.
            reason: Why; the first reason given counts.
        """
        for label in np.unique(labels):
            self._reasons.setdefault(self._root(int(label)), reason)

    def reason(self, label: int) -> str | None:
        """Return why a channel must stay; None if it may go.

        Args:
            label: Its label.

        Returns:
            The reason.
        """
        return self._reasons.get(self._root(int(label)))

    def _root(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label


def collapsed(array: LabelArray) -> LabelArray:
    """Return labels with size 1 on every axis along which they are the same.

    Args:
        array: Labels.

    Returns:
        The same labels.

    Example:

    >>> collapsed(np.array([[1, 2], [1, 2]])).tolist()
    [[1, 2]]
    """
    for axis in range(array.ndim):
        first = array.take([0], axis=axis)
        if array.shape[axis] > 1 and np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return array


def expanded(array: LabelArray, shape: Sequence[int | None]) -> LabelArray | None:
    """Return labels of a tensor's full size.

    Args:
        array: Labels.
        shape: The tensor's shape without the batch.

    Returns:
        Labels of that shape; None if a size is not known.
    """
    if any(size is None for size in shape):
        return None
    return np.broadcast_to(array, tuple(int(size or 0) for size in shape))


def along(array: LabelArray, axis: int, size: int) -> LabelArray | None:
    """Return the labels along one axis.

    Args:
        array: Labels.
        axis: The axis of the tensor, 1 or more, or negative; the batch is axis 0.
        size: The tensor's size on it.

    Returns:
        Labels of shape (size,); None if they differ along other axes.

    Example:

    >>> along(np.array([[[4, 5]]]), -1, 2).tolist()
    [4, 5]
    """
    axis = axis - 1 if axis > 0 else array.ndim + axis
    if any(length > 1 for at, length in enumerate(array.shape) if at != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (size,))
