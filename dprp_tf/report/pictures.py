"""A figure as a PNG picture of 150 dots per inch, in memory or in a file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dprp_tf.files.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["png_bytes", "save_picture"]


def png_bytes(figure: Figure) -> bytes:
    """Return the picture as bytes."""
    buffer = io.BytesIO()
    _write(figure, buffer)
    return buffer.getvalue()


def save_picture(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the picture, whole or not at all, and return its path.

    Raises:
        OSError: If the file can't be written.
    """
    with atomic_path(Path(path)) as temporary:
        _write(figure, temporary)
    return Path(path)


def _write(figure: Figure, target: Path | IO[bytes]) -> None:
    figure.savefig(target, dpi=150, format="png")
