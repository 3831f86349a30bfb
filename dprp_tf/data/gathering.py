"""Samples out of whatever Keras trains on: tf.data, PyDataset, generators, loaders of batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

__all__ = ["gather", "is_stream"]


def is_stream(data: Any) -> bool:
    """Return whether data come one batch after another instead of lying in arrays.

    Args:
        data: Anything.

    Returns:
        True for a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator or a function that
        makes one, a torch `DataLoader`, or any other iterable that is neither an array nor a list,
        tuple or dict of arrays.

    Example:

    >>> is_stream(np.zeros((4, 2))), is_stream(iter([np.zeros((4, 2))]))
    (False, True)
    """
    if isinstance(data, (list, tuple, Mapping, str, bytes)) or hasattr(data, "__array__"):
        return False
    if inspect.isfunction(data) or inspect.ismethod(data) or inspect.isbuiltin(data):
        return True
    return hasattr(data, "__iter__") or _is_indexed(data)


def gather(
    data: Any,
    *,
    ranks: Mapping[str, int] | None = None,
    limit: int | None = None,
    argument: str = "data",
) -> tuple[Any, Any]:
    """Take samples of a stream into arrays.

    An element is `x`, or a tuple `(x, y)` or `(x, y, weights)` as Keras takes it; x may be a list
    or a dict of arrays, one for each input.

    Args:
        data: A stream; see `is_stream`.
        ranks: Number of axes of each input by name, batch axis included: an element whose arrays
            have one less is a single sample. Default: every element is a batch.
        limit: Most samples to take. Default: all, which an endless stream does not have.
        argument: Name of the argument it came through, for the error message.

    Returns:
        x in the structure that the stream gives it, and y; None for a stream without labels.

    Raises:
        ValueError: If the stream is empty, or its elements differ in structure or shape.

    Example:

    >>> batches = [(np.zeros((4, 2)), np.ones(4)), (np.zeros((3, 2)), np.ones(3))]
    >>> x, y = gather(iter(batches), limit=5)
    >>> x.shape, y.shape
    ((5, 2), (5,))
    """
    parts: list[tuple[Any, Any]] = []
    taken = 0
    for element in _elements(data):
        x, y = _split(element, lists=_is_loader(data))
        x, y = (keras.tree.map_structure(_as_array, part) for part in (x, y))
        if ranks is not None and _is_single(x, ranks):
            x, y = (keras.tree.map_structure(_as_batch, part) for part in (x, y))
        parts.append((x, y))
        taken += len(keras.tree.flatten(x)[0])
        if limit is not None and taken >= limit:
            break
    if not taken:
        raise ValueError(f"`{argument}` must hold one sample or more. Received: an empty stream.")
    try:
        x, y = (
            keras.tree.map_structure(
                lambda *arrays: None if arrays[0] is None else np.concatenate(arrays)[:limit],
                *(part[place] for part in parts),
            )
            for place in (0, 1)
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"`{argument}` must give elements of one structure and shape. Received: elements that "
            f"can't be joined ({error}); resize or pad the samples in the stream."
        ) from error
    return x, y


def _elements(data: Any) -> Iterator[Any]:
    if inspect.isroutine(data):
        yield from data()
    elif _is_indexed(data):
        yield from (data[index] for index in range(len(data)))
    else:
        yield from data


def _is_indexed(data: Any) -> bool:
    """Whether it is Keras' PyDataset, or one like it: batches by number, perhaps no iterator."""
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    own = isinstance(data, keras.utils.PyDataset)
    return indexed and (own or not hasattr(data, "__iter__"))


def _is_loader(data: Any) -> bool:
    """Whether it is torch's loader, whose batches of `(x, y)` are lists."""
    return type(data).__name__ == "DataLoader"


def _split(element: Any, lists: bool) -> tuple[Any, Any]:
    if isinstance(element, tuple) or (lists and isinstance(element, list)):
        return element[0], element[1] if len(element) > 1 else None
    return element, None


def _as_array(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def _is_single(x: Any, ranks: Mapping[str, int]) -> bool:
    first = keras.tree.flatten(x)[0]
    name, array = next(iter(x.items())) if isinstance(x, Mapping) else ("", first)
    wanted = ranks.get(name) or next(iter(ranks.values()))
    return bool(array.ndim == wanted - 1)


def _as_batch(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array[None]
