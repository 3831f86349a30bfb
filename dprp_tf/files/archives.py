"""Zip archives that may come from anyone: what they promise, before it is read."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import PureWindowsPath

__all__ = ["check_members", "most_unpacked"]

_LARGEST_EXPANSION = 100
_LARGEST_GROWTH = 2**32  # bytes
# bzip2 and LZMA expand by far more, and take memory of their own that a member's header asks for.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NAMES_TOLD = 3


def most_unpacked(size: int, always: int) -> int:
    """Say how large a file may become when it is unpacked.

    Args:
        size: Bytes of the file on the disk.
        always: Bytes that a file of any size may become.

    Returns:
        Bytes: a hundred times the file and at most 4 GiB more than it, so that what is stored as
        it is may have any size.

    Example:

    >>> most_unpacked(2**20, always=2**26) // 2**20
    100
    """
    return max(always, min(_LARGEST_EXPANSION * size, size + _LARGEST_GROWTH))


def check_members(archive: zipfile.ZipFile, limit: int) -> None:
    """Refuse an archive by its list of members, before one of them is unpacked.

    Python's reader gives no member more bytes than the list says, so the list can be held to it.

    Args:
        archive: The archive.
        limit: The most bytes that all members may be together, see `most_unpacked`.

    Raises:
        ValueError: If a name is there twice or leaves the archive, a member is neither stored nor
            deflated, or together they are larger; the message leaves the file's name to the caller.

    Example:

    >>> import io
    >>> with zipfile.ZipFile(io.BytesIO(), "w") as archive:
    ...     archive.writestr("../elsewhere", b"")
    ...     check_members(archive, limit=1000)
    Traceback (most recent call last):
      ...
    ValueError: it holds '../elsewhere', which lies outside it
    """
    counts = Counter(archive.namelist())
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ValueError(f"it holds {', '.join(twice[:_NAMES_TOLD])} more than once")
    for member in archive.infolist():
        name = member.filename
        path = PureWindowsPath(name)  # which knows both slashes, and drives
        if path.anchor or ".." in path.parts:
            raise ValueError(f"it holds {name!r}, which lies outside it")
        if member.compress_type not in _COMPRESSIONS:
            raise ValueError(f"it holds {name!r}, which is neither stored nor deflated")
    claimed = sum(member.file_size for member in archive.infolist())
    if claimed > limit:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        raise ValueError(
            f"{largest.filename} claims {largest.file_size} bytes of {largest.compress_size}, all "
            f"members {claimed}, more than the {limit} that a file of this size may hold"
        )
