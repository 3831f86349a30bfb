"""From named arrays of usual shapes and dtypes to a data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dprp_tf.data.augmentation import Augmentation
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.images import resize

__all__ = ["ARRAYS", "as_labels", "count_classes", "from_arrays"]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
"""The arrays that a source brings."""


def from_arrays(
    name: str,
    arrays: dict[str, np.ndarray],
    size: tuple[int, int] | None,
    classes: tuple[str, ...] | None,
    **options: Augmentation | None,
) -> Dataset:
    """Make a data set of images out of arrays.

    Args:
        name: Name of the data set.
        arrays: Those of `ARRAYS`; images `(images, height, width[, channels])`.
        size: Height and width to resize to; None for those they have.
        classes: Name of each label; None if the labels are 0, 1, ... without gaps.
        **options: `augmentation`, if it is not the usual one.

    Returns:
        The dataset.

    Raises:
        ValueError: If the arrays are no images and labels, or do not fit each other.

    Example:

    >>> x, y = np.zeros((2, 4, 4), "uint8"), np.array([0, 1])
    >>> from_arrays("a", {"x_train": x, "y_train": y, "x_test": x, "y_test": y}, None, None).classes
    ('0', '1')
    """
    arrays = dict(arrays)
    others: dict[str, Any] = {"classes": classes, **options}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = _as_images(arrays[f"x_{split}"], f"x_{split}", name)
        arrays[f"y_{split}"] = as_labels(arrays[f"y_{split}"], f"y_{split}", name)
    if arrays["x_train"].dtype != arrays["x_test"].dtype:
        for key in ("x_train", "x_test"):
            arrays[key] = arrays[key].astype(np.float32)
    if classes is None:
        others["classes"] = count_classes(arrays["y_train"], name)
    dataset = Dataset(
        name, arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"], **others
    )
    if size is None or size == dataset.image_shape[:2]:
        return dataset
    return replace(
        dataset,
        x_train=resize(arrays["x_train"], size),
        x_test=resize(arrays["x_test"], size),
    )


def _as_images(images: np.ndarray, key: str, name: str) -> np.ndarray:
    if images.ndim == 5:
        raise ValueError(
            f"`{key}` must hold images, (images, height, width[, channels]). Received: "
            f"shape={images.shape} in {name}. Voxel grids load as modelnet:PATH."
        )
    if images.dtype.kind not in "uif":
        raise ValueError(
            f"`{key}` must hold numbers. Received: dtype={images.dtype} in {name}. Save uint8 or "
            "float32."
        )
    if images.ndim not in (3, 4):
        raise ValueError(
            f"`{key}` must hold images, (images, height, width[, channels]). Received: "
            f"shape={images.shape} in {name}."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "ui" and images.size and images.min() >= 0 and images.max() <= 255:
        return images.astype(np.uint8)
    return images.astype(np.float32, copy=False)


def as_labels(labels: np.ndarray, key: str, name: str) -> np.ndarray:
    """Return labels as int32, one per example.

    Args:
        labels: Whole numbers, `(examples,)` or `(examples, 1)`.
        key: What to call them in an error.
        name: What to call the source.

    Returns:
        int32, `(examples,)`.

    Raises:
        ValueError: If they are something else.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise ValueError(
            f"`{key}` must hold one whole number per image. Received: shape={labels.shape}, "
            f"dtype={labels.dtype} in {name}. Turn one-hot labels into numbers with "
            "argmax(axis=-1); files are held against labels of other kinds by dprp bench --score."
        )
    if labels.size and (labels.min() < 0 or labels.max() >= 2**31):
        raise ValueError(
            f"`{key}` must hold labels from 0 upwards. Received: labels from {labels.min()} to "
            f"{labels.max()} in {name}."
        )
    return labels.astype(np.int32)


def count_classes(labels: np.ndarray, name: str) -> tuple[str, ...]:
    """Name the classes by their numbers.

    Args:
        labels: Labels of the training split.
        name: What to call the source in an error.

    Returns:
        "0", "1", ...

    Raises:
        ValueError: If the labels have gaps or there is one class only.
    """
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
