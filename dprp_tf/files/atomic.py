"""Write files beside their destination and rename: nothing half-written is ever left or loaded."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dprp_tf.files.json_text import from_json, to_json

__all__ = [
    "LONGEST_WRITING",
    "atomic_path",
    "naming_failures",
    "read_json",
    "remove_leftovers",
    "require_writable",
    "write_json",
    "write_text",
]

LONGEST_WRITING = 600.0
"""Seconds after which nobody still writes a picture or a page that has not changed since."""

# Eight digits alone would be a date, such as that of a hidden backup.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}(\.[^.]*)?")

_LONGEST_NAME, _LONGEST_SUFFIX = 255, 100  # bytes; the first on nearly all file systems
# Told of writing, not of opening: without the name, or with the temporary one.
_LEAVE_OUT_NAMES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG)


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
    require_writable(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_place(destination, error.strerror or str(error)) from error
    temporary = destination.with_name(_temporary_name(destination))
    try:
        with naming_failures(destination):
            yield temporary
            if temporary.is_file():
                _flush(temporary)
            os.replace(temporary, destination)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a file that can't be written where it is to lie, before hours are spent on it.

    The messages name the file and no argument: it may be one of many in a folder that was given.

    Args:
        path: The file to write. Nothing is made.

    Raises:
        OSError: If it is a folder, or no folder that can be written or made is there for it.

    Example:

    >>> import tempfile
    >>> require_writable(Path(tempfile.mkdtemp()) / "new" / "notes.txt")
    """
    destination = Path(path)
    if destination.is_dir():
        raise IsADirectoryError(
            f"What is written must be a file. Received: {destination}, which is a folder. "
            "Give a file name inside it."
        )
    above = Path(os.path.abspath(destination)).parents
    nearest = next(folder for folder in above if os.path.lexists(folder))
    if not nearest.is_dir():
        what = "leads nowhere" if nearest.is_symlink() else "is a file"
        raise _no_place(destination, f"{nearest} {what}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _no_place(destination, f"{nearest} can't be written")


def _no_place(path: Path, reason: str) -> OSError:
    return OSError(
        f"A file to write must lie in a folder that can be made and written. Received: {path} "
        f"({reason}). Choose another place, or change what is there."
    )


def _temporary_name(destination: Path) -> str:
    """A name of its own in the folder, no longer than file systems take, with the same suffix."""
    token, stem, suffix = uuid.uuid4().hex, destination.stem, destination.suffix
    if len(os.fsencode(suffix)) > _LONGEST_SUFFIX:  # by which no writer chooses
        suffix = ""
    # In bytes, of which a letter can take four.
    while len(os.fsencode(f".{stem}.{token}{suffix}")) > _LONGEST_NAME:
        stem = stem[:-1]
    return f".{stem}.{token}{suffix}"


@contextlib.contextmanager
def naming_failures(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in errors of writing that leave it out, as the one of a full disk does.

    Args:
        path: The file that is written meanwhile.

    Yields:
        Nothing.

    Raises:
        OSError: What went wrong, with the file's name.

    Example:

    >>> with naming_failures("notes.txt"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
      ...
    OSError: A file must have room to be written whole. Received: notes.txt (No space left on \
device). Make room, or choose another place.
    """
    try:
        yield
    except OSError as error:
        elsewhere = error.filename and Path(os.fsdecode(error.filename)).parent != Path(path).parent
        if elsewhere or error.errno not in _LEAVE_OUT_NAMES:
            raise
        named = OSError(
            f"A file must have room to be written whole. Received: {path} "
            f"({os.strerror(error.errno)}). Make room, or choose another place."
        )
        named.errno = error.errno
        raise named from error


def remove_leftovers(
    folder: str | os.PathLike[str], of: str = "*", unchanged_for: float | None = None
) -> list[Path]:
    """Remove the temporary files that killed processes left in a folder.

    Args:
        folder: A folder in which nothing else is being written now; it may be missing.
        of: The stem of the file that they were to become, as a pattern. Default: any.
        unchanged_for: Seconds for which what is removed has not been written to, where others may
            be writing now. Default: any time.

    Returns:
        What was removed.

    Example:

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / f".model.{uuid.uuid4().hex}.keras").write_text("half")
    >>> len(remove_leftovers(folder))
    1
    """
    named = Path(folder).glob(f".{of}.*")
    found = [p for p in sorted(named) if _TEMPORARY.fullmatch(p.name)]
    if unchanged_for is not None:
        found = [p for p in found if _unchanged(p, unchanged_for)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def _unchanged(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > seconds
    except OSError:  # renamed by whoever wrote it, this very moment
        return False


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
        value: Anything `json` can write; NaN and infinities, figures that are missing, become
            `null`.

    Raises:
        OSError: If the destination can't be written.
        TypeError: If `value` holds something JSON has no form for.

    Example:

    >>> import tempfile
    >>> write_json(Path(tempfile.mkdtemp()) / "a.json", {"rank": 3})
    """
    write_text(path, to_json(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote, or anything in JSON.

    Args:
        path: The file.

    Returns:
        The value.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is no JSON, which knows no NaN; the message says why and leaves the file's
            name to the caller.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(path, {"rank": 3})
    >>> read_json(path)
    {'rank': 3}
    """
    return from_json(Path(path).read_text(encoding="utf-8"))
