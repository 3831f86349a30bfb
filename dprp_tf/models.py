"""Read a saved Keras model, or say in one line why it can't be."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import keras

from dprp_tf import layers, training

__all__ = ["load_model"]

# Loading needs the classes above registered with Keras, which importing them does.
_REGISTERED = (layers, training)


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load a `.keras` file, plain or factorized, with its optimizer if it was saved with one.

    Args:
        path: The file.

    Returns:
        The model, with the ranks it was saved with.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a whole Keras archive or can't be understood.

    Example:

    >>> load_model("missing.keras")
    Traceback (most recent call last):
    ...
    FileNotFoundError: `path` must be a .keras file. Received: missing.keras, which does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be a .keras file. Received: {path}, which does not exist."
        )
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise ValueError(
            f"`path` must be a whole .keras archive. Received: {path} ({path.stat().st_size} "
            "bytes), which is truncated or of another kind. Save it again with model.save()."
        )
    try:
        return keras.saving.load_model(path)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"`path` must be a Keras model this version can load. Received: {path} ({first})"
        ) from error
