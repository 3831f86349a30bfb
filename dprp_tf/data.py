"""Labelled images from scikit-learn's digits, Keras' datasets, .npz files and image folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["SOURCES", "Dataset", "batches", "load"]

SOURCES = ("digits", "cifar10", "cifar100", "mnist", "fashion_mnist")
"""The names `load` knows; anything else is a path."""

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of a training and a test split, checked when it is made.

    Args:
        name: What to call it in tables and file names.
        x_train: Training images, `(images, height, width, channels)`, float32 or uint8, finite.
            Values count as 0 to 255 wherever that matters.
        y_train: Training labels, `(images,)`, whole numbers from 0 to `len(classes) - 1`.
        x_test: Test images, of the training images' shape and dtype.
        y_test: Test labels.
        classes: Name of each label, at least two.

    Raises:
        ValueError: If the arrays do not fit each other or these descriptions.

    Example:

    >>> images, labels = np.zeros((4, 8, 8, 1), "uint8"), np.array([0, 1, 0, 1])
    >>> Dataset("tiny", images, labels, images[:2], labels[:2], ("no", "yes")).image_shape
    (8, 8, 1)
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]

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

    def _check_split(self, split: str) -> None:
        x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(
                f"`x_{split}` must have the shape (images, height, width, channels) and hold at "
                f"least one image. Received: shape={x.shape} in {self.name}."
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
        if x.dtype == np.float32 and not all(
            np.isfinite(x[start : start + _CHUNK]).all() for start in range(0, len(x), _CHUNK)
        ):
            raise ValueError(
                f"`x_{split}` must be finite. Received: NaN or infinite values in {self.name}. "
                "Remove or repair those images."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.x_train.shape[1:]
        return height, width, channels

    @property
    def description(self) -> dict[str, Any]:
        """Name, number of classes and of images, and image shape, as plain values for a report."""
        return {
            "name": self.name,
            "classes": len(self.classes),
            "train": len(self.x_train),
            "test": len(self.x_test),
            "image_shape": list(self.image_shape),
        }

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the training images."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the training images, 1 if it never varies."""
        return self._moments[1]

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
        return replace(
            self,
            x_train=(self.x_train.astype(np.float32) - shift) / scale,
            x_test=(self.x_test.astype(np.float32) - shift) / scale,
        )

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = self.image_shape[-1]
        count = self.x_train[..., 0].size
        mean, squares = np.zeros(channels), np.zeros(channels)
        starts = range(0, len(self.x_train), _CHUNK)

        def pixels(start: int) -> np.ndarray:
            chunk = self.x_train[start : start + _CHUNK]
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


def load(
    source: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Load labelled images by name, from an .npz file or from a folder of images.

    Sources:

    - `"digits"`: scikit-learn's 8x8 digits, enlarged smoothly to `image_size` (default 16),
      values 0 to 255. No download.
    - `"cifar10"`, `"cifar100"`, `"mnist"`, `"fashion_mnist"`: Keras' own loaders, which download.
    - a file `*.npz` with `x_train`, `y_train`, `x_test`, `y_test` and, if wanted, `classes`
      (names). Images are `(images, height, width[, channels])` or uint8 or float; without
      `classes` the training labels must be 0, 1, ... without gaps.
    - a folder `root/<class>/*.png` (or .jpg and other usual formats), or `root/train/<class>/`
      with or without `root/test/<class>/`. Files are read in sorted order and turned upright;
      all become color unless all are gray.

    Where there is no test split, one is taken: from every class the same share.

    Args:
        source: A name above or a path; write `./digits` for a folder of such a name.
        image_size: Height and width to resize all images to, in pixels; one number for a square.
            Required for a folder whose images differ in size. Defaults to None: 16 for digits,
            otherwise the size they have.
        test_fraction: Share of each class held out where the source has no test split, between
            0 and 1. Defaults to 0.2.
        seed: Seed of that split. Defaults to 0.

    Returns:
        The dataset.

    Raises:
        ValueError: If the file or folder does not hold what is described above.
        FileNotFoundError: If `source` is neither a known name nor an existing path.
        OSError: If a download fails.

    Example:

    >>> load("digits").image_shape
    (16, 16, 1)
    """
    size = _image_size(image_size)
    if not 0 < test_fraction < 1:
        raise ValueError(
            "`test_fraction` must lie between 0 and 1, both excluded. Received: "
            f"test_fraction={test_fraction}. 0.2 holds out a fifth."
        )
    name = os.fspath(source)
    if name == "digits":
        return _load_digits(size or (16, 16), test_fraction, seed)
    if name in SOURCES:
        return _load_keras(name, size)
    path = Path(source)
    if path.is_dir():
        return _load_folder(path, size, test_fraction, seed)
    if not path.exists():
        raise FileNotFoundError(
            f"`source` must be one of {', '.join(SOURCES)}, an .npz file or a folder of images. "
            f"Received: source={name!r}, which does not exist."
        )
    if path.suffix.lower() != ".npz":
        raise ValueError(
            f"`source` must be an .npz file or a folder of images. Received: source={name!r}."
        )
    return _load_npz(path, size)


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    augment: bool = True,
    padding: int = 4,
    flip: bool = True,
    shuffle: bool = True,
    drop_remainder: bool = False,
    seed: int = 0,
    epoch: int = 0,
) -> tf.data.Dataset:
    """Stream the training split as shuffled, augmented float32 batches through tf.data.

    Each pass over the result is the next epoch: the first pass yields epoch `epoch`, the second
    `epoch + 1`, ... Order, crops and flips depend on `(seed, epoch)` alone, so a run resumed at
    epoch k with `epoch=k` sees what the uninterrupted run saw. (Keras' JAX trainer peeks at the
    first batch before it trains a new model, which costs one pass in either run.) A whole batch
    is gathered, padded and cropped by a handful of operations. For digits use
    `padding=1, flip=False`. Pass `shuffle=False` to `fit`, which otherwise warns that it can't
    shuffle a pipeline.

    Args:
        dataset: Where the training split comes from.
        batch_size: Images per batch, at least 1.
        augment: Whether to crop and flip. Defaults to True.
        padding: Largest shift in pixels, at least 0. Defaults to 4.
        flip: Whether to mirror half of the images. Defaults to True.
        shuffle: Whether to shuffle, differently in each epoch. Defaults to True.
        drop_remainder: Whether to leave out a last batch that is not full. Defaults to False.
        seed: Seed of everything random, from 0 to 2**31 - 1. Defaults to 0.
        epoch: Epoch of the first pass, at least 0. Defaults to 0.

    Returns:
        A dataset of known length that yields `(images, labels)`: `(batch, height, width,
        channels)` float32 of the range the images had, and `(batch,)` int32.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    >>> digits = load("digits")
    >>> len(batches(digits, 128, padding=1, flip=False))
    12
    """
    import tensorflow as tf

    from dprp_tf.augmentation import crop_and_flip_in_tensorflow

    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}.")
    if padding < 0:
        raise ValueError(f"`padding` must be at least 0. Received: padding={padding}.")
    if not 0 <= seed < 2**31:
        raise ValueError(f"`seed` must lie from 0 to 2**31 - 1. Received: seed={seed}.")
    if epoch < 0:
        raise ValueError(f"`epoch` must be at least 0. Received: epoch={epoch}.")
    count = len(dataset.x_train)
    steps = count // batch_size if drop_remainder else -(-count // batch_size)
    if steps == 0:
        raise ValueError(
            f"`batch_size` must be at most the {count} training images with drop_remainder=True. "
            f"Received: batch_size={batch_size}."
        )
    # On the host: the pipeline runs there whatever trains.
    with tf.device("CPU"):
        images = tf.constant(dataset.x_train)
        labels = tf.constant(dataset.y_train.astype(np.int32))
        next_epoch = tf.Variable(epoch, dtype=tf.int64, trainable=False)

    def one_epoch(_: tf.Tensor) -> tf.data.Dataset:
        current = next_epoch.assign_add(1) - 1
        if shuffle:
            keys = tf.random.stateless_uniform(
                [count], seed=tf.stack([tf.constant(seed, tf.int64), current])
            )
            order = tf.argsort(keys, stable=True)
        else:
            order = tf.range(count)

        def one_batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            chosen = order[step * batch_size : (step + 1) * batch_size]
            if drop_remainder:
                chosen = tf.ensure_shape(chosen, [batch_size])
            x, y = tf.gather(images, chosen), tf.gather(labels, chosen)
            if augment:
                x = crop_and_flip_in_tensorflow(x, (seed, current, step), padding, flip)
            return tf.cast(x, tf.float32), y

        return tf.data.Dataset.range(steps).map(one_batch)

    stream = tf.data.Dataset.from_tensors(0).flat_map(one_epoch)
    return stream.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(4)


def _load_digits(size: tuple[int, int], test_fraction: float, seed: int) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The source "digits" needs scikit-learn: pip install scikit-learn.'
        ) from error
    digits = load_digits()
    images = (digits.images[..., None] * (255 / 16)).astype(np.float32)
    images = _resize(images, size)
    train, test = _stratified_split(digits.target, test_fraction, seed, "digits")
    labels = digits.target.astype(np.int32)
    names = tuple(str(n) for n in digits.target_names)
    return Dataset("digits", images[train], labels[train], images[test], labels[test], names)


def _load_keras(name: str, size: tuple[int, int] | None) -> Dataset:
    import keras

    module = getattr(keras.datasets, name)
    try:
        (x_train, y_train), (x_test, y_test) = module.load_data()
    except Exception as error:  # Keras raises a bare Exception
        raise OSError(
            f"`source`={name!r} could not be downloaded by Keras ({_first_line(error)}). Connect "
            "to the internet, or pass the path of an .npz file with x_train, y_train, x_test, "
            "y_test, or of a folder of images."
        ) from error
    arrays = dict(zip(_ARRAYS, (x_train, y_train, x_test, y_test), strict=True))
    return _from_arrays(name, arrays, size, _CLASS_NAMES[name])


def _load_npz(path: Path, size: tuple[int, int] | None) -> Dataset:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array without a name")
        with file:
            found = file.files
            arrays = {name: file[name] for name in (*_ARRAYS, "classes") if name in found}
    except Exception as error:  # zip, zlib and the array header each have errors of their own
        raise ValueError(
            f"`source` must be a whole .npz file of plain arrays. Received: {path}, which can't "
            f"be read ({_first_line(error)}). Copy or download it again, or save it with "
            "numpy.savez_compressed and arrays of numbers."
        ) from error
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise ValueError(
            f"`source` must hold the arrays {', '.join(_ARRAYS)}. Received: {path} without "
            f"{', '.join(missing)} (it holds {', '.join(found) or 'nothing'}). Save it with "
            "numpy.savez_compressed(path, x_train=..., y_train=..., x_test=..., y_test=...)."
        )
    classes = arrays.pop("classes", None)
    if classes is None:
        return _from_arrays(path.stem, arrays, size, None)
    if classes.ndim != 1 or classes.dtype.kind not in "US":
        raise ValueError(
            "`classes` must be a one-dimensional array of text. Received: "
            f"shape={classes.shape}, dtype={classes.dtype} in {path}."
        )
    return _from_arrays(path.stem, arrays, size, tuple(classes.astype(np.str_).tolist()))


def _from_arrays(
    name: str,
    arrays: dict[str, np.ndarray],
    size: tuple[int, int] | None,
    classes: tuple[str, ...] | None,
) -> Dataset:
    for split in ("train", "test"):
        arrays[f"x_{split}"] = _as_images(arrays[f"x_{split}"], f"x_{split}", name)
        arrays[f"y_{split}"] = _as_labels(arrays[f"y_{split}"], f"y_{split}", name)
    if arrays["x_train"].dtype != arrays["x_test"].dtype:
        for key in ("x_train", "x_test"):
            arrays[key] = arrays[key].astype(np.float32)
    if classes is None:
        classes = _count_classes(arrays["y_train"], name)
    dataset = Dataset(name, **arrays, classes=classes)
    if size is None or size == dataset.image_shape[:2]:
        return dataset
    for key in ("x_train", "x_test"):
        arrays[key] = _resize(arrays[key], size)
    return Dataset(name, **arrays, classes=classes)


def _as_images(images: np.ndarray, key: str, name: str) -> np.ndarray:
    if images.dtype.kind not in "uif":
        raise ValueError(
            f"`{key}` must hold numbers. Received: dtype={images.dtype} in {name}. Save uint8 or "
            "float32."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "ui" and images.size and images.min() >= 0 and images.max() <= 255:
        return images.astype(np.uint8)
    return images.astype(np.float32, copy=False)


def _as_labels(labels: np.ndarray, key: str, name: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise ValueError(
            f"`{key}` must hold one whole number per image. Received: shape={labels.shape}, "
            f"dtype={labels.dtype} in {name}. Turn one-hot labels into numbers with "
            "argmax(axis=-1)."
        )
    if labels.size and (labels.min() < 0 or labels.max() >= 2**31):
        raise ValueError(
            f"`{key}` must hold labels from 0 upwards. Received: labels from {labels.min()} to "
            f"{labels.max()} in {name}."
        )
    return labels.astype(np.int32)


def _count_classes(labels: np.ndarray, name: str) -> tuple[str, ...]:
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError(
            f"`y_train` must hold at least two classes. Received: {len(present)} in {name}. Add "
            "images of another class."
        )
    if present[0] != 0 or present[-1] != len(present) - 1:
        raise ValueError(
            f"`y_train` must hold every label from 0 to {present[-1]}. Received: {len(present)} "
            f"different labels from {present[0]} to {present[-1]} in {name}. Number the classes "
            "from 0 without gaps, or save their names as an array `classes`."
        )
    return tuple(str(n) for n in present)


def _load_folder(
    root: Path, size: tuple[int, int] | None, test_fraction: float, seed: int
) -> Dataset:
    train_root, test_root = root / "train", root / "test"
    # A class may be called "train": only a folder of folders is a split.
    nested = train_root.is_dir() and bool(_folders(train_root))
    split = nested and test_root.is_dir()
    others = [f.name for f in _folders(root) if f not in (train_root, test_root)]
    if nested and others:
        raise ValueError(
            "`source` must hold only train/ and test/ when train/ holds class folders. Received: "
            f"{', '.join(others)} in {root}. Call the held-out folder test and move the rest."
        )
    files, labels, classes = _list_images(train_root if nested else root)
    if len(classes) < 2:
        raise ValueError(
            "`source` must hold at least two class folders of images. Received: "
            f"{len(classes)} ({', '.join(classes) or 'none'}) in {root}. Arrange it as "
            "root/<class>/<image>.png."
        )
    test_files: list[Path] = []
    test_labels = np.zeros(0, np.int32)
    if split:
        test_files, positions, test_classes = _list_images(test_root)
        unknown = sorted(set(test_classes) - set(classes))
        if unknown or not test_classes:
            raise ValueError(
                f"`source` must hold in test/ only classes that train/ holds. Received: "
                f"{', '.join(unknown) or 'no class'} in {test_root}, {', '.join(classes)} in "
                f"{train_root}."
            )
        test_labels = np.array([classes.index(test_classes[p]) for p in positions], np.int32)
    images = _read_images([*files, *test_files], size)
    train_images, test_images = images[: len(files)], images[len(files) :]
    if split:
        return Dataset(root.resolve().name, train_images, labels, test_images, test_labels, classes)
    train, test = _stratified_split(labels, test_fraction, seed, str(root), classes)
    return Dataset(
        root.resolve().name,
        train_images[train],
        labels[train],
        train_images[test],
        labels[test],
        classes,
    )


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_images(root: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    files: list[Path] = []
    labels: list[int] = []
    folders = _folders(root)
    for label, folder in enumerate(folders):
        found = sorted(
            p
            for p in folder.iterdir()
            if p.is_file() and p.suffix.lower() in _IMAGE_SUFFIXES and not p.name.startswith(".")
        )
        if not found:
            raise ValueError(
                f"`source` must hold images in every class folder. Received: {folder} with none "
                f"(looked for {', '.join(sorted(_IMAGE_SUFFIXES))}). Add images or remove it."
            )
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, np.int32), tuple(folder.name for folder in folders)


def _read_images(files: Sequence[Path], size: tuple[int, int] | None) -> np.ndarray:
    images = [_read_image(file, size) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                "`image_size` is required because the images differ in size. Received: "
                f"image_size=None, {files[0]} of {images[0].shape[0]}x{images[0].shape[1]} and "
                f"{file} of {image.shape[0]}x{image.shape[1]} (height x width) pixels."
            )
    channels = max(image.shape[-1] for image in images)
    # (h, w, 1) -> (h, w, 3) where gray and color meet
    return np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in images])


def _read_image(file: Path, size: tuple[int, int] | None) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                # 16 bits of gray -> 8
                gray = np.clip(np.asarray(image, np.float32) / 257, 0, 255)
                image = Image.fromarray(np.rint(gray).astype(np.uint8))
            image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            if size is not None and image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BICUBIC)
            pixels = np.asarray(image, np.uint8)
    except Exception as error:  # a damaged file makes Pillow's decoders raise anything
        raise ValueError(
            f"`source` must hold readable images. Received: {file}, which can't be read "
            f"({_first_line(error)}). Repair or remove it."
        ) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic, antialiased where it shrinks, within the values each array had."""
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


def _stratified_split(
    labels: np.ndarray,
    test_fraction: float,
    seed: int,
    name: str,
    classes: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled indices of both splits; every class is in both."""
    random = np.random.default_rng(seed)
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(
                "`source` must hold at least two images of every class, one to train and one to "
                f"test. Received: one of {classes[label] if classes else label} in {name}."
            )
        held_out = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        test.append(members[:held_out])
        train.append(members[held_out:])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))


def _image_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise ValueError(
            "`image_size` must be a number of pixels or (height, width), at least 1. Received: "
            f"image_size={image_size}."
        )
    return size[0], size[1]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


_CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "cifar100": tuple(str(n) for n in range(100)),
}
