"""A stored member is read where it lies in its archive, whatever stands before it."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from dprp_tf.files.stored_members import StoredMember


def _archive(content: bytes) -> tuple[io.BytesIO, zipfile.ZipInfo]:
    """The member lies between two others, behind bytes that are no part of the archive."""
    file = io.BytesIO(b"what stands before an archive")
    file.seek(0, io.SEEK_END)
    member = zipfile.ZipInfo("ä member.bin")
    member.extra = b"\x99\x99\x04\x00note"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("first", b"1" * 100)
        archive.writestr(member, content)
        archive.writestr("last", b"3" * 100)
    return file, zipfile.ZipFile(file).getinfo("ä member.bin")


def test_any_part_of_it_is_read_in_any_order() -> None:
    rng = np.random.default_rng(3)
    content = rng.bytes(5000)
    member = StoredMember(*_archive(content))
    expected = io.BytesIO(content)
    for place in rng.integers(0, 6000, 200).tolist():
        assert member.seek(place) == expected.seek(place)
        assert member.read(300) == expected.read(300)
        assert member.tell() == place + max(0, min(300, 5000 - place))
    assert member.seek(-10, io.SEEK_END) == 4990
    assert member.seek(4, io.SEEK_CUR) == 4994
    assert member.read() == content[4994:]


def test_what_is_compressed_does_not_lie_there() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("words", b"words" * 100)
        with pytest.raises(ValueError, match=r"must be stored as it is.*'words'"):
            StoredMember(file, archive.getinfo("words"))
