"""Images that stay on disk and are decoded when they are asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.data.augmentation import ResizedCrop
from dprp_tf.data.images import decode

__all__ = ["StreamedImages", "reading_errors"]

_WORKERS = min(16, os.cpu_count() or 1)
_MOST_PIXELS = 2**27


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Image files in class folders that can be indexed like an array and are read when indexed.

    An image is resized so that the part in its middle that is looked at, `share` of the side
    that decides, has the wanted size, and that part is cut out: with the defaults the shorter
    side becomes 256 pixels and the middle 224 x 224 remain. With a `ResizedCrop` a random part
    is cut out instead. Every image becomes color, and stays turned as it is stored.

    Args:
        root: Folder of the class folders.
        folders: Their names.
        names: Name of each file in its folder, as the bytes of the file system, `(images,)`.
        labels: Which folder each file lies in, `(images,)`.
        size: Height and width to return, in pixels. Defaults to (224, 224).
        share: Share of height or width that is looked at, above 0 to 1. Defaults to 0.875.
        mean: Subtracted from each channel, one number or one per channel; None for uint8 images.
        std: What they are divided by then.

    Raises:
        ValueError: If `size` or `share` is outside its range.

    Example:

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "cat").mkdir()
    >>> Image.new("RGB", (30, 40)).save(root / "cat" / "a.png")
    >>> images = StreamedImages(root, ("cat",), np.array([b"a.png"]), np.array([0]), (8, 8))
    >>> images.shape, images[:1].shape
    ((1, 8, 8, 3), (1, 8, 8, 3))
    """

    root: Path
    folders: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    size: tuple[int, int] = (224, 224)
    share: float = 0.875
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    _errors: list[ValueError] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.size) < 1 or not 0 < self.share <= 1:
            raise ValueError(
                "`size` must be at least 1 and `share` above 0, at most 1. Received: "
                f"size={self.size}, share={self.share}."
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, height, width and channels."""
        return len(self.names), *self.size, 3

    @property
    def ndim(self) -> int:
        """Number of axes: 4."""
        return 4

    @property
    def dtype(self) -> np.dtype:
        """uint8, or float32 if normalized."""
        return np.dtype(np.uint8 if self.mean is None else np.float32)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read one image, or those of a slice or of an array of numbers, all at once."""
        numbers = np.arange(len(self))[index]
        if numbers.ndim == 0:
            return self.read(int(numbers))
        images = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        with ThreadPoolExecutor(_WORKERS) as pool:
            for target, image in zip(images, pool.map(self.read, numbers.tolist()), strict=True):
                target[...] = image
        return images

    def path(self, index: int) -> Path:
        """Return the file of an image.

        Args:
            index: Its number.

        Returns:
            The path.
        """
        return self.root / self.folders[self.labels[index]] / os.fsdecode(self.names[index])

    def read(
        self, index: int, crop: ResizedCrop | None = None, seed: Sequence[int] = ()
    ) -> np.ndarray:
        """Decode an image.

        Args:
            index: Its number.
            crop: Which random part to use; None for the part in the middle.
            seed: Whole numbers that decide that part together with `index`.

        Returns:
            `(height, width, 3)` of the dtype `dtype`.

        Raises:
            ValueError: If the file can't be read; the message names it.
        """
        from PIL import Image

        image = decode(self.path(index), upright=False).convert("RGB")
        height, width = self.size
        if crop is not None:
            top, left, rows, columns, mirrored = crop.draw(*image.size[::-1], (*seed, index))
            image = image.crop((left, top, left + columns, top + rows))
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, np.uint8)[:, :: -1 if mirrored else 1]
        else:
            scale = max(height / image.height, width / image.width) / self.share
            # Never smaller than what is cut out, however it is rounded.
            rows = max(height, round(scale * image.height))
            columns = max(width, round(scale * image.width))
            # One pixel high, an image of a few bytes would be enlarged to gigabytes.
            if rows * columns > _MOST_PIXELS:
                raise ValueError(
                    "`source` must hold images of ordinary proportions. Received: "
                    f"{self.path(index)} of {image.height}x{image.width} (height x width) pixels, "
                    f"which would become {rows}x{columns}. Cut or remove it."
                )
            image = image.resize((columns, rows), Image.Resampling.BILINEAR)
            top, left = round((rows - height) / 2), round((columns - width) / 2)
            pixels = np.asarray(image, np.uint8)[top : top + height, left : left + width]
        if self.mean is None or self.std is None:
            return pixels
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def read_noting_errors(
        self, index: int, crop: ResizedCrop | None = None, seed: Sequence[int] = ()
    ) -> np.ndarray:
        """Decode an image inside a pipeline, which turns an error into one of its own.

        Args:
            index: Its number.
            crop: As `read`.
            seed: As `read`.

        Returns:
            As `read`.

        Raises:
            ValueError: As `read`; `reading_errors` raises the same once more.
        """
        try:
            return self.read(index, crop, seed)
        except ValueError as error:
            self._errors.append(error)
            raise

    def subset(self, rows: np.ndarray) -> StreamedImages:
        """Return some of the images, which stay on disk as well.

        Args:
            rows: Their numbers.

        Returns:
            The images, in the order of the numbers.
        """
        return replace(self, names=self.names[rows], labels=self.labels[rows])

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> StreamedImages:
        """Return the images as (x - mean) / std.

        Args:
            mean: One number, or one per channel.
            std: Likewise, above 0.

        Returns:
            Images that stay on disk as well.

        Raises:
            ValueError: If they are normalized already.
        """
        if self.mean is not None:
            raise ValueError(
                "`mean` and `std` must be given once. Received: images that are normalized by "
                f"mean={self.mean}, std={self.std}."
            )
        return replace(self, mean=tuple(mean), std=tuple(std))


@contextlib.contextmanager
def reading_errors(*images: Any) -> Iterator[None]:
    """Raise what went wrong while images were read instead of what the pipeline made of it.

    TensorFlow reports an error of a reader as its own, with a traceback in the message.

    Args:
        *images: `StreamedImages` that are read meanwhile; anything else is passed over.

    Yields:
        Nothing.

    Raises:
        ValueError: If an image can't be read; the message names it.

    Example:

    >>> with reading_errors():
    ...     pass
    """
    streams = [part for part in images if isinstance(part, StreamedImages)]
    for stream in streams:
        stream._errors.clear()
    try:
        yield
    except Exception:
        for stream in streams:
            if stream._errors:
                raise stream._errors[0] from None
        raise
