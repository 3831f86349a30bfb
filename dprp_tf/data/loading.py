"""From what a user writes to a data set."""

from __future__ import annotations

import os
from pathlib import Path

from dprp_tf.data.dataset import Dataset
from dprp_tf.data.digits import load_digits
from dprp_tf.data.folders import load_folder
from dprp_tf.data.gtsrb import load_gtsrb
from dprp_tf.data.imagenet import load_imagenet
from dprp_tf.data.keras_sets import KERAS_SETS, load_keras_set
from dprp_tf.data.modelnet import load_modelnet
from dprp_tf.data.npz import load_npz
from dprp_tf.files.arguments import is_integer

__all__ = ["LAYOUTS", "SOURCES", "load"]

SOURCES = ("digits", *KERAS_SETS)
"""The names `load` knows; anything else is a path."""

LAYOUTS = ("gtsrb", "imagenet", "modelnet")
"""What may stand before a colon and a path, to say how the files there are arranged."""


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
    - `"gtsrb:PATH"`: the German traffic signs in their official folders, see `load_gtsrb`;
      `image_size` is 48 unless given.
    - `"imagenet:PATH"`: a folder `root/train/<class>/` and `root/val/<class>/` whose images stay
      on disk, see `load_imagenet`; `image_size` is 224 unless given.
    - `"modelnet:PATH"`: an .npz file of voxel grids, see `load_modelnet`; `image_size` is the
      number of voxels along each axis, 32 unless given.

    Where there is no test split, one is taken: from every class the same share. Each source
    brings the augmentation that papers train it with (`Dataset.augmentation`).

    Args:
        source: A name above or a path; write `./digits` for a folder of such a name.
        image_size: Height and width to resize all images to, in pixels; one number for a square.
            Required for a folder whose images differ in size. Defaults to None: 16 for digits,
            as above where a path has a prefix, otherwise the size they have.
        test_fraction: Share of each class held out where the source has no test split, between
            0 and 1. Defaults to 0.2.
        seed: Seed of that split, and of the order of images from `gtsrb:` and `imagenet:`.
            Defaults to 0.

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
        return load_digits(size or (16, 16), test_fraction, seed)
    if name in KERAS_SETS:
        return load_keras_set(name, size)
    layout, colon, rest = name.partition(":")
    if colon and layout in LAYOUTS:
        return _load_layout(layout, Path(rest).expanduser(), name, size, seed)
    path = Path(source)
    if path.is_dir():
        return load_folder(path, size, test_fraction, seed)
    if not path.exists():
        raise FileNotFoundError(
            f"`source` must be one of {', '.join(SOURCES)}, an .npz file, a folder of images, or "
            f"a path after {', '.join(f'{part}:' for part in LAYOUTS)}. Received: "
            f"source={name!r}, which does not exist."
        )
    if path.suffix.lower() != ".npz":
        raise ValueError(
            f"`source` must be an .npz file or a folder of images. Received: source={name!r}."
        )
    return load_npz(path, size)


def _load_layout(
    layout: str, path: Path, source: str, size: tuple[int, int] | None, seed: int
) -> Dataset:
    wanted = "an .npz file" if layout == "modelnet" else "a folder"
    if not (path.is_file() if layout == "modelnet" else path.is_dir()):
        kind: type[OSError] = NotADirectoryError if path.exists() else FileNotFoundError
        if path.is_dir():
            kind = IsADirectoryError
        raise kind(
            f"`source` must name {wanted} after {layout}:. Received: source={source!r}, which "
            f"{'is something else' if path.exists() else 'does not exist'}."
        )
    if layout == "gtsrb":
        return load_gtsrb(path, size or (48, 48), seed)
    if layout == "imagenet":
        return load_imagenet(path, size or (224, 224), seed)
    if size is not None and size[0] != size[1]:
        raise ValueError(
            f"`image_size` must be one number for voxel grids. Received: image_size={size}."
        )
    return load_modelnet(path, None if size is None else size[0])


def _image_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2 or not all(map(is_integer, size)):
        raise ValueError(
            "`image_size` must be a number of pixels or (height, width), at least 1. Received: "
            f"image_size={image_size}."
        )
    return int(size[0]), int(size[1])
