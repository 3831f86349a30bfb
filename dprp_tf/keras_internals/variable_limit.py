"""A limit on the variables that are made: what a configuration declares costs no memory before."""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import keras

__all__ = ["variables_up_to"]

# The class is one for all threads.
_lock = threading.RLock()


@contextlib.contextmanager
def variables_up_to(limit: int) -> Iterator[None]:
    """Refuse in this thread to make variables that are larger together than a limit.

    A variable's shape is known before its initializer fills it, so what is refused takes no memory.
    One thread at a time can have such a limit; others wait.

    Args:
        limit: Bytes of all variables made meanwhile, those that are given up again included.

    Yields:
        Nothing.

    Raises:
        ValueError: When a variable is made that exceeds the limit; the message names its shape.

    Example:

    >>> with variables_up_to(1000):
    ...     layer = keras.layers.Dense(9)
    ...     layer.build((None, 9000))
    Traceback (most recent call last):
      ...
    ValueError: its layers declare weights of more than 1000 bytes: 'kernel' of shape (9000, 9)
    """
    thread, made = threading.get_ident(), 0

    def counted(
        variable: Any, initializer: Any, shape: Any = None, *args: Any, **named: Any
    ) -> None:
        nonlocal made
        if shape is not None and threading.get_ident() == thread:
            dtype = args[0] if args else named.get("dtype")
            made += _size(shape, dtype)
            if made > limit:
                raise ValueError(
                    f"its layers declare weights of more than {limit} bytes: "
                    f"{named.get('name')!r} of shape {tuple(shape)}"
                )
        original(variable, initializer, shape, *args, **named)

    with _lock:
        own = "__init__" in vars(keras.Variable)
        original = keras.Variable.__init__
        keras.Variable.__init__ = counted
        try:
            yield
        finally:
            if own:
                keras.Variable.__init__ = original
            else:
                del keras.Variable.__init__


def _size(shape: Any, dtype: Any) -> int:
    """Bytes of a variable; of a shape that Keras will refuse, none."""
    sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        return 0
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))  # "bool" has none
    return math.prod(sizes) * max(1, int(bits[0]) // 8 if bits else 1)
