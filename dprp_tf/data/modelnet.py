"""ModelNet's objects as voxel grids in an .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dprp_tf.data.arrays import as_labels, count_classes
from dprp_tf.data.augmentation import TurnAndShift
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.npz import read_npz

__all__ = ["load_modelnet"]


def load_modelnet(path: Path, size: int | None = None) -> Dataset:
    """Load ModelNet10 or ModelNet40 as voxels; meshes have to be turned into voxels before.

    The file holds

    - `x_train`, `x_test`: occupancy, `(grids, x, y, z[, channels])`, the last axis z pointing
      up; truth values, whole numbers or floats (1 is full, 0 empty);
    - `y_train`, `y_test`: labels, `(grids,)`;
    - `classes`, if wanted: names of the labels, an array of text. Without it the training labels
      must be 0, 1, ... without gaps.

    Grids smaller than `size` get empty voxels around them, as VoxNet puts grids of 30 into 32.

    Args:
        path: The .npz file.
        size: Voxels along each axis. Defaults to None: 32, or what they have if that is more.

    Returns:
        The dataset, named as the file; its augmentation is `TurnAndShift`.

    Raises:
        ValueError: If the file can't be read, or does not hold such arrays.

    Source: Wu et al., "3D ShapeNets: a deep representation for volumetric shapes", 2015;
    Maturana and Scherer, "VoxNet", 2015.

    Example:

    >>> load_modelnet.__name__
    'load_modelnet'
    """
    arrays, classes = read_npz(path)
    for split in ("train", "test"):
        grids = _as_grids(arrays[f"x_{split}"], f"x_{split}", path)
        arrays[f"x_{split}"] = _padded(grids, size, f"x_{split}", path)
        arrays[f"y_{split}"] = as_labels(arrays[f"y_{split}"], f"y_{split}", str(path))
    if arrays["x_train"].dtype != arrays["x_test"].dtype:
        for key in ("x_train", "x_test"):
            arrays[key] = arrays[key].astype(np.float32)
    if classes is None:
        classes = count_classes(arrays["y_train"], str(path))
    splits: dict[str, Any] = arrays
    return Dataset(path.stem, **splits, classes=classes, augmentation=TurnAndShift())


def _as_grids(grids: np.ndarray, key: str, path: Path) -> np.ndarray:
    if grids.ndim == 4:
        grids = grids[..., None]
    if grids.ndim != 5 or 0 in grids.shape or grids.dtype.kind not in "buif":
        raise ValueError(
            f"`{key}` must hold voxel grids, numbers of the shape (grids, x, y, z[, channels]), "
            f"at least one. Received: shape={grids.shape}, dtype={grids.dtype} in {path}."
        )
    if grids.dtype == np.uint8:
        return grids
    if grids.dtype.kind == "b" or (
        grids.dtype.kind in "ui" and grids.min() >= 0 and grids.max() <= 255
    ):
        return grids.astype(np.uint8)
    return grids.astype(np.float32, copy=False)


def _padded(grids: np.ndarray, size: int | None, key: str, path: Path) -> np.ndarray:
    sides = grids.shape[1:4]
    target = max(32, *sides) if size is None else size
    if max(sides) > target:
        raise ValueError(
            f"`image_size` must be at least the grids' size, which can't be lowered. Received: "
            f"image_size={size}, shape={grids.shape} for {key} in {path}. Make smaller voxels."
        )
    if sides == (target,) * 3:
        return grids
    margins = [((target - side) // 2, (target - side + 1) // 2) for side in sides]
    return np.pad(grids, [(0, 0), *margins, (0, 0)])
