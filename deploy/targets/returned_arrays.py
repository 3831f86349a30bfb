"""Arrays that a target gives back, held against what they can be before memory is given to them."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.deploy.targets.answers import AnswerCheck

__all__ = ["read_returned"]

_END = b"PK\x05\x06"
_FAR_END = b"PK\x06\x07"
_END_BYTES = 22
_MOST_ARRAYS = 1000
_MOST_DIRECTORY = 1 << 20
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_returned(spec: str, path: Path, samples: int, most_bytes: int) -> dict[str, np.ndarray]:
    """Read the outputs of a file that a target computed.

    Args:
        spec: How the target is named.
        path: The `.npz` file that came from it.
        samples: How many samples it was given: the length of every array's first axis.
        most_bytes: What all arrays together may take.

    Returns:
        Output name to array.

    Raises:
        TargetError: If it is no such file, or an array is of another length, of anything but
            numbers, or of another size than it declares.
    """
    check = AnswerCheck(spec)
    size = path.stat().st_size
    if size > most_bytes:
        raise check.error(f"outputs must take {most_bytes:,} bytes or less", f"{size:,} bytes")
    _check_directory(check, path, size)
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in found or not name.isprintable() or len(name) > 1000:
                    raise check.error("outputs must have names of their own", name)
                if member.compress_type != zipfile.ZIP_STORED:
                    raise check.error("outputs must lie uncompressed", name)
                found[name] = _read(check, archive, member, samples)
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise check.error("outputs must be arrays of numbers in an .npz file", error) from error
    if not found:
        raise check.error("outputs must hold one array or more", found)
    return found


def _check_directory(check: AnswerCheck, path: Path, size: int) -> None:
    """Refuse a table of contents so long that reading it takes more memory than the arrays."""
    with path.open("rb") as stream:
        stream.seek(max(0, size - (1 << 16)))
        tail = stream.read()
    start = tail.rfind(_END)
    if start < 0 or len(tail) < start + _END_BYTES or _FAR_END in tail[max(0, start - 20) : start]:
        raise check.error("outputs must be an .npz file", f"{size:,} bytes of something else")
    count, directory = struct.unpack("<HI", tail[start + 10 : start + 16])
    if count > _MOST_ARRAYS or directory > _MOST_DIRECTORY:
        raise check.error(f"outputs must be {_MOST_ARRAYS} or fewer", f"{count} or more")


def _read(check: AnswerCheck, archive: zipfile.ZipFile, member: Any, samples: int) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"arrays of version {version}")
        shape, _, dtype = _HEADERS[version](stream)
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise check.error(f"output {member.filename!r} must hold numbers", str(dtype))
        if not shape or shape[0] != samples or min(shape) < 0:
            told = f"output {member.filename!r} must be of {samples} samples"
            raise check.error(told, f"shape {shape}")
        left = member.file_size - stream.tell()
        # Python's integers: a shape may be declared that 64 bits don't hold.
        wanted = dtype.itemsize
        for edge in shape:
            wanted *= edge
        if wanted != left:
            told = f"output {member.filename!r} of shape {shape} must take {wanted:,} bytes"
            raise check.error(told, f"{left:,} bytes")
        stream.seek(0)
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
