"""Image files and arrays of images: decoding, resizing, and what is said when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "decode", "first_line", "is_image", "pixels", "resize"]

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
"""Suffixes, in lower case, of the files that count as images."""

# What files of those suffixes hold. Pillow goes by content, and for some formats it starts
# programs: PostScript is given to Ghostscript, which runs it.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def is_image(name: str) -> bool:
    """Tell an image file by its name.

    Args:
        name: Name of a file, without its folder.

    Returns:
        Whether it has a usual suffix and is not hidden.

    Example:

    >>> is_image("n01440764_10026.JPEG")
    True
    """
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def decode(file: Path, upright: bool = True) -> Image.Image:
    """Read an image file as 8 bits of gray or of red, green and blue.

    Read are the formats of `IMAGE_SUFFIXES` alone, whichever of them a file's name says. An image
    of more pixels than `PIL.Image.MAX_IMAGE_PIXELS` (89 million, unless you change it) is refused
    by its header.

    Args:
        file: The file.
        upright: Whether to turn it as the camera noted. Defaults to True.

    Returns:
        An image of mode L or RGB.

    Raises:
        ValueError: If it can't be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=_FORMATS) as opened:
            _check_pixels(opened.size)
            image = ImageOps.exif_transpose(opened) if upright else opened
            if image.mode.startswith("I"):
                # 16 bits of gray -> 8
                gray = np.clip(np.asarray(image, np.float32) / 257, 0, 255)
                image = Image.fromarray(np.rint(gray).astype(np.uint8))
            return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    except Exception as error:  # a damaged file makes Pillow's decoders raise anything
        raise ValueError(
            f"`source` must hold readable images. Received: {file}, which can't be read "
            f"({first_line(error)}). Repair or remove it."
        ) from error


def _check_pixels(size: tuple[int, int]) -> None:
    """Refuse what Pillow only warns of, up to twice its limit."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise ValueError(f"{size[0]}x{size[1]} are more than {limit} pixels")


def pixels(image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an image as an array, resized if need be.

    Args:
        image: An image of mode L or RGB.
        size: Height and width; None for its own. Bicubic, antialiased where it shrinks.

    Returns:
        uint8, `(height, width, 1 or 3)`.
    """
    from PIL import Image

    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    values = np.asarray(image, np.uint8)
    return values[..., None] if values.ndim == 2 else values


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an array of images: bicubic, antialiased, within the values the array had.

    Args:
        images: `(images, height, width, channels)`.
        size: New height and width.

    Returns:
        An array of the same dtype.

    Example:

    >>> resize(np.ones((2, 4, 4, 1), "uint8"), (6, 8)).shape
    (2, 6, 8, 1)
    """
    if images.shape[1:3] == size:
        return images
    from PIL import Image

    low, high = images.min(), images.max()
    resized = np.empty((len(images), *size, images.shape[-1]), images.dtype)
    for target, image in zip(resized, images, strict=True):
        for channel in range(images.shape[-1]):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            plane = plane.resize(size[::-1], Image.Resampling.BICUBIC)
            values = np.clip(np.asarray(plane), low, high)
            target[..., channel] = np.rint(values) if images.dtype == np.uint8 else values
    return resized


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line.

    Args:
        error: The error.

    Returns:
        Its first line, or its type if it says nothing.

    Example:

    >>> first_line(KeyError())
    'KeyError'
    """
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
