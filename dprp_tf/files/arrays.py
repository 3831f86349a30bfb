"""Arrays in `.npz` files that may come from anyone: their headers first, then what fits them."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from dprp_tf.files.archives import check_members, most_unpacked

__all__ = ["read_arrays"]

_ALWAYS_ALLOWED = 2**29  # bytes
_SUFFIX = ".npy"


def read_arrays(
    path: str | os.PathLike[str], names: Collection[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read some arrays of an `.npz` file.

    What is deflated may grow to a hundred times the file, and always to 512 MiB; what is stored, as
    `numpy.savez` writes it, may have any size.

    Args:
        path: The file.
        names: The arrays wanted; those that are missing are left out.

    Returns:
        The arrays by name, and the names of all that the file holds.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is no such file, holds objects, or claims more than it can hold; the
            message leaves its name to the caller.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> np.savez(path, x=np.ones(3), y=np.zeros(2))
    >>> read_arrays(path, ["x"])
    ({'x': array([1., 1., 1.])}, ['x', 'y'])
    """
    path = Path(path)
    if not path.is_file():  # a device or a pipe may never end
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            raise ValueError("it holds a single array without a name")
    with zipfile.ZipFile(path) as archive:
        check_members(archive, most_unpacked(path.stat().st_size, _ALWAYS_ALLOWED))
        members = {
            member.filename.removesuffix(_SUFFIX): member
            for member in archive.infolist()
            if member.filename.endswith(_SUFFIX)
        }
        arrays = {}
        for name in names:
            if name in members:
                with archive.open(members[name]) as stream:
                    _check_header(stream, name, members[name].file_size)
                with archive.open(members[name]) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays, list(members)


def _check_header(stream: IO[bytes], name: str, stored: int) -> None:
    """Hold the shape that an array's header declares against the bytes that follow it."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has a header of version {version}, as arrays of numbers have not")
    long = version == (2, 0)
    read = np.lib.format.read_array_header_2_0 if long else np.lib.format.read_array_header_1_0
    shape, _, dtype = read(stream)
    if dtype.hasobject or dtype.names is not None:
        raise ValueError(f"{name} holds {dtype}, which is no array of numbers or text")
    # Of nothing there may be any number.
    empty = dtype.itemsize == 0 and math.prod(shape) != 0
    found = stored - stream.tell()
    if empty or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != found:
        raise ValueError(f"{name} declares {dtype} of shape {shape} and holds {found} bytes")
