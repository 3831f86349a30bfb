"""Lists of members that promise what an archive can't hold."""

from __future__ import annotations

import copy
import io
import warnings
import zipfile

import pytest

from dprp_tf.files.archives import check_members, most_unpacked


def _archive(*members: tuple[str, bytes, int]) -> zipfile.ZipFile:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content, compression in members:
            archive.writestr(name, content, compression)
    return zipfile.ZipFile(stream)


def _stored(*names: str) -> zipfile.ZipFile:
    return _archive(*((name, b"a", zipfile.ZIP_STORED) for name in names))


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "C:a", "\\\\server\\share\\a", "a/.."],
)
def test_names_that_leave_the_archive_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lies outside it"):
        check_members(_stored("good", name), limit=1000)


@pytest.mark.parametrize("name", ["a", "a/b.npy", "assets/", "..a", "a..b/c", " "])
def test_names_inside_are_taken(name: str) -> None:
    check_members(_stored(name), limit=1000)


def test_a_name_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="holds b more than once"):
        check_members(_stored("a", "b", "b"), limit=1000)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(compression: int) -> None:
    with pytest.raises(ValueError, match="neither stored nor deflated"):
        check_members(_archive(("a", bytes(1000), compression)), limit=10_000)


def test_the_sum_is_limited_and_not_each_member() -> None:
    members = [(f"{index}", bytes(600), zipfile.ZIP_DEFLATED) for index in range(2)]
    check_members(_archive(*members), limit=1200)
    with pytest.raises(ValueError, match=r"0 claims 600 bytes of .*all members 1200"):
        check_members(_archive(*members), limit=1199)


def test_members_that_share_their_bytes_count_each() -> None:
    # The kernel of a zip that grows without nesting: many entries of one place.
    archive = _archive(("a", bytes(600), zipfile.ZIP_DEFLATED))
    for name in "bcdefghij":
        archive.filelist.append(copy.copy(archive.filelist[0]))
        archive.filelist[-1].filename = name
    with pytest.raises(ValueError, match="all members 6000"):
        check_members(archive, limit=1200)


def test_what_is_stored_may_have_any_size() -> None:
    for size in (2**20, 2**30, 2**40):
        assert most_unpacked(size, always=2**26) >= size + min(99 * size, 2**32)
    assert most_unpacked(10**4, always=2**26) == 2**26
    # Absolute as well as relative: what comes on top is bounded.
    assert most_unpacked(2**35, always=2**26) == 2**35 + 2**32
