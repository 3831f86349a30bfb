"""What a variable holds, looked at where it lies: the usual way to NumPy copies it twice."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

__all__ = ["values_to_look_at"]


def values_to_look_at(variable: keras.Variable) -> NDArray[Any]:
    """Return a variable's values, to be read at once and neither changed nor kept.

    Args:
        variable: A variable of any backend, on any device.

    Returns:
        A view of the memory where the backend shows it, a copy elsewhere.

    Example:

    >>> values_to_look_at(keras.Variable([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    value = variable.value
    if hasattr(value, "read_value"):  # TensorFlow's variable; its tensor is what shows its memory
        value = value.read_value()
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError, BufferError):  # PyTorch's, types that NumPy lacks, other devices
        return np.asarray(ops.convert_to_numpy(variable))
