"""ImageNet, and other image folders too large for memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dprp_tf.data.augmentation import ResizedCrop
from dprp_tf.data.dataset import Dataset
from dprp_tf.data.folders import class_folders
from dprp_tf.data.images import IMAGE_SUFFIXES, is_image
from dprp_tf.data.streaming import StreamedImages

__all__ = ["load_imagenet"]

_NAME_FILES = ("classes.txt", "LOC_synset_mapping.txt")


def load_imagenet(root: Path, size: tuple[int, int] = (224, 224), seed: int = 0) -> Dataset:
    """List the images of `root/train/<class>/` and `root/val/<class>/`; they stay on disk.

    For ImageNet a class folder is called by its number in WordNet, as n01440764; labels are the
    folders in sorted order. A file `classes.txt` or `LOC_synset_mapping.txt` in `root` may name
    them, a line for each: the folder, a space, the name, up to the first comma. Images of both
    splits come in a shuffled order, so that the first ones are a sample of all classes.

    Training images are random parts (`ResizedCrop`); test images, and training images without
    augmentation, are resized until the shorter side is 8/7 of `size` (256 for 224), and their
    middle is taken.

    Args:
        root: The folder.
        size: Height and width to return. Defaults to (224, 224).
        seed: Seed of the order. Defaults to 0.

    Returns:
        The dataset; `x_train` and `x_test` are `StreamedImages`. An image that can't be read is
        noticed when its turn comes.

    Raises:
        ValueError: If the folder is arranged in another way.

    Example:

    >>> load_imagenet.__name__
    'load_imagenet'
    """
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise ValueError(
                f"`source` must hold train/<class>/ and val/<class>/. Received: {root} without "
                f"{split}/. A folder with other parts loads without the prefix imagenet:."
            )
    folders = tuple(folder.name for folder in class_folders(root / "train"))
    held_out = tuple(folder.name for folder in class_folders(root / "val"))
    if len(folders) < 2:
        raise ValueError(
            "`source` must hold at least two class folders in train/. Received: "
            f"{len(folders)} ({', '.join(folders) or 'none'}) in {root}."
        )
    unknown = sorted(set(held_out) - set(folders))
    if unknown or not held_out:
        raise ValueError(
            "`source` must hold in val/ class folders, and only those that train/ holds. "
            f"Received: {', '.join(unknown[:5]) or 'no class folder'} in {root / 'val'}. Sort "
            "the validation images into folders of the names that train/ has."
        )
    x_train = _list_images(root / "train", folders, size, seed)
    x_test = _list_images(root / "val", held_out, size, seed)
    number = {name: label for label, name in enumerate(folders)}
    y_test = np.array([number[name] for name in held_out], np.int32)[x_test.labels]
    return Dataset(
        "imagenet",
        x_train,
        x_train.labels,
        x_test,
        y_test,
        _class_names(root, folders),
        ResizedCrop(),
    )


def _list_images(
    root: Path, folders: tuple[str, ...], size: tuple[int, int], seed: int
) -> StreamedImages:
    names: list[bytes] = []
    labels: list[np.ndarray] = []
    for label, folder in enumerate(folders):
        with os.scandir(root / folder) as entries:
            found = sorted(os.fsencode(entry.name) for entry in entries if is_image(entry.name))
        if not found:
            raise ValueError(
                f"`source` must hold images in every class folder. Received: {root / folder} with "
                f"none (looked for {', '.join(sorted(IMAGE_SUFFIXES))}). Add images or remove it."
            )
        names += found
        labels.append(np.full(len(found), label, np.int32))
    order = np.random.default_rng(seed).permutation(len(names))
    # Bytes of one length each: a million names in some 30 MB.
    return StreamedImages(
        root, folders, np.array(names)[order], np.concatenate(labels)[order], size
    )


def _class_names(root: Path, folders: tuple[str, ...]) -> tuple[str, ...]:
    file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return folders
    names: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        folder, _, name = line.strip().partition(" ")
        if name.strip():
            names[folder] = name.split(",")[0].strip()
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise ValueError(
            f"`source` must name every class folder in {file.name}, as 'folder name' in a line "
            f"each. Received: {file} without {', '.join(missing[:5])}. Add them or remove the "
            "file."
        )
    return tuple(names[folder] for folder in folders)
