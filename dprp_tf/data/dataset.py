"""What every source becomes: labelled images of a training and a test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dprp_tf.data.augmentation import Augmentation, CropAndFlip, ResizedCrop
from dprp_tf.data.sampling import balanced_sample
from dprp_tf.data.streaming import StreamedImages

__all__ = ["Dataset"]

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images or voxel grids and labels of a training and a test split, checked when it is made.

    Args:
        name: What to call it in tables and file names.
        x_train: Training images, `(images, height, width, channels)`, or voxel grids, `(grids,
            depth, height, width, channels)`, float32 or uint8, finite. Values of images count as
            0 to 255 wherever that matters. An array, or `StreamedImages`, which stay on disk.
        y_train: Training labels, `(images,)`, whole numbers from 0 to `len(classes) - 1`.
        x_test: Test images, of the training images' shape and dtype.
        y_test: Test labels.
        classes: Name of each label, at least two.
        augmentation: What `batches` does to training images unless told otherwise; None for
            nothing. Defaults to `CropAndFlip()`. A `ResizedCrop` needs `StreamedImages`.
        drawn_test_split: Whether the test images were drawn at random when the data were loaded,
            so that a model trained elsewhere may know them. Default False.
        normalization: The mean and the std that `normalized` applied; None for data as they are.

    Raises:
        ValueError: If the arrays do not fit each other or these descriptions.

    Example:

    >>> images, labels = np.zeros((4, 8, 8, 1), "uint8"), np.array([0, 1, 0, 1])
    >>> Dataset("tiny", images, labels, images[:2], labels[:2], ("no", "yes")).image_shape
    (8, 8, 1)
    """

    name: str
    x_train: np.ndarray | StreamedImages
    y_train: np.ndarray
    x_test: np.ndarray | StreamedImages
    y_test: np.ndarray
    classes: tuple[str, ...]
    augmentation: Augmentation | ResizedCrop | None = field(default_factory=CropAndFlip)
    drawn_test_split: bool = False
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(
                f"`classes` must name at least two classes. Received: classes={self.classes} "
                f"in {self.name}. Add images of another class."
            )
        for split in ("train", "test"):
            self._check_split(split)
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                "`x_test` must hold images of the shape that `x_train` holds. Received: "
                f"{self.x_train.shape[1:]} in x_train, {self.x_test.shape[1:]} in x_test of "
                f"{self.name}."
            )
        if self.x_train.dtype != self.x_test.dtype:
            raise ValueError(
                "`x_test` must have the dtype of `x_train`. Received: "
                f"{self.x_train.dtype} in x_train, {self.x_test.dtype} in x_test of {self.name}."
            )
        self._check_augmentation()

    def _check_augmentation(self) -> None:
        chosen = self.augmentation
        if isinstance(chosen, ResizedCrop):
            fits = isinstance(self.x_train, StreamedImages)
        else:
            fits = chosen is None or len(chosen.axes) == self.x_train.ndim
        if not fits:
            raise ValueError(
                "`augmentation` must fit the images. Received: "
                f"{type(chosen).__name__} for {type(self.x_train).__name__} of the shape "
                f"{self.x_train.shape} in {self.name}. Pass None, `TurnAndShift` for voxel grids "
                "(axes of grid and channels after the first), `ResizedCrop` for streamed images."
            )

    def _check_split(self, split: str) -> None:
        x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
        if x.ndim not in (4, 5) or 0 in x.shape:
            raise ValueError(
                f"`x_{split}` must have the shape (images, height, width, channels), or (grids, "
                "depth, height, width, channels), and hold at least one image. Received: "
                f"shape={x.shape} in {self.name}."
            )
        if x.dtype not in (np.float32, np.uint8):
            raise ValueError(
                f"`x_{split}` must be float32 or uint8. Received: dtype={x.dtype} in {self.name}."
            )
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
            raise ValueError(
                f"`y_{split}` must hold one whole number per image. Received: "
                f"shape={y.shape}, dtype={y.dtype} in {self.name}. Turn one-hot labels into "
                "numbers with argmax(axis=-1)."
            )
        if len(x) != len(y):
            raise ValueError(
                f"`y_{split}` must have one label per image. Received: {len(x)} images and "
                f"{len(y)} labels in {self.name}."
            )
        if y.min() < 0 or y.max() >= len(self.classes):
            raise ValueError(
                f"`y_{split}` must hold labels from 0 to {len(self.classes) - 1}, one per class. "
                f"Received: labels from {y.min()} to {y.max()} in {self.name}."
            )
        if split == "train" and len(np.unique(y)) < 2:
            raise ValueError(
                "`y_train` must hold at least two classes. Received: only label "
                f"{y[0]} in {self.name}. Add images of another class."
            )
        in_memory = isinstance(x, np.ndarray)  # what streams is whole numbers on disk
        if (
            in_memory
            and x.dtype == np.float32
            and not all(
                np.isfinite(x[start : start + _CHUNK]).all() for start in range(0, len(x), _CHUNK)
            )
        ):
            raise ValueError(
                f"`x_{split}` must be finite. Received: NaN or infinite values in {self.name}. "
                "Remove or repair those images."
            )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of one image; of a voxel grid its depth first."""
        return tuple(self.x_train.shape[1:])

    @property
    def streamed(self) -> bool:
        """Whether images are read from disk when they are needed."""
        return isinstance(self.x_train, StreamedImages) or isinstance(self.x_test, StreamedImages)

    @property
    def description(self) -> dict[str, Any]:
        """Name, number of classes and of images, image shape and split, as plain values."""
        return {
            "name": self.name,
            "classes": len(self.classes),
            "train": len(self.x_train),
            "test": len(self.x_test),
            "image_shape": list(self.image_shape),
            "drawn_test_split": self.drawn_test_split,
        }

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the training images; over 1,024 of them if they stream."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the training images, 1 if it never varies."""
        return self._moments[1]

    def sample(self, split: str, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw images of a split, the same by the same seed, as many of every class as there are.

        Args:
            split: `"train"` or `"test"`.
            samples: How many, 1 or more; all of the split if it has no more.
            seed: Seed of the draw. Default 0.

        Returns:
            Images as a float32 array, and their labels, in the order of the data set.

        Example:

        >>> images, labels = np.zeros((6, 8, 8, 1), "uint8"), np.array([0, 0, 0, 0, 1, 1])
        >>> tiny = Dataset("tiny", images, labels, images, labels, ("no", "yes"))
        >>> tiny.sample("train", 4)[1].tolist()
        [0, 0, 1, 1]
        """
        x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
        rows = balanced_sample(y, samples, seed)
        return np.asarray(x[rows]).astype(np.float32), y[rows]

    def with_rows(self, rows: np.ndarray, split: str = "train") -> Dataset:
        """Return the data set with some of the samples of a split alone.

        Args:
            rows: Their numbers, in the order in which they are wanted.
            split: `"train"` or `"test"`. Default `"train"`.

        Returns:
            The data with those; images on disk stay there.

        Example:

        >>> images, labels = np.zeros((4, 8, 8, 1), "uint8"), np.array([0, 1, 0, 1])
        >>> tiny = Dataset("tiny", images, labels, images, labels, ("no", "yes"))
        >>> tiny.with_rows(np.array([3, 0])).y_train.tolist()
        [1, 0]
        """
        images, labels = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
        # Indexed, those on disk would all be read.
        kept = images.subset(rows) if isinstance(images, StreamedImages) else images[rows]
        changed: dict[str, Any] = {f"x_{split}": kept, f"y_{split}": labels[rows]}
        return replace(self, **changed)

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> Dataset:
        """Return the data set as (x - mean) / std, for a model that expects such inputs.

        Args:
            mean: One number per channel, or a single one for all.
            std: Likewise, above 0.

        Returns:
            A float32 data set; labels are shared.

        Raises:
            ValueError: If the numbers do not fit the channels.

        Example:

        >>> images, labels = np.full((2, 8, 8, 1), 4, "uint8"), np.array([0, 1])
        >>> tiny = Dataset("tiny", images, labels, images, labels, ("no", "yes"))
        >>> float(tiny.normalized([2], [4]).x_test.max())
        0.5
        """
        channels = self.image_shape[-1]
        shift, scale = (np.asarray(values, np.float32).reshape(-1) for values in (mean, std))
        for name, values in (("mean", shift), ("std", scale)):
            if len(values) not in (1, channels) or not np.all(np.isfinite(values)):
                raise ValueError(
                    f"`{name}` must hold one finite number, or one per channel ({channels}). "
                    f"Received: {name}={values.tolist()}."
                )
        if np.any(scale <= 0):
            raise ValueError(f"`std` must be above 0. Received: std={scale.tolist()}.")

        def change(images: np.ndarray | StreamedImages) -> np.ndarray | StreamedImages:
            if isinstance(images, StreamedImages):
                return images.normalized(shift.tolist(), scale.tolist())
            return (images.astype(np.float32) - shift) / scale

        applied = (tuple(shift.tolist()), tuple(scale.tolist()))
        if self.normalization is not None:
            before, by = (np.asarray(part, np.float32) for part in self.normalization)
            applied = (tuple((before + by * shift).tolist()), tuple((by * scale).tolist()))
        return replace(
            self,
            x_train=change(self.x_train),
            x_test=change(self.x_test),
            normalization=applied,
        )

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = self.image_shape[-1]
        images = self.x_train
        if isinstance(images, StreamedImages):
            sample = np.linspace(0, len(images) - 1, min(len(images), _CHUNK))
            images = images[np.unique(np.rint(sample).astype(np.int64))]
        count = images.size // channels
        mean, squares = np.zeros(channels), np.zeros(channels)
        starts = range(0, len(images), _CHUNK)

        def pixels(start: int) -> np.ndarray:
            chunk = images[start : start + _CHUNK]
            return chunk.reshape(-1, channels).astype(np.float64)

        for start in starts:
            chunk = pixels(start)
            # A product with ones is a sum that BLAS does, many times faster for few channels.
            mean += np.ones(len(chunk)) @ chunk / count
        for start in starts:
            chunk = pixels(start) - mean
            squares += np.einsum("ij,ij->j", chunk, chunk)
        std = np.sqrt(squares / count)
        std[std <= 1e-7 * np.abs(mean)] = 1  # below what float32 can tell apart
        return tuple(mean.tolist()), tuple(std.tolist())
