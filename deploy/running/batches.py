"""The forms in which callers hand over inputs, brought into one: checked arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dprp_tf.data.gathering import gather, is_stream

__all__ = ["check_batches"]

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
    if is_stream(data):
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
