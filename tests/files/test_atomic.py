"""Files that can't be written whole: what is left of them, and what is said."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dprp_tf.files.atomic import (
    atomic_path,
    read_json,
    remove_leftovers,
    require_writable,
    write_json,
    write_text,
)
from dprp_tf.selection.candidate_log import CandidateLog


@pytest.mark.parametrize(
    "name",
    [
        *("a" * length + ".json" for length in (200, 216, 220, 250)),
        "ä" * 120 + ".json",
        "👩" * 60 + ".keras",
        "a" * 255,
        "." + "a" * 254,
        "a." + "b" * 253,
    ],
)
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / name, {"rank": 3})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert read_json(tmp_path / name) == {"rank": 3}


@pytest.mark.parametrize("name", ["a.keras", "a" * 240 + ".keras", "ä" * 124 + ".tflite"])
def test_the_temporary_is_its_own_and_keeps_the_suffix(tmp_path: Path, name: str) -> None:
    with atomic_path(tmp_path / name) as first, atomic_path(tmp_path / name) as second:
        assert first != second
        assert first.suffix == second.suffix == Path(name).suffix
        first.write_text("one", encoding="utf-8")
        second.write_text("two", encoding="utf-8")
        assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / name).read_text(encoding="utf-8") == "one"


def test_what_a_killed_process_left_of_a_long_name_is_found(tmp_path: Path) -> None:
    with atomic_path(tmp_path / ("a" * 250)) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        left = tmp_path / f".{temporary.name[1:]}"
        assert left == temporary
    left.write_text("half", encoding="utf-8")
    assert remove_leftovers(tmp_path) == [left]


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a{256}"):
        write_text(tmp_path / ("a" * 256), "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, number: int) -> None:
    (tmp_path / "a.json").write_text("before", encoding="utf-8")

    def fail() -> None:
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=r"^A file must have room.*Received: /.*a\.json \(") as caught:
        fail()
    assert caught.value.errno == number
    assert os.strerror(number) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "before"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full", "/elsewhere/of/another"),
        ConnectionResetError(errno.ECONNRESET, "gone"),
        PermissionError("`path` must be another"),
        ValueError("no file at all"),
    ],
)
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "a.json"):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has it")
def test_a_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    log = CandidateLog(tmp_path / "candidates.jsonl", ("a",), "some")
    (tmp_path / "candidates.jsonl").unlink()
    (tmp_path / "candidates.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"candidates\.jsonl \(No space left"):
        log.candidate({"a": (3,)}, accuracy=0.5)


def test_a_place_that_cannot_be_is_told_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    for place, reason in {"file": "file is a file", "link": "link leads nowhere"}.items():
        for name in ("a.json", "new/a.json"):
            path = tmp_path / place / name
            for write in (require_writable, lambda path: write_text(path, "")):
                with pytest.raises(OSError, match=rf"Received: {path} \({tmp_path}/{reason}\)"):
                    write(path)
    with pytest.raises(IsADirectoryError, match=f"Received: {tmp_path}, which is a folder"):
        require_writable(tmp_path)
    require_writable(tmp_path / "new" / "folder" / "a.json")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To root, only a drive that is mounted so is read-only.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OSError, match=rf"Received: .*a\.json \({tmp_path} can't be written\)"):
        write_text(tmp_path / "new" / "a.json", "")
    assert not list(tmp_path.iterdir())
