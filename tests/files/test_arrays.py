"""Files of arrays whose headers say something else than what follows them."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dprp_tf import data
from dprp_tf.files.arrays import read_arrays


def _member(dtype: str, shape: Any, content: bytes) -> bytes:
    """What `numpy.save` writes, with any header."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def _file(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_arrays_of_numpy_come_back(tmp_path: Path) -> None:
    given = {
        "x": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "names": np.array(["ä", "bc"]),
        "none": np.zeros((0, 3), ">i2"),
        "scalar": np.float32(3),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **given)
        found, names = read_arrays(tmp_path / "a.npz", [*given, "missing"])
        assert names == list(given)
        assert set(found) == set(given)
        for name, value in given.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("<f4", (10**12,)),
        ("<f4", (-1,)),
        ("<f4", (-1, -4)),
        ("<f4", (10**30, 10**30)),
        ("<f4", (1,)),
        ("<U100000", (1000,)),
        # Of no bytes each there could be any number.
        ("|S0", (10**12,)),
        ("|V0", (10**15,)),
    ],
)
def test_a_shape_that_does_not_fit_the_bytes_is_refused(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    path = _file(tmp_path / "a.npz", x=_member(dtype, shape, bytes(16)))
    with pytest.raises(ValueError, match="x declares"):
        read_arrays(path, ["x"])
    # What is not asked for is not looked at.
    assert read_arrays(path, ["y"]) == ({}, ["x"])


@pytest.mark.parametrize("shape", ["(2.5,)", "'a'", "(True,)", "((4,),)", "(None,)", "4"])
def test_a_shape_of_something_else_is_refused(tmp_path: Path, shape: str) -> None:
    path = _file(tmp_path / "a.npz", x=_member("<f4", shape, bytes(16)))
    with pytest.raises((ValueError, TypeError)):
        read_arrays(path, ["x"])


@pytest.mark.parametrize(
    "value", [np.array([{"a": 1}]), np.zeros(4, [("a", "f4")]), np.zeros(4, [("ä", "O")])]
)
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_what_is_no_number_or_text_is_refused_before_it_is_read(
    tmp_path: Path, value: np.ndarray
) -> None:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=True)
    with pytest.raises(ValueError, match=r"x holds|x has a header of version \(3, 0\)"):
        read_arrays(_file(tmp_path / "a.npz", x=stream.getvalue()), ["x"])


def test_a_small_file_does_not_grow_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In place of 512 MiB, for which the test would take its time.
    monkeypatch.setattr("dprp_tf.files.arrays._ALWAYS_ALLOWED", 2**20)
    content = _member("|u1", (2**20,), bytes(2**20))
    path = tmp_path / "bomb.npz"
    _file(path, zipfile.ZIP_DEFLATED, x_train=content, y_train=content)
    assert path.stat().st_size < 2**13
    with pytest.raises(ValueError, match=r"`source` must be a whole .*bomb\.npz.*claims"):
        data.load(path)


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match=rf"{name}\.npz.*no regular file"):
            data.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, compression: int) -> None:
    path = _file(tmp_path / "a.npz", compression, x=_member("|u1", (1000,), bytes(1000)))
    with pytest.raises(ValueError, match="neither stored nor deflated"):
        read_arrays(path, ["x"])


@pytest.mark.parametrize("letter", [0x7FFFFFFF, 0x110000, 0xD800, 0xDFFF])
@pytest.mark.parametrize("order", "<>")
def test_letters_that_are_none_are_refused(tmp_path: Path, letter: int, order: str) -> None:
    images, labels = np.zeros((2, 4, 4), "uint8"), np.array([0, 1])
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    good = np.array(["a", chr(0x10FFFF)], f"{order}U1")
    np.savez(tmp_path / "a.npz", classes=good, **arrays)
    assert data.load(tmp_path / "a.npz").classes == ("a", chr(0x10FFFF))
    content = letter.to_bytes(4, "little" if order == "<" else "big") * 2
    np.savez(tmp_path / "a.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("classes.npy", _member(f"{order}U1", (2,), content))
    with pytest.raises(ValueError, match=r"`classes` must hold text.*a\.npz"):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(), (4,), (4, 8), (1,) * 6])
def test_what_is_no_image_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images, labels = np.zeros((2, 4, 4), "uint8"), np.array([0, 1])
    arrays = {"x_train": np.zeros(shape), "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="`x_train` must hold images"):
        data.load(tmp_path / "a.npz")


def test_more_names_of_classes_than_images_can_have_are_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4), "uint8"), np.array([0, 1])
    np.savez_compressed(
        tmp_path / "a.npz",
        x_train=images,
        y_train=labels,
        x_test=images,
        y_test=labels,
        classes=np.zeros(2**20 + 1, "U1"),
    )
    with pytest.raises(ValueError, match="`classes` must be a one-dimensional array of text"):
        data.load(tmp_path / "a.npz")
