"""A member of a zip archive that was stored as it is, read where it lies in the archive's file."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import BinaryIO

__all__ = ["StoredMember"]

# Before the content stand these bytes, the last of them two lengths, then a name and what else is
# noted there; the archive's list may note less, so its own lengths say nothing of this place.
_HEADER = struct.Struct("<26xHH")


class StoredMember(io.RawIOBase):
    """A file to read, at any place in any order, that is a part of another file.

    Python's reader starts a member anew where it is asked to go back. What is read here was not
    held against a checksum: `zipfile` does that for who reads the member through it.

    Args:
        file: The archive's file, open for reading; nothing else may move in it meanwhile.
        member: The member, which must be stored and not deflated.

    Raises:
        ValueError: If it is not stored.

    Example:

    >>> file = io.BytesIO()
    >>> with zipfile.ZipFile(file, "w") as archive:
    ...     archive.writestr("notes.txt", "some words")
    ...     member = archive.getinfo("notes.txt")
    >>> part = StoredMember(file, member)
    >>> part.seek(5), part.read()
    (5, b'words')
    """

    def __init__(self, file: BinaryIO, member: zipfile.ZipInfo) -> None:
        super().__init__()
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                "`member` must be stored as it is. Received: "
                f"{member.filename!r}, which is compressed. Read it with archive.open()."
            )
        file.seek(member.header_offset)
        name, noted = _HEADER.unpack(file.read(_HEADER.size))
        self._file = file
        self._start = member.header_offset + _HEADER.size + name + noted
        self._size = member.file_size
        self._place = 0

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether reading can go on elsewhere: always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the member's beginning, from here or from its end."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer from here on; return how many bytes there were."""
        room = memoryview(buffer)[: max(0, self._size - self._place)]
        self._file.seek(self._start + self._place)
        count = self._file.readinto(room)  # type: ignore[attr-defined]
        self._place += count
        return int(count)
