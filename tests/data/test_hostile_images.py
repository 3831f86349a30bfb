"""Files that are called images: what is decoded, what is not, and that nothing else is started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from dprp_tf import data
from dprp_tf.data.images import decode
from dprp_tf.data.streaming import StreamedImages

POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(hostile) pop\n%%EOF\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two classes."""
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for value in range(5):
            Image.new("L", (8, 8), value).save(tmp_path / "images" / name / f"{value}.png")
    return tmp_path / "images"


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Tells whether Ghostscript was started, for which a script stands in."""
    program, called = tmp_path / "bin" / "gs", tmp_path / "called"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho called > {called}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return called.exists


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.TIFF"])
def test_postscript_is_not_run(folder: Path, ghostscript: Callable[[], bool], name: str) -> None:
    (folder / "a" / name).write_bytes(POSTSCRIPT)
    with pytest.raises(ValueError, match=f"must hold readable images.*{name}, which can't be read"):
        data.load(folder)
    streamed = StreamedImages(folder, ("a",), np.array([name.encode()]), np.array([0]), (8, 8))
    with pytest.raises(ValueError, match=name):
        streamed[:1]
    assert not ghostscript()


def test_pillow_left_alone_would_run_it(folder: Path, ghostscript: Callable[[], bool]) -> None:
    (folder / "x.png").write_bytes(POSTSCRIPT)
    with pytest.raises(OSError, match="identify"), Image.open(folder / "x.png") as image:
        image.load()
    assert ghostscript()


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "SGI", "DDS", "EPS", "IM", "MSP", "PDF"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    Image.new("1" if kind == "MSP" else "L", (16, 16)).save(path, format=kind)
    with pytest.raises(ValueError, match=r"x\.png, which can't be read"):
        decode(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO"])
def test_a_format_of_the_folder_may_have_the_name_of_another(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (16, 12), (255, 0, 0)).save(path, format=kind)
    assert decode(path).size == (16, 12)


@pytest.mark.parametrize("width", [11, 21, 10**5])
def test_more_pixels_than_the_limit_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    # Pillow itself warns up to twice its limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (width, 10)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with (
        pytest.warns(Image.DecompressionBombWarning) if width == 11 else contextlib.nullcontext(),
        pytest.raises(ValueError, match=r"large\.png, which can't be read.*pixels"),
    ):
        decode(tmp_path / "large.png")


def test_sizes_are_compared_while_reading(folder: Path) -> None:
    Image.new("L", (9, 8)).save(folder / "a" / "1.png")
    (folder / "a" / "2.png").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"`image_size` is required.*8x8.*1\.png of 8x9"):
        data.load(folder)


def test_an_image_one_pixel_high_does_not_grow_to_gigabytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("1", (200_000, 1)).save(tmp_path / "a" / "line.png")
    assert (tmp_path / "a" / "line.png").stat().st_size < 1000
    images = StreamedImages(tmp_path, ("a",), np.array([b"line.png"]), np.array([0]), (224, 224))
    with pytest.raises(ValueError, match=r"ordinary proportions.*line\.png of 1x200000"):
        images[:1]


def test_a_link_to_a_device_is_no_image(folder: Path) -> None:
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "a" / "pipe.png")
    assert len(data.load(folder).x_train) == 8
