"""Data sets in .npz files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dprp_tf.data.arrays import ARRAYS, from_arrays
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.images import first_line
from dprp_tf.files.arrays import read_arrays

__all__ = ["load_npz", "read_npz"]

# Each becomes an object in Python, which is far larger than the name in the file.
_MOST_CLASSES = 2**20


def load_npz(path: Path, size: tuple[int, int] | None = None) -> Dataset:
    """Load images from an .npz file.

    Args:
        path: The file, with the arrays that `read_npz` names.
        size: Height and width to resize to; None for those they have.

    Returns:
        The dataset, named as the file.

    Raises:
        ValueError: If the file can't be read or does not hold such arrays.

    Example:

    >>> load_npz.__name__
    'load_npz'
    """
    arrays, classes = read_npz(path)
    return from_arrays(path.stem, arrays, size, classes)


def read_npz(
    path: Path, names: Sequence[str] = ARRAYS
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Read the arrays of a data set from an .npz file.

    Args:
        path: The file, with the arrays of `names` and, if wanted, `classes`, an array of text.
        names: What it must hold. Default: `x_train`, `y_train`, `x_test`, `y_test`.

    Returns:
        The arrays by name, and the names of the classes or None.

    Raises:
        ValueError: If the file can't be read, or an array is missing.
    """
    try:
        arrays, found = read_arrays(path, (*names, "classes"))
    except Exception as error:  # zip, zlib and the array header each have errors of their own
        raise ValueError(
            f"`source` must be a whole .npz file of plain arrays. Received: {path}, which can't "
            f"be read ({first_line(error)}). Copy or download it again, or save it with "
            "numpy.savez and arrays of numbers."
        ) from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"`source` must hold the arrays {', '.join(names)}. Received: {path} without "
            f"{', '.join(missing)} (it holds {', '.join(found) or 'nothing'}). Save it with "
            f"numpy.savez_compressed(path, {', '.join(f'{name}=...' for name in names)})."
        )
    classes = arrays.pop("classes", None)
    if classes is None:
        return arrays, None
    if classes.ndim != 1 or classes.dtype.kind not in "US" or len(classes) > _MOST_CLASSES:
        raise ValueError(
            f"`classes` must be a one-dimensional array of text, of {_MOST_CLASSES} names at most. "
            "Received: "
            f"shape={classes.shape}, dtype={classes.dtype} in {path}."
        )
    if classes.dtype.kind == "U" and not _is_text(classes):
        raise ValueError(
            f"`classes` must hold text. Received: numbers that are no letters of Unicode in {path}."
        )
    if classes.dtype.kind == "S":
        classes = np.char.decode(classes, "utf-8", "replace")
    return arrays, tuple(classes.tolist())


def _is_text(texts: np.ndarray) -> bool:
    """Whether every letter is one; NumPy takes any 32 bits, and ends Python's own reading."""
    number = np.dtype(np.uint32).newbyteorder(texts.dtype.byteorder)
    letters = np.frombuffer(texts.tobytes(), number)
    return not ((letters > sys.maxunicode) | ((letters >= 0xD800) & (letters < 0xE000))).any()
