"""Write files beside their destination and rename: nothing half-written is ever left or loaded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "write_json", "write_text"]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block succeeds.

    The temporary keeps the suffix of `path`, since writers such as Keras choose the format
    by it. If the block raises, the temporary file or folder is removed and `path` is untouched.

    Args:
        path: Destination file. Its folder is made if missing.

    Yields:
        A path in the same folder that does not exist yet.

    Raises:
        OSError: If the destination's folder can't be made or written, or if `path` is a folder.

    Example:

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with atomic_path(Path(folder) / "notes.txt") as temporary:
    ...     _ = temporary.write_text("kept")
    >>> sorted(p.name for p in Path(folder).iterdir())
    ['notes.txt']
    """
    destination = Path(path)
    if destination.is_dir():
        raise IsADirectoryError(
            f"`path` must name a file to write. Received: path={destination}, which is a folder. "
            "Give a file name inside it."
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"`path` must lie in a folder that can be made and written. Received: "
            f"path={destination} ({error.strerror or error}). Choose another output path."
        ) from error
    if not os.access(destination.parent, os.W_OK):
        raise PermissionError(
            f"`path` must lie in a writable folder. Received: path={destination}. "
            "Choose another output path or change the folder's permissions."
        )
    token = uuid.uuid4().hex[:8]
    temporary = destination.with_name(f".{destination.stem}.{token}{destination.suffix}")
    try:
        yield temporary
        os.replace(temporary, destination)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all.

    Args:
        path: Destination file.
        text: The content.

    Raises:
        OSError: If the destination can't be written.

    Example:

    >>> import tempfile
    >>> write_text(Path(tempfile.mkdtemp()) / "a.txt", "hello")
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all.

    Args:
        path: Destination file.
        value: Anything `json` can write.

    Raises:
        OSError: If the destination can't be written.
        TypeError: If `value` holds something JSON has no form for.

    Example:

    >>> import tempfile
    >>> write_json(Path(tempfile.mkdtemp()) / "a.json", {"rank": 3})
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=True) + "\n")
