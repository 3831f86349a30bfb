"""The forms in which callers hand over inputs, brought into one: checked arrays by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["as_dtype", "check_batches", "split_batches"]

# Enough to calibrate and to verify with, of a stream that may be endless.
_LIMIT = 1024


def check_batches(
    data: Any, shapes: Mapping[str, tuple[int | None, ...]], argument: str
) -> dict[str, np.ndarray]:
    """Give one array per input, of fitting shape and equal sample count.

    Args:
        data: One array for a single input, else a list or tuple of arrays in the order of
            `shapes`, or a dict by input name. Each has shape `(samples, ...)`. Or what gives such
            ones batch by batch or sample by sample, alone or as `(x, y)`: a `tf.data.Dataset`, a
            `PyDataset`, a generator, a loader; its first 1,024 samples are taken.
        shapes: Input name to shape, batch axis included; `None` fits any length, and the batch
            axis always does.
        argument: Name of the argument it came through, for the error message.

    Returns:
        Input name to array, in the order of `shapes`.

    Raises:
        ValueError: If names, number of arrays, shapes or sample counts do not fit.

    Example:

    >>> check_batches([[1.0, 2.0]], {"x": (None, 2)}, "inputs")
    {'x': array([[1., 2.]])}
    """
    if not isinstance(data, (np.ndarray, list, tuple, Mapping)):
        # Imported here: the package loads Keras, which arrays can do without.
        from dprp_tf.data.gathering import gather, is_stream

        if not is_stream(data):
            return check_batches(np.asarray(data), shapes, argument)
        ranks = {name: len(shape) for name, shape in shapes.items()}
        data, _ = gather(data, ranks=ranks, limit=_LIMIT, argument=argument)
    try:
        arrays = {k: np.asarray(v) for k, v in _by_name(data, shapes, argument).items()}
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"`{argument}` must hold samples of one shape for the inputs {list(shapes)}. "
            "Received: arrays of different shapes."
        ) from error
    for name, shape in shapes.items():
        received = arrays[name].shape
        fits = len(received) == len(shape) and all(
            wanted is None or wanted == edge
            for wanted, edge in zip(shape[1:], received[1:], strict=True)
        )
        if not fits or received[0] == 0:
            wanted = ("samples", *("any" if edge is None else str(edge) for edge in shape[1:]))
            raise ValueError(
                f"`{argument}` must have shape ({', '.join(wanted)}) with at least one sample for "
                f"input {name!r}. Received: shape={received}."
            )
    counts = {name: len(arrays[name]) for name in shapes}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"`{argument}` must hold as many samples for every input. Received: {counts}."
        )
    return {name: arrays[name] for name in shapes}


def as_dtype(array: np.ndarray, dtype: str, name: str, argument: str) -> np.ndarray:
    """Convert an array to an input's dtype, and refuse values that the dtype can't hold.

    Rounding to a shorter float is no such case; fractions, NaN and values out of range are for
    integers, and values that would become infinite for floats.

    Args:
        array: The values.
        dtype: Name of the input's dtype: a float, an integer or bool.
        name: The input's name, for the error message.
        argument: Name of the argument it came through, for the error message.

    Returns:
        The array in that dtype.

    Raises:
        ValueError: If the array holds no numbers, or a number that does not fit.

    Example:

    >>> as_dtype(np.array([0.0, 255.0]), "uint8", "image", "inputs")
    array([  0, 255], dtype=uint8)
    >>> as_dtype(np.array([0.5]), "uint8", "image", "inputs")
    Traceback (most recent call last):
      ...
    ValueError: `inputs` must hold whole numbers from 0 to 255 for input 'image' of dtype uint8. \
Received: dtype=float64 with the value 0.5. Bring the values to what the model was trained on.
    """
    target = np.dtype(dtype)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"`{argument}` must hold numbers for input {name!r} of dtype {dtype}. Received: "
            f"dtype={array.dtype}. Convert the array with .astype({dtype!r})."
        )
    if array.dtype == target:
        return array
    if target.kind == "f":
        with np.errstate(over="ignore"):
            converted = array.astype(target)
        unfit = np.isinf(converted) & np.isfinite(array)
        wanted = f"numbers up to {float(np.finfo(target).max):.5g}"
    else:
        low, high = _limits(target)
        if array.dtype.kind == "f":
            wide = array.astype(np.float64)
            # Not <= high: the largest number of 64 bits would be rounded up.
            unfit = ~((wide >= low) & (wide < high + 1) & (wide == np.trunc(wide)))
        else:
            lowest, highest = _limits(array.dtype)
            unfit = (array < max(low, lowest)) | (array > min(high, highest))
        wanted = f"whole numbers from {low} to {high}"
    if unfit.any():
        raise ValueError(
            f"`{argument}` must hold {wanted} for input {name!r} of dtype {dtype}. Received: "
            f"dtype={array.dtype} with the value {array[unfit][0]}. Bring the values to what the "
            "model was trained on."
        )
    return converted if target.kind == "f" else array.astype(target)


def split_batches(
    arrays: Mapping[str, np.ndarray], fixed: int | None, chunk: int
) -> Iterator[dict[str, np.ndarray]]:
    """Cut arrays into batches that a model takes.

    Args:
        arrays: Input name to array, with as many samples each, one or more.
        fixed: The one batch size that the model takes, `None` if it takes any. A last batch that
            is too small is filled up with copies of the last sample.
        chunk: Samples per batch where any number does.

    Yields:
        Input name to array of one batch.

    Example:

    >>> list(split_batches({"x": np.arange(3)}, fixed=2, chunk=64))
    [{'x': array([0, 1])}, {'x': array([2, 2])}]
    """
    samples = len(next(iter(arrays.values())))
    size = fixed or chunk
    for start in range(0, samples, size):
        part = {name: array[start : start + size] for name, array in arrays.items()}
        missing = start + size - samples if fixed else 0
        if missing > 0:
            part = {
                name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
                for name, array in part.items()
            }
        yield part


def _limits(dtype: np.dtype) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _by_name(
    data: Any, shapes: Mapping[str, tuple[int | None, ...]], argument: str
) -> dict[str, Any]:
    names = list(shapes)
    if isinstance(data, Mapping):
        if sorted(data) != sorted(names):
            raise ValueError(
                f"`{argument}` must hold one array per input: {names}. Received: {list(data)}."
            )
        return dict(data)
    several = isinstance(data, (list, tuple))
    if len(names) == 1:
        # A list of one array is that array; any other list is the array's rows.
        wrapped = several and len(data) == 1 and np.ndim(data[0]) == len(shapes[names[0]])
        return {names[0]: data[0] if wrapped else data}
    if several and len(data) == len(names):
        return dict(zip(names, data, strict=True))
    received = f"{len(data)} arrays" if several else type(data).__name__
    raise ValueError(
        f"`{argument}` must be a list or dict of {len(names)} arrays for the inputs {names}. "
        f"Received: {received}."
    )
