"""Test samples with labels of any kind: maps, values, images; from an .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dprp_tf.data.npz import read_npz

__all__ = ["are_class_labels", "load_test_arrays"]


def load_test_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the test samples of an .npz file, whatever their labels are.

    Args:
        path: The file, with `x_test` and `y_test`.

    Returns:
        Inputs as the model takes them, float32 where they are numbers with fractions or bytes, and
        labels as they are.

    Raises:
        ValueError: If the file can't be read, or its arrays do not fit each other.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "maps.npz"
    >>> np.savez(path, x_test=np.zeros((2, 4, 4, 3), "uint8"), y_test=np.zeros((2, 4, 4), int))
    >>> [array.shape for array in load_test_arrays(path)]
    [(2, 4, 4, 3), (2, 4, 4)]
    """
    arrays, _ = read_npz(path, ("x_test", "y_test"))
    x, y = arrays["x_test"], arrays["y_test"]
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or not len(x):
        raise ValueError(
            "`y_test` must have one label per sample of `x_test`, and at least one. Received: "
            f"shapes {x.shape} and {y.shape} in {path}."
        )
    if x.dtype == np.uint8 or x.dtype.kind == "f":
        x = x.astype(np.float32)
    return x, y


def are_class_labels(y: np.ndarray) -> bool:
    """Say whether labels are one whole number per sample, as a data set of classes has them.

    Args:
        y: Labels.

    Returns:
        True for whole numbers `(samples,)` or `(samples, 1)`.

    Example:

    >>> are_class_labels(np.array([2, 0])), are_class_labels(np.zeros((2, 4, 4), int))
    (True, False)
    """
    return y.dtype.kind in "ui" and (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1))
