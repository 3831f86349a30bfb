"""Write files beside their destination and rename: nothing half-written is ever left or loaded."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_path",
    "json_text",
    "read_json",
    "remove_leftovers",
    "write_json",
    "write_text",
]

# Eight digits alone would be a date, such as that of a hidden backup.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}(\.[^.]*)?")


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
    token = uuid.uuid4().hex
    temporary = destination.with_name(f".{destination.stem}.{token}{destination.suffix}")
    try:
        yield temporary
        if temporary.is_file():
            _flush(temporary)
        os.replace(temporary, destination)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that killed processes left in a folder.

    Args:
        folder: A folder in which nothing else is being written now.

    Returns:
        What was removed.

    Example:

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / f".model.{uuid.uuid4().hex}.keras").write_text("half")
    >>> len(remove_leftovers(folder))
    1
    """
    found = [p for p in sorted(Path(folder).glob(".*")) if _TEMPORARY.fullmatch(p.name)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def _flush(path: Path) -> None:
    """Wait until a file lies on the disk: a rename may outlive a power cut that its data don't."""
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        value: Anything `json` can write; numbers that are not finite become null.

    Raises:
        OSError: If the destination can't be written.
        TypeError: If `value` holds something JSON has no form for.

    Example:

    >>> import tempfile
    >>> write_json(Path(tempfile.mkdtemp()) / "a.json", {"rank": 3})
    """
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that every reader takes: numbers that are not finite become null.

    Args:
        value: Anything `json` can write.
        indent: Spaces per level. Default: everything on one line.

    Returns:
        The text.

    Raises:
        TypeError: If `value` holds something JSON has no form for.

    Example:

    >>> json_text({"loss": float("nan"), "ranks": (3, 4)})
    '{"loss": null, "ranks": [3, 4]}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote, or anything in JSON.

    Args:
        path: The file.

    Returns:
        The value.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is no JSON; the message says why and leaves the file's name to the caller.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(path, {"rank": 3})
    >>> read_json(path)
    {'rank': 3}
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
